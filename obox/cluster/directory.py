"""The directory: what the members of a cluster publish for each other, as rows of a
small map.

A row is found by its kind and its key. The last write wins, by timestamp. Nothing here
is trusted with a mail: a directory may lose rows, show old rows, or show different rows
to two readers (docs/cluster.md, "The two rules").

This module does not know what a row says (`records`) or who owns what (`assign`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

VALUE_BYTES_MAX: Final = 65_536
"""A value is a cell of Cassandra, which every member reads each second."""

KEY_BYTES_MAX: Final = 640
"""An escaped storage id has at most 600 bytes; prefixes such as "u:" come on top."""

DEADLINE_S: Final = 5.0
"""An operation that has no answer after this time raises Unavailable."""


class Kind(StrEnum):
    """What a row is about; the table in docs/cluster.md says who writes it."""

    SETTINGS = "settings"
    SITES = "sites"
    MEMBERS = "members"
    ORDERS = "orders"
    BEATS = "beats"
    BOOTS = "boots"
    GROUPS = "groups"
    PINS = "pins"
    MOVES = "moves"
    MERGES = "merges"


class Row(NamedTuple):
    """value: at most VALUE_BYTES_MAX bytes. timestamp: microseconds since 1970."""

    value: bytes
    timestamp: int

    def beats(self, other: Row | None) -> bool:
        """Return whether this row stays when both were written under one key."""
        return other is None or (self.timestamp, self.value) > (other.timestamp, other.value)


class Directory(Protocol):
    """A directory. Every method raises Unavailable if there is no answer in time."""

    async def get(self, kind: Kind, key: str) -> Row | None:
        """Return the row under a key; None if there is none."""

    async def all(self, kind: Kind) -> dict[str, Row]:
        """Return all rows of a kind by key, in one query."""

    async def put(self, kind: Kind, key: str, value: bytes, timestamp: int) -> None:
        """Write a row, unless a row with a higher timestamp is there.

        key: 1 to KEY_BYTES_MAX bytes of UTF-8. Raises ValueError for a larger key or
        value. A write that raised Unavailable may have been done, or may still be.
        """

    async def close(self) -> None:
        """Close connections and files."""


def next_timestamp(now: Callable[[], float], row: Row | None) -> int:
    """Return the timestamp for a new value of a row that was read. It is higher than
    the row's timestamp, even if this clock is behind. now: unix seconds.
    """
    ours = int(now() * 1_000_000)
    return ours if row is None else max(ours, row.timestamp + 1)


def checked(key: str, value: bytes, timestamp: int) -> Row:
    """Return the row that a `put` writes. Raises ValueError as `Directory.put` says."""
    if not 1 <= len(key.encode()) <= KEY_BYTES_MAX:
        raise ValueError(f"a key of the directory has 1 to {KEY_BYTES_MAX} bytes of UTF-8: {key!r}")
    if len(value) > VALUE_BYTES_MAX:
        raise ValueError(f"a value of the directory has at most {VALUE_BYTES_MAX} bytes, not {len(value)}: {key!r}")
    if not 0 < timestamp < 1 << 63:
        raise ValueError(f"a timestamp of the directory is positive and below 2**63: {timestamp}")
    return Row(bytes(value), timestamp)
