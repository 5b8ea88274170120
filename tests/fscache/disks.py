"""Disks for tests: a disk in memory that can fail, and files that hang when a test says
so."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fscache.disk import (
    BLOCK_BYTES,
    DiskSlow,
    Done,
    FileDisk,
    Files,
    Found,
    Got,
    Known,
    Listed,
    Listing,
    Step,
    Want,
    disk_bytes,
    file_bytes,
    name_of,
)

T = TypeVar("T")
# A gate that no test opens lets its callers go after this time.
HANG_S = 20.0


@dataclass
class File:
    key: str
    data: bytes
    mtime: float
    damaged: bool = False

    @property
    def length(self) -> int:
        return file_bytes(self.key, len(self.data))


class MemoryDisk:
    """A disk in a dict that implements `fscache.disk.Disk`.

    The dict survives: pass it to the next disk. failing: percent of the operations that
    fail, chosen by `chance`. `reported` is how many failures were reported to the
    cache. `most` is the largest number of bytes that the files ever took.
    """

    def __init__(
        self, files: dict[str, File] | None = None, *, chance: random.Random | None = None, failing: int = 0
    ) -> None:
        self.name = "memory"
        self.timeout_s = 2.0
        self.files: dict[str, File] = {} if files is None else files
        self.chance = chance or random.Random(0)
        self.failing = failing
        self.reported = 0
        self.most = 0
        # the numbers of reads and of changes
        self.hops = 0
        # The cache must never remove a file while it is read.
        self.removed_while_read: list[str] = []
        self._reading: list[str] = []
        self._changed: set[str] = set()
        self._read_ended: Callable[[], None] = lambda: None

    def used(self) -> int:
        return sum(disk_bytes(file.length) for file in self.files.values())

    def by_hand(self, name: str, file: File | None) -> None:
        """Write or remove a file as another program does."""
        self._changed.add(name[:2])
        if file is None:
            self.files.pop(name, None)
        else:
            self.files[name] = file

    def _fails(self, what: str) -> str:
        """Decide whether an operation fails, and if so, with which error."""
        if self.chance.random() * 100 >= self.failing:
            return ""
        self.reported += 1
        return f"{what} failed (made)"

    # ---- the interface -----------------------------------------------------------------------------------------

    def open(self, digest: Callable[[Listing], T], read_ended: Callable[[], None]) -> Future[T]:
        self._read_ended = read_ended
        done: Future[T] = Future()
        done.set_result(digest(Listing(self._list(None), "")))
        return done

    def _list(self, prefixes: AbstractSet[str] | None) -> list[Listed]:
        some = [(name, file) for name, file in self.files.items() if prefixes is None or name[:2] in prefixes]
        return sorted((file.mtime, name, file.length) for name, file in some)

    async def read(self, want: Want) -> Got:
        return (await self.read_many([want]))[0]

    async def read_many(self, wants: Sequence[Want]) -> list[Got]:
        self.hops += 1
        if error := self._fails("answer"):
            raise DiskSlow(error)
        names = [want.name for want in wants]
        self._reading += names
        try:
            for _ in range(self.chance.randrange(3)):
                await asyncio.sleep(0)
            return [self._read(want) for want in wants]
        finally:
            for name in names:
                self._reading.remove(name)
            self._read_ended()

    def _read(self, want: Want) -> Got:
        file = self.files.get(want.name)
        if file is None:
            return Got(None, gone=True)
        if error := self._fails("read"):
            return Got(None, error=error)
        if file.damaged or file.key != want.key:
            self.reported += 1
            del self.files[want.name]
            return Got(None, error="damaged", gone=True)
        if want.touch is not None:
            file.mtime = want.touch
        return Got(file.data[want.start : want.end], file.length)

    def reading(self) -> set[str]:
        return set(self._reading)

    async def change(self, steps: Sequence[Step]) -> list[Done]:
        self.hops += 1
        await asyncio.sleep(0)
        out: list[Done] = []
        for step in steps:
            room = not any(done.kept for done in out)
            out.append(self._step(step, room))
            self.most = max(self.most, self.used())
            if self.chance.random() < 0.2:
                await asyncio.sleep(0)
        return out

    def _step(self, step: Step, room: bool) -> Done:
        kept = []
        problem = ""
        for name in step.remove:
            if name in self._reading:
                self.removed_while_read.append(name)
            if error := self._fails("remove"):
                # A step reports its last error only.
                self.reported -= bool(problem)
                kept.append(name)
                problem = error
            else:
                self.files.pop(name, None)
        if not step.name or kept or not room:
            return Done(kept, False, problem)
        if error := self._fails("write"):
            return Done(kept, False, error)
        self.files[step.name] = File(step.key, step.data, step.mtime)
        return Done(kept, True, "")

    def hangs(self) -> bool:
        return False

    async def changed_by_others(self) -> set[str]:
        changed, self._changed = self._changed, set()
        return changed

    async def compare(self, known: Mapping[str, Known], prefixes: AbstractSet[str] | None) -> Found:
        await asyncio.sleep(0)
        there = {name: (mtime, name, length) for mtime, name, length in self._list(prefixes)}
        changed = [
            (name, there[name][2])
            for name in known.keys() & there.keys()
            if disk_bytes(there[name][2]) != known[name].space
        ]
        added = sorted(there[name] for name in there.keys() - known.keys())
        return Found(added, list(known.keys() - there.keys()), changed, "")

    async def close(self, *, wait: bool) -> None:
        pass


class GatedFiles(Files):
    """Real files. Reads and rounds of changes wait while a test has closed the gate."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads, self.rounds = threading.Event(), threading.Event()
        self.reads.set()
        self.rounds.set()
        # A round is running or has run.
        self.began = threading.Event()
        # the number of steps of each round
        self.sizes: list[int] = []

    def read(self, want: Want) -> Got:
        assert self.reads.wait(HANG_S)
        return super().read(want)

    def run(self, steps: Iterable[Step]) -> list[Done]:
        steps = list(steps)
        self.sizes.append(len(steps))
        self.began.set()
        assert self.rounds.wait(HANG_S)
        return super().run(steps)


def file_of(path: Path, key: str) -> Path:
    """Return the path at which `FileDisk(path)` keeps the object of a key."""
    name = name_of(key)
    return path / name[:2] / name


def disk_use(path: Path) -> int:
    """Return how many bytes the files below `path` take, in whole blocks. Nothing may
    change the files meanwhile."""
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    return sum(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in sizes)


def gated(path: Path, *, timeout_s: float = 60.0) -> tuple[FileDisk, GatedFiles]:
    """Return a disk of files with gates. Its time limit is long, because a slow machine
    must not count as a disk that hangs."""
    files = GatedFiles(path)
    return FileDisk(files, timeout_s=timeout_s), files
