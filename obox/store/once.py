"""Limits the log lines of a repeated problem to one a minute."""

from __future__ import annotations

from collections.abc import Callable


class EveryMinute:
    """Says when to log, and counts the lines that were left out."""

    def __init__(self, clock: Callable[[], float], every_s: float = 60.0) -> None:
        self._clock = clock
        self._every_s = every_s
        self._next: float | None = None
        self._skipped = 0

    def due(self) -> bool:
        """Return True at most once a minute. Other calls are counted."""
        now = self._clock()
        if self._next is not None and now < self._next:
            self._skipped += 1
            return False
        self._next = now + self._every_s
        return True

    def skipped(self) -> int:
        """Return how many lines were left out since the last line."""
        skipped, self._skipped = self._skipped, 0
        return skipped
