"""Backends in the process of the test, over a single bucket. A test starts, stops and
kills them, and keeps or loses their local state.

A `Machine` is the local disk of a backend, and `run` is the life of a process on this
disk. A life that ends with `kill` leaves the disk as `kill -9` does: the process
flushes nothing and writes nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fscache import Fscache
from metacache import Metacache
from obox.forms import Gate
from obox.mailbox import UidArray
from obox.mailbox.invariants import check
from obox.objectstore import AlreadyExists, Codec, Driver, ObjectKind, OpenStore, Settings, open_store
from obox.objectstore.keys import FORMAT_KEY, owner_of
from obox.objectstore.stats import Stats
from obox.store import Env, Mailbox, MailStore, StoreSettings
from obox.store.owned import Cluster
from obox.store.user.user import User
from obox.types import StorageId

SID = StorageId("anna")


class Time:
    """A clock that runs `speed` times as fast as real time. A test can also move it
    forward, so that upload intervals and delays pass at once."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._moved = 0.0
        self._begun = time.monotonic()
        self._wall = time.time()
        self._sleepers: set[asyncio.Event] = set()

    def clock(self) -> float:
        return (time.monotonic() - self._begun) * self.speed + self._moved

    def now(self) -> float:
        return self._wall + self.clock()

    def move(self, seconds: float) -> None:
        """Move the time forward. Sleepers then look at the clock again."""
        self._moved += seconds
        for event in self._sleepers:
            event.set()

    async def sleep(self, seconds: float) -> None:
        end = self.clock() + seconds
        event = asyncio.Event()
        self._sleepers.add(event)
        try:
            while (left := end - self.clock()) > 0:
                event.clear()
                try:
                    async with asyncio.timeout(left / self.speed):
                        await event.wait()
                except TimeoutError:
                    pass
            await asyncio.sleep(0)
        finally:
            self._sleepers.discard(event)


@dataclass
class Bucket:
    """The bucket with the mail: `file://` or `memory://`. All openings of a memory
    bucket share the same driver."""

    url: str
    codec: Callable[[], Codec]
    time: Time = field(default_factory=Time)
    driver: Driver | None = None

    def open(self) -> OpenStore:
        store = open_store(Settings(self.url), driver=self.driver, wall=self.time.now)
        if self.url == "memory://" and self.driver is None:
            # Each opening counts its own requests. All openings share the objects.
            self.driver = store.driver.inner  # type: ignore[attr-defined]  # the driver below, whose objects are shared
        return store

    async def keys(self, prefix: str = "") -> list[str]:
        store = self.open()
        try:
            return [info.key for info in await store.list(prefix, kind="mail") if not info.key.startswith("_probe")]
        finally:
            await store.close()


@dataclass
class Life:
    """A running backend."""

    store: MailStore
    bucket: OpenStore
    time: Time
    settings: StoreSettings
    users: list[User] = field(default_factory=list)

    async def user(
        self, name: str = "anna", *, quota_bytes: int | None = None, quota_messages: int | None = None
    ) -> User:
        user = await self.store.open_user(name, StorageId(name), quota_bytes=quota_bytes, quota_messages=quota_messages)
        self.users.append(user)
        return user

    async def let_pass(self, seconds: float) -> None:
        """Move the time forward in steps. After each step everything that is due is
        done."""
        while seconds > 0:
            self.time.move(min(5.0, seconds))
            seconds -= 5.0
            await asyncio.sleep(0)
            while self._due():  # noqa: ASYNC110 - the store has no event for "nothing is due"
                await asyncio.sleep(0.0005)

    def _due(self) -> bool:
        if self.store.journal.late() > self.settings.journal_interval_s:
            return True
        users = list(self.store.users.values())
        # The upkeep looks for work once a second.
        late = self.time.clock() - 1.0
        boxes: list[Any] = [box for user in users for box in (user.rootbox, *user.boxes.values())]
        return any(box.due_at is not None and box.due_at < late for box in boxes)

    @contextmanager
    def counting(self) -> Iterator[Stats]:
        """Count the requests that are made inside the block. The counts are complete at
        the end of the block."""
        before = self.bucket.stats.snapshot()
        out = Stats()
        try:
            yield out
        finally:
            out.counters.update(self.bucket.stats.since(before).snapshot())

    async def quiet(self) -> None:
        """Wait until the journal has written what is staged and has renewed its lease.
        Its requests are then not counted in the block that follows."""
        await self.store.journal.sync()
        await self.store.journal.lease()


def _gate(*, batches: bool) -> Gate:
    """Return the gate of a bucket that may have batches, or not."""
    gate = Gate()
    if batches:
        gate.rise({"mails": 2})
    return gate


