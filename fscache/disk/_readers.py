"""The threads that read: which files are open, and what happens when the disk hangs.

The waiter gives up a read that takes longer than `timeout_s`. The thread goes on, and
its files count as open until it has ended. While as many reads hang as there are
threads, no other read begins.

Invariant: a file is in `open()` from before its read begins until the thread has closed
it.
This module does not know what is read.
Diagnostics: `DiskSlow` for a read that is late, or that does not begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fscache.disk._disk import DiskSlow

READ_THREADS = 4

T = TypeVar("T")
W = TypeVar("W")


class _Read:
    """A read under way, for the names of its files."""

    __slots__ = ("began", "future", "job", "late", "names")

    def __init__(self, names: Collection[str], future: Future[Any], began: float) -> None:
        self.names = names
        self.future = future
        self.job = asyncio.wrap_future(future)
        self.began = began
        self.late = False


class Readers:
    """Runs reads in READ_THREADS threads. The loop calls `ended` after each read."""

    def __init__(self, timeout_s: float) -> None:
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="fscache-read")
        self._timeout_s = timeout_s
        self.ended: Callable[[], None] = _nothing
        self._reads: set[_Read] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = 0  # reads that were given up and have not ended

    def open(self) -> set[str]:
        """The names of the files that are being read."""
        return set().union(*(read.names for read in self._reads))

    async def run(self, names: Collection[str], work: Callable[[W], T], want: W) -> T:
        """Return `work(want)`, run in a thread. Raises: DiskSlow."""
        if self._overdue >= READ_THREADS:
            raise DiskSlow("the disk does not answer")
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work, want)
        read = _Read(names, future, loop.time())
        self._reads.add(read)
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._give_up_late)
        try:
            found: T = await read.job
            return found
        except asyncio.CancelledError:
            if not read.late or ((me := asyncio.current_task()) is not None and me.cancelling()):
                raise
            raise DiskSlow(f"a read takes longer than {self._timeout_s:g} s") from None
        finally:
            if future.done():
                self._end(read)
            else:
                future.add_done_callback(lambda _: _call_in_loop(loop, lambda: self._end(read)))

    def _end(self, read: _Read) -> None:
        self._overdue -= read.late
        self._reads.discard(read)
        self.ended()

    def _give_up_late(self) -> None:
        """Cancel the waiting for late reads. A single timer for all reads is cheaper
        than a timer for each."""
        loop = asyncio.get_running_loop()
        self._timer = None
        oldest = None
        for read in self._reads:
            if read.late or read.job.done():
                continue
            if loop.time() - read.began >= self._timeout_s:
                read.late = True
                self._overdue += 1
                read.job.cancel()  # the thread goes on
            elif oldest is None or read.began < oldest:
                oldest = read.began
        if oldest is not None:
            self._timer = loop.call_at(oldest + self._timeout_s, self._give_up_late)

    def close(self, *, wait: bool) -> None:
        """Stop the threads. A read that hangs is not waited for."""
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=wait and not self._overdue, cancel_futures=not wait)


def _nothing() -> None:
    """Nobody listens before the cache has opened the disk."""


def _call_in_loop(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """Call from a thread, which may outlive the loop."""
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        pass  # the loop has been closed
