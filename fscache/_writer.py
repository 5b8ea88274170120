"""The writer: it opens the disk, and makes all changes to it in rounds.

What is put waits WRITE_DELAY_S in memory, so that a single hop to the disk writes many
objects. The writer runs as a task while there is something to do. It rests while
somebody recounts the directory.

Invariant: at most a single round is under way. No round begins before the scan at the
start has ended, nor within `at_rest`.
This module does not know what is written and removed (`fscache._contents`) or how.
Diagnostics: errors of the disk go to `failures`. A disk that hangs delays `removed` by
its timeout; `flush` waits until it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

from fscache._contents import Contents, index_of
from fscache._failures import Failures
from fscache.disk import Disk, Listing
from fscache.order import Index

WRITE_DELAY_S = 0.1  # how long an object that nobody waits for stays in memory alone


class Writer:
    """Makes the disk agree with `contents`. clock: as for `fscache.Fscache`."""

    def __init__(self, contents: Contents, disk: Disk, failures: Failures, clock: Callable[[], float]) -> None:
        self._contents = contents
        self._disk = disk
        self._failures = failures
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._round = asyncio.Event()  # set when the current round ends
        self._at_once = asyncio.Event()  # the next round shall not wait for more
        self._woken = False  # something came since the current round was planned
        self.resting = False  # no round may begin
        self._scan: Future[tuple[Index, str]] | None = disk.open(_digest, self._read_ended)

    # ---- the scan at the start ---------------------------------------------------------------------------------

    def merge_scan(self) -> None:
        """Take over the scan at the start, if it has ended."""
        if self._scan is None or not self._scan.done():
            return
        index, problem = self._scan.result()
        self._scan = None
        if problem:
            self._failures(problem)
        self._contents.merge(index, self._clock())
        self.wake()

    async def scanned(self) -> None:
        """Return when the scan at the start is over."""
        if self._scan is not None:
            await asyncio.wait([asyncio.wrap_future(self._scan)])
            self.merge_scan()

    # ---- rounds ------------------------------------------------------------------------------------------------

    def wake(self, *, at_once: bool = False) -> None:
        """Make rounds run as long as something is due.

        at_once: the next round begins at once. Without a running loop nothing happens
        here; the next call from a loop does it.
        """
        if at_once or self._contents.batch():
            self._at_once.set()
        self._woken = True
        if self._task is not None or self.resting or not self._contents.due():
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._task = loop.create_task(self._run())

    def _read_ended(self) -> None:
        """Note that a file that was being read may be removed now."""
        if self._contents.over():
            self.wake()

    async def _run(self) -> None:
        """Run rounds until nothing is due, or until they do not get any further."""
        contents = self._contents
        try:
            await self.scanned()
            more = True
            while more and not self.resting and contents.due():
                await self._gather()
                self._woken = False
                plan = contents.plan(self._clock(), self._disk.reading())
                results = await self._disk.change([item.step for item in plan])
                for done in results:
                    if done.error:
                        self._failures(done.error)
                more = contents.record(plan, results) or self._woken
                self._end_round()
        finally:
            self._task = None
            self._at_once.clear()
            self._end_round()

    async def _gather(self) -> None:
        """Wait a moment for more to write, unless somebody waits or a batch is full."""
        if not self._contents.batch():
            try:
                async with asyncio.timeout(WRITE_DELAY_S):
                    await self._at_once.wait()
            except TimeoutError:
                pass
        self._at_once.clear()

    def _end_round(self) -> None:
        self._contents.end_round()
        self._round.set()
        self._round = asyncio.Event()

    # ---- waiting -----------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Return when what was put before the call has been written, or given up."""
        while self._task is not None:
            self._at_once.set()
            await asyncio.wait([self._task])

    async def removed(self, name: str) -> None:
        """Return when the file is removed, or cannot be removed now."""
        while self._contents.removing(name) and not self._disk.hangs():
            if self._task is None and not self.resting and name not in self._disk.reading():
                return
            try:
                async with asyncio.timeout(self._disk.timeout_s):
                    await self._round.wait()
            except TimeoutError:
                return

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """Within this context no round is under way, so only reads use the disk."""
        await self.scanned()
        while self.resting:
            await self._round.wait()
        self.resting = True
        try:
            await self.flush()
            yield
        finally:
            self.resting = False
            self._end_round()
            self.wake()


def _digest(listing: Listing) -> tuple[Index, str]:
    """Build the index where the scan runs: a million files would hold the loop."""
    return index_of(listing.files), listing.problem
