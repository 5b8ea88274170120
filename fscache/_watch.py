"""The watcher: it notices what others do to the directory.

An operator may remove, add or change files. After each change of our own the disk notes
the modification times of its directories. A directory that has another time is
recounted. A look at all 256 directories takes half a millisecond in the changing
thread, every WATCH_S. Kernel events for each of our own files would cost ten times as
much as the files themselves (docs/decisions/0006-fscache-looks-at-directories.md). A
file that was overwritten in place is noticed when it is read.

Invariant: after a recount the accounts are as the directory was found.
This module does not know what is read meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fscache._contents import Contents
from fscache._failures import Failures
from fscache._types import Rescanned
from fscache._writer import Writer
from fscache.disk import Disk

WATCH_S = 2.0


class Watcher:
    """Looks at the directories every WATCH_S, and recounts them when asked."""

    def __init__(
        self, contents: Contents, disk: Disk, writer: Writer, failures: Failures, clock: Callable[[], float]
    ) -> None:
        self._contents = contents
        self._disk = disk
        self._writer = writer
        self._failures = failures
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.running = False

    def start(self) -> None:
        """Look in WATCH_S, and again each WATCH_S."""
        self.running = True
        self._timer = asyncio.get_running_loop().call_later(WATCH_S, self._tick)

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None and not self._looking.done() and not self._disk.hangs():
            await asyncio.wait([self._looking], timeout=WATCH_S)

    def _tick(self) -> None:
        self.start()
        if not self._writer.resting and not self._lock.locked() and not self._disk.hangs():
            self._looking = asyncio.get_running_loop().create_task(self.look())

    async def look(self) -> None:
        """Recount the directories that somebody else has changed."""
        async with self._lock:
            await self._writer.scanned()
            changed = await self._disk.changed_by_others()
            if changed:
                await self.recount(changed)

    async def recount(self, prefixes: set[str] | None) -> Rescanned:
        """Recount these directories (None: all) and correct the accounts."""
        contents = self._contents
        async with self._writer.at_rest():
            known = {name: entry for name, entry in contents.index.items() if prefixes is None or name[:2] in prefixes}
            found = await self._disk.compare(known, prefixes)
            if found.problem:
                self._failures(found.problem)
            done = contents.apply(found, known, self._clock())
            return Rescanned(
                contents.nbytes - done.bytes,
                contents.nbytes,
                len(contents.index),
                done.added,
                done.removed,
                done.changed,
            )
