"""What a backend does beside its sessions: upload, unload, delete, and adopt users of
boots that ended uncleanly.

Each piece of work is a job of its own (`jobs`), so that a mailbox, a user or a journal
line that cannot be handled delays nobody else. Once a second `tick` starts the jobs
that are due:

    flush      a mailbox, or a user's list of mailboxes, whose upload is due
    carry      a mailbox whose few new mails have been in one journal object for long
    sweep      a user, once an hour, and each mailbox with objects that may be deleted
    clear      what is left of a mailbox that was deleted `delete_delay` ago
    totals     a mailbox of which the list of mailboxes has no exact totals
    unload     a mailbox, or a user, that has been idle
    journal    journal objects that bundles have covered for `delete_delay`

Two more run after a start: `adopt`, every box that a dead boot's journal speaks of, and
`unflushed`, every local copy with changes that an earlier process did not upload.

This module does not know how a box is loaded or flushed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog

from metacache import Change

from ...errors import Corrupt, NotFound
from ...objectstore.keys import ROOT, journal_key
from ...types import Guid, StorageId
from ..jobs import Job, Jobs
from ..log.fence import Ended, record
from ..log.journal import Journal
from ..log.takeover import Takeover
from ..stamp import Stamp
from ..user.flush import carry
from ..user.unload import leave, unload_idle
from ..user.user import User
from .nightly import Nightly
from .upload import Users, flush_all

log = structlog.get_logger()

TICK_S: Final = 1.0
"""Interval of `tick`."""

JOBS_AT_ONCE: Final = 8
"""Jobs that run at the same time. The limit leaves capacity for deliveries while many
users are flushed."""

SWEEP_S: Final = 3600.0
"""Interval at which a user in memory is checked for objects that may be deleted."""

CARRY_INTERVALS: Final = 12
"""How many upload intervals (an hour) a few new mails stay in a journal object before
they are carried forward."""

AGAIN_S: Final = 5.0
"""Interval between attempts to adopt what could not be adopted yet, and between records
of what has been adopted."""

RECORDED_SHARE: Final = 4
"""While users are still being adopted, a boot is recorded again once a quarter of its
adopted users are new. Each record has the names of all of them."""

T = TypeVar("T")

_Work = tuple[Job, Callable[[], Awaitable[object]]]
_Attempt = Callable[[Job, Callable[[], Awaitable[object]]], Awaitable[object]]


class Backend(Users, Protocol):
    """What upkeep needs of the backend."""

    journal: Journal
    takeover: Takeover

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task that the backend waits for when it closes."""

    def unload(self, sid: StorageId) -> None:
        """Unload a user from memory."""


