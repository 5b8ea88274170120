"""No file has more than 600 lines, no function more than 60, and no class more than 25
public methods: neither of its own, nor together with what it inherits. Each exception
has its reason.

The lists may only become smaller: a name that no longer needs an exception must be
removed, and no name may be added.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

from layers import PRODUCT, TREE, files

FILE_LINES_MAX = 600
"""A longer file usually has a second subject."""
FUNCTION_LINES_MAX = 60
"""A function of this size fits a screen. A longer function usually has a second
task."""
PUBLIC_METHODS_MAX = 25
"""A class with more methods is usually two classes."""

LARGE: dict[str, str] = {}
LONG: dict[str, str] = {
    "tests.e2e.test_clients.test_mbsync_both_ways_and_then_nothing": "one story of a client, read from top to bottom",
    "tests.objectstore.test_faultproxy.test_what_is_reported_is_true": "one story: each fault and its report",
    "tests.servers.run_seaweedfs": "starts a server in the order that it needs, and stops it in reverse",
}
WIDE: dict[str, str] = {
    "obox.imap._scan.Scan": "one method for each terminal of the grammar of RFC 9051",
    "tests.fscache.test_fscache_model.FscacheMachine": "one method for each rule and invariant of the model",
}
_CONNECTION = "its bytes (net.Stream) and its lines: a second object is too much for an idle connection of 3 KiB"
INHERITING: dict[str, tuple[int, str]] = {
    "obox.imap._scan.Scan": (33, WIDE["obox.imap._scan.Scan"]),
    "obox.imap.connection.Connection": (63, _CONNECTION),
    "obox.imap.session.Session": (33, "what a login and the commands of IMAP need of a session"),
    "obox.lmtp.connection.Connection": (48, _CONNECTION),
    "obox.login.connection.Connection": (59, _CONNECTION),
    "obox.net.connection.Connection": (48, _CONNECTION),
    "obox.pop3.connection.Connection": (59, _CONNECTION),
    "obox.proxy.socketmap._Asking": (48, _CONNECTION),
    "obox.store.user.mailbox.Mailbox": (35, "its index (25) and 10 methods of api.Mailbox; see docs/decisions/0014"),
    "obox.store.user.user.User": (37, "its boxes (22) and 15 methods for sessions; see docs/decisions/0014"),
}
"""Classes of the product that have more together with what they inherit: how many at
most, and why. The numbers may only become smaller."""


Function = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(node: ast.AST, name: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield each function and class below a node, with its dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            inner = f"{name}.{child.name}"
            yield inner, child
            yield from definitions(child, inner)
        else:
            yield from definitions(child, name)


DEFINITIONS = [pair for name, path in files(TREE).items() for pair in definitions(ast.parse(path.read_text()), name)]


def test_no_file_has_two_subjects() -> None:
    found = {name for name, path in files(TREE).items() if len(path.read_text().splitlines()) > FILE_LINES_MAX}
    assert not found - set(LARGE), f"above {FILE_LINES_MAX} lines"
    assert not set(LARGE) - found, "is short by now: take its name out"


def test_no_function_is_longer_than_a_screen() -> None:
    found = {
        name
        for name, node in DEFINITIONS
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    }
    assert not found - set(LONG), f"above {FUNCTION_LINES_MAX} lines"
    assert not set(LONG) - found, "is short by now: take its name out"


def test_no_class_has_too_many_public_methods() -> None:
    found = set()
    for name, node in DEFINITIONS:
        if isinstance(node, ast.ClassDef):
            public = {one.name for one in node.body if isinstance(one, Function) and not one.name.startswith("_")}
            if len(public) > PUBLIC_METHODS_MAX:
                found.add(name)
    assert not found - set(WIDE), f"above {PUBLIC_METHODS_MAX} public methods"
    assert not set(WIDE) - found, "is narrow by now: take its name out"


def test_no_class_inherits_too_many_public_methods() -> None:
    found: dict[str, int] = {}
    for name in files():
        for one in vars(importlib.import_module(name)).values():
            if isinstance(one, type) and one.__module__ == name:
                public = {
                    method
                    for base in one.__mro__
                    if base.__module__.partition(".")[0] in PRODUCT
                    for method, value in vars(base).items()
                    if isinstance(value, FunctionType | property | classmethod | staticmethod) and method[0] != "_"
                }
                if len(public) > PUBLIC_METHODS_MAX:
                    found[f"{name}.{one.__qualname__}"] = len(public)
    most = {name: count for name, (count, _) in INHERITING.items()}
    more = {name: count for name, count in found.items() if count > most.get(name, PUBLIC_METHODS_MAX)}
    assert not more, f"above {PUBLIC_METHODS_MAX} public methods, or above their number, with what they inherit"
    assert not most.keys() - found.keys(), "is narrow by now: take its name out"


def test_each_exception_of_the_linter_has_its_reason() -> None:
    bare = re.compile(r"# noqa: (?:[A-Z]++[0-9]++(?:, )?+)++(?! ++- \S)")
    found = [
        f"{name}:{number}"
        for name, path in files(TREE).items()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]
    assert not found, "write the reason behind noqa: `# noqa: E731 - a short name`"


def test_each_exception_of_the_type_checker_has_its_reason() -> None:
    bare = re.compile(r"# type: ignore(?!\[[a-z, -]+\](?: ++# (?!type:)\S))")
    found, needless = [], []
    for name, path in files(TREE).items():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "# type: ignore" in line and path != Path(__file__):
                (needless if path.name.startswith("test_") else found).append(f"{name}:{number}: {line.strip()}")
    assert not [line for line in found if bare.search(line)], "write it: `# type: ignore[misc]  # a lambda has no type`"
    assert not needless, "mypy does not check tests"
