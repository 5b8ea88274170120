"""Lets other sessions run: long work yields to the loop after a time, not after a
count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

TURN_S: Final = 0.005
"""How long work may use the loop before other tasks run."""


async def _next_round() -> None:
    await asyncio.sleep(0)


class Turn:
    """Knows when the present turn of the loop should end. Write `if turn.over(): await
    turn.end()` in a loop of short steps.

    clock: seconds of the environment's clock, so that a simulation yields at the same
    places each time. wait: returns when it is this work's turn again, as `Env.turn` has
    it for a user.
    """

    __slots__ = ("_clock", "_until", "_wait")

    def __init__(
        self, clock: Callable[[], float] = monotonic, wait: Callable[[], Awaitable[None]] = _next_round
    ) -> None:
        self._clock = clock
        self._wait = wait
        self.begin()

    def begin(self) -> None:
        self._until = self._clock() + TURN_S

    def over(self) -> bool:
        return self._clock() > self._until

    async def end(self) -> None:
        await self._wait()
        self.begin()
