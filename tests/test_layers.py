"""Imports point one way: protocols -> store -> (mailbox, mime, metacache, fscache, objectstore); only main sees all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"obox.errors", "obox.types", "obox.text", "obox.unixsocket"}
VIEW = {"obox", "obox.auth", "obox.spool", "obox.store", "obox.mailbox", "obox.mime", *LEAVES}  # what a protocol sees
# room -> rooms that it may import beside itself. The longest matching prefix counts.
ARROWS: dict[str, set[str]] = {
    "obox": set(),  # __init__: the version
    "obox.errors": set(),
    "obox.types": set(),
    "obox.text": {"obox.errors"},
    "obox.unixsocket": set(),
    "obox.spool": LEAVES,
    "obox._values": set(),
    "obox._settings": {"obox", "obox._values"},
    "obox.config": {"obox", "obox._settings", "obox._values", "obox.errors"},
    "obox.changes": {"obox", "obox.config"},
    "obox.objectstore": LEAVES,
    "obox.mime": LEAVES,
    "obox.mailbox": LEAVES,
    "metacache": set(),
    "fscache": set(),
    "obox.store": {*LEAVES, "obox.mailbox", "obox.mime", "obox.objectstore", "metacache", "fscache"},
    "obox.auth": LEAVES,
    "obox.imap": VIEW,
    "obox.imap.parser": {*LEAVES, "obox.imap"},
    "obox.lmtp": VIEW,
    "obox.pop3": VIEW,
    "obox.managesieve": VIEW,
    "obox.server": {"obox", "obox.config", "obox._values", *LEAVES},
    "obox.admin": {
        *LEAVES,
        "obox",
        "obox.store",
        "obox.auth",
        "obox.mailbox",
        "obox.mime",
        "obox.objectstore",
        "metacache",
    },
    "obox.events": LEAVES,
    "obox.cluster": {*LEAVES, "obox.auth", "obox.events"},
    "admintool": {"obox", "obox.config", "obox._values", "obox.auth", "obox.admin", "obox.wiring", *LEAVES},
}
WIRING = ("obox.main", "obox.backend", "obox.demo", "obox.wiring", "obox.rooms", "obox.reload")  # see all
ARROWS |= {name: set() for name in WIRING}
PURE = ("obox.mailbox", "obox.mime", "obox.imap.parser", "obox._values", "obox.errors", "obox.text", "obox.types")
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
CLIENTS = {"obstore", "boto3", "aioboto3", "botocore"}  # of the bucket


def walk() -> Iterator[tuple[str, Path]]:
    for top in ("obox", "metacache", "fscache", "admintool"):
        for path in sorted((ROOT / top).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


MODULES = list(walk())


def imports(path: Path) -> Iterator[str]:
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*package[: len(package) + 1 - node.level], node.module or ""] if node.level else [node.module or ""]
            )
            yield from (f"{base.strip('.')}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """The longest prefix of a dotted name that is a room."""
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
    for target in imports(path):
        top = target.partition(".")[0]
        if top in ("obox", "metacache", "fscache", "admintool") and not inside(target, mine):
            there = room(target)
            ok = mine in WIRING or there in ARROWS[mine] or (inside(mine, there) and there != "obox")
            assert ok, f"{name} may not import {target}"
        assert top not in CLIENTS or inside(name, "obox.objectstore"), f"{name}: only objectstore imports {top}"
        assert top not in IMPURE or not inside(name, *PURE), f"{name} is pure: no {top}"


def test_modules_have_one_noun() -> None:
    long = {name: lines for name, path in MODULES if (lines := len(path.read_text().splitlines())) > 600}
    assert not long, "past 600 lines look for the second noun"
