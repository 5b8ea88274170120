"""Turns of the loop, shared among users and not among connections.

Work that has had its time lets others run. If each connection only gave the loop up, a
user with fifty busy sessions would get fifty turns for each of another user. So the
connections of a user wait in a queue, and one of them runs in each round of the loop.

Invariant: nothing is kept of a user for whom nobody waits. It does not know what
users are.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Lanes:
    """The queues of a server."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def turn(self, user: str) -> None:
        """Let others run until it is the turn of this one among those of `user`.

        "" is nobody's: such connections do not wait for each other.
        """
        if not user:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        queue = self._waiting.get(user)
        if queue is None:
            queue = self._waiting[user] = deque()
            loop.call_soon(self._next, user)
        mine = loop.create_future()
        queue.append(mine)
        await mine

    def _next(self, user: str) -> None:
        """Give the turn to the first who still waits, in each round of the loop."""
        queue = self._waiting[user]
        while queue:
            first = queue.popleft()
            if not first.done():  # it may have been cancelled
                first.set_result(None)
                break
        if queue:
            asyncio.get_running_loop().call_soon(self._next, user)
        else:
            del self._waiting[user]
