"""The directory as lines of JSON: a dump, and its way back.

A line has kind, key, timestamp, and the record as an object. A value that is no record
is in base64. Beats are left out, because they are old a second later.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from .directory import Directory, Kind, checked, next_timestamp
from .records import RECORDS, encode

DUMPED: Final = tuple(kind for kind in Kind if kind is not Kind.BEATS)


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    kind: Kind
    key: str
    timestamp: int
    record: Any = None
    value: str | None = None


async def dump(directory: Directory) -> list[str]:
    """Return all rows in order, a line each, without line ends. Raises Unavailable."""
    lines = []
    for kind in DUMPED:
        for key, row in sorted((await directory.all(kind)).items()):
            line: dict[str, Any] = {"kind": kind.value, "key": key, "timestamp": row.timestamp}
            try:
                record = msgspec.msgpack.decode(row.value, type=RECORDS[kind])
                line["record"] = msgspec.to_builtins(record)
            except ValueError:
                line["value"] = base64.b64encode(row.value).decode()
            lines.append(msgspec.json.encode(line).decode())
    return lines


async def load(directory: Directory, lines: Iterable[str], *, replace: bool = False, now: Callable[[], float]) -> int:
    """Write the rows of a dump. Returns their number.

    Rows keep their timestamps, so that a newer row of the directory stays. replace: the
    rows replace those of the directory. Nothing is written if a line is wrong.
    Raises: ValueError with the line's number; Unavailable.
    """
    rows = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text, type=_Line)
            rows.append((line.kind, line.key, checked(line.key, _value(line), line.timestamp)))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    for kind, key, row in rows:
        timestamp = row.timestamp
        if replace:
            timestamp = max(timestamp, next_timestamp(now, await directory.get(kind, key)))
        await directory.put(kind, key, row.value, timestamp)
    return len(rows)


def _value(line: _Line) -> bytes:
    if line.kind not in DUMPED:
        raise ValueError(f"{line.kind.value} are not loaded; allowed: {', '.join(DUMPED)}")
    if (line.record is None) == (line.value is None):
        raise ValueError("a line has either a record or a value")
    if line.value is not None:
        return base64.b64decode(line.value, validate=True)
    return encode(msgspec.convert(line.record, type=RECORDS[line.kind]))
