"""Fscache: which files there are, which go first, and who fetches what is missing.

The index is in memory, least recently used first; the scan at start fills it from the directory. Reads run in a few
threads. All changes of the directory run in one thread, in order, written behind: an object that waits to be written
is served from memory.

Invariant: the files' bytes (whole blocks) plus the file being written stay within `max_size`: room is made before each
write, and where a file cannot be removed nothing is written. One fetch per key runs at a time, whoever waits.
Refuses to know: what an object is. Objects do not change under their key; `put` of other data replaces them still.
Diagnostics: nothing local is fatal. Disk full, read-only or gone: `get` fetches, errors are counted in `stats` and
logged at most once a minute. A file that is missing is a miss. What `fetch` raises goes to all who wait for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import structlog

from fscache._files import Done, Files, Got, Step, Want, disk_bytes, file_bytes, name_of

log = structlog.get_logger()

READ_THREADS = 4
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


class Stats(NamedTuple):
    """Counts since the start; `bytes` and `files` are what is there now."""

    hits: int
    misses: int
    bytes: int
    files: int
    evictions: int
    errors: int
    skipped: int  # objects not stored: too large, or too many waiting


@dataclass(slots=True)
class _Entry:
    space: int  # whole blocks
    touched: float  # mtime of the file, about
    verified: bool  # checksum seen by this process


@dataclass(slots=True)
class _Flight:
    task: asyncio.Task[bytes]
    waiters: int = 0
    store: bool = True  # false once the key was put or dropped meanwhile


@dataclass(slots=True)
class _Pending:
    key: str
    data: bytes
    space: int


@dataclass(slots=True)
class _Planned:
    """One step with what it means for the accounts."""

    step: Step
    doomed: dict[str, int] = field(default_factory=dict)
    evicted: list[tuple[str, _Entry]] = field(default_factory=list)
    pending: _Pending | None = None
    refused: str = ""  # the name of a pending object that has no room


Scan = tuple["OrderedDict[str, _Entry]", int, str]


class Fscache:
    """Files below `path`, at most `max_size` bytes of them; belongs to one process.

    clock: seconds since the epoch; the order of eviction is kept in the files' mtime. Usable at once: the directory
    is scanned in a thread, until then unknown keys are looked for on disk and nothing is written.
    """

    def __init__(self, path: str | Path, *, max_size: int, clock: Callable[[], float]) -> None:
        self._path = Path(path)
        self._files = Files(self._path)
        self._max_size = max_size
        self._clock = clock
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="fscache-read")
        self._changer = ThreadPoolExecutor(1, thread_name_prefix="fscache-change")
        self._index: OrderedDict[str, _Entry] = OrderedDict()  # by name, least recently used first
        self._bytes = 0
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._pending_bytes = 0
        self._doomed: dict[str, int] = {}  # files to be removed, with the bytes that they are still counted
        self._busy: set[str] = set()  # names that the current round writes or removes
        self._forgotten: set[str] = set()  # those of them that were put or dropped meanwhile
        self._round = asyncio.Event()  # set when the current round has ended
        self._flights: dict[str, _Flight] = {}
        self._writer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()  # the next round shall not wait for more
        self._hits = self._misses = self._evictions = self._errors = self._skipped = 0
        self._logged_at = -LOG_INTERVAL_S
        self._closed = False
        self._scan: Future[Scan] | None = self._changer.submit(self._scan_files)

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
        self, keys: Sequence[str], fetch: Callable[[str], Awaitable[bytes]], *, parallel: int = 16
    ) -> list[bytes]:
        """The objects in order; all files in one thread hop, then at most `parallel` fetches at a time.

        All of it is in memory at once: the caller chooses how many keys. The first fetch that fails fails the call.
        """
        self._ready()
        names = [name_of(key) for key in keys]
        out: list[bytes | None] = [None] * len(keys)
        wants: list[Want] = []
        places: list[int] = []
        entries: dict[str, _Entry | None] = {}
        for at, (key, name) in enumerate(zip(keys, names, strict=True)):
            if (waiting := self._pending.get(name)) is not None and waiting.key == key:
                out[at] = waiting.data
            elif self._may_exist(name):
                entries[name] = self._index.get(name)
                wants.append(self._want(key, name))
                places.append(at)
        if wants:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._readers, self._files.read_many, wants)
            for at, want, got in zip(places, wants, found, strict=True):
                out[at] = self._note(want, entries[want.name], got)
        missing = [at for at, data in enumerate(out) if data is None]
        self._hits += len(keys) - len(missing)
        self._misses += len(missing)
        if missing:
            gate = asyncio.Semaphore(parallel)

            async def one(at: int) -> None:
                async with gate:
                    out[at] = await self._fetched(keys[at], names[at], lambda: fetch(keys[at]))

            try:
                async with asyncio.TaskGroup() as group:
                    for at in missing:
                        group.create_task(one(at))
            except BaseExceptionGroup as group_error:
                raise group_error.exceptions[0] from None
        return [data for data in out if data is not None]

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

    def peek(self, key: str) -> bool:
        """Whether the object seems to be cached; its file may be gone or damaged, or not scanned yet."""
        name = name_of(key)
        return name in self._pending or name in self._index

    # ---- changing ----------------------------------------------------------------------------------------------

    async def put(self, key: str, data: bytes) -> None:
        """Keep an object that the caller has; written behind, a failure costs a fetch later."""
        self._ready()
        name = name_of(key)
        if (flight := self._flights.get(name)) is not None:
            flight.store = False
        self._store(key, name, data)

    async def drop(self, key: str) -> None:
        """Forget an object; its file is gone on return, if it can be removed."""
        self._ready()
        name = name_of(key)
        if (flight := self._flights.get(name)) is not None:
            flight.store = False
        self._forget(name)
        self._kick()
        self._hurry.set()
        while self._writer is not None and (name in self._doomed or name in self._busy):
            await self._round.wait()

    async def flush(self) -> None:
        """Return when what was put before the call has been written, or given up."""
        while self._writer is not None:
            self._hurry.set()
            await asyncio.wait([self._writer])

    def stats(self) -> Stats:
        self._merge_if_scanned()
        return Stats(
            self._hits, self._misses, self._bytes, len(self._index), self._evictions, self._errors, self._skipped
        )

    async def close(self) -> None:
        """Cancel the fetches, write what waits, stop the threads."""
        if self._closed:
            return
        self._closed = True
        for flight in self._flights.values():
            flight.task.cancel()
        await self.flush()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._changer.shutdown)
        await loop.run_in_executor(None, self._readers.shutdown)

    # ---- lookups -----------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        if self._closed:
            raise FscacheError("fscache: closed")
        self._merge_if_scanned()

    def _may_exist(self, name: str) -> bool:
        return name in self._index or (self._scan is not None and name not in self._doomed)

    def _want(self, key: str, name: str, start: int = 0, end: int | None = None) -> Want:
        entry = self._index.get(name)
        now = self._clock()
        if entry is None:
            return Want(key, name, start, end, False, now)
        self._index.move_to_end(name)
        touch = None
        if now - entry.touched >= TOUCH_INTERVAL_S:
            touch = entry.touched = now
        ranged = end is not None
        return Want(key, name, start, end, entry.verified and ranged, touch, entry.space)

    async def _lookup(self, key: str, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        if (waiting := self._pending.get(name)) is not None and waiting.key == key:
            return waiting.data if end is None else waiting.data[start:end]
        if not self._may_exist(name):
            return None
        entry = self._index.get(name)
        want = self._want(key, name, start, end)
        loop = asyncio.get_running_loop()
        got = await loop.run_in_executor(self._readers, self._files.read, want)
        return self._note(want, entry, got)

    def _note(self, want: Want, entry: _Entry | None, got: Got) -> bytes | None:
        """Bring the index up to what a read found; `entry` is what the index had when the read began."""
        if got.data is None:
            if got.error:
                self._failed(got.error)
            # Another entry by now means another file: to forget that one would be to lose count of it.
            if got.gone and entry is not None and self._index.get(want.name) is entry:
                del self._index[want.name]
                self._bytes -= entry.space if self._scan is None else 0
            return None
        if entry is not None:
            entry.verified = True
        elif self._scan is not None and want.name not in self._doomed and want.name not in self._pending:
            self._index[want.name] = _Entry(disk_bytes(got.length), self._clock(), True)
        return got.data

    # ---- fetching ----------------------------------------------------------------------------------------------

    async def _fetched(self, key: str, name: str, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        """Join the flight for the key or start one. The last who leaves cancels it; nobody else does."""
        if (waiting := self._pending.get(name)) is not None and waiting.key == key:
            return waiting.data  # landed while this caller looked for the file
        flight = self._flights.get(name)
        if flight is None:
            task = asyncio.get_running_loop().create_task(self._fly(key, name, fetch))
            flight = self._flights[name] = _Flight(task)
            task.add_done_callback(_retrieved)
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
                self._store(key, name, data)
            return data
        finally:
            flight = self._flights.get(name)
            if flight is not None and flight.task is me:
                del self._flights[name]

    # ---- writing -----------------------------------------------------------------------------------------------

    def _store(self, key: str, name: str, data: bytes) -> None:
        """Queue an object for writing, instead of what the key had."""
        self._forget(name)
        space = disk_bytes(file_bytes(key, len(data)))
        too_many = self._pending_bytes and self._pending_bytes + len(data) > PENDING_BYTES_MAX
        if self._closed or space * OBJECT_SHARE > self._max_size or too_many:
            self._skipped += 1
        else:
            self._pending[name] = _Pending(key, bytes(data), space)
            self._pending_bytes += len(data)
        self._kick()

    def _forget(self, name: str) -> None:
        """From here on the key is a miss; its file, if there is one, goes with the next round."""
        self._unqueue(name)
        if name in self._busy:
            self._forgotten.add(name)
        if (entry := self._index.pop(name, None)) is not None:
            self._doomed[name] = entry.space
        elif self._scan is not None:
            self._doomed.setdefault(name, 0)  # the scan will say

    def _unqueue(self, name: str) -> None:
        if (old := self._pending.pop(name, None)) is not None:
            self._pending_bytes -= len(old.data)

    def _kick(self) -> None:
        if len(self._pending) >= BATCH_FILES or self._pending_bytes >= BATCH_BYTES:
            self._hurry.set()
        if self._writer is not None or not (self._pending or self._doomed or self._bytes > self._max_size):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next call from a loop does it
        self._writer = loop.create_task(self._write_rounds())

    async def _write_rounds(self) -> None:
        """Write and remove in rounds, each one hop to the changing thread, until nothing waits."""
        try:
            if self._scan is not None:
                await asyncio.wait([asyncio.wrap_future(self._scan)])
                self._merge_if_scanned()
            loop = asyncio.get_running_loop()
            more = True
            while more and (self._pending or self._doomed or self._bytes > self._max_size):
                await self._gather()
                plan = self._plan()
                steps = [item.step for item in plan]
                done = await loop.run_in_executor(self._changer, self._files.run, steps)
                more = self._settle(plan, done)
                self._end_round()
        finally:
            self._writer = None
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

    def _plan(self) -> list[_Planned]:
        """The next round: what goes, then each object that is written, with what has to go for it first."""
        planned = self._bytes
        now = self._clock()
        plan: list[_Planned] = []

        def evict(need: int, count: int) -> list[tuple[str, _Entry]]:
            nonlocal planned
            gone: list[tuple[str, _Entry]] = []
            while planned + need > self._max_size and self._index and len(gone) < count:
                name, entry = self._index.popitem(last=False)
                planned -= entry.space
                gone.append((name, entry))
                self._busy.add(name)
            return gone

        doomed = dict(list(self._doomed.items())[:BATCH_REMOVE])
        for name in doomed:
            del self._doomed[name]
        self._busy.update(doomed)
        planned -= sum(doomed.values())
        # One step each: that one file cannot be removed shall not keep the others.
        plan.extend(_Planned(Step([name]), doomed={name: space}) for name, space in doomed.items())
        if evicted := evict(0, BATCH_REMOVE):
            plan.append(_Planned(Step([name for name, _ in evicted]), evicted=evicted))
        size = count = 0
        for name, obj in self._pending.items():
            if name in self._doomed or count >= BATCH_FILES or size >= BATCH_BYTES:
                break
            evicted = evict(obj.space, len(self._index))
            remove = [victim for victim, _ in evicted]
            if planned + obj.space > self._max_size:  # files that cannot be removed hold the room
                plan.append(_Planned(Step(remove), evicted=evicted, refused=name, pending=obj))
                continue
            planned += obj.space
            size += len(obj.data)
            count += 1
            self._busy.add(name)
            plan.append(_Planned(Step(remove, name, obj.key, obj.data, now), evicted=evicted, pending=obj))
        return plan

    def _settle(self, plan: list[_Planned], results: list[Done]) -> bool:
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
                self._failed(done.error)
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
                self._index[name] = _Entry(item.pending.space, self._clock(), False)
            else:  # put again or dropped while it was written
                self._doomed[name] = item.pending.space
        return progress

    def _keep(self, name: str, entry: _Entry) -> None:
        """Take back a file that could not be removed; last in line, so that the next try meets another."""
        if name in self._forgotten:
            self._doomed[name] = entry.space
        else:
            self._index[name] = entry

    # ---- the scan ----------------------------------------------------------------------------------------------

    def _scan_files(self) -> Scan:
        """In the changing thread, before any change: the whole index, so that the loop only takes it over."""
        found, problem = self._files.scan()
        index = OrderedDict((name, _Entry(disk_bytes(length), mtime, False)) for mtime, name, length in found)
        return index, sum(entry.space for entry in index.values()), problem

    def _merge_if_scanned(self) -> None:
        if self._scan is None or not self._scan.done():
            return
        index, total, problem = self._scan.result()
        self._scan = None
        if problem:
            self._failed(problem)
        for name in self._index:  # used meanwhile
            if (entry := index.get(name)) is not None:
                entry.verified = True
                index.move_to_end(name)
        for name in list(self._doomed):
            entry = index.pop(name, None)
            self._doomed[name] = 0 if entry is None else entry.space
        self._index, self._bytes = index, total
        self._kick()

    def _failed(self, error: str) -> None:
        self._errors += 1
        if (now := self._clock()) - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            log.warning("fscache: errors, objects are fetched instead", path=str(self._path), error=error)


def _retrieved(task: asyncio.Task[bytes]) -> None:
    """The last waiter may have left while the fetch failed; that is no unhandled error."""
    if not task.cancelled():
        task.exception()
