"""How the two caches are built: sizes, and that no other room uses their private files.
`test_words.py` measures their lines of prose."""

import ast

import pytest
from layers import TREE, files, imports

ROOMS = ("fscache", "metacache")
FILES = files(ROOMS)
FUNCTION_LINES_MAX = 60
METHODS_MAX = 25
FILE_LINES_MAX = 400


def test_the_private_files_of_a_room_are_its_own() -> None:
    """In the whole tree only `room` itself imports `room._x`, and names such as
    `room._x.y`."""
    for name, path in files(TREE).items():
        mine = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for found in imports(path):
            room, private, _ = found.target.partition("._")
            if private and room.partition(".")[0] in ROOMS:
                assert room == mine, f"{name}:{found.line} uses {found.target}"


@pytest.mark.parametrize("name", FILES)
def test_sizes(name: str) -> None:
    text = FILES[name].read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name
        elif isinstance(node, ast.ClassDef):
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert len([method for method in methods if not method.startswith("_")]) <= METHODS_MAX, node.name
