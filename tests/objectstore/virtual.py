"""A virtual clock that moves only when all tasks wait. Tests of deadlines and pauses
take no time with it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_ROUNDS = 50
"""After 50 rounds of the loop all tasks count as waiting. No chain of awaits in the
layers is nearly as long."""


class VirtualTime:
    """The clock and the sleep for the layers; `run` moves the time on. pauses: the
    length of each sleep, in order."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._serial = itertools.count()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self.now + seconds, next(self._serial), future))
        await future

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the work to its end. Move the time to the next sleeper whenever no other
        task can run."""
        task = asyncio.ensure_future(work)
        while True:
            for _ in range(_ROUNDS):
                await asyncio.sleep(0)
                if task.done():
                    return task.result()
            self._wake_next()

    async def advance(self, seconds: float) -> None:
        """Let this time pass."""
        await self.run(self.sleep(seconds))

    def _wake_next(self) -> None:
        while self._waiting:
            at, _, future = heapq.heappop(self._waiting)
            if not future.done():
                self.now = max(self.now, at)
                future.set_result(None)
                return
        raise AssertionError("everybody waits, nobody sleeps")
