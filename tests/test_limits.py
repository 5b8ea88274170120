"""docs/limits.md has the same limits as the code and the configuration."""

import functools
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from obox.config import settings

PAGE = (Path(__file__).parent.parent / "docs/limits.md").read_text()
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what is bounded")
]
SIZES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "bytes": 1}
TIMES = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def number(text: str) -> float:
    """Read `30`, `8,192`, `64 KiB`, `10 s`. A word behind a plain number is its unit
    (`59 keywords`)."""
    match = re.fullmatch(r"([0-9][0-9,.]*)(?: (\S.*))?", text)
    assert match, f"not a number with a unit: {text!r}"
    unit = match[2] or ""
    return float(match[1].replace(",", "")) * (SIZES | TIMES).get(unit, 1)


def constant(path: str) -> Any:
    """Return the value of a dotted path: a constant of a module, or a default of a
    class."""
    module, names = path, []
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
            assert module, f"no such constant: {path}"
    for name in names[:-1]:
        found = getattr(found, name)
    if fields := getattr(found, "__dataclass_fields__", None):
        return fields[names[-1]].default
    return functools.reduce(getattr, names[-1:], found)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_limit_is_what_the_page_says(row: list[str]) -> None:
    what, default, reason, where = row
    assert what
    assert reason
    match = re.fullmatch(r"`([\w.]+)`", where)
    assert match, where
    setting = next((row for row in settings() if row.key == match[1]), None)
    value = setting.kind.parse(setting.default, Path()) if setting is not None else constant(match[1])
    if hasattr(value, "total_seconds"):
        value = value.total_seconds()
    assert number(default) == pytest.approx(float(value)), f"{match[1]} is {value}"


def test_each_limit_is_listed_once() -> None:
    names = [row[-1] for row in ROWS]
    assert sorted(names) == sorted(set(names))