class Upkeep:
    """See the module's text."""

    def __init__(self, store: Backend) -> None:
        self._store = store
        self._deleted_below: dict[str, int] = {}
        self._adopting = False
        env = store.env
        self.jobs = Jobs(clock=env.clock, spawn=store.spawn, at_once=JOBS_AT_ONCE)
        self.nightly = Nightly(env.settings.flush_at, env.now())

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self._store.env.sleep(TICK_S)
            try:
                self.tick()
            except Exception as exc:  # a bug in a single turn must not end all uploads
                log.error("upkeep failed, it tries again", error=repr(exc), exc_info=exc)

    def tick(self) -> None:
        """Start a job for everything that is due."""
        store, jobs, env = self._store, self.jobs, self._store.env
        for sid, user in list(store.users.items()):
            for guid, box in list(user.boxes.items()):
                if box.is_due():
                    jobs.start(Job("flush", sid, guid), box.flush)
            if user.rootbox.is_due():
                jobs.start(Job("flush", sid, ROOT), user.rootbox.flush)
        for sid_, box_ in store.journal.overdue(CARRY_INTERVALS * env.settings.upload_interval_s):
            jobs.start(Job("carry", sid_, box_), partial(self.carry, sid_, box_))
        now = env.clock()
        for sid, user in list(store.users.items()):
            if user.chores.swept_at < now - SWEEP_S:
                jobs.check(Job("sweep", sid), partial(self._sweep, user))
            self.tend(user)
            jobs.check(Job("unload", sid), partial(self._unload, sid, user, now - env.settings.idle_s))
        if self.nightly.due(env.now()):
            store.spawn(flush_all(store))
        jobs.start(Job("journal"), self.clear_journal)
        jobs.drop_stale()  # what is still needed runs now

    def tend(self, user: User) -> None:
        """Start a job for each deletion of objects that is left of a user in memory."""
        for job, work in list(user.chores.due.items()):
            self.jobs.start(job, partial(self._tend, user, work))

    async def _tend(self, user: User, work: Callable[[], Awaitable[object]]) -> None:
        if self._store.users.get(user.storage_id) is user:
            await work()

    def _sweep(self, user: User) -> None:
        user.sync_totals()
        user.chores.sweep()

    def _unload(self, sid: StorageId, user: User, before: float) -> None:
        unload_idle(user, before)
        if not user.busy() and user.used_at < before:
            leave(user)
            self._store.unload(sid)

    async def carry(self, sid: str, box: str) -> None:
        """Carry a box forward in the journal, or flush it. A user that does not exist
        any more is forgotten."""
        user = await self._user(StorageId(sid))
        if user is None:
            self._store.journal.forget(sid)
        elif box == ROOT:
            await user.rootbox.flush()
        elif Guid(box) in user.root.entries:
            await carry(await user.box(Guid(box)))
        else:
            journal = self._store.journal
            journal.flushed(sid, box, journal.position(), more=False)

    async def _user(self, sid: StorageId) -> User | None:
        """Load the user. Returns None if there is no such user any more."""
        try:
            return await self._store.load_user(self._store.name_of(sid), sid)
        except NotFound:
            return None

    async def clear_journal(self) -> None:
        """Delete journal objects that bundles have covered for the delay."""
        store = self._store
        env, journal, takeover = store.env, store.journal, store.takeover
        keys: list[str] = []
        limit = env.clock() - env.delete_delay_s
        while journal.covered and journal.covered[0][2] < limit:
            boot, seq, since = journal.covered[0]
            if journal.follower is not None and not await journal.follower.let_go(boot, seq, since):
                break
            journal.covered.pop(0)
            keys += [journal_key(journal.backend, boot, n) for n in range(self._deleted_below.get(boot, 0), seq)]
            self._deleted_below[boot] = seq
        if not takeover.boots:
            old = [(key, at) for key, at in takeover.old if at < env.now() - env.delete_delay_s]
            if old:
                keys += [key for key, _ in old]
                takeover.old = [pair for pair in takeover.old if pair not in old]
        await env.delete(keys, kind="journal")

    # -- after a start ---------------------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Load and flush every box that journals of boots that ended have changes of,
        and record which users are done.

        Users are independent of each other, also those that come meanwhile. While a
        user cannot be adopted, its boots still name it, and the next start reads only
        that user.
        """
        if self._adopting:
            return
        self._adopting = True
        try:
            await self._adopt()
        finally:
            self._adopting = False

    def adoption_done(self) -> bool:
        """Return whether every dead boot says that this backend's users have been
        adopted. Only tests ask this."""
        return not self._adopting and all(map(self._is_recorded, self._store.takeover.boots))

    async def _adopt(self) -> None:
        takeover = self._store.takeover

        def left() -> list[_Work]:
            return [(Job("adopt", sid), partial(self._adopt_user, sid)) for sid in sorted(takeover.left)]

        await self._until_done(left, self._record_all)
        takeover.boots = [ended for ended in takeover.boots if not ended.clean]
        if not takeover.boots:
            self._store.journal.forget_deletions()

    async def _adopt_user(self, sid: str) -> None:
        takeover = self._store.takeover
        takeover.again.discard(sid)
        try:
            await self._take_over_user(sid)
        except NotFound:
            takeover.adopted({sid})
            raise
        takeover.adopted({sid})

    async def _record_all(self, running: bool) -> bool:
        """Record in each boot which users have been adopted. Returns whether all have
        been, and all boots say so. running: whether jobs of users still run."""
        takeover = self._store.takeover
        for ended in list(takeover.boots):
            if not ended.clean and (not running or self._is_worthwhile(ended)):
                job = Job("adopt", mailbox=f"{ended.boot.backend}/{ended.boot.name}")
                await self.jobs.attempt(job, partial(self.record_end, ended))
        return not takeover.left and all(ended.clean or self._is_recorded(ended) for ended in takeover.boots)

    def _is_worthwhile(self, ended: Ended) -> bool:
        done = self._done_of(ended)
        return len(done - ended.adopted) * RECORDED_SHARE > len(done)

    def _done_of(self, ended: Ended) -> set[str]:
        """Return the users of a dead boot that this backend has, and of whom bundles
        have everything."""
        takeover, owned = self._store.takeover, self._store.env.owned
        named = takeover.users[ended.boot.backend, ended.boot.name]
        return {sid for sid in named if sid not in takeover.left and owned.owns(sid)}

    def _is_recorded(self, ended: Ended) -> bool:
        """Return whether the boot says of all users of this backend that they have been
        adopted."""
        return self._done_of(ended) <= ended.adopted

    async def record_end(self, ended: Ended) -> None:
        """Record the users of a boot that have been adopted since the last record."""
        takeover = self._store.takeover
        named = takeover.users[ended.boot.backend, ended.boot.name]
        if not self._is_recorded(ended) or named <= ended.adopted:
            noted = await record(self._store.env, ended, named, self._done_of(ended), self._store.journal.modseq_floor)
            # A sweep may have read the boot again meanwhile, or found it clean.
            takeover.boots = [noted if one.is_before(noted) else one for one in takeover.boots]

    async def _take_over_user(self, sid: str) -> None:
        store = self._store
        user = await self._user(StorageId(sid))
        if user is None:  # it was deleted before the crash or since
            store.takeover.pending.pop(sid, None)
            return
        if sid in store.takeover.pending:  # it was in memory before, and not joined
            raise Corrupt("the journal says something of the user that does not decode")
        failed: Exception | None = None
        for box in list(user.pending):
            if box not in user.root.entries:
                log.error("journal has changes of an unknown mailbox", user=sid, mailbox=box)
                user.pending.pop(box, None)
                continue
            try:
                await user.box(Guid(box))
            except Exception as exc:
                log.error("mailbox cannot be adopted yet", user=sid, mailbox=box, error=str(exc))
                failed = exc
        await user.flush()
        if failed is not None:
            raise failed

    async def flush_unflushed(self) -> None:
        """Upload local copies with changes that an earlier process did not upload."""
        cache = self._store.env.metacache
        left: dict[Job, _Work] = {}
        for space in cache.users():
            for box in self._dirty(space.user):
                job = Job("unflushed", space.user, box)
                left[job] = job, partial(self._flush_copy, space.user, box)

        async def over(_: bool) -> bool:
            return not left

        async def attempt(job: Job, work: Callable[[], Awaitable[object]]) -> None:
            if await self.jobs.attempt(job, work):
                left.pop(job, None)

        await self._until_done(lambda: list(left.values()), over, attempt)

    async def _until_done(
        self,
        left: Callable[[], list[_Work]],
        done: Callable[[bool], Awaitable[bool]],
        attempt: _Attempt | None = None,
    ) -> None:
        """Attempt the jobs that are left, until `done` returns True. A job that failed
        is attempted again, and new jobs begin, while others still run.

        done: called every few seconds, and when no job runs. It gets whether jobs run.
        """
        store, attempt = self._store, attempt or self.jobs.attempt
        rounds: set[asyncio.Task[None]] = set()
        while True:
            if works := [work for work in left() if self.jobs.ready(work[0])]:
                rounds.add(store.spawn(self._attempt_all(works, attempt)))
            pause = store.spawn(self._pause())
            try:
                if rounds:
                    await asyncio.wait({*rounds, pause}, return_when=asyncio.FIRST_COMPLETED)
                rounds = {one for one in rounds if not one.done()}
                if await done(bool(rounds)):
                    return
                if not rounds:
                    await asyncio.wait({pause})
            finally:
                pause.cancel()

    async def _pause(self) -> None:
        await self._store.env.sleep(AGAIN_S)

    async def _attempt_all(self, works: list[_Work], attempt: _Attempt) -> None:
        await asyncio.gather(*(attempt(*work) for work in works))

    async def _flush_copy(self, sid: str, box: str) -> None:
        if self._store.env.metacache.peek(sid, box) is None:
            return  # it was deleted meanwhile, with its user
        user = await self._user(StorageId(sid))
        if user is not None:
            await (user.rootbox.flush() if box == ROOT else (await user.box(Guid(box))).flush())

    def _dirty(self, sid: str) -> list[str]:
        """Return the boxes of a user whose local copy has important changes."""
        cache = self._store.env.metacache
        out = []
        for box in cache.boxes(sid):
            copy = cache.load(sid, box)
            if copy is not None and copy.change is Change.IMPORTANT and Stamp.decode(copy.stamp) is not None:
                out.append(box)
        return out
