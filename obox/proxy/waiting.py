"""How long a client waits for a backend that does not answer.

A backend that restarts is back within seconds. If it does not come back, other backends
have its groups after `dead_after` and a few passes over the directory. Until then a
login or a delivery is not refused, but waits. The backend is tried again after a pause.
A change of the directory that concerns the user ends the pause at once.

Many clients may wait at the same time, since a backend had many users. They are
limited: beyond WAITING_MAX a client is refused after the first attempts, some 2 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from obox.cluster import Assigned, Here, Router, There
from obox.errors import Unavailable
from obox.types import StorageId

from .moves import Moves

PATIENCE_S: Final = 15.0
"""The time from the first attempt to the last. It is the default of `dead_after`, and
the time of a takeover."""
WAITING_MAX: Final = 1000
"""At most 1,000 clients may wait for longer than the first attempts take."""
FIRST_S: Final = (0.2, 0.5, 1.0)
"""The pauses before the next attempts, since the backend may be starting."""
AGAIN_S: Final = 1.0
"""The pause before each later attempt, if the directory does not change meanwhile."""

Sleep = Callable[[float], Awaitable[None]]


class Waiting:
    """What the waits of all clients share: the router, the clock, and their number."""

    def __init__(self, router: Router, moves: Moves, sleep: Sleep, clock: Callable[[], float] | None = None) -> None:
        """clock: seconds; None means the clock of the loop."""
        self.router, self.moves, self.sleep = router, moves, sleep
        self.clock = clock or (lambda: asyncio.get_running_loop().time())
        self.count = 0
        """The number of clients that wait for longer than the first attempts take."""


class Wait:
    """The wait of one client, from its first attempt to its last: `with Wait(waiting)`.

    Its methods raise Unavailable if the client has waited for long enough.
    """

    def __init__(self, waiting: Waiting) -> None:
        self._all = waiting
        self._since = waiting.clock()
        self._first = list(FIRST_S)
        self._reread: set[StorageId] = set()
        self._counted = False

    def __enter__(self) -> Wait:
        return self

    def __exit__(self, *_: object) -> None:
        if self._counted:
            self._all.count -= 1

    async def route(self, sid: StorageId) -> Here | There:
        """Return who serves a user, as soon as that is known."""
        while True:
            try:
                return await self._all.router.route(sid)
            except Unavailable:
                if (delay_s := self._delay_s()) is None:
                    raise
                await self._all.sleep(delay_s)

    async def after(self, sid: StorageId, there: There) -> Here | There:
        """Return who serves a user whose backend has just not answered.

        The row is read again once. Later calls rely on the passes over the directory.
        """
        if sid not in self._reread:
            self._reread.add(sid)
            try:
                return await self._all.router.reread(sid, later(there.assigned))
            except Unavailable:
                pass  # the directory does not answer: the known row holds
        return await self.route(sid)

    async def pause(self, there: There, users: Collection[StorageId]) -> bool:
        """Wait before the next attempt, or until one of the users has another backend.
        Return False if there is no next attempt."""
        if (delay_s := self._delay_s()) is None:
            return False
        try:
            async with self._all.moves.until_moved(there, users):
                await self._all.sleep(delay_s)
        except TimeoutError:
            pass
        return True

    def _delay_s(self) -> float | None:
        if self._all.clock() - self._since >= PATIENCE_S:
            return None
        if self._first:
            return self._first.pop(0)
        if not self._counted:
            if self._all.count >= WAITING_MAX:
                return None
            self._all.count += 1
            self._counted = True
        return AGAIN_S


def later(assigned: Assigned) -> Assigned:
    """Return a newer assignment than the given assignment, so that `reread` reads the
    row."""
    return Assigned("", assigned.number + 1, 0)