async def _begin_without_batches(env: Env) -> None:
    """Make a new bucket as an obox made it that knew no batches."""
    payload = msgspec.msgpack.encode({"major": 2, "minor": 0})
    data = env.codec.encode(ObjectKind.FORMAT, owner_of(FORMAT_KEY), env.new_oid(), b"", payload)
    with contextlib.suppress(AlreadyExists):
        await env.bucket.put(FORMAT_KEY, data, kind="format")


class Machine:
    """The name and the local disk of a backend. batches: whether it may write several
    mails as one object."""

    batches = True

    def __init__(self, bucket: Bucket, path: Path, **settings: Any) -> None:
        self.bucket = bucket
        self.path = path
        self.settings = StoreSettings(**{"backend": "first", **settings})

    def lose_disk(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def renamed(self, backend: str, path: Path) -> Machine:
        """Return another machine for the same bucket, with an empty disk."""
        other = Machine(self.bucket, path)
        other.batches = self.batches
        other.settings = replace(self.settings, backend=backend)
        return other

    @asynccontextmanager
    async def run(
        self,
        clock: Time | None = None,
        *,
        kill: bool = False,
        upload: bool = True,
        start: bool = True,
        cluster: Cluster | None = None,
    ) -> AsyncIterator[Life]:
        """Run a life of the backend.

        kill: the life ends at the end of the block as with `kill -9`;
        upload: see MailStore.close;
        start: if it is False, the block starts the store;
        cluster: see MailStore.
        """
        clock = clock or self.bucket.time
        self.path.mkdir(parents=True, exist_ok=True)
        bucket = self.bucket.open()
        metacache = Metacache(
            self.path / "metacache", max_space=256 << 20, max_grace=32 << 20, clock=clock.now, sync=False
        )
        fscache = Fscache(self.path / "fscache", max_size=64 << 20, clock=clock.now)
        env = Env(
            bucket=bucket,
            codec=self.bucket.codec(),
            metacache=metacache,
            fscache=fscache,
            settings=self.settings,
            now=clock.now,
            clock=clock.clock,
            sleep=clock.sleep,
            random_bytes=os.urandom,
            forms=_gate(batches=self.batches),
        )
        store = MailStore(env, cluster=cluster)
        life = Life(store, bucket, clock, self.settings)
        try:
            if start:
                await self._start(store)
            yield life
            if not kill:
                for user in life.users:
                    await user.release()
                await store.close(upload=upload)
        finally:
            tasks = list(store.tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # What is staged is lost. A close would commit it.
            if kill:
                self._keep_as_it_is()
            await fscache.close()
            await metacache.close()
            await bucket.close()
            if kill:
                shutil.rmtree(self.path / "metacache")
                (self.path / "killed").rename(self.path / "metacache")

    async def _start(self, store: MailStore) -> None:
        if not self.batches:
            await _begin_without_batches(store.env)
        await store.start()

    def _keep_as_it_is(self) -> None:
        shutil.copytree(self.path / "metacache", self.path / "killed")


def uids(*numbers: int) -> UidArray:
    return np.array(numbers, dtype=np.uint32)


async def whole(user: User) -> dict[str, Any]:
    """Return everything of a user that a client can see, without HIGHESTMODSEQ, which
    may grow."""
    names = [info.name for info in user.mailboxes() if info.guid is not None]
    annotations = {name: dict(user.annotations.of(name)) for name in ("", *names)}
    out: dict[str, Any] = {"subscriptions": (user.subscriptions(), annotations)}
    for info in user.mailboxes():
        if info.guid is None:
            continue
        box = await user.select(info.name)
        status = await user.status(info.name)
        rows = {}
        state = box.state
        for at, uid in enumerate(state.uids.tolist()):
            rows[uid] = (
                sorted(state.flags.of_bits(int(state.bits[at]))),
                int(state.column("internaldate")[at]),
                int(state.column("zone")[at]),
                int(state.column("size")[at]),
                await box.mail(uid),
            )
        await box.release()
        check(box.state)
        out[info.name] = (
            info.special_use,
            info.subscribed,
            status.uidvalidity,
            status.uidnext,
            status.messages,
            status.unseen,
            status.size,
            rows,
        )
    return out


async def modseqs(user: User) -> dict[str, int]:
    return {info.name: (await user.status(info.name)).highestmodseq for info in user.mailboxes() if info.guid}


async def fill(user: User, name: str, mails: list[bytes], *, at_once: int = 500) -> None:
    """Append many mails quickly."""
    from obox.store import NewMail

    for begin in range(0, len(mails), at_once):
        await user.append(name, [NewMail(mail) for mail in mails[begin : begin + at_once]])


def flags_of(box: Mailbox) -> dict[int, list[str]]:
    state = box.state
    return {
        uid: sorted(state.flags.of_bits(int(bits)))
        for uid, bits in zip(state.uids.tolist(), state.bits.tolist(), strict=True)
    }
