"""Repeated trouble, logged once a minute."""

from __future__ import annotations

from collections.abc import Callable


class EveryMinute:
    """Says when to log, and how many were not."""

    def __init__(self, clock: Callable[[], float], every_s: float = 60.0) -> None:
        self._clock = clock
        self._every_s = every_s
        self._next: float | None = None
        self._skipped = 0

    def due(self) -> bool:
        """True at most once a minute; the others are counted."""
        now = self._clock()
        if self._next is not None and now < self._next:
            self._skipped += 1
            return False
        self._next = now + self._every_s
        return True

    def skipped(self) -> int:
        """How many were not logged since the last one that was."""
        skipped, self._skipped = self._skipped, 0
        return skipped
