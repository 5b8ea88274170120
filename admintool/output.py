"""What commands print: rows with named columns, in the format that `-f` names.

Names of columns are API. Values come from mails and their senders. In every format a
character that does not print is escaped, such as a character that moves a terminal's
cursor (`\\x1b`; in JSON `\\u001b`). Only `pager` keeps line ends and tabs. In `tab` a
backslash is escaped too, so that a row is always a single line and can be read back.
Rows are printed as they come. Only `table` waits for all rows, because it needs their
widths.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

FORMATS = ("table", "tab", "json", "flow", "pager")


class Output:
    """Prints the rows of a command. Call `row` for each row, and `end` once. format_:
    "" for the command's usual format.
    """

    def __init__(self, format_: str = "") -> None:
        self.format = format_
        self._columns: list[str] = []
        self._rows: list[list[Any]] = []
        self.count = 0
        """Rows that were printed so far."""

    def begin(self, columns: Sequence[str], usual: str = "table") -> None:
        """columns: columns that are printed even without rows. usual: the format if the
        user chose none.
        """
        self.format = self.format or usual
        self._columns = list(columns)

    def row(self, row: Mapping[str, Any]) -> None:
        """Print one row. A value of None is null in JSON and empty elsewhere."""
        if self.count == 0 and self._columns != list(row):
            self._columns = list(row)
        values = [row.get(name) for name in self._columns]
        match self.format:
            case "json":
                text = _json(row)
                click.echo(("[" if self.count == 0 else ",\n ") + text, nl=False)
            case "tab":
                if self.count == 0:
                    self._header()
                click.echo("\t".join(_tab(value) for value in values))
            case "flow":
                click.echo(flowing(self._columns, values))
            case "pager":
                for name, value in zip(self._columns, values, strict=True):
                    click.echo(f"{name}:{' ' if not _long(value) else chr(10)}{_lines(value)}")
                click.echo("\f", nl=True)
            case _:
                self._rows.append(values)
        self.count += 1

    def end(self, *, failed: bool = False) -> None:
        """failed: the command failed, so no empty table is printed."""
        if failed and not self.count and self.format != "json":
            return
        match self.format:
            case "json":
                click.echo("]" if self.count else "[]")
            case "tab" if self.count == 0 and self._columns:
                self._header()
            case "table" if self._columns:
                _table(self._columns, [[_plain(value) for value in row] for row in self._rows])

    def _header(self) -> None:
        click.echo("\t".join(_tab(name) for name in self._columns))

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Print several rows."""
        for row in rows:
            self.row(row)
        self.end()


def flowing(columns: Sequence[str], values: Sequence[Any]) -> str:
    """Return a row as a sequence of `name=value`."""
    return " ".join(f"{name}={_plain(value)}" for name, value in zip(columns, values, strict=True))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():  # a pipe has no width to fit
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            click.echo("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    Console().print(table)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return _json(value)
    return str(value)


def printable(text: str, keep: str = "") -> str:
    """Escape characters that do not print as Python does: `\\t`, `\\x1b`, `\\u202e`.
    keep: characters that stay.

    Unicode's controls, formats (which turn the direction of writing), separators and
    surrogates do not print.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def print_message(message: str) -> None:
    """Print a line to stderr. It is escaped, because it may quote a stranger's text."""
    click.echo(f"oboxadm: {printable(message)}", err=True)


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _plain(value: object) -> str:
    return printable(_shown(value))


def _lines(value: object) -> str:
    """Return the text for people to read."""
    return printable(_shown(value).replace("\r\n", "\n"), keep="\n\t")


def _long(value: object) -> bool:
    return "\n" in _shown(value)


def _tab(value: object) -> str:
    return printable(_shown(value).replace("\\", "\\\\"))
