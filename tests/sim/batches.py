"""Lets the backends of a simulated cluster write batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from obox.cluster import Kind, Row, decode
from obox.cluster.records import SETTINGS_KEY, Settings


def allow_batches(rows: Mapping[tuple[Kind, str], Row], put: Callable[[Kind, str, Settings], None]) -> None:
    """Write into the directory what `cluster upgrade` writes. put: writes a row."""
    row = rows.get((Kind.SETTINGS, SETTINGS_KEY))
    if row is not None:
        put(Kind.SETTINGS, SETTINGS_KEY, replace(decode(row.value, Settings), forms={"mails": 2}))
