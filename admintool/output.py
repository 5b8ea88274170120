"""What commands print: rows with named columns, as a table, as JSON, by tabs, or flowing. Names of columns are API.

In `tab`, a line end, a tab and a backslash in a value are escaped, so that a row is a line for ever.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

FORMATS = ("table", "json", "tab", "flow")


class Output:
    def __init__(self, format_: str) -> None:
        self.format = format_

    def rows(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print rows. A value of None is null in JSON and empty elsewhere."""
        if self.format == "json":
            click.echo(
                json.dumps([dict(zip(columns, row, strict=True)) for row in rows], ensure_ascii=False, default=str)
            )
        elif self.format == "tab":
            for row in (columns, *rows):
                click.echo("\t".join(_tab(value) for value in row))
        elif self.format == "flow":
            for row in rows:
                click.echo(" ".join(f"{name}={_plain(value)}" for name, value in zip(columns, row, strict=True)))
        else:
            _table(columns, [[_plain(value) for value in row] for row in rows])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sys.stdout.isatty():  # a pipe has no width to fit
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            click.echo("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    Console().print(table)


def _plain(value: object) -> str:
    text = "" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _tab(value: object) -> str:
    text = "" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")
