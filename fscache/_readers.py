"""The threads that read: which files are open, and what to do when the disk does not answer.

A read that takes longer than READ_S is given up by who waits for it; the thread goes on, and its files count as open
until it has ended. While as many reads hang as there are threads, no other is begun.

Invariant: a file is in `open()` from before its read begins until the thread has closed it.
Refuses to know: what is read. `failed` hears of slow reads, `ended` of each that has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

READ_THREADS = 4
READ_S = 2.0  # a disk that needs longer is slower than the bucket

T = TypeVar("T")
W = TypeVar("W")


class _Read:
    __slots__ = ("began", "future", "job", "late", "names")

    def __init__(self, names: Collection[str], future: Future[Any], began: float) -> None:
        self.names = names
        self.future = future
        self.job = asyncio.wrap_future(future)
        self.began = began
        self.late = False


class Readers:
    """See the module's text."""

    def __init__(self, failed: Callable[[str], None], ended: Callable[[], None]) -> None:
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="fscache-read")
        self._failed = failed
        self._ended = ended
        self._reads: set[_Read] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.overdue = 0

    def open(self) -> set[str]:
        """Files that are being read."""
        return set().union(*(read.names for read in self._reads))

    async def run(self, names: Collection[str], work: Callable[[W], T], want: W) -> T | None:
        """Read in a thread; None when the disk is too slow."""
        if self.overdue >= READ_THREADS:
            self._failed("the disk does not answer")
            return None
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work, want)
        read = _Read(names, future, loop.time())
        self._reads.add(read)
        if self._timer is None:
            self._timer = loop.call_later(READ_S, self._look)
        try:
            found: T = await read.job
            return found
        except asyncio.CancelledError:
            if not read.late or ((me := asyncio.current_task()) is not None and me.cancelling()):
                raise
            self._failed(f"a read takes longer than {READ_S:g} s")
            return None
        finally:
            if future.done():
                self._end(read)
            else:
                future.add_done_callback(lambda _: _tell(loop, lambda: self._end(read)))

    def _end(self, read: _Read) -> None:
        self.overdue -= read.late
        self._reads.discard(read)
        self._ended()

    def _look(self) -> None:
        """Give up what is late; one timer for all reads costs less than one for each."""
        loop = asyncio.get_running_loop()
        self._timer = None
        oldest = None
        for read in self._reads:
            if read.late or read.job.done():
                continue
            if loop.time() - read.began >= READ_S:
                read.late = True
                self.overdue += 1
                read.job.cancel()  # the thread goes on
            elif oldest is None or read.began < oldest:
                oldest = read.began
        if oldest is not None:
            self._timer = loop.call_at(oldest + READ_S, self._look)

    def close(self, *, wait: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=wait and not self.overdue, cancel_futures=not wait)


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """Out of a thread, which may outlive the loop."""
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        pass
