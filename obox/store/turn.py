"""Letting other sessions run: long work on the loop gives it up by time, not by count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

TURN_S: Final = 0.005
"""Work on the loop before others run."""


class Turn:
    """When the present turn of the loop ends; `if turn.over(): await turn.end()` in a loop of short steps.

    clock: seconds, as the environment has it, so that a simulation gives the loop up at the same places each time.
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
