"""A disk of files: a thread for all changes, a few threads for reads.

All changes of the directory run in a single thread, in order. Reads run in the threads
of `Readers`, which also notice a disk that does not answer.

Invariant: nothing here blocks the event loop.
This module does not know the format of a file (`fscache.disk._files`).
Diagnostics: a slow read raises `DiskSlow`; a change that hangs is reported by `hangs`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fscache.disk._disk import Done, Found, Got, Known, Listing, Step, Want
from fscache.disk._files import Files
from fscache.disk._readers import Readers

TIMEOUT_S = 2.0  # a disk that needs longer is slower than the bucket

T = TypeVar("T")


class FileDisk:
    """Implements `Disk` with the directory of `files`.

    timeout_s: a read that takes longer is given up. Its thread goes on.
    """

    def __init__(self, files: Files | str | Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._files = files if isinstance(files, Files) else Files(Path(files))
        self.name = str(self._files.path)
        self.timeout_s = timeout_s
        self._readers = Readers(timeout_s)
        self._changer = ThreadPoolExecutor(1, thread_name_prefix="fscache-change")
        self._change_began: float | None = None  # time of the loop's clock

    def open(self, digest: Callable[[Listing], T], read_ended: Callable[[], None]) -> Future[T]:
        self._readers.ended = read_ended
        return self._changer.submit(lambda: digest(self._files.scan()))

    def read(self, want: Want) -> Awaitable[Got]:
        return self._readers.run((want.name,), self._files.read, want)

    def read_many(self, wants: Sequence[Want]) -> Awaitable[list[Got]]:
        return self._readers.run([want.name for want in wants], self._files.read_many, wants)

    def reading(self) -> set[str]:
        return self._readers.open()

    async def change(self, steps: Sequence[Step]) -> list[Done]:
        loop = asyncio.get_running_loop()
        self._change_began = loop.time()
        try:
            return await loop.run_in_executor(self._changer, self._files.run, steps)
        finally:
            self._change_began = None

    def hangs(self) -> bool:
        began = self._change_began
        return began is not None and asyncio.get_running_loop().time() - began > self.timeout_s

    async def changed_by_others(self) -> set[str]:
        return await asyncio.get_running_loop().run_in_executor(self._changer, self._files.changed_by_others)

    async def compare(self, known: Mapping[str, Known], prefixes: AbstractSet[str] | None) -> Found:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._changer, self._files.compare, known, prefixes)

    async def close(self, *, wait: bool) -> None:
        if not wait:
            self._changer.shutdown(wait=False, cancel_futures=True)
            self._readers.close(wait=False)
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._changer.shutdown)
        await loop.run_in_executor(None, lambda: self._readers.close(wait=True))
