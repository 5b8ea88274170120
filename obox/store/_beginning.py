"""Who waits for the store to start.

A start takes 0.1 s and, where a dead backend left much, some seconds. Logins and deliveries that come meanwhile wait
for it instead of being refused: whoever waits bounds the time, this module bounds the number.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ..errors import Unavailable
from ._env import TRY_LATER

WAITING_MAX: Final = 1024
"""Openings that wait at the same time; more are refused at once. A waiting login or delivery keeps its connection and
its task in memory."""


class Beginning:
    """Undecided until `decide`: the store has started, or it will not start any more."""

    def __init__(self) -> None:
        self.waiting = 0
        self._decided = asyncio.Event()

    def decide(self) -> None:
        """Let everybody go on who waits; nobody waits any more."""
        self._decided.set()

    async def decided(self) -> None:
        """Return once it is decided. Raises Unavailable: `WAITING_MAX` wait already."""
        if self._decided.is_set():
            return
        if self.waiting >= WAITING_MAX:
            raise Unavailable(TRY_LATER)
        self.waiting += 1
        try:
            await self._decided.wait()
        finally:
            self.waiting -= 1
