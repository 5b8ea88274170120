"""Fscache: which files there are, which go first, and who fetches what is missing.

The index is in memory (`fscache._order` says what goes first); the scan at start fills it from the directory, and what
others do to the directory later is noticed by `fscache._watch`. Reads run in a few threads. All changes of the
directory run in one thread, in order, written behind: an object that waits to be written is served from memory.

Invariant: the files' bytes (whole blocks), those being read and the one being written included, stay within `max_size`:
room is made before each write, a file is not removed while it is read, and where files cannot be removed nothing is
written. One fetch per key runs at a time, whoever waits.
Refuses to know: what an object is. Objects do not change under their key; `put` of other data replaces them still.
Diagnostics: nothing local is fatal. Disk full, read-only, slow or gone: `get` fetches, errors are counted in `stats`
and logged at most once a minute. A read that takes longer than READ_S is a miss; while as many as there are threads
hang, the disk is not asked. A file that is missing is a miss. What `fetch` raises goes to all who wait for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from fscache._files import Done, Files, Found, Got, Step, Want, disk_bytes, file_bytes, name_of
from fscache._order import FRESH, KEPT, ONCE, Entry, Index
from fscache._ranges import Pieces, read_range
from fscache._readers import READ_S, Readers
from fscache._types import Flight, Pending, Planned, Stats
from fscache._watch import Applied, Rescanned, Watcher, apply, first_scan

log = structlog.get_logger()

T = TypeVar("T")

CLOSE_S = 10.0  # for a disk that hangs at a stop
LOG_INTERVAL_S = 60.0
TOUCH_INTERVAL_S = 600.0  # a hit renews a file's mtime at most so often
PENDING_BYTES_MAX = 32 << 20  # objects that wait to be written; beyond it they are not stored, which costs time only
WRITE_DELAY_S = 0.1  # how long an object nobody waits for stays in memory alone: one hop writes many
BATCH_FILES = 64  # files per hop to the writing thread
BATCH_BYTES = 8 << 20
BATCH_REMOVE = 1000
OBJECT_SHARE = 4  # an object larger than a quarter of the cache would evict too much for one reader


class FscacheError(Exception):
    """The cache was closed, or a fetch ended without a result."""


class Fscache:
    """Files below `path`, at most `max_size` bytes of them; belongs to one process.

    clock: seconds since the epoch; the order of eviction is kept in the files' mtime. Usable at once: the directory
    is scanned in a thread, until then unknown keys are looked for on disk and nothing is written.
    """

    def __init__(self, path: str | Path, *, max_size: int, clock: Callable[[], float]) -> None:
        self._path = Path(path)
        self.files = Files(self._path)
        self._max_size = max_size
        self._clock = clock
        self._readers = Readers(self.failed, self._read_ended)
        self._changer = ThreadPoolExecutor(1, thread_name_prefix="fscache-change")
        self.index = Index()
        self.hold = False  # a recount is under way: no round begins
        self._round_began: float | None = None
        self.watcher = Watcher(self)
        self._bytes = 0
        self._pending: OrderedDict[str, Pending] = OrderedDict()
        self._pending_bytes = 0
        self._doomed: dict[str, int] = {}  # files to be removed, with the bytes that they are still counted
        self._busy: set[str] = set()  # names that the current round writes or removes
        self._forgotten: set[str] = set()  # those of them that were put or dropped meanwhile
        self._round = asyncio.Event()  # set when the current round has ended
        self._flights: dict[str, Flight] = {}
        self._writer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()  # the next round shall not wait for more
        self._kicked = False  # something came since the round under way was planned
        self._hits = self._misses = self._evictions = self._errors = self._skipped = 0
        self._logged_at = -LOG_INTERVAL_S
        self._closed = False
        self.pieces = Pieces()
        self._scan: Future[tuple[Index, int, str]] | None = self._changer.submit(first_scan, self.files)

    # ---- reading -----------------------------------------------------------------------------------------------

    async def get(self, key: str, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        """The object: from its file, or from `fetch`, which runs once for all who ask at the same time."""
        self._ready()
        name = name_of(key)
        if (data := await self._lookup(key, name)) is not None:
            self._hits += 1
            return data
        self._misses += 1
        return await self._fetched(key, name, fetch)

    async def get_many(
        self,
        keys: Sequence[str],
        fetch: Callable[[str], Awaitable[bytes]],
        *,
        parallel: int = 16,
        absent: tuple[type[Exception], ...] = (),
    ) -> list[bytes | None]:
        """The objects in order; all files in one thread hop, then at most `parallel` fetches at a time.

        All of it is in memory at once: the caller chooses how many keys. The first fetch that fails fails the call; one
        that fails with `absent` leaves None in its place.
        """
        self._ready()
        names = [name_of(key) for key in keys]
        out: list[bytes | None] = [None] * len(keys)
        wants: list[Want] = []
        places: list[int] = []
        entries: dict[str, Entry | None] = {}
        for at, (key, name) in enumerate(zip(keys, names, strict=True)):
            if (waiting := self._waiting(key, name)) is not None:
                out[at] = waiting
            elif self._may_exist(name):
                entries[name] = self.index.get(name)
                wants.append(self._want(key, name))
                places.append(at)
        if wants:
            found = await self._readers.run(entries, self.files.read_many, wants)
            for at, want, got in zip(places, wants, found or (), strict=found is not None):
                out[at] = self._note(want, entries[want.name], got)
        missing = [at for at, data in enumerate(out) if data is None]
        self._hits += len(keys) - len(missing)
        self._misses += len(missing)
        if missing:
            gate = asyncio.Semaphore(parallel)

            async def one(at: int) -> None:
                async with gate:
                    try:
                        out[at] = await self._fetched(keys[at], names[at], lambda: fetch(keys[at]))
                    except absent:
                        pass

            try:
                async with asyncio.TaskGroup() as group:
                    for at in missing:
                        group.create_task(one(at))
            except BaseExceptionGroup as group_error:
                raise group_error.exceptions[0] from None
        return out

    async def read(self, key: str, start: int, end: int) -> bytes | None:
        """Bytes [start, end) of a cached object, cut at its end; None if it is not cached.

        The first read of a file checks all of it, later ones only what they ask for.
        """
        self._ready()
        name = name_of(key)
        data = await self._lookup(key, name, max(start, 0), max(end, 0))
        if data is None:
            self._misses += 1
        else:
            self._hits += 1
        return data

    async def read_range(self, key: str, start: int, end: int, fetch: Callable[[int, int], Awaitable[bytes]]) -> bytes:
        """Bytes [start, end) of an object that may be too large to fetch for a part of it, cut at its end.

        From its file if there is one, else from pieces of it that are kept like objects; `fetch(low, high)` gives those
        that are missing, neighbours at once, each once however many ask.
        """
        return await read_range(self, key, start, end, fetch)

    def peek(self, key: str) -> bool:
        """Whether the object seems to be cached; its file may be gone or damaged, or not scanned yet."""
        name = name_of(key)
        return name in self._pending or name in self.index

    # ---- changing ----------------------------------------------------------------------------------------------

    async def put(self, key: str, data: bytes) -> None:
        """Keep an object that the caller has; written behind, a failure costs a fetch later."""
        self._ready()
        name = name_of(key)
        if (flight := self._flights.get(name)) is not None:
            flight.store = False
        self._store(key, name, data, FRESH)

    async def drop(self, key: str) -> None:
        """Forget an object; its file is gone on return, if it can be removed."""
        self._ready()
        name = name_of(key)
        if (flight := self._flights.get(name)) is not None:
            flight.store = False
        self._forget(name)
        for piece in self.pieces.take(key):
            self._forget(name_of(piece))
        self._kick()
        self._hurry.set()
        while (name in self._doomed or name in self._busy) and not self.stuck():
            if self._writer is None and name not in self._readers.open() and not self.hold:
                break
            try:
                async with asyncio.timeout(READ_S):
                    await self._round.wait()
            except TimeoutError:
                break

    def resize(self, max_size: int) -> None:
        """Another limit from now on. What is above it goes before anything else is written; a round of writes that is
        under way ends first."""
        if max_size == self._max_size:
            return
        self._max_size = max_size
        for name, waiting in list(self._pending.items()):
            if waiting.space * OBJECT_SHARE > max_size:
                self._unqueue(name)
                self._skipped += 1
        self._kick()
        self._hurry.set()

    async def flush(self) -> None:
        """Return when what was put before the call has been written, or given up."""
        while self._writer is not None:
            self._hurry.set()
            await asyncio.wait([self._writer])

    def stats(self) -> Stats:
        self._merge_if_scanned()
        return Stats(
            self._hits, self._misses, self._bytes, len(self.index), self._evictions, self._errors, self._skipped,
            self.index.oldest(), self._pending_bytes, self._max_size,
        )  # fmt: skip

    async def rescan(self, *, max_age_s: float | None = None) -> Rescanned:
        """Compare the accounts with the directory and make them right, while in use: new objects wait in memory.

        max_age_s: also remove what was not read for so long.
        """
        self._ready()
        done = await self.watcher.recount(None)
        if max_age_s is not None:
            before = self._clock() - max_age_s
            old = [name for name, entry in self.index.items() if entry.touched < before]
            for name in old:
                self._forget(name)
            self._kick()
            done = done._replace(expired=len(old))
        return done

    async def close(self) -> None:
        """Cancel the fetches, write what waits, stop the threads; a disk that hangs is not waited for."""
        if self._closed:
            return
        self._closed = True
        await self.watcher.stop()
        for flight in self._flights.values():
            flight.task.cancel()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        except TimeoutError:
            log.error("fscache closed with a disk that hangs", path=str(self._path))
            self._changer.shutdown(wait=False, cancel_futures=True)
            self._readers.close(wait=False)
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._changer.shutdown)
        await loop.run_in_executor(None, lambda: self._readers.close(wait=True))

    # ---- lookups -----------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        if self._closed:
            raise FscacheError("fscache: closed")
        self._merge_if_scanned()
        if not self.watcher.running:
            self.watcher.start()

    def _waiting(self, key: str, name: str) -> bytes | None:
        """An object that is not written yet."""
        waiting = self._pending.get(name)
        if waiting is None or waiting.key != key:
            return None
        waiting.queue = ONCE  # read now
        return waiting.data

    def stuck(self) -> bool:
        """The thread that changes the directory hangs."""
        return self._round_began is not None and asyncio.get_running_loop().time() - self._round_began > READ_S

    def _read_ended(self) -> None:
        if self._doomed or self._bytes > self._max_size:
            self._kick()

    def _may_exist(self, name: str) -> bool:
        return name in self.index or (self._scan is not None and name not in self._doomed)

    def _want(self, key: str, name: str, start: int = 0, end: int | None = None) -> Want:
        now = self._clock()
        entry = self.index.hit(name, now)
        if entry is None:
            return Want(key, name, start, end, False, now)
        touch, mtime = None, entry.touched
        if now - entry.touched >= TOUCH_INTERVAL_S:
            touch = entry.touched = now
        ranged = end is not None
        return Want(key, name, start, end, entry.verified and ranged, touch, entry.space, mtime)

    async def _lookup(self, key: str, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        if (waiting := self._waiting(key, name)) is not None:
            return waiting if end is None else waiting[start:end]
        if not self._may_exist(name):
            return None
        entry = self.index.get(name)
        want = self._want(key, name, start, end)
        got = await self._readers.run((name,), self.files.read, want)
        return None if got is None else self._note(want, entry, got)

    def _note(self, want: Want, entry: Entry | None, got: Got) -> bytes | None:
        """Bring the index up to what a read found; `entry` is what the index had when the read began."""
        if got.data is None:
            if got.error:
                self.failed(got.error)
            # Another entry by now means another file: to forget that one would be to lose count of it.
            if got.gone and entry is not None and self.index.get(want.name) is entry:
                self.index.pop(want.name)
                self._bytes -= entry.space if self._scan is None else 0
            return None
        if entry is not None:
            entry.verified = True
        elif self._scan is not None and want.name not in self._doomed and want.name not in self._pending:
            now = self._clock()
            self.index.add(want.name, Entry(disk_bytes(got.length), want.touch or now, True), KEPT, now)
        return got.data

    # ---- fetching ----------------------------------------------------------------------------------------------

    async def _fetched(self, key: str, name: str, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        """Join the flight for the key or start one. The last who leaves cancels it; nobody else does."""
        if (waiting := self._waiting(key, name)) is not None:
            return waiting  # landed while this caller looked for the file
        flight = self._flights.get(name)
        if flight is None:
            task = asyncio.get_running_loop().create_task(self._fly(key, name, fetch))
            flight = self._flights[name] = Flight(task)
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # the last may have left
        flight.waiters += 1
        try:
            await asyncio.wait([flight.task])
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                flight.task.cancel()
                if self._flights.get(name) is flight:
                    del self._flights[name]
        if flight.task.cancelled():
            raise FscacheError("fscache: the fetch was cancelled")
        return flight.task.result()

    async def _fly(self, key: str, name: str, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        me = asyncio.current_task()
        try:
            data = await fetch()
            flight = self._flights.get(name)
            if flight is not None and flight.task is me and flight.store:
                self._store(key, name, data, ONCE)
            return data
        finally:
            flight = self._flights.get(name)
            if flight is not None and flight.task is me:
                del self._flights[name]

    # ---- writing -----------------------------------------------------------------------------------------------

    def _store(self, key: str, name: str, data: bytes, queue: int) -> None:
        """Queue an object for writing, instead of what the key had."""
        self._forget(name)
        space = disk_bytes(file_bytes(key, len(data)))
        too_many = self._pending_bytes and self._pending_bytes + len(data) > PENDING_BYTES_MAX
        if self._closed or space * OBJECT_SHARE > self._max_size or too_many:
            self._skipped += 1
        else:
            self._pending[name] = Pending(key, bytes(data), space, queue)
            self._pending_bytes += len(data)
        self._kick()

    def _forget(self, name: str) -> None:
        """From here on the key is a miss; its file, if there is one, goes with the next round."""
        self._unqueue(name)
        if name in self._busy:
            self._forgotten.add(name)
        if (entry := self.index.pop(name)) is not None:
            self._doomed[name] = entry.space
        elif self._scan is not None:
            self._doomed.setdefault(name, 0)  # the scan will say

    def _unqueue(self, name: str) -> None:
        if (old := self._pending.pop(name, None)) is not None:
            self._pending_bytes -= len(old.data)

    def _kick(self) -> None:
        if len(self._pending) >= BATCH_FILES or self._pending_bytes >= BATCH_BYTES:
            self._hurry.set()
        self._kicked = True
        if self._writer is not None or self.hold or not (self._pending or self._doomed or self._bytes > self._max_size):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next call from a loop does it
        self._writer = loop.create_task(self._write_rounds())

    async def _write_rounds(self) -> None:
        """Write and remove in rounds, each one hop to the changing thread, until nothing waits."""
        try:
            await self.scanned()
            loop = asyncio.get_running_loop()
            more = True
            while more and not self.hold and (self._pending or self._doomed or self._bytes > self._max_size):
                await self._gather()
                self._kicked = False
                plan = self._plan()
                steps = [item.step for item in plan]
                self._round_began = loop.time()
                done = await loop.run_in_executor(self._changer, self.files.run, steps)
                self._round_began = None
                more = self._settle(plan, done) or self._kicked
                self._end_round()
        finally:
            self._writer = self._round_began = None
            self._hurry.clear()
            self._end_round()

    async def _gather(self) -> None:
        """Wait a moment for more to write, unless somebody waits or there is a batch."""
        if len(self._pending) < BATCH_FILES and self._pending_bytes < BATCH_BYTES:
            try:
                async with asyncio.timeout(WRITE_DELAY_S):
                    await self._hurry.wait()
            except TimeoutError:
                pass
        self._hurry.clear()

    def _end_round(self) -> None:
        self._busy.clear()
        self._forgotten.clear()
        self._round.set()
        self._round = asyncio.Event()

    def _plan(self) -> list[Planned]:
        """The next round: what goes, then each object that is written, with what has to go for it first."""
        planned = self._bytes
        now = self._clock()
        spare = self._readers.open()
        plan: list[Planned] = []

        def evict(need: int, count: int) -> list[tuple[str, Entry]]:
            nonlocal planned
            gone: list[tuple[str, Entry]] = []
            while planned + need > self._max_size and len(gone) < count:
                if (victim := self.index.evict(spare)) is None:
                    break
                planned -= victim[1].space
                gone.append(victim)
                self._busy.add(victim[0])
            return gone

        doomed = {name: space for name, space in self._doomed.items() if name not in spare}
        doomed = dict(list(doomed.items())[:BATCH_REMOVE])
        for name in doomed:
            del self._doomed[name]
        self._busy.update(doomed)
        planned -= sum(doomed.values())
        # One step each: that one file cannot be removed shall not keep the others.
        plan.extend(Planned(Step([name]), doomed={name: space}) for name, space in doomed.items())
        if evicted := evict(0, BATCH_REMOVE):
            plan.append(Planned(Step([name for name, _ in evicted]), evicted=evicted))
        size = count = 0
        for name, obj in self._pending.items():
            if name in self._doomed or count >= BATCH_FILES or size >= BATCH_BYTES:
                break
            evicted = evict(obj.space, len(self.index))
            remove = [victim for victim, _ in evicted]
            if planned + obj.space > self._max_size:  # files that cannot be removed hold the room
                plan.append(Planned(Step(remove), evicted=evicted, refused=name, pending=obj))
                continue
            planned += obj.space
            size += len(obj.data)
            count += 1
            self._busy.add(name)
            plan.append(Planned(Step(remove, name, obj.key, obj.data, now), evicted=evicted, pending=obj))
        return plan

    def _settle(self, plan: list[Planned], results: list[Done]) -> bool:
        """Account for what a round did; whether another one can get any further."""
        progress = False
        for item, done in zip(plan, results, strict=True):
            kept = set(done.kept)
            for name, space in item.doomed.items():
                if name in kept:
                    self._doomed.setdefault(name, space)
                else:
                    self._bytes -= space
                    progress = True
            for name, entry in item.evicted:
                if name in kept:
                    self._keep(name, entry)
                else:
                    self._bytes -= entry.space
                    self._evictions += 1
                    progress = True
            if done.error:
                self.failed(done.error)
            if item.pending is None:
                continue
            progress = True
            name = item.step.name or item.refused
            current = self._pending.get(name) is item.pending
            if current:
                self._unqueue(name)
            if not done.written:
                self._skipped += 1
                continue
            self._bytes += item.pending.space
            if current:
                entry = Entry(item.pending.space, item.step.mtime, False)
                self.index.add(name, entry, item.pending.queue, item.step.mtime)
            else:  # put again or dropped while it was written
                self._doomed[name] = item.pending.space
        return progress

    def _keep(self, name: str, entry: Entry) -> None:
        """Take back a file that could not be removed; last in line, so that the next try meets another."""
        if name in self._forgotten:
            self._doomed[name] = entry.space
        else:
            self.index.restore(name, entry)

    # ---- the scan ----------------------------------------------------------------------------------------------

    def _merge_if_scanned(self) -> None:
        if self._scan is None or not self._scan.done():
            return
        index, total, problem = self._scan.result()
        self._scan = None
        if problem:
            self.failed(problem)
        for name in self.index:  # used meanwhile
            if (entry := index.hit(name, self._clock())) is not None:
                entry.verified = True
        for name in list(self._doomed):
            entry = index.pop(name)
            self._doomed[name] = 0 if entry is None else entry.space
        self.index, self._bytes = index, total
        self._kick()

    async def scanned(self) -> None:
        """Return when the scan at start is over."""
        if self._scan is not None:
            await asyncio.wait([asyncio.wrap_future(self._scan)])
            self._merge_if_scanned()

    async def change(self, work: Callable[[], T]) -> T:
        """Run something in the thread that changes the directory."""
        return await asyncio.get_running_loop().run_in_executor(self._changer, work)

    def take_in(self, found: Found, known: dict[str, Entry]) -> Applied:
        """Make index and bytes as a recount has found the directory."""
        if found.problem:
            self.failed(found.problem)
        done = apply(self.index, found, known, self._doomed, self._clock())
        self._bytes += done.bytes
        return done

    async def next_round(self) -> None:
        await self._round.wait()

    def go_on(self) -> None:
        """The recount is over."""
        self.hold = False
        self._end_round()
        self._kick()

    def failed(self, error: str) -> None:
        self._errors += 1
        if (now := self._clock()) - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            log.warning("fscache: errors, objects are fetched instead", path=str(self._path), error=error)
