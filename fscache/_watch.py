"""What others do to the directory: files removed, added or changed by hand.

Each directory's time of change is noted after our own changes; one that differs is recounted. A look at all 256 takes
half a millisecond in the changing thread, every WATCH_S; events of the kernel for each of our own files would cost ten
times what the file itself does (docs/decisions/0006). A file that was written in place is noticed when it is read.

Invariant: `apply` leaves the index and the bytes as the directory was found.
Refuses to know: what is read and written meanwhile; the cache's writer rests while it recounts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fscache._files import Files, Found, disk_bytes
from fscache._order import KEPT, Entry, Index

if TYPE_CHECKING:
    from fscache._cache import Fscache

WATCH_S = 2.0


class Rescanned(NamedTuple):
    """A recount: bytes accounted before and now, files, and what had been done by others."""

    before: int
    bytes: int
    files: int
    added: int
    removed: int
    changed: int
    expired: int = 0

    @property
    def right(self) -> bool:
        return not (self.added or self.removed or self.changed) and self.before == self.bytes


def first_scan(files: Files) -> tuple[Index, int, str]:
    """The whole index and its bytes; in the changing thread, before any change."""
    found, problem = files.scan()
    index = Index()
    for mtime, name, length in found:
        index.add(name, Entry(disk_bytes(length), mtime, False), KEPT, mtime)
    return index, sum(index.nbytes), problem


class Applied(NamedTuple):
    """What a recount has changed: bytes, files."""

    bytes: int
    added: int
    removed: int
    changed: int


def apply(index: Index, found: Found, known: Mapping[str, Entry], doomed: Container[str], now: float) -> Applied:
    """Bring the index up to what a recount has found. Entries that have become others since `known` was taken are left
    alone, and so are files that wait to be removed: they are counted as such."""
    difference = added = removed = changed = 0
    for name in found.gone:
        if index.get(name) is known[name]:
            index.pop(name)
            difference -= known[name].space
            removed += 1
    for name, length in found.changed:
        if index.get(name) is known[name]:
            difference += disk_bytes(length) - known[name].space
            index.resize(name, disk_bytes(length))
            known[name].verified = False
            changed += 1
    for mtime, name, length in found.added:
        if name not in index and name not in doomed:
            index.add(name, Entry(disk_bytes(length), mtime, False), KEPT, now)
            difference += disk_bytes(length)
            added += 1
    return Applied(difference, added, removed, changed)


class Watcher:
    """Looks at the directory every WATCH_S, and recounts when told to."""

    def __init__(self, cache: Fscache) -> None:
        self._cache = cache
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.running = False

    def start(self) -> None:
        self.running = True
        self._timer = asyncio.get_running_loop().call_later(WATCH_S, self._tick)

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None and not self._looking.done() and not self._cache.stuck():
            await asyncio.wait([self._looking], timeout=WATCH_S)

    def _tick(self) -> None:
        self.start()
        if not self._cache.hold and not self._lock.locked() and not self._cache.stuck():
            self._looking = asyncio.get_running_loop().create_task(self.look())

    async def look(self) -> None:
        """Ask for directories that somebody else has changed, and recount those."""
        async with self._lock:
            await self._cache.scanned()
            changed = await self._cache.change(self._cache.files.disturbed)
            if changed:
                await self.recount(changed)

    async def recount(self, prefixes: set[str] | None) -> Rescanned:
        """Recount these directories, None for all. The writer rests, so that nothing but reads goes on beside it."""
        cache = self._cache
        while cache.hold:
            await cache.next_round()
        await cache.scanned()
        cache.hold = True
        try:
            await cache.flush()
            index = cache.index
            known = {name: entry for name, entry in index.items() if prefixes is None or name[:2] in prefixes}
            found = await cache.change(lambda: cache.files.compare(known, prefixes))
            done = cache.take_in(found, known)
        finally:
            cache.go_on()
        now = cache.stats()
        return Rescanned(now.bytes - done.bytes, now.bytes, now.files, done.added, done.removed, done.changed)
