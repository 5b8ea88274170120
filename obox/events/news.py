"""News between backends: a mailbox has changed, and a backend that has it in memory
looks at the bucket.

In a cluster a single backend serves a user. While a user moves, or if two backends
believe that they serve the user, the sessions of one see a delivery at the other only
when something makes it compare. News make it compare at once:

    staged -> published under the mailbox's GUID -> heard by backends that have it
           -> the user is compared with the bucket -> sessions are woken

News are hints, delivered at most once: a backend that hears none is correct, and
compares when it always did. A mailbox is registered before it is loaded, so that
nothing falls between its LIST and the registration. After an outage of the bus the
users with sessions are compared.

Invariant: neither a writer nor a session waits for the bus. A backend compares a user
once at a time, and not more often than `PAUSE_S` says. This module does not know the
bus (`nats`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

import structlog

from ..objectstore.keys import ROOT
from ..store.backend.store import MailStore
from ..store.log.stage import Altered
from ..types import Guid, StorageId

log = structlog.get_logger()

PAUSE_S: Final = 0.1
"""Pause between two comparisons of a user: each is some LISTs."""

TIDY_S: Final = 30.0
"""Interval at which mailboxes that left memory are unregistered."""

WAITING_MAX: Final = 10_000
"""Mailboxes whose news wait to be published. More are not published; nothing depends on
it."""


class Bus(Protocol):
    """Carries a mailbox's GUID and its user to the other backends, at most once."""

    def begin(self) -> None:
        """Connect, in the background."""

    async def publish(self, guid: str, sid: str) -> None:
        """Pass news on, or drop them if the bus does not answer. It does not wait."""

    async def register(self, guid: str) -> None:
        """Begin to listen to news of a mailbox. It waits for the bus, but not long."""

    async def unregister(self, guid: str) -> None:
        """Stop listening to news of a mailbox."""

    def is_up(self) -> bool:
        """Return whether the bus answers."""


class News:
    """See the module's text."""

    def __init__(self, store: MailStore, bus: Callable[[News], Bus]) -> None:
        self._store, self._env = store, store.env
        self._bus = bus(self)
        self._changed: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._registered: set[str] = set()
        self._again: set[StorageId] = set()
        self._comparing: set[StorageId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.published = self.heard_total = self.dropped = 0

    def begin(self) -> None:
        """Begin to publish, and to listen. The store has started."""
        self._store.log.listeners.append(self._altered)
        self._env.before_load = self._register
        self._bus.begin()
        self.spawn(self._publish())
        self.spawn(self._tidy())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("task of news failed", error=repr(exc), exc_info=exc)

    async def close(self) -> None:
        """End all tasks."""
        self._env.before_load = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- publishing ----------------------------------------------------------------------------------------------------

    def _altered(self, altered: tuple[Altered, ...]) -> None:
        for one in altered:
            if one.box != ROOT and len(self._changed) < WAITING_MAX:
                self._changed[one.box] = one.sid
            elif one.box != ROOT:
                self.dropped += 1
        self._wake.set()

    async def _publish(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            for guid, sid in changed.items():
                await self._bus.publish(guid, sid)
                self.published += 1

    # -- hearing -------------------------------------------------------------------------------------------------------

    async def _register(self, guid: str) -> None:
        if guid not in self._registered:
            self._registered.add(guid)
            await self._bus.register(guid)

    async def _tidy(self) -> None:
        """Remove the registrations of mailboxes that are not in memory any more."""
        seen: set[str] = set()
        while True:
            await self._env.sleep(TIDY_S)
            loaded = {guid for user in self._store.users.values() for guid in user.boxes}
            # A mailbox that is being loaded is registered and not in memory yet.
            for guid in (self._registered & seen) - loaded:
                self._registered.discard(guid)
                await self._bus.unregister(guid)
            seen = set(self._registered)

    def heard(self, guid: str, sid: str) -> None:
        """Compare a user, because another backend has changed a mailbox."""
        self.heard_total += 1
        user = self._store.users.get(StorageId(sid))
        if user is not None and Guid(guid) in user.boxes:
            self._compare(StorageId(sid))

    def missed(self) -> None:
        """Compare the users with sessions, because news may have been lost."""
        for sid, user in list(self._store.users.items()):
            if user.sessions:
                self._compare(sid)

    def _compare(self, sid: StorageId) -> None:
        self._again.add(sid)
        if sid not in self._comparing:
            self._comparing.add(sid)
            self.spawn(self._compare_again(sid))

    async def _compare_again(self, sid: StorageId) -> None:
        try:
            while sid in self._again:
                self._again.discard(sid)
                user = self._store.users.get(sid)
                if user is not None:
                    await user.recheck(every=True)
                await self._env.sleep(PAUSE_S)
        finally:
            self._comparing.discard(sid)

    def is_up(self) -> bool:
        """Return whether the bus answers."""
        return self._bus.is_up()

    def figures(self) -> Mapping[str, float]:
        """Return numbers for metrics."""
        return {
            "up": float(self.is_up()),
            "published_total": self.published,
            "heard_total": self.heard_total,
            "dropped_total": self.dropped,
            "registered": len(self._registered),
        }
