"""What callers of the cache get back, and what can go wrong.

Invariant: plain values, no behaviour. This module does not know how anything is stored.
"""

from __future__ import annotations

from typing import NamedTuple


class FscacheError(Exception):
    """The cache was closed, or a fetch ended without a result."""


class Stats(NamedTuple):
    """Counts since the start; `bytes` and `files` say what is there now."""

    hits: int
    misses: int
    bytes: int
    files: int
    evictions: int
    errors: int
    skipped: int  # objects not stored: too large, or too many were waiting
    oldest: float = 0.0  # about when the longest unread object was last read
    pending: int = 0  # bytes that wait to be written
    max_size: int = 0


class Rescanned(NamedTuple):
    """A recount: bytes accounted before and now, files, and what others had done.

    expired: files that go because nobody read them for too long.
    """

    before: int
    bytes: int
    files: int
    added: int
    removed: int
    changed: int
    expired: int = 0

    @property
    def right(self) -> bool:
        """Return whether the accounts were right before the recount."""
        return not (self.added or self.removed or self.changed) and self.before == self.bytes
