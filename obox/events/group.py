"""A group of a backend: takes events out of the journal and calls its listener.

Theory of operation. A task takes the objects of this process in their order and puts
their events into lanes, one for each user (`lanes`). Tasks empty the lanes, each of one
user, at most `AT_ONCE` calls at a time:

    in the bucket -> lane -> called -> done
                               |
                               +-- failed: called again, 8 times -> dead letter -> done

`behind` is the object up to which all is done. It becomes the cursor.

Invariant: an event is done only after the listener has returned or the dead letter is
in the bucket. Memory is bounded: beyond `WAITING_MAX` events no object is taken. This
module does not know what other boots left (`rest`).

Diagnostics: each failure of a listener is counted, and the last of an event is logged.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

import structlog

from ..errors import OboxError, Unavailable
from ..store.env import Env
from ..store.log.journal import Journal
from . import dead
from .event import Event, Format
from .lanes import Bars, Item, Lanes
from .listener import Group
from .tail import Boot, Tail

log = structlog.get_logger()

AT_ONCE: Final = 10
"""Calls of a listener at the same time."""

WAITING_MAX: Final = 1000
"""Events of a group that wait in memory. Each has some kilobytes at most, but for
changes of many mails."""

RETRIES: Final = 8
"""How often a listener that failed is called again."""

FIRST_RETRY_S: Final = 0.1
"""Pause before the first retry. It doubles with each retry, up to 12.8 s."""

JITTER_S: Final = 0.05
"""The most that is added to each pause, at random, so that events that failed
together are not tried together."""

CALL_S: Final = 30.0
"""A call that takes longer is ended, and counts as failed."""

AGAIN_S: Final = 1.0
"""Pause before the next attempt while the bucket does not answer."""

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class _Own:
    """The ticket of what this process has written: how many events of each object are
    left."""

    def __init__(self) -> None:
        self.left: Counter[int] = Counter()
        self.taken = 0
        """The number of the next object."""

    def done(self, item: Item) -> None:
        self.took(item.number)

    def took(self, number: int) -> None:
        """Note that a piece of work of an object is done."""
        self.left[number] -= 1
        if not self.left[number]:
            del self.left[number]

    @property
    def behind(self) -> int:
        """Return the number of the first object that is not done."""
        return min(self.left, default=self.taken)


class Runner:
    """See the module's text."""

    def __init__(
        self, env: Env, journal: Callable[[], Journal], group: Group, tail: Tail, bars: Bars, form: Format, spawn: Spawn
    ) -> None:
        self._env = env
        self._journal = journal
        self.group = group
        self._tail = tail
        self._form: Format = form
        self._spawn = spawn
        self.lanes = Lanes(bars)
        self._own = _Own()
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._moved = asyncio.Event()
        """Set when an event is done."""
        self._first = 0
        """The number of the first object of the present boot."""
        self.rescan: set[str] = set()
        """Users of whom the group has still to hear `Rescan`."""
        self.handled = self.failed = self.letters = 0

    # -- taking --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take objects until cancelled."""
        while True:
            await self._tail.grown(self._own.taken)
            while self.lanes.own >= WAITING_MAX:
                self._moved.clear()
                await self._moved.wait()
            number = self._own.taken
            try:
                heard = await self._tail.get(number)
            except Unavailable:
                await self._env.sleep(AGAIN_S)
                continue
            if self._own.taken != number:
                continue  # a boot has begun meanwhile, or the journal let the object go
            self._own.taken = number + 1
            for sid in heard.deleted:
                self.forget(sid)
                self._own.left[number] += 1
                self._spawn(self._forget_letters(sid, number))
            for events in heard.events.values():
                for event in events:
                    self._own.left[number] += 1
                    self.lanes.add(Item(number, event, self._own))
            for sid in heard.events:
                self.start(sid)
            self._moved.set()

    def add(self, item: Item) -> None:
        """Add an event of the rest of another boot."""
        self.lanes.add(item)
        self.start(item.event.user)

    async def room(self) -> None:
        """Return when the rest of another boot may be added."""
        while self.lanes.rest >= WAITING_MAX:
            self._moved.clear()
            await self._moved.wait()

    @property
    def behind(self) -> int:
        """Return the number of the first object of which something is left."""
        return self._own.behind

    async def caught_up(self, number: int) -> None:
        """Return when everything below an object is done."""
        while self.behind < number:
            self._moved.clear()
            await self._moved.wait()

    def clear(self) -> None:
        """Begin with the present boot, and forget what waits of the boot before. Its
        rest is read again."""
        self.lanes.clear()
        self._own = _Own()
        self._own.taken = self._first = self._tail.first
        self._moved.set()

    def forget(self, sid: str) -> None:
        """Drop the events of a user who was deleted."""
        if self.lanes.drop(sid):
            self._moved.set()

    async def forget_letters(self, sid: str) -> None:
        """Delete the dead letters of a user who was deleted."""
        while True:
            try:
                await dead.delete_all(self._env, self.group.name, sid)
                return
            except Unavailable:
                await self._env.sleep(AGAIN_S)
            except OboxError as exc:
                log.error("dead letters of a deleted user stay", group=self.group.name, user=sid, error=str(exc))
                return

    async def _forget_letters(self, sid: str, number: int) -> None:
        own = self._own
        await self.forget_letters(sid)
        own.took(number)
        self._moved.set()

    # -- calling -------------------------------------------------------------------------------------------------------

    def start(self, sid: str) -> None:
        """Begin with the next event of a user, if it may be taken."""
        item = self.lanes.take(sid)
        if item is not None:
            self._spawn(self._empty(item))

    def start_all(self) -> None:
        """Begin with the events of all users, because some are barred no longer."""
        for sid in self.lanes.users():
            self.start(sid)

    async def _empty(self, item: Item | None) -> None:
        """Handle the events of a lane, one after the other."""
        while item is not None:
            await self._handle(item)
            sid = item.event.user
            self.lanes.end(item)
            self._moved.set()
            item = self.lanes.take(sid)

    async def _handle(self, item: Item) -> None:
        error, failures = "", 0
        while self.lanes.holds(item):
            if failures:
                await self._env.sleep(FIRST_RETRY_S * 2 ** (failures - 1) + self._jitter_s())
                if not self.lanes.holds(item):
                    return
            if (failure := await self.call(item.event)) is None:
                self.handled += 1
                return
            error, failures = failure, failures + 1
            self.failed += 1
            if failures > RETRIES:
                await self._put_letter(item, failures, error)
                return

    def _jitter_s(self) -> float:
        return JITTER_S * int.from_bytes(self._env.random_bytes(2), "big") / 2**16

    async def call(self, event: Event) -> str | None:
        """Call the listener. Returns why it failed."""
        async with self._gate:
            await self._sure()
            try:
                async with asyncio.timeout(CALL_S):
                    await self.group.listener.handle(event)
            except TimeoutError:
                return f"no answer within {CALL_S:.0f} s"
            except Exception as exc:
                return repr(exc)
            return None

    async def _sure(self) -> None:
        """Return when this process knows that it was not replaced during a pause."""
        journal = self._journal()
        while not journal.sure():
            try:
                await journal.confirm()
            except Unavailable:
                await self._env.sleep(AGAIN_S)

    async def _put_letter(self, item: Item, failures: int, error: str) -> None:
        event, group = item.event, self.group.name
        while self.lanes.holds(item):
            try:
                key = await dead.put_letter(self._env, group, event, self._form, failures, error)
            except Unavailable:
                await self._env.sleep(AGAIN_S)
                continue
            self.letters += 1
            log.error(
                "event not handled, it is a dead letter now",
                group=group,
                user=event.user,
                kind=event.kind,
                key=dead.id_of(key),
                attempts=failures,
                error=error,
                next_step="oboxadm events dead-letters",
            )
            return

    # -- cursors and lag -----------------------------------------------------------------------------------------------

    def end(self) -> tuple[Boot, int] | None:
        """Return the present boot and its last `seq` up to which all is done; None if
        nothing is."""
        behind = self.behind
        return self._tail.place(behind - 1) if behind > self._first else None

    async def let_go(self, number: int) -> None:
        """Give up the events below an object, because the journal deletes it. The group
        hears `Rescan` of their users. Raises Unavailable."""
        users: set[str] = set()
        for at in range(self._own.taken, number):
            users |= (await self._tail.get(at)).events.keys()
        self._own.taken = max(self._own.taken, number)
        users |= self.lanes.drop_below(number)
        log.error(
            "group is too far behind, the journal lets events go",
            group=self.group.name,
            users=len(users),
            next_step="the group is asked to rescan these users; see oboxadm events lag",
        )
        self.rescan |= users
        self._moved.set()

    def ask_to_rescan(self, users: Iterable[str]) -> None:
        """Add an event `Rescan` for each of these users."""
        ticket = _Rescans(self.rescan)
        for sid in users:
            self.rescan.add(sid)
            self.add(Item(-1, Event(kind="Rescan", user=sid), ticket))

    def lag(self) -> int:
        """Return how many objects of this process are not done."""
        return self._tail.end - self.behind


class _Rescans:
    """The ticket of `Rescan` events."""

    def __init__(self, users: set[str]) -> None:
        self._users = users

    def done(self, item: Item) -> None:
        self._users.discard(item.event.user)
