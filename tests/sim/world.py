"""Backends over the same bucket, on virtual time, from a seed. A test can start, stop,
kill, freeze and restore them.

Each request to the bucket and each local commit has a number. `World.at` crashes a
backend at such a step: "before" (the request was not made) or "after" (it was made, and
the answer never came). A request that was sent takes effect whatever becomes of its
sender, as with a real bucket.

Diagnostics: a `World` knows its seed, and its errors name the seed (`python -m
tests.sim --start SEED --seeds 1`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar, cast
from zlib import crc32

import msgspec

from fscache import Fscache
from metacache import Metacache, MetacacheError
from obox.errors import OboxError
from obox.events import Events
from obox.objectstore import (
    HEADER_BYTES,
    Codec,
    Cursor,
    Driver,
    Kind,
    MemoryDriver,
    ObjectInfo,
    ObjectKind,
    Page,
    Settings,
    Unreachable,
    open_store,
)
from obox.objectstore.faults import FaultyDriver, Plan
from obox.objectstore.keys import FORMAT_KEY, owner_of
from obox.store import Env, MailStore, StoreSettings
from obox.types import Oid, Owner, StorageId
from tests.stores import MinioLike, SeaweedLike

from . import batches
from .caches import Disk, SimFscache, SimMetacache
from .loop import HOST, NOBODY, Host
from .wires import Net

T = TypeVar("T")

EPOCH = 1_800_000_000.0
DELETE_DELAY_S = 300.0
"""The delay is short, so that much can be deleted in a life. Two writers that do not
know of each other are merged long before it ends."""
UPLOAD_INTERVAL_S = 20.0
IDLE_S = 15.0
ANSWER_S = 27.0
"""A session never waits longer: 10 s for its user, then 15 s for the change, and 2 s as
a reserve."""

CODEC = Codec({}, None, "none")


class OldWriter(Codec):
    """A writer of objects of the first version, which were not bound to an owner, into
    a bucket whose format object says so."""

    def __setattr__(self, name: str, value: Any) -> None:
        # A bucket that is made today has this minimum.
        if (name, value) != ("major_min", 2):
            super().__setattr__(name, value)

    def encode(self, kind: ObjectKind, owner: Owner, oid: Oid, meta: bytes, payload: bytes) -> bytes:
        if kind == ObjectKind.FORMAT:
            payload = msgspec.msgpack.encode({"major": 1, "minor": 0})
        data = bytearray(super().encode(kind, owner, oid, meta, payload))
        data[4] = 1
        table_and_meta = data[HEADER_BYTES : len(data) - len(payload)]
        data[48:HEADER_BYTES] = crc32(table_and_meta, crc32(data[:48])).to_bytes(4, "little")
        return bytes(data)


When = Literal["before", "after"]


class Crash(Exception):
    """A backend has been killed at a numbered step."""


class World:
    """A bucket, its backends, the time, and the random choices."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.old = seed % 4 == 3
        """The bucket is of the first version. Only an upgrade rewrites objects in the
        second version."""
        self.codec = OldWriter({}, None, "none") if self.old else CODEC
        self.unraised = batches.ON and not self.old and seed % 5 == 1
        """The bucket was made before batches. They are written only once `_format`
        allows them."""
        self.batches = batches.ON
        """Whether a backend may write batches if `_format` says so."""
        chance = random.Random(seed + 3)
        kind = chance.choice(["memory", "minio", "seaweed"])
        self.page_keys = chance.choice([1000, 5])
        self.memory = MemoryDriver(wall=self.now)
        if kind == "minio":
            self.memory = MinioLike(scan_keys=self.page_keys, page_keys=self.page_keys, wall=self.now)
        elif kind == "seaweed":
            self.memory = SeaweedLike(page_keys=self.page_keys, wall=self.now)
        self.plan = Plan()
        self.faults = FaultyDriver(
            self.memory, rng=random.Random(seed + 1), plan=self.plan, later=self._later, sleep=asyncio.sleep
        )
        self.latency_s = (0.001, 0.03)
        self.net = Net(random.Random(seed + 5))
        self.nodes: list[Node] = []
        self.trace: list[str] = []
        self.steps = 0
        self.at: tuple[int, When, Callable[[], None]] | None = None
        self.deleted: list[tuple[float, str]] = []
        self._background: dict[asyncio.Task[Any], None] = {}
        self.listen: Callable[[Node, MailStore], Events] | None = None
        """Makes the groups of events of a backend."""

    async def make_without_batches(self) -> None:
        """Make the bucket as an obox made it that knew no batches."""
        payload = msgspec.msgpack.encode({"major": 2, "minor": 0})
        data = self.codec.encode(ObjectKind.FORMAT, owner_of(FORMAT_KEY), Oid(bytes(16)), b"", payload)
        await self.memory.put(FORMAT_KEY, data, kind="format")

    def now(self) -> float:
        return EPOCH + self.clock()

    def clock(self) -> float:
        return asyncio.get_running_loop().time() + 1000.0

    def note(self, *words: object) -> None:
        self.trace.append(f"{self.clock() - 1000:9.3f} " + " ".join(map(str, words)))

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that belongs to no machine: a request on its way."""
        task = asyncio.get_running_loop().create_task(work, context=NOBODY.copy())
        self._background[task] = None
        task.add_done_callback(lambda task: self._background.pop(task, None), context=NOBODY)
        return task

    def _later(self, seconds: float, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            await asyncio.sleep(seconds)
            await call()

        self.background(run())

    def step(self) -> int:
        """Return the number of the step that begins now."""
        self.steps += 1
        return self.steps

    def crash(self, number: int, what: str, when: When) -> bool:
        """Crash the backend if its crash is due at this step: "before" it or "after"
        it. Return True if the crash is here."""
        if self.at is None or self.at[0] != number or self.at[1] != when:
            return False
        _, _, crash = self.at
        self.at = None
        self.note("crash", when, what)
        crash()
        return True

    def keys(self, part: str = "") -> list[str]:
        return [key for key in self.memory.keys if part in key]

    async def no_faults(self) -> None:
        self.plan.outage = False
        self.plan.every, self.plan.rates = Plan().every, {}

    def node(self, name: str, disk: Disk | None = None, **settings: Any) -> Node:
        node = Node(self, name, disk if disk is not None else Disk(), **settings)
        self.nodes.append(node)
        return node


class _Wire:
    """The bucket as a backend reaches it. A request that was sent takes its course even
    if the backend dies."""

    def __init__(self, world: World, node: Node) -> None:
        self._world, self._node = world, node

    copies_create_only = True
    creates_at_once = True

    @property
    def page_keys(self) -> int:
        return self._world.page_keys

    async def _send(self, op: str, key: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        world, node = self._world, self._node
        if node.cut:
            raise Unreachable(f"{op} {key}: the machine is gone", maybe_done=False)
        number = world.step()
        if world.crash(number, f"{op} {key}", "before"):
            await asyncio.Event().wait()
        node.sent(op, key)

        async def request() -> T:
            await asyncio.sleep(world.rng.uniform(*world.latency_s) / 2)
            result = await call()
            node.landed(op, key)
            return result

        sent = world.background(request())
        sent.add_done_callback(lambda task: task.cancelled() or task.exception(), context=NOBODY)
        result = await asyncio.shield(sent)
        if world.crash(number, f"{op} {key}", "after"):
            await asyncio.Event().wait()
        await asyncio.sleep(world.rng.uniform(*world.latency_s) / 2)
        return result

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._send("put", key, lambda: self._world.faults.put(key, data, kind=kind))

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._send("put", key, lambda: self._world.faults.replace(key, data, kind=kind))

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        return await self._send("get", key, lambda: self._world.faults.get(key, kind=kind, start=start, end=end))

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        def page() -> Coroutine[Any, Any, Page]:
            return self._world.faults.list_page(prefix, kind=kind, after=after, limit=limit, cursor=cursor, exact=exact)

        return await self._send("list", prefix, page)

    async def list_names(self, prefix: str, *, kind: Kind) -> list[str]:
        return await self._send("list", prefix, lambda: self._world.faults.list_names(prefix, kind=kind))

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        self._world.deleted += [(self._world.clock(), key) for key in keys]
        await self._send("delete", keys[0], lambda: self._world.faults.delete_batch(keys, kind=kind))

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        await self._send("copy", target, lambda: self._world.faults.copy(source, target, kind=kind))

    async def close(self) -> None:
        pass


class Node:
    """A life of a backend's process: `start`, then `stop`, `kill`, or neither."""

    def __init__(self, world: World, name: str, disk: Disk, **settings: Any) -> None:
        self.world, self.name, self.disk = world, name, disk
        self.host = Host()
        self.cut = False
        self.ended = False
        self.was_frozen = False
        self.journaled_until = -1.0
        """A journal object in the bucket has all changes that were staged before this
        time."""
        self._journal_sent: dict[str, float] = {}
        self.skew_s = 0.0
        driver: Driver = _Wire(world, self)
        bucket = open_store(
            Settings("memory://"),
            driver=driver,
            clock=world.clock,
            sleep=asyncio.sleep,
            wall=world.now,
            rng=random.Random(world.rng.random()),
            log=_SILENT,
        )
        self.metacache = SimMetacache(disk, self._before_commit)
        chance = random.Random(world.rng.random())
        self.settings = StoreSettings(
            **{
                "backend": name,
                "delete_delay_s": DELETE_DELAY_S,
                "upload_interval_s": UPLOAD_INTERVAL_S,
                "idle_s": IDLE_S,
                "mailboxes": (("Trash", "\\Trash"),),
                **settings,
            }
        )
        self.env = Env(
            bucket=bucket,
            codec=world.codec,
            metacache=cast(Metacache, self.metacache),
            fscache=cast(Fscache, SimFscache(disk)),
            settings=self.settings,
            now=lambda: world.now() + self.skew_s,
            clock=world.clock,
            sleep=asyncio.sleep,
            random_bytes=chance.randbytes,
        )
        if world.batches and not (world.old or world.unraised):
            self.env.forms.rise({"mails": 2})
        self.store: MailStore | None = None
        self.events: Events | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def up(self) -> bool:
        return self.store is not None and self.store.started and not self.ended and not self.host.frozen

    def sent(self, op: str, key: str) -> None:
        boot = "" if self.store is None else self.store.journal.boot
        # The end of another boot does not count.
        ours = key.startswith(f"_journal/{self.name}/{boot}/")
        # After a fence the writes in flight belong to the boot before.
        again = key.endswith("/" + "0" * 16) and self._journal_sent
        if op == "put" and ours and not again:
            self._journal_sent.setdefault(key, self.world.clock())

    def landed(self, op: str, key: str) -> None:
        if op == "put" and key in self._journal_sent:
            self.journaled_until = max(self.journaled_until, self._journal_sent[key] - 0.01)

    async def _before_commit(self) -> None:
        if self.world.crash(self.world.step(), "commit", "before"):
            await asyncio.Event().wait()

    async def start(self) -> Node:
        """Start the process. Raises AssertionError if the store does not start."""
        self.world.note("start", self.name)
        self.host.context.run(self._make)
        assert self.store is not None
        await self._finished(self.host.spawn(self.store.start()))
        self.begin_events()
        return self

    def begin_events(self) -> None:
        """Call the listeners from now on, because the store has started."""
        if self.events is not None:
            self.host.context.run(self.events.begin)

    def _make(self) -> None:
        self.store = MailStore(self.env)
        self.hear(self.store)

    def hear(self, store: MailStore) -> None:
        """Turn failures of the store's tasks into failures of the simulation. Make the
        groups of events."""
        before = store._ended
        if self.world.listen is not None:
            self.events = self.world.listen(self, store)

        def ended(task: asyncio.Task[Any]) -> None:
            """A task of the store may end with few kinds of errors. Any other error is
            a bug, and fails the simulation."""
            before(task)
            failure = None if task.cancelled() else task.exception()
            if failure is not None and not isinstance(failure, OboxError | MetacacheError | AssertionError):
                raise AssertionError(f"task of the store failed: {failure!r}") from failure

        store._ended = ended  # type: ignore[method-assign]  # the hook of the simulation

    async def _finished(self, task: asyncio.Task[T]) -> T:
        while not task.done():
            began = self.world.clock()
            await asyncio.wait([task], timeout=300)
            if not task.done() and not self.host.frozen and self.world.clock() - began >= 300:
                raise AssertionError(f"no answer for ever: {task!r}")
        if task.cancelled():
            raise Crash(self.name)
        return task.result()

    async def run(self, work: Callable[[MailStore], Coroutine[Any, Any, T]]) -> T:
        """Run the work of a session in this process. Raises Crash if the process ends
        meanwhile."""
        if self.ended or self.store is None:
            raise Crash(self.name)
        return await self._finished(self.host.spawn(work(self.store)))

    async def user(self, name: str = "anna") -> Any:
        return await self.run(lambda store: store.open_user(name, StorageId(name)))

    async def stop(self, *, upload: bool = True) -> None:
        """Stop the process in order. With upload=False it stops for a restart."""
        self.world.note("stop" if upload else "stop to return", self.name)
        assert self.store is not None
        await self.run(lambda store: self._close(store, upload))
        await self.metacache.close()
        self.kill()

    async def _close(self, store: MailStore, upload: bool) -> None:
        await store.close(upload=upload)
        if self.events is not None:
            await self.events.close()

    def freeze(self) -> None:
        self.world.note("freeze", self.name)
        self.was_frozen = True
        self.host.freeze()

    def thaw(self) -> None:
        self.world.note("thaw", self.name)
        self.host.thaw()

    def kill(self) -> None:
        """Kill the process as kill -9 or a power cut does: it sends nothing and writes
        nothing after that."""
        if self.ended:
            return
        self.ended = self.cut = True
        self.metacache.kill()
        self.host.die()


class _Silent:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **words: None


_SILENT = _Silent()

__all__ = ["CODEC", "HOST", "Awaitable", "Crash", "Disk", "Node", "ObjectInfo", "World"]
