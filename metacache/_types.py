"""What callers of the metacache get back, and what can go wrong.

Invariant: plain values, no behaviour. This module does not know how any of it is
stored.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class MetacacheError(Exception):
    """Base of all that this package raises on an operating failure.

    Misuse is `ValueError`.
    """


class MetacacheFull(MetacacheError):
    """The staged writes exceed `max_space` plus `max_grace`, or the disk is full.

    The writes stay staged and visible. Drop something and commit again to write them.
    """


class OverLimit(MetacacheFull):
    """The limit is reached but the map has room: a part of the writes may fit."""


class MetacacheBusy(MetacacheError):
    """Another process has this environment open. A path serves a single process."""


class Change(IntEnum):
    """What the bucket does not know yet about a copy."""

    NONE = 0
    UNIMPORTANT = 1  # can be found again: new mails, cached records
    IMPORTANT = 2  # exists nowhere else: flags, expunges, moves


class Copy(NamedTuple):
    """The local index state of a box: a base, and the deltas since, oldest first."""

    stamp: bytes
    base: bytes | None
    deltas: list[bytes]
    change: Change

    def parts(self) -> list[bytes]:
        """Return base and deltas, in the order in which they were written."""
        return self.deltas if self.base is None else [self.base, *self.deltas]


class BoxSpace(NamedTuple):
    """What a box takes, as of the last commit."""

    box: str
    priority: int
    space_bytes: int
    accessed: float
    change: Change


class UserSpace(NamedTuple):
    """What a user takes, as of the last commit.

    space_bytes: by priority. accessed, change: the latest and the highest of the boxes.
    """

    user: str
    space_bytes: dict[int, int]
    accessed: float
    change: Change


class UserInfo(NamedTuple):
    """A user for the operator.

    bytes, accessed, weights: by priority 0 to 3. accessed: 0.0 without any access.
    weights: of the copy that would be cleaned first, None without any copy. `weight` is
    the lowest of them, so users sorted by it are in the order of cleaning.
    """

    user: str
    bytes: tuple[int, ...]
    accessed: tuple[float, ...]
    weights: tuple[float | None, ...]
    change: Change
    boxes: int

    @property
    def weight(self) -> float:
        return min((weight for weight in self.weights if weight is not None), default=0.0)


class Status(NamedTuple):
    """The whole cache for the operator.

    Bytes are as accounted; `file_bytes` is what the environment takes on the disk.
    staged: bytes waiting for a commit. over: above max_space, so the cleaner is at
    work. full: there is no room for another user. failing: the last commit failed.
    """

    space: int
    staged: int
    max_space: int
    limit: int
    by_priority: tuple[int, ...]
    users: int
    boxes: int
    file_bytes: int
    over: bool
    full: bool
    failing: bool


class Rescanned(NamedTuple):
    """A recount. wrong: a line for each account that was wrong; it is corrected now."""

    users: int
    before: int
    space: int
    wrong: list[str]

    @property
    def right(self) -> bool:
        return not self.wrong
