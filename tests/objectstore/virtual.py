"""Time that stands still until everybody waits: tests of deadlines and pauses take no
time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_SETTLE_ROUNDS = 50
"""Rounds of the loop after which all tasks are taken to be waiting: far more than any
chain of awaits in the layers."""


class VirtualTime:
    """clock and sleep for the layers; `run` moves the time on. pauses: every sleep
    asked for, in order."""

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
        """Run work to its end, moving the time to the next sleeper whenever nothing
        else moves."""
        task = asyncio.ensure_future(work)
        while True:
            for _ in range(_SETTLE_ROUNDS):
                await asyncio.sleep(0)
                if task.done():
                    return task.result()
            self._wake_next()

    async def advance(self, seconds: float) -> None:
        """Let that much time pass."""
        await self.run(self.sleep(seconds))

    def _wake_next(self) -> None:
        while self._waiting:
            at, _, future = heapq.heappop(self._waiting)
            if not future.done():
                self.now = max(self.now, at)
                future.set_result(None)
                return
        raise AssertionError("everybody waits, nobody sleeps")
