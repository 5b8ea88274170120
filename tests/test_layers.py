"""Imports go in a single direction: protocols -> store -> (mailbox, mime, metacache,
fscache, objectstore). Only main may import everything."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from layers import PRODUCT, ROOT, TREE, circles, edges, files, imports, room_of

LEAVES = {
    "obox.accounts",
    "obox.addresses",
    "obox.errors",
    "obox.escaping",
    "obox.forms",
    "obox.lanes",
    "obox.loading",
    "obox.turn",
    "obox.text",
    "obox.types",
    "obox.statelock",
    "obox.unixsocket",
}
# room -> rooms that it may import beside itself. The longest matching prefix counts.
ARROWS: dict[str, set[str]] = {
    # The room `__init__` has the version.
    "obox": set(),
    "obox.accounts": {"obox.escaping", "obox.types"},
    "obox.addresses": set(),
    "obox.escaping": set(),
    "obox.errors": set(),
    "obox.forms": set(),
    "obox.types": set(),
    "obox.text": {"obox.errors"},
    "obox.lanes": set(),
    "obox.loading": set(),
    "obox.turn": set(),
    "obox.statelock": set(),
    "obox.unixsocket": set(),
    "obox.spool": LEAVES,
    "obox.config": {"obox.errors", "obox.text"},
    "obox.changes": {"obox.config"},
    "obox.objectstore": LEAVES,
    "obox.mime": LEAVES,
    "obox.mailbox": LEAVES,
    "metacache": set(),
    "fscache": set(),
    "fscache.disk": set(),
    "obox.store": {*LEAVES, "obox.mailbox", "obox.mime", "obox.objectstore", "metacache", "fscache"},
    "obox.sharing": {*LEAVES, "obox.mailbox", "obox.store"},
    "obox.auth": LEAVES,
    "obox.login": {*LEAVES, "obox.auth", "obox.net", "obox.store"},
    "obox.imap": {
        *LEAVES,
        "obox.auth",
        "obox.login",
        "obox.mailbox",
        "obox.mime",
        "obox.net",
        "obox.sharing",
        "obox.spool",
        "obox.store",
    },
    "obox.imap.parser": {*LEAVES, "obox.imap"},
    "obox.lmtp": {*LEAVES, "obox.auth", "obox.net", "obox.spool", "obox.store"},
    "obox.pop3": {*LEAVES, "obox.auth", "obox.login", "obox.mailbox", "obox.mime", "obox.net", "obox.store"},
    "obox.net": {"obox.config", *LEAVES},
    "obox.server": {"obox.net", "obox.config", *LEAVES},
    "obox.admin": {
        *LEAVES,
        "obox.store",
        "obox.auth",
        "obox.cluster",
        "obox.events",
        "obox.mailbox",
        "obox.mime",
        "obox.objectstore",
        "metacache",
    },
    "obox.events": {*LEAVES, "obox.mailbox", "obox.objectstore", "obox.store"},
    "obox.proxy": {*LEAVES, "obox.auth", "obox.cluster", "obox.lmtp", "obox.login", "obox.net"},
    "obox.cluster": LEAVES,
    "admintool": {"obox", "obox.config", "obox.auth", "obox.admin", "obox.wiring", *LEAVES},
}


def rows_of_flow(heading: str) -> tuple[str, ...]:
    """Return the first column of a table of docs/flow.md, as dotted names."""
    page = (ROOT / "docs/flow.md").read_text()
    table = page.partition(f"| {heading} | what it does |\n")[2].partition("\n\n")[0]
    names = re.findall(r"^\| `(.+?)(?:\.py|/)` ", table, re.MULTILINE)
    return tuple(name.replace("/", ".") for name in names)


WIRING = rows_of_flow("file")
"""These files may import all other rooms, and of these files those that docs/flow.md
has below them."""
ARROWS |= {name: set() for name in WIRING}
PURE = (
    "obox.accounts",
    "obox.addresses",
    "obox.config._values",
    "obox.escaping",
    "obox.forms",
    "obox.mailbox",
    "obox.mime",
    "obox.imap.parser",
    "obox.errors",
    "obox.text",
    "obox.types",
)
IMPURE = {
    "asyncio",
    "socket",
    "ssl",
    "selectors",
    "threading",
    "subprocess",
    "time",
    "random",
    "os",
    "obstore",
    "boto3",
}
IMPURE |= {"aioboto3", "lmdb", "anyio", "uvloop", "starlette"}
# These are clients of the bucket.
CLIENTS = {"obstore", "boto3", "aioboto3", "botocore"}


MODULES = list(files().items())


def room(name: str) -> str:
    """Return the longest prefix of a dotted name that is a room."""
    while name and name not in ARROWS:
        name = name.rpartition(".")[0]
    return name


def inside(name: str, *rooms: str) -> bool:
    return any(name == one or name.startswith(one + ".") for one in rooms)


@pytest.mark.parametrize(("name", "path"), MODULES, ids=lambda value: value if isinstance(value, str) else "")
def test_arrows(name: str, path: Path) -> None:
    mine = room(name)
    assert mine, f"{name}: no such room in design"
    assert name == mine or mine != "obox", f"{name}: a new room; say here what it may import"
    for target in (one.target for one in imports(path)):
        top = target.partition(".")[0]
        if top in PRODUCT and not inside(target, mine):
            there = room(target)
            ok = mine in WIRING or there in ARROWS[mine] or (inside(mine, there) and there != "obox")
            ok = ok and not (mine in WIRING and there in WIRING and WIRING.index(there) < WIRING.index(mine))
            assert ok, f"{name} may not import {target}"
        assert top not in CLIENTS or inside(name, "obox.objectstore"), f"{name}: only objectstore imports {top}"
        assert top not in IMPURE or not inside(name, *PURE), f"{name} is pure: no {top}"


@pytest.mark.parametrize("mine", sorted(ARROWS))
def test_each_arrow_is_used(mine: str) -> None:
    """An arrow that no file uses would allow an import that nobody has decided on."""
    used = {room(one.target) for name, path in MODULES if room(name) == mine for one in imports(path)}
    assert ARROWS[mine] - LEAVES <= used


STORE_ROOMS = ("log", "box", "mails", "user", "backend", "operate")
"""The rooms inside the store. Each may import itself, the rooms before it, and the
files that all of them share."""
STORE_FACES = {"obox.store", "obox.store.memory", "obox.store.content"}
"""The modules that other rooms import from the store. A room inside the store must not
import them, but they may import any."""


def test_rooms_of_the_store_are_in_the_order_of_the_page() -> None:
    assert rows_of_flow("folder of `obox/store/`") == STORE_ROOMS[::-1]


def store_room(name: str) -> str:
    """Return the store's room that a file is in, or "" for a file that all rooms
    share."""
    part = name.removeprefix("obox.store").removeprefix(".").partition(".")[0]
    return part if part in STORE_ROOMS else ""


@pytest.mark.parametrize("name", [name for name, _ in MODULES if inside(name, "obox.store")])
def test_rooms_of_the_store(name: str) -> None:
    mine = store_room(name)
    shared_too = ("", *STORE_ROOMS[: STORE_ROOMS.index(mine) + 1]) if mine else ("",)
    for target in edges()[name]:
        if inside(target, "obox.store") and name not in STORE_FACES:
            assert store_room(target) in shared_too, f"{name} may not import {target}"
            assert target not in STORE_FACES, f"{name} may not import {target}, which is for others"


def test_no_two_files_import_each_other() -> None:
    """The test also finds circles of several files, and imports at any place in a
    file."""
    assert circles(edges(TREE)) == []


OF_LIBRARIES = {
    ("tests.operations.test_procedures", "_imap"),
    ("tests.operations.test_procedures", "_command"),
    ("tests.server.test_log", "_config"),
}
"""Names of imapclient, imaplib and structlog, which happen to be names of the product
as well. imapclient has no public way to send a SELECT with QRESYNC, and the test of
structlog needs `configure` as it was before other tests replaced it."""


def private_imports(*tops: str) -> list[tuple[str, str]]:
    """Return the imports of another room's `_x.py`: the place and the module."""
    known = files(TREE)
    found = []
    for name, path in files(tops).items():
        for one in imports(path):
            target = one.target if one.target in known else one.target.rpartition(".")[0]
            private = target in known and any(part.startswith("_") for part in target.split("."))
            if private and not target.endswith("__main__") and room_of(target) != room_of(name):
                found.append((f"{name}:{one.line}", target))
    return found


