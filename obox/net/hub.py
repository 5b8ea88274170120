"""What all connections of a server share: the registry, their tasks, and the drain.

Diagnostics: nothing here is fatal. This module knows no protocols.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from obox.lanes import Lanes
from obox.net.registry import Registry, Who

CUT_S: Final = 1.0
"""How long the hub waits for connections that have been cut to release what they
hold."""
_POLL_S: Final = 0.05
"""Interval at which a stopping server checks how many connections are left."""

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


def uncounted(change: int) -> None:
    """Count nothing: there is no metric."""


class Hub:
    """See the module's text.

    registry: several servers may share it, and then they share its limits. spawn:
    starts a task; if it is None, the loop does. count: called with +1 for each
    connection that begins and with -1 for each that ends. clock: monotonic seconds.
    now: unix seconds. ids: the numbers of the connections; servers that share them have
    no two connections of the same number.
    """

    def __init__(
        self,
        *,
        registry: Registry | None = None,
        spawn: Spawn | None = None,
        count: Callable[[int], None] = uncounted,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        ids: Iterator[int] | None = None,
    ) -> None:
        self.registry = Registry() if registry is None else registry
        self.lanes = Lanes()
        """Whose turn it is among the connections of a user."""
        self.count = count
        self.clock = clock
        self.now = now
        self.stopping = ""
        """Why no new connection is served. It is empty while the server serves."""
        self.tasks: set[asyncio.Task[None]] = set()
        self._spawn = spawn or asyncio.create_task
        self.ids = itertools.count(1) if ids is None else ids

    def next_id(self) -> int:
        """Return the number of a new connection."""
        return next(self.ids)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the work of a connection. `stop` waits for it."""
        task = self._spawn(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def who(self) -> list[Who]:
        """Return all connections, the oldest first."""
        return sorted((member.who() for member in self.registry), key=lambda who: who.id)

    def kick(self, user: str, reason: str) -> int:
        """Stop a user's sessions, each after its command.

        Returns how many sessions there are.
        """
        members = [member for member in self.registry if member.who().user == user]
        for member in members:
            member.stop(reason)
        return len(members)

    async def stop(self, reason: str, grace_s: float) -> None:
        """Stop all connections, and cut what has not ended after `grace_s`.

        Idempotent.
        """
        self.stopping = reason
        for member in self.registry:
            member.stop(reason)
        try:
            await self._ended(grace_s)
        finally:
            for member in self.registry:
                member.abort()
            for task in tuple(self.tasks):
                task.cancel()
        await self._ended(CUT_S)

    async def _ended(self, within_s: float) -> None:
        """Wait until no connection is left, but at most `within_s` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while (self.tasks or len(self.registry)) and (left_s := deadline - loop.time()) > 0:
            if self.tasks:
                await asyncio.wait(tuple(self.tasks), timeout=min(_POLL_S, left_s))
            else:
                await asyncio.sleep(min(_POLL_S, left_s))
