"""Lets other sessions run: long work yields to the loop after a time, not after a
count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

TURN_S: Final = 0.005
"""How long work may use the loop before other tasks run."""


class Turn:
    """Knows when the present turn of the loop should end. Write `if turn.over(): await
    turn.end()` in a loop of short steps.

    clock: seconds of the environment's clock, so that a simulation yields at the same
    places each time.
    """

    __slots__ = ("_clock", "_until")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        self._until = self._clock() + TURN_S

    def over(self) -> bool:
        return self._clock() > self._until

    async def end(self) -> None:
        await asyncio.sleep(0)
        self.begin()
