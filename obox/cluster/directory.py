"""The directory: what the members of a cluster tell each other, as rows of a small map.

A row is found by its kind and its key. The last write wins, by timestamp. Nothing here
is trusted with a mail: a directory may lose rows, show old ones, or show different rows
to two readers (docs/cluster.md, "The two rules").

Refuses to know: what a row says (`records`), and who owns what (`assign`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

VALUE_BYTES_MAX: Final = 65_536
"""A row's value: one Cassandra cell that is read every second."""


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


class Row(NamedTuple):
    """value: at most VALUE_BYTES_MAX bytes. timestamp: microseconds since 1970."""

    value: bytes
    timestamp: int

    def beats(self, other: Row | None) -> bool:
        """Whether this row stays when both were written under one key."""
        return other is None or (self.timestamp, self.value) > (other.timestamp, other.value)


class Directory(Protocol):
    """Every method raises Unavailable when the directory does not answer in time."""

    async def get(self, kind: Kind, key: str) -> Row | None:
        """The row under a key; None if there is none."""

    async def all(self, kind: Kind) -> dict[str, Row]:
        """All rows of a kind by key, in one query."""

    async def put(self, kind: Kind, key: str, value: bytes, timestamp: int) -> None:
        """Write a row, unless one with a higher timestamp is there.

        key: 1 to 600 bytes of UTF-8. Raises ValueError for a larger key or value.
        """

    async def close(self) -> None:
        """Give connections and files back."""


def next_timestamp(now: Callable[[], float], row: Row | None) -> int:
    """The timestamp for a new value of a row that was read: later than that row's, also
    where this clock is behind. now: unix seconds.
    """
    ours = int(now() * 1_000_000)
    return ours if row is None else max(ours, row.timestamp + 1)
