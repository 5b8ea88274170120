"""The cache: it reads from the disk, fetches what is missing, and stores what it gets.

The accounts are in memory (`fscache._contents`); `fscache.order` says what is evicted
first. A scan at the start fills them; `fscache._watch` notices what others change
later. Objects are written behind (`fscache._writer`): an object that waits is served
from memory.

Invariant: the files never take more than `max_size`, those being read and the file
being written included (whole blocks). At most a single fetch for a key runs at a time.
This module does not know what an object is or how it lies on the disk (`fscache.disk`).
Objects do not change under their key; a `put` of other data replaces them all the same.
Diagnostics: no local failure is fatal. If the disk is full, read-only, slow or gone,
`get` fetches; the errors are counted in `stats` and logged once a minute at most. A
missing file is a miss. What `fetch` raises goes to all who wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from fscache._contents import Contents
from fscache._failures import Failures
from fscache._flights import Flights
from fscache._ranges import Pieces, read_range
from fscache._types import FscacheError, Rescanned, Stats
from fscache._watch import Watcher
from fscache._writer import Writer
from fscache.disk import Disk, DiskSlow, FileDisk, Want, name_of
from fscache.order import FRESH, ONCE, Entry

log = structlog.get_logger()

CLOSE_TIMEOUTS = 5  # timeouts of the disk that a stop waits, so 10 s if the disk hangs


class Fscache:
    """A cache of at most `max_size` bytes of files, for a single process.

    place: a directory, or a `Disk`. clock: seconds since the epoch; the files'
    modification times keep the order of eviction over a restart. The cache is usable at
    once: the disk is scanned in a thread. Until that has ended, unknown keys are looked
    for on the disk and nothing is written.
    """

    def __init__(self, place: str | Path | Disk, *, max_size: int, clock: Callable[[], float]) -> None:
        disk = FileDisk(place) if isinstance(place, str | Path) else place
        self._disk: Disk = disk
        self._clock = clock
        self._contents = Contents(max_size)
        self._failures = Failures(disk.name, clock)
        self._flights = Flights()
        self._pieces = Pieces()
        self._writer = Writer(self._contents, disk, self._failures, clock)
        self._watcher = Watcher(self._contents, disk, self._writer, self._failures, clock)
        self._hits = self._misses = 0

    # ---- reading -----------------------------------------------------------------------------------------------

    async def get(self, key: str, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the object from the cache, or from `fetch`.

        The fetch runs once for all who ask at the same time.
        Raises: FscacheError; otherwise what `fetch` raises.
        """
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
        """Return the objects in order: all files in a single hop, then the fetches.

        All objects are in memory at once: the caller chooses how many keys to ask for.
        parallel: fetches at a time. absent: a fetch that raises one of these exceptions
        leaves None in its place. Any other exception of a fetch fails the call.
        """
        self._ready()
        names = [name_of(key) for key in keys]
        out = await self._lookup_many(keys, names)
        missing = [at for at, data in enumerate(out) if data is None]
        self._hits += len(keys) - len(missing)
        self._misses += len(missing)
        if missing:
            gate = asyncio.Semaphore(parallel)

            async def fill(at: int) -> None:
                async with gate:
                    try:
                        out[at] = await self._fetched(keys[at], names[at], lambda: fetch(keys[at]))
                    except absent:
                        pass

            try:
                async with asyncio.TaskGroup() as group:
                    for at in missing:
                        group.create_task(fill(at))
            except BaseExceptionGroup as group_error:
                raise group_error.exceptions[0] from None
        return out

    async def read(self, key: str, start: int, end: int) -> bytes | None:
        """Return bytes [start, end) of a cached object, cut at its end; None on a miss.

        The first read of a file checks all of it. Later reads read their range only.
        """
        self._ready()
        data = await self._lookup(key, name_of(key), max(start, 0), max(end, 0))
        if data is None:
            self._misses += 1
        else:
            self._hits += 1
        return data

    async def read_range(self, key: str, start: int, end: int, fetch: Callable[[int, int], Awaitable[bytes]]) -> bytes:
        """Return bytes [start, end) of an object, cut at its end; fetch only that part.

        They come from the object's file if it is cached, else from pieces that are
        cached like objects. `fetch(low, high)` returns the bytes of missing pieces,
        neighbours in the same call; each piece is fetched once, however many callers
        ask.
        """
        return await read_range(self, self._pieces, key, start, end, fetch=fetch)

    def peek(self, key: str) -> bool:
        """Return whether the object seems to be cached.

        Its file may be missing or damaged all the same, or not scanned yet.
        """
        name = name_of(key)
        return name in self._contents.pending or name in self._contents.index

    # ---- changing ----------------------------------------------------------------------------------------------

    async def put(self, key: str, data: bytes) -> None:
        """Keep an object that the caller has. A failed write costs a later fetch."""
        self._ready()
        name = name_of(key)
        self._flights.supersede(name)
        self._contents.store(key, name, data, FRESH)
        self._writer.wake()

    async def drop(self, key: str) -> None:
        """Forget an object. Its file is gone on return, if it can be removed."""
        self._ready()
        name = name_of(key)
        self._flights.supersede(name)
        self._contents.forget(name)
        for piece in self._pieces.take(key):
            self._contents.forget(name_of(piece))
        self._writer.wake(at_once=True)
        await self._writer.removed(name)

    def resize(self, max_size: int) -> None:
        """Set another limit. What is above it goes before anything else is written.

        A round of writes that is under way ends first.
        """
        if max_size != self._contents.max_size:
            self._contents.resize(max_size)
            self._writer.wake(at_once=True)

    async def flush(self) -> None:
        """Return when what was put before the call has been written, or given up."""
        await self._writer.flush()

    async def rescan(self, *, max_age_s: float | None = None) -> Rescanned:
        """Recount the directory and correct the accounts, while the cache is in use.

        Objects that are put meanwhile wait in memory. max_age_s: also remove what was
        not read for this time.
        """
        self._ready()
        done = await self._watcher.recount(None)
        if max_age_s is not None:
            done = done._replace(expired=self._contents.forget_older(self._clock() - max_age_s))
            self._writer.wake()
        return done

    async def look(self) -> None:
        """Recount the directories that somebody else has changed.

        The cache does this by itself every two seconds.
        """
        self._ready()
        await self._watcher.look()

    async def close(self) -> None:
        """Cancel the fetches, write what waits, stop the threads.

        A disk that hangs is given up after CLOSE_TIMEOUTS.
        """
        if self._contents.closed:
            return
        self._contents.closed = True
        await self._watcher.stop()
        self._flights.cancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUTS * self._disk.timeout_s):
                await self._writer.flush()
        except TimeoutError:
            log.error("fscache closed while its disk does not answer", path=self._disk.name)
            await self._disk.close(wait=False)
            return
        await self._disk.close(wait=True)

    # ---- what it holds -----------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return the counts since the start, and what is there now."""
        self._writer.merge_scan()
        contents = self._contents
        return Stats(
            self._hits,
            self._misses,
            contents.nbytes,
            len(contents.index),
            contents.evictions,
            self._failures.count,
            contents.skipped,
            contents.index.oldest(),
            contents.pending_bytes,
            contents.max_size,
        )

    def check(self) -> list[str]:
        """Return a line for each account that does not add up, for tests.

        Call it when nothing is under way: after `flush`.
        """
        return self._contents.check()

    # ---- lookups -----------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        contents = self._contents
        if contents.closed:
            raise FscacheError("fscache: closed")
        if contents.scanning:
            self._writer.merge_scan()
        if not self._watcher.running:
            self._watcher.start()

    async def _lookup(self, key: str, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """Return the object, or a part of it, from memory or from the disk."""
        contents = self._contents
        if (waiting := contents.waiting(key, name)) is not None:
            return waiting if end is None else waiting[start:end]
        if not contents.may_exist(name):
            return None
        entry = contents.index.get(name)
        now = self._clock()
        want = contents.want(key, name, now, start, end)
        try:
            got = await self._disk.read(want)
        except DiskSlow as slow:
            self._failures(str(slow))
            return None
        if got.error:
            self._failures(got.error)
        return contents.note(want, entry, got, now)

    async def _lookup_many(self, keys: Sequence[str], names: Sequence[str]) -> list[bytes | None]:
        """Return the objects from memory and disk, all files in a single hop."""
        contents = self._contents
        now = self._clock()
        out: list[bytes | None] = [None] * len(keys)
        wants: list[Want] = []
        places: list[int] = []
        entries: dict[str, Entry | None] = {}
        for at, (key, name) in enumerate(zip(keys, names, strict=True)):
            if (waiting := contents.waiting(key, name)) is not None:
                out[at] = waiting
            elif contents.may_exist(name):
                entries[name] = contents.index.get(name)
                wants.append(contents.want(key, name, now))
                places.append(at)
        if wants:
            try:
                found = await self._disk.read_many(wants)
            except DiskSlow as slow:
                self._failures(str(slow))
                return out
            for at, want, got in zip(places, wants, found, strict=True):
                if got.error:
                    self._failures(got.error)
                out[at] = contents.note(want, entries[want.name], got, now)
        return out

    async def _fetched(self, key: str, name: str, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        """Fetch the object, together with others who ask for it."""
        if (waiting := self._contents.waiting(key, name)) is not None:
            return waiting  # it came while this caller looked for the file

        def fetched(data: bytes) -> None:
            self._contents.store(key, name, data, ONCE)
            self._writer.wake()

        return await self._flights.join(name, fetch, fetched)
