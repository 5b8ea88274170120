"""The words of the metacache: what callers get back and what can go wrong.

Invariant: plain values, no behaviour. Refuses to know: how any of it is stored.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class MetacacheError(Exception):
    """Base of everything this package raises on an operating failure; misuse is `ValueError`."""


class MetacacheFull(MetacacheError):
    """The staged writes do not fit into `max_space` plus `max_grace`, or the disk is full.

    The writes stay staged and visible; dropping something and committing again writes them.
    """


class OverLimit(MetacacheFull):
    """The accounts say no while the map has room: a part of what was to be written may fit."""


class MetacacheBusy(MetacacheError):
    """Another process has this environment open; one path serves one process."""


class Change(IntEnum):
    """What the bucket does not know yet about a copy."""

    NONE = 0
    UNIMPORTANT = 1  # can be found again: new mails, cached records
    IMPORTANT = 2  # exists nowhere else: flags, expunges, moves


class Copy(NamedTuple):
    """One mailbox's local index state: a base, and what was appended since, oldest first."""

    stamp: bytes
    base: bytes | None
    deltas: list[bytes]
    change: Change


class BoxSpace(NamedTuple):
    """What one box takes, as of the last commit."""

    box: str
    priority: int
    space_bytes: int
    accessed: float
    change: Change


class UserSpace(NamedTuple):
    """What one user takes, as of the last commit: bytes by priority, latest access, highest change of the boxes."""

    user: str
    space_bytes: dict[int, int]
    accessed: float
    change: Change


class UserInfo(NamedTuple):
    """One user for the operator. By priority 0 to 3: bytes, last access (0.0: none), the weight of what would go first
    (None: nothing there). `weight`: the lowest of them, so users sorted by it are in the order of cleaning."""

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
    """The whole cache for the operator; bytes as accounted, `file_bytes` as the environment takes on disk.

    staged: bytes waiting for a commit. over: above max_space, the cleaner is at work. full: no new users.
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
    """A recount: whether all was right, and what was not (mended now)."""

    users: int
    before: int
    space: int
    wrong: list[str]

    @property
    def right(self) -> bool:
        return not self.wrong
