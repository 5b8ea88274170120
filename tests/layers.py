"""The imports of the whole tree, as a graph: what `test_layers.py` checks and
`docs/flow.md` draws.

    python -m tests.layers        each room, the rooms that it imports, each circle
    python -m tests.layers --dot  the same as a graph for Graphviz, a cluster each room

An import counts wherever it stands: at the top, inside a function, or under
TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ("obox", "metacache", "fscache", "admintool")
TREE = (*PRODUCT, "bench", "tests")


@dataclass(frozen=True)
class Import:
    """An imported name.

    file: dotted name of the importing file; target: the dotted name with the imported
    name at its end.
    """

    file: str
    target: str
    line: int


def dotted(path: Path) -> str:
    """Return the dotted name of a file: `obox/store/user/user.py` is
    `obox.store.user.user`, and the `__init__.py` of a package is the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def files(tops: tuple[str, ...] = PRODUCT) -> dict[str, Path]:
    """Return all Python files below the top folders, by dotted name."""
    return {dotted(path): path for top in tops for path in sorted((ROOT / top).rglob("*.py"))}


def imports(path: Path) -> Iterator[Import]:
    """Yield each name that a file imports."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(dotted(path), alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*up, node.module or ""]).strip(".")
            yield from (Import(dotted(path), f"{base}.{alias.name}", node.lineno) for alias in node.names)


@cache
def edges(tops: tuple[str, ...] = PRODUCT) -> dict[str, frozenset[str]]:
    """Return for each file the files that it imports."""
    known = files(tops)
    return {name: frozenset(_files(name, path, known)) for name, path in known.items()}


def _files(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    for one in imports(path):
        target = _file(one.target, known)
        # Pytest puts the folder of a test and tests/ on the path.
        if not target and name.startswith("tests."):
            folder = name.rpartition(".")[0]
            target = _file(f"{folder}.{one.target}", known) or _file(f"tests.{one.target}", known)
            target = target if known.get(target, path).name != "__init__.py" else ""
        if target and target != name:
            yield target


def _file(target: str, known: dict[str, Path]) -> str:
    """Return the file that has a dotted name, or "" for a name outside the tree."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
    """Return the groups of files in which each file reaches each other file (Tarjan's
    strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * len(graph)))
    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(found)


def room_of(name: str) -> str:
    """Return the folder of a file. A file directly in `obox` is a room of its own."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "obox" else parts[0]


def dot() -> str:
    """Return the graph for Graphviz."""
    lines = ["digraph imports {", "  rankdir=LR; node [shape=box, fontsize=9];"]
    rooms: dict[str, list[str]] = {}
    for name in files():
        rooms.setdefault(room_of(name), []).append(name)
    for room, names in rooms.items():
        lines.append(f'  subgraph "cluster_{room}" {{ label="{room}";')
        lines += [f'    "{name}";' for name in names]
        lines.append("  }")
    lines += [f'  "{name}" -> "{target}";' for name, targets in edges().items() for target in sorted(targets)]
    return "\n".join([*lines, "}"])


def table() -> str:
    """Return each room and the rooms that it imports."""
    out: dict[str, set[str]] = {}
    for name, targets in edges().items():
        out.setdefault(room_of(name), set()).update(map(room_of, targets))
    lines = [f"{room:20} -> {', '.join(sorted(targets - {room})) or '-'}" for room, targets in sorted(out.items())]
    found = circles(edges())
    lines += [f"circle of {len(group)} files: {', '.join(group)}" for group in found] or ["no circle"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write((dot() if "--dot" in sys.argv else table()) + "\n")
