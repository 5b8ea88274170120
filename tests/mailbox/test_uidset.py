"""Sets of UIDs. They do not use numpy's functions for sets, which import `numpy.ma` in
the turn that calls them first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from obox.mailbox import uid_array, united

ROOT = Path(__file__).parent.parent.parent
IMPORTERS = {"unique", "union1d", "intersect1d", "setdiff1d", "setxor1d", "ediff1d"}
"""Functions of numpy that import `numpy.ma`: up to 50 ms, in the middle of a command.
"""


@pytest.mark.parametrize(("one", "other"), [([], []), ([1], []), ([], [2]), ([1, 3, 5], [2, 3, 9]), ([7], [7])])
def test_united(one: list[int], other: list[int]) -> None:
    made = united(np.array(one, dtype=np.uint32), np.array(other, dtype=np.uint32))
    assert made.tolist() == sorted({*one, *other})
    assert made.dtype == np.uint32


def test_uids_in_any_order_with_repeats() -> None:
    assert uid_array([5, 1, 5, 2, 1]).tolist() == [1, 2, 5]


def test_nothing_is_imported_by_a_set_of_uids() -> None:
    script = "import sys; from obox.mailbox import *; united(uid_array([3, 1, 3]), uid_array([2]))"
    script += "; assert 'numpy.ma' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_no_function_of_numpy_that_imports_a_package() -> None:
    found = []
    for path in [path for room in ("obox", "metacache", "fscache") for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in IMPORTERS and ast.unparse(node.value) == "np":
                # These functions import nothing if assume_unique is given.
                apart = node.attr in ("setdiff1d", "intersect1d")
                if not apart or "assume_unique=True" not in path.read_text().splitlines()[node.lineno - 1]:
                    found.append(f"{path}:{node.lineno} {node.attr}")
    assert not found
