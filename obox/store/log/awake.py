"""Notices that this process stood still, so that another backend may have taken over
without its knowledge.

A machine that is suspended, a process that is stopped, and an event loop that hangs
look the same from inside: two looks at the clock are further apart than they should be.
The other backends take a backend for dead only if it does not greet within a second.
So a process whose looks are never `STILL_S` apart was not replaced meanwhile.

After a pause, what memory says is current only if a journal PUT that began after the
pause has succeeded, because a backend that takes over fences the journal before it
serves. After a long pause a takeover may be under way, and its fence may come next. So
for `CAREFUL_S` each answer needs a PUT that began after its question.

This module knows the clock, and no journal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

STILL_S: Final = 0.75
"""A longer time between two looks is a pause. It is below the time within which a
backend must greet another backend that takes it for dead."""

LOOK_S: Final = 0.25
"""Interval of looks."""

LONG_S: Final = 2.0
"""In a pause above this a backend may have been taken for dead: `cluster.dead_after` is
at least 5 s, and the beats are 1 s apart."""

CAREFUL_S: Final = 5.0
"""How long after a long pause a fence may still come. A backend that takes over has
read no beat before the pause ended, and fences within seconds of that read."""

NEVER: Final = float("-inf")


class Awake:
    """See the module's text. Nothing is noticed before `begin`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds of a clock that runs during suspend."""
        self._clock = clock
        self._seen_at = float("inf")
        self._careful_until = NEVER
        self.resumed_at = NEVER
        """When the last pause was noticed."""

    def begin(self) -> None:
        """Look from now on, at least every `LOOK_S`."""
        self._seen_at = self._clock()

    def proof_since(self) -> float:
        """Look. Returns the time at or after which a journal PUT must have begun before
        anything is answered; NEVER if none is needed."""
        now = self._clock()
        pause_s = now - self._seen_at
        if pause_s > STILL_S:
            self.resumed_at = now
            if pause_s > LONG_S:
                self._careful_until = now + CAREFUL_S
        if pause_s > NEVER:
            self._seen_at = now
        return now if now < self._careful_until else self.resumed_at
