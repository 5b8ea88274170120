"""No file has more than 600 lines, no function more than 60, and no class more than 25
public methods. Each exception has its reason.

The lists may only become smaller: a name that no longer needs an exception must be
removed, and no name may be added.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from layers import TREE, files

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
    "tests.sim.test_fair.contend": "two backends and their senders, started, run and counted in one place",
    "tests.servers.run_seaweedfs": "starts a server in the order that it needs, and stops it in reverse",
}
WIDE: dict[str, str] = {
    "obox.imap._scan.Scan": "one method for each terminal of the grammar of RFC 9051",
    "tests.fscache.test_fscache_model.FscacheMachine": "one method for each rule and invariant of the model",
}


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
