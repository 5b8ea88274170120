"""All users of a backend, over a bucket, a metacache and an fscache.

`start` checks the format, fences and replays. `run` writes the journal, uploads when it
is due, unloads idle users and deletes old objects. `close` flushes everything and
writes the journal's end. While the bucket does not answer, `start` tries again. An open
of a user meanwhile waits for the start, at most `OPEN_S`, and then raises
`Unavailable`.

Diagnostics: a newer format in the bucket is fatal (`ConfigError`). Errors of the bucket
are logged once a minute, and the requests are repeated.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
import structlog

from ...errors import Elsewhere, InUse, NotFound, OboxError, Unavailable
from ...objectstore.keys import ROOT
from ...types import Guid, StorageId
from ..env import OPEN_S, TRY_LATER, Env, StoreSettings, answer_within
from ..jobs import Jobs
from ..log import boots
from ..log.awake import LOOK_S
from ..log.journal import Journal
from ..log.stage import Log
from ..log.takeover import BOOT_MS_DIGITS, LastBoot, LocalCopies, Takeover, take_over
from ..once import EveryMinute
from ..owned import Cluster, Owned
from ..user.journaled import join_journaled
from ..user.unclean import FLOOR_MARGIN_MS
from ..user.unload import leave, wait_idle
from ..user.user import User
from . import mark
from .beginning import Beginning
from .nightly import Nightly
from .upkeep import Upkeep

log = structlog.get_logger()

T = TypeVar("T")

ROOM_S: Final = 9.0
"""An open waits so long for the cleaner when the metacache is full, and then raises
Unavailable. It is below OPEN_S, so that clients get the reason."""

ROOM_TICK_S: Final = 0.05

FLUSHES_AT_ONCE: Final = 8
"""Uploads in flight at the same time. The limit leaves capacity for deliveries while
many users are flushed."""

STOP_S: Final = 30.0
"""Time limit for writing the journal's end at a stop. What could not be written is in
the local state."""

_LAST_BOOT: Final = "boot"
_GENERATION: Final = "generation"
_BUCKET: Final = "bucket"


@contextmanager
def _counted(counter: Counter[StorageId], sid: StorageId) -> Iterator[None]:
    counter[sid] += 1
    try:
        yield
    finally:
        counter[sid] -= 1
        if not counter[sid]:
            del counter[sid]


class MailStore:
    """See the module's text and `api.Store`."""

    def __init__(self, env: Env, *, cluster: Cluster | None = None) -> None:
        """cluster: says which users are this backend's; None: all are, and no other
        backend is alive."""
        self.env = env
        self._cluster = cluster
        env.owned = Owned(None if cluster is None else cluster.unit_of)
        self.changing = asyncio.Lock()
        """Held while this backend gains or loses units."""
        self.users: dict[StorageId, User] = {}
        self._barred: Counter[StorageId] = Counter()
        self.pulls: Counter[StorageId] = Counter()
        self._rooming = asyncio.Lock()
        self._opening: dict[StorageId, asyncio.Task[User]] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self._running: list[asyncio.Task[Any]] = []
        self.takeover = Takeover()
        self._trouble = EveryMinute(env.clock)
        self._gate = asyncio.Semaphore(FLUSHES_AT_ONCE)
        self.upkeep = Upkeep(self)
        self.started = False
        self.beginning = Beginning()
        self.unclean = False
        self.journal = self._new_journal(self._new_boot())
        self.log = Log(env, self.journal)

    # -- life ------------------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task of the store. `close` waits for it. A bug in it is logged.

        An `OboxError` is for the code that awaits the task. Upkeep that nobody awaits
        is a job (`jobs`), whose failures are logged."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @property
    def jobs(self) -> Jobs:
        """Return the jobs of upkeep."""
        return self.upkeep.jobs

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None and not isinstance(exc, OboxError):
            log.error("task of the store failed", error=repr(exc), exc_info=exc)

    def _new_boot(self) -> str:
        return f"{self.env.now_ms():0{BOOT_MS_DIGITS}x}{self.env.random_bytes(2).hex()}"

    def _new_journal(self, boot: str) -> Journal:
        env = self.env
        env.writer = boot
        return Journal(
            env.bucket,
            env.codec,
            env.settings.backend,
            boot,
            interval_s=env.settings.journal_interval_s,
            clock=env.clock,
            sleep=env.sleep,
            new_oid=env.new_oid,
            before_put=self._remember,
            fenced=self._fenced,
        )

    async def _remember(self, boot: str, seq: int) -> None:
        """Record the boot and `seq` before a journal PUT. So the bucket never has more
        of us than our disk, unless the disk was restored."""
        self._note(LastBoot(boot, seq, clean=False))
        await self.env.commit_staged()

    def _note(self, last: LastBoot) -> None:
        self.env.metacache.put_state(_LAST_BOOT, msgspec.msgpack.encode(last))

    def earlier_boots(self) -> frozenset[str]:
        """Return the boots of this state directory before the start."""
        raw = self.env.metacache.get_state(_LAST_BOOT)
        last = {msgspec.msgpack.decode(raw, type=LastBoot).boot} if raw else set()
        return frozenset(last | {one.boot for one in boots.listing(self.env)})

    async def _fenced(self) -> str:
        """Begin a new boot, because another backend has fenced this boot.

        Without a cluster, no local copy is trusted before it was compared. In a
        cluster, it first asks which users this backend still has, and continues to
        serve them. The others are given up (`handover.lose`).
        """
        boot = self._new_boot()
        before = self.journal.boot
        if self._cluster is None:
            log.error("fenced off by another backend, a new boot begins", boot=before, new_boot=boot)
        else:
            log.warning(
                "fenced by another backend, as expected after a pause or a cut network; a new boot begins",
                boot=before,
                new_boot=boot,
                next_step="none: users that others have are given up, the others go on",
            )
        self.env.writer = boot
        self.journal.modseq_floor = max(self.journal.modseq_floor, self.env.now_ms() + FLOOR_MARGIN_MS)
        if self._cluster is not None:
            await self._cluster.fenced(self.journal.boot)
            return boot
        self.unclean = True
        self.doubt()
        for user in self.users.values():
            self.spawn(user.recheck())
        return boot

    def doubt(self, units: Iterable[str] | None = None) -> None:
        """Mark every local copy of these units, of all by default, to be compared when
        its box is opened next."""
        self.env.owned.doubt(units)
        self.remember_units()

    def remember_units(self) -> None:
        """Write the units of this backend to the local state. They are durable with its
        next commit."""
        self.env.metacache.put_state(_GENERATION, self.env.owned.encode())

    async def start(self) -> None:
        """Check the format, fence boots that have ended, and read their journals. It
        tries until the bucket answers. Raises ConfigError."""
        env = self.env
        env.owned.load(env.metacache.get_state(_GENERATION))
        if self._cluster is not None:
            await self._cluster.ready()
            env.owned.keep(self._cluster.units())
        raw = env.metacache.get_state(_LAST_BOOT)
        last = msgspec.msgpack.decode(raw, type=LastBoot) if raw else None
        while True:
            try:
                known = bool(env.metacache.get_state(_BUCKET))
                if self._is_another(await mark.open_bucket(env, alone=self._cluster is None, known=known)):
                    last = None
                self.takeover = await take_over(env, last, lambda backend: self._cluster is not None)
                break
            except Unavailable:
                if self._trouble.due():
                    log.warning("waiting for the bucket", skipped=self._trouble.skipped())
                await env.sleep(1.0)
        if self.takeover.trust is LocalCopies.DROP:
            env.metacache.drop_all()
        behind = self._cluster is not None and self._cluster.number() < self.takeover.assigned
        if behind:
            log.warning("directory is older than the journals, local copies are compared with the bucket")
        if self.takeover.trust is not LocalCopies.KEEP or behind:
            self.doubt()
        self.unclean = self.takeover.unclean or (last is not None and not last.clean)
        self.journal.modseq_floor = max(
            self.takeover.modseq_floor, env.now_ms() + FLOOR_MARGIN_MS if self.unclean else 0
        )
        self.journal.assigned = self.takeover.assigned
        if self._cluster is not None:
            self.journal.assigned = max(self.journal.assigned, self._cluster.number())
        before = "unknown" if last is None else "clean" if last.clean else "unclean"
        users = len(self.takeover.pending)
        boots.began(env, self.journal.boot, trust=self.takeover.trust, before=before, users=users)
        self._running = [self.spawn(self.journal.run()), self.spawn(self.upkeep.run())]
        await self._announce()
        if self._cluster is not None:
            self.journal.awake.begin()
            self._running.append(self.spawn(self._stay_sure()))
        self.started = True
        self.beginning.decide()
        log.info(
            "store ready",
            boot=self.journal.boot,
            local_copies=self.takeover.trust.value,
            users=len(self.takeover.pending),
        )
        if self.takeover.pending or self.takeover.boots:
            self.spawn(self.upkeep.adopt())
        self.spawn(self.upkeep.flush_unflushed())

    async def _stay_sure(self) -> None:
        """Look whether this process stood still, and then learn at once whether another
        backend has taken over."""
        journal = self.journal
        while True:
            await self.env.sleep(LOOK_S)
            before = journal.awake.resumed_at
            if not journal.sure() and journal.awake.resumed_at != before:
                log.warning("this process stood still, and asks whether it was replaced")
                self.spawn(journal.confirm())

    async def _announce(self) -> None:
        """Write the first journal object before clients see anything. A later backend
        must find this boot, to fence it, and to know that its clients may have seen
        values that are not in the bucket."""
        while True:
            try:
                return await self.journal.lease()
            except Unavailable:
                continue

    def use(self, settings: StoreSettings) -> None:
        """Use other settings from now on, except `backend`. Uploads that are waiting
        follow the new settings."""
        env = self.env
        if settings.flush_at != env.settings.flush_at:
            self.upkeep.nightly = Nightly(settings.flush_at, env.now())
        env.settings = settings
        self.journal.interval_s = settings.journal_interval_s
        latest = env.clock() + settings.upload_interval_s
        for user in self.users.values():
            user.rootbox.due_by(latest)
            for box in user.boxes.values():
                if box.due_at is not None or box.unflushed_mails > settings.max_rescan_mail_count:
                    box.due_at = latest if box.due_at is None else min(box.due_at, latest)

    def discard_local_state(self) -> None:
        """Discard all local state before `start`, because the bucket is new with this
        process (`memory://`)."""
        self.env.metacache.drop_all()
        self.env.metacache.put_state(_BUCKET, b"")

    def _is_another(self, bucket: bytes) -> bool:
        """Record which bucket the local state belongs to. Returns True if it belonged
        to another bucket, so that it must be discarded."""
        metacache = self.env.metacache
        served = metacache.get_state(_BUCKET)
        metacache.put_state(_BUCKET, bucket)
        if not served or served == bucket:
            return False
        log.warning("local state of another bucket dropped")
        metacache.drop_all()
        return True

    async def close(self, *, upload: bool = True) -> None:
        """Flush everything and write the journal's end. What the bucket refuses now
        stays in the local copies.

        upload: False leaves the indexes to the next start, which has them in local
        copies and journal.
        """
        self.beginning.decide()
        if not self.started:  # it may come during the start
            return await self._end_tasks()
        self.started = False
        await self._wait_for_slots()
        for task in self._running[1:]:
            task.cancel()
        clean = True
        if upload:
            await self._load_unflushed()
            for done in await asyncio.gather(*(self._flush_last(user) for user in list(self.users.values()))):
                clean &= done
        else:
            for user in self.users.values():
                leave(user)
        self.journal.stop()
        try:
            async with asyncio.timeout(STOP_S):
                await self._running[0]
                await self.journal.close()
        except TimeoutError:
            clean = False
            log.error("end of the journal cannot be written")
        if clean:
            self._note(LastBoot(self.journal.boot, self.journal.position()[1] - 1, clean=True))
            boots.ended(self.env, self.journal.boot)
        await self.env.commit_staged()
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load_unflushed(self) -> None:
        """Load mailboxes again that were unloaded with a few mails that only the
        journal has. The flush follows."""

        async def load(sid: str, box: str) -> None:
            async with self._gate:
                user = self.users.get(StorageId(sid)) or await self._open(StorageId(sid), sid, False)
                if box != ROOT and Guid(box) in user.root.entries:
                    await user.box(Guid(box))

        results = await asyncio.gather(*(load(*key) for key in self.journal.uncovered()), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log.warning("user not loaded for the last flush, the changes are in the journal", error=str(result))

    async def _flush_last(self, user: User) -> bool:
        async with self._gate:
            try:
                await user.flush(everything=True)
                leave(user)
            except OboxError as exc:
                log.error(
                    "user not flushed at stop, the changes are in local state and journal",
                    user=user.name,
                    error=str(exc),
                )
                return False
            except Exception as exc:  # a bug with one user must not delay the others
                log.error(
                    "user not flushed at stop, the changes are in local state and journal",
                    user=user.name,
                    error=repr(exc),
                    exc_info=exc,
                )
                return False
        return True

    async def _wait_for_slots(self) -> None:
        """Wait a limited time for the UIDs in flight."""
        boxes = [box for user in self.users.values() for box in user.boxes.values()]
        try:
            async with asyncio.timeout(30):
                await asyncio.gather(*(box.slots.all_resolved() for box in boxes))
        except TimeoutError:
            log.warning("deliveries still undecided at stop, they were not acknowledged")

    # -- users -----------------------------------------------------------------------------------------------------

    async def admit(self, storage_id: StorageId) -> None:
        """See `api.Store.admit`."""
        if self.started:
            await self.env.owned.admit(storage_id)

    async def open_user(
        self,
        name: str,
        storage_id: StorageId,
        *,
        quota_bytes: int | None = None,
        quota_messages: int | None = None,
        make: bool = True,
    ) -> User:
        """See `api.Store.open_user`."""
        user = self.users.get(storage_id)
        if user is not None and self.started and self._cluster is None and storage_id not in self._barred:
            user.used_at = self.env.clock()
        else:
            async with answer_within(OPEN_S):
                await self.beginning.decided()
                if self._cluster is not None:
                    await self.journal.confirm()
                    await self._cluster.confirm()
                await self.env.owned.admit(storage_id)
                user = await self._user(storage_id, name, make=make)
        if not self.env.owned.owns(storage_id):  # the user was lost while it was opened
            raise Elsewhere("another backend serves the user; try again")
        user.name = name
        user.limit(quota_bytes, quota_messages)
        user.sessions += 1
        return user

    async def load_user(self, name: str, storage_id: StorageId, *, make: bool = False) -> User:
        """Load a user for upkeep. It counts no session and changes no limits. It is
        loaded even if the metacache is full, because the upload frees space.

        make: create a user that is not in the bucket; False raises NotFound.
        """
        async with answer_within(OPEN_S):
            await self.beginning.decided()
        return await self._user(storage_id, name, upkeep=True, make=make)

    @contextmanager
    def pulling(self, sid: StorageId) -> Iterator[None]:
        """Mark that a user's copies are sent to or received from another backend.
        Raises InUse if the user is being deleted."""
        if sid in self._barred:
            raise InUse("the user is being deleted")
        with _counted(self.pulls, sid):
            yield

    @contextmanager
    def barring(self, sid: StorageId) -> Iterator[None]:
        """Let nobody open a user, because it is being deleted or rebuilt. Raises InUse
        if its copies are being pulled."""
        if sid in self.pulls:
            raise InUse("the user is being pulled; try again in a while")
        with _counted(self._barred, sid):
            yield

    async def drop(self, user: User, *, within_s: float | None = None) -> None:
        """Forget a user who is deleted, without an upload. Nothing of the user is in
        flight on return.

        Raises InUse if that takes longer than `within_s`. Then the user stays.
        """
        sid = user.storage_id
        self.users.pop(sid, None)
        user.deleted = True
        try:
            async with asyncio.timeout(within_s):
                await wait_idle(user)
        except TimeoutError:
            user.deleted = False
            self.users[sid] = user
            raise InUse("deliveries to this user are still undecided; try again in a while") from None
        self.forget(sid)

    def bucket_id(self) -> bytes:
        """Return the oid of `_format`, which identifies a bucket and its prefix. It is
        empty before the start."""
        return self.env.metacache.get_state(_BUCKET) or b""

    def opening(self, sid: StorageId) -> asyncio.Task[User] | None:
        """Return the task that is opening a user."""
        return self._opening.get(sid)

    def opening_users(self) -> list[StorageId]:
        """Return the users who are being opened at the moment."""
        return list(self._opening)

    def awaits_takeover(self, sid: StorageId) -> bool:
        """Return whether the journal of a boot that ended has changes of this user, who
        has not been opened since."""
        return sid in self.takeover.pending

    def name_of(self, sid: StorageId) -> str:
        """Return the name under which a user in memory was opened, or the storage id of
        others."""
        user = self.users.get(sid)
        return sid if user is None else user.name

    def forget(self, sid: StorageId) -> None:
        """Drop everything that journal and takeover have of a user that is being
        deleted."""
        self.journal.forget(sid)
        self.upkeep.jobs.forget(sid)
        self.takeover.pending.pop(sid, None)
        self.takeover.left.discard(sid)
        self.takeover.sources.pop(sid, None)

    async def record_deletion(self, sid: StorageId) -> None:
        """Record that a user has been deleted, so that no replay uses earlier changes
        of it. The record is in the bucket on return. Raises Unavailable."""
        self.journal.record_deletion(sid)
        if not self.takeover.boots:
            self.journal.forget_deletions()
        await self.journal.sync()

    async def _user(self, sid: StorageId, name: str, *, upkeep: bool = False, make: bool) -> User:
        """Return the user, loaded. make: see `load_user`."""
        waited = False
        while True:
            if not self.started or sid in self._barred:
                raise Unavailable(TRY_LATER)
            user = self.users.get(sid)
            if user is not None:
                user.used_at = self.env.clock()
                return user
            task = self._opening.get(sid)
            ours = task is None
            if task is None:
                if not upkeep and not waited and sid not in self.takeover.pending and self._crowded():
                    await self._room()
                    waited = True
                    continue
                task = self._opening[sid] = self.spawn(self._open(sid, name, make))
                task.add_done_callback(lambda _: self._opening.pop(sid, None))
            try:
                return await asyncio.shield(task)
            except NotFound:
                if ours or not make:
                    raise  # otherwise upkeep has opened it

    def _crowded(self) -> bool:
        """Return whether the metacache has no space for another user's index, or others
        wait for space."""
        return self.env.metacache.full() or self._rooming.locked()

    async def _room(self) -> None:
        """Wait until the cleaner has freed space for another user's index. Waiting
        opens are served in their order. Raises Unavailable."""
        metacache, sleep = self.env.metacache, self.env.sleep
        until = self.env.clock() + ROOM_S
        async with self._rooming:
            # The loop ends in the same check for all that wait here.
            while metacache.full():
                if self.env.clock() >= until:
                    raise Unavailable("no room for another user's index; try again later")
                if metacache.on_pressure is not None:
                    metacache.on_pressure()
                await sleep(ROOM_TICK_S)

    async def _open(self, sid: StorageId, name: str, make: bool) -> User:
        user = User(self, self.env, name, sid)
        taken: dict[str, int] = {}

        def come() -> dict[str, list[bytes]]:
            """Return what journals have of the user that they had not at the last
            call."""
            found = self.takeover.pending.get(sid, {})
            new = {box: deltas[taken.get(box, 0) :] for box, deltas in found.items()}
            taken.update((box, len(deltas)) for box, deltas in found.items())
            return {box: deltas for box, deltas in new.items() if deltas}

        await user.open(come(), make=make)
        while more := come():
            await join_journaled(user, more)
        self.takeover.pending.pop(sid, None)
        self.users[sid] = user
        self.upkeep.tend(user)
        if self.env.is_stale(sid, user.rootbox.stamp):
            self.spawn(user.recheck(every=True))
        return user

    def unload(self, sid: StorageId) -> None:
        """Unload a user from memory."""
        self.users.pop(sid, None)

    def metadata(self) -> Mapping[str, object]:
        """Return numbers for logs and metrics."""
        return {
            "users": len(self.users),
            "mailboxes": sum(len(user.boxes) for user in self.users.values()),
            "journal_late_seconds": self.journal.late(),
            "boot": self.journal.boot,
            **self.upkeep.jobs.figures(),
        }
