"""Logins and deliveries that wait for the start of the store.

A start takes 0.1 s, or some seconds if a backend that crashed left much. Logins and
deliveries that arrive meanwhile wait for it instead of being refused. The waiting code
limits the time, and this module limits the number.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ...errors import Unavailable
from ..env import TRY_LATER

WAITING_MAX: Final = 1024
"""Openings that may wait at the same time. Further openings are refused at once. A
waiting login or delivery keeps its connection and its task in memory."""


class Beginning:
    """Whether the start is decided: the store has started, or will not start any
    more."""

    def __init__(self) -> None:
        self.waiting = 0
        self._decided = asyncio.Event()

    def decide(self) -> None:
        """Wake all that wait. From now on nothing waits."""
        self._decided.set()

    async def decided(self) -> None:
        """Return once it is decided. Raises Unavailable if `WAITING_MAX` wait
        already."""
        if self._decided.is_set():
            return
        if self.waiting >= WAITING_MAX:
            raise Unavailable(TRY_LATER)
        self.waiting += 1
        try:
            await self._decided.wait()
        finally:
            self.waiting -= 1
