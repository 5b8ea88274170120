"""It ends splices, attempts and pauses at a backend when their user gets another
backend.

Theory of operation. A splice, an attempt to reach a backend, and the pause before the
next attempt are each watched from their beginning to their end. After each pass over
the directory that has changed who serves whom, `look` compares all of them with the
rows. If the backend does not serve the user any more, the splice, attempt or pause is
cut. No answer of that backend counts then, and the client finds the new backend.

A backend that releases a user in order ends the user's sessions before it writes the
row. Its last answers may still be under way. So its splices are cut only after MOVED_S.
If another backend wrote the row, the earlier backend is dead or fenced, and its splices
are cut at once.

This module does not know protocols, sockets, or how the directory is read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final

from obox.cluster import Here, There
from obox.types import StorageId

MOVED_S: Final = 2.0
"""A backend that has released users may close their sessions itself within this
time."""
PART: Final = 200
"""At most 200 watches are compared in one turn of the loop."""

Known = Callable[[StorageId], Here | There | None]
"""A function that says from memory who serves a user; None: it is not known."""


class Watch:
    """A splice, an attempt or a pause that is watched. finishes: a backend that
    releases the users in order finishes it before, so that its answer may be under
    way."""

    __slots__ = ("_cut", "_timer", "finishes", "there", "users")

    def __init__(self, there: There, users: Collection[StorageId], cut: Callable[[], None], finishes: bool) -> None:
        self.there, self.users, self.finishes = there, users, finishes
        self._cut: Callable[[], None] | None = cut
        self._timer: asyncio.TimerHandle | None = None

    def cut(self) -> None:
        """End it, unless it has ended."""
        cut = self._cut
        self.end()
        if cut is not None:
            cut()

    def cut_later(self) -> None:
        """End it if it has not ended after MOVED_S."""
        if self._timer is None and self._cut is not None:
            self._timer = asyncio.get_running_loop().call_later(MOVED_S, self.cut)

    def end(self) -> None:
        """Note that it has ended."""
        self._cut = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Moves:
    """See the module's text."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._watched: dict[Watch, None] = {}
        """In the order in which they began, so that they end in this order."""
        self._left: list[Watch] = []
        """The watches that the present look has not compared yet."""
        self._again = False
        """Whether the directory has changed since the present look began."""

    def __len__(self) -> int:
        return len(self._watched)

    def watch(
        self, there: There, users: Collection[StorageId], cut: Callable[[], None], *, finishes: bool = False
    ) -> Watch:
        """Call `cut` once when one of the users has another backend, which may be at
        once. The caller calls `forget` when the work has ended."""
        made = Watch(there, users, cut, finishes)
        self._watched[made] = None
        if self._other(made):
            self.look()
        return made

    def forget(self, watch: Watch) -> None:
        watch.end()
        self._watched.pop(watch, None)

    @asynccontextmanager
    async def until_moved(self, there: There, users: Collection[StorageId]) -> AsyncIterator[Watch]:
        """End the block with TimeoutError when one of the users gets another
        backend."""
        async with asyncio.timeout(None) as scope:

            def moved() -> None:
                if not scope.expired():
                    scope.reschedule(-math.inf)

            watch = self.watch(there, users, moved)
            try:
                yield watch
            finally:
                self.forget(watch)

    def look(self) -> None:
        """Compare all that is watched with what is known now, in parts."""
        if self._left:
            self._again = True
        elif self._watched:
            self._left = list(self._watched)
            asyncio.get_running_loop().call_soon(self._part)

    def _part(self) -> None:
        part, self._left = self._left[:PART], self._left[PART:]
        for watch in part:
            self._compare(watch)
        if self._left:
            asyncio.get_running_loop().call_soon(self._part)
        elif self._again:
            self._again = False
            self.look()

    def _compare(self, watch: Watch) -> None:
        if watch not in self._watched or not (others := self._other(watch)):
            return
        if watch.finishes and all(other.assigned.released for other in others):
            watch.cut_later()
        else:
            self._watched.pop(watch, None)
            watch.cut()

    def _other(self, watch: Watch) -> Sequence[Here | There]:
        """Return who serves its users in place of its backend. The same backend at
        another address is another process."""
        before = watch.there
        found = [one for one in map(self._known, watch.users) if one is not None]
        return [
            one
            for one in found
            if isinstance(one, Here) or (one.backend, one.address) != (before.backend, before.address)
        ]
