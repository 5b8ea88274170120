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