def test_no_file_imports_another_rooms_private_module() -> None:
    """`_x.py` belongs to its folder. Other folders import from the `__init__.py` of
    that folder."""
    assert private_imports(*PRODUCT, "bench") == []


def test_tests_use_public_faces() -> None:
    """The folder `tests/x` belongs to the room `obox/x`, so a test of a private module
    lies there. Every other test asks the room's face."""
    of_room = [(name, target) for name, target in private_imports("tests") if name.split(".")[1] in target.split(".")]
    assert private_imports("tests") == of_room


TREE_FILES = frozenset(files(TREE))


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and spelling of each private name of another object that a file uses:
    as an attribute, in an import, or in `monkeypatch.setattr`. Another test reads the
    imports of private modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PRODUCT:
            names = [one.name for one in node.names if f"{node.module}.{one.name}" not in TREE_FILES]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            names = [one.value for one in node.args[1:2] if isinstance(one, ast.Constant)]
        else:
            continue
        yield from ((node.lineno, name) for name in map(str, names) if re.match("_(?!replace$)[A-Za-z]", name))


def defined(tree: ast.Module) -> set[str]:
    """Return the private names that a file defines."""
    nodes = list(ast.walk(tree))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return {name for name in names if name.startswith("_")}


def test_tests_use_public_names() -> None:
    """A test asks what the product shows to everybody: then the code behind it can
    change without the test."""
    modules = {name: ast.parse(path.read_text()) for name, path in files((*PRODUCT, "tests")).items()}
    private = set[str]().union(*(defined(tree) for name, tree in modules.items() if not inside(name, "tests")))
    found = [
        f"{name}:{line} {used}"
        for name, tree in modules.items()
        if inside(name, "tests")
        for line, used in private_names(tree)
        if used in private - defined(tree) and (name, used) not in OF_LIBRARIES
    ]
    assert found == [], "use a public name"


def test_files_of_tests_have_names_of_their_own() -> None:
    """If the folder of a test is no package, the test is imported by its file name
    alone."""
    paths = [path for path in Path(__file__).parent.rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.name for path in paths]
    assert sorted(names) == sorted(set(names))
