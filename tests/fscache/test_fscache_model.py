"""The fscache compared with a dict: random operations, files that are removed and
damaged by hand, and reopening. The bound is checked after each operation."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import disks
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fscache import Fscache
from fscache.disk import BLOCK_BYTES, Done, FileDisk, Files, Step, disk_bytes

KEYS = [f"key-{n}" for n in range(12)] + ["long/" + "ü" * 200]
KEY = st.sampled_from(KEYS)
SIZES = st.sampled_from([0, 10, 4000, 5000, 8000, 16000])
BLOCKS_MAX = 16
LARGE = bytes(range(256)) * 3000
# A slow machine must not count as a disk that hangs.
TIMEOUT_S = 60.0


class WatchedFiles(Files):
    """A disk that calls `look` after each write, in the thread that changes files, so
    that no file changes meanwhile."""

    def __init__(self, path: Path, look: Callable[[], None]) -> None:
        super().__init__(path)
        self._look = look

    def step(self, step: Step, room: bool) -> Done:
        done = super().step(step, room)
        if step.name:
            self._look()
        return done


class FscacheMachine(RuleBasedStateMachine):
    """`get` returns the newest data of a key, whatever happened to the files. The files
    never exceed the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        # what the source has
        self.objects = {key: key.encode() * 10 for key in KEYS}
        # keys that must not be found without a fetch
        self.dropped: set[str] = set()
        self.fetched: list[str] = []
        # fetches that are running, at most one for each key
        self.running: set[str] = set()
        self.now = 1000.0
        self.blocks_max = BLOCKS_MAX
        # the bytes that the files took when they exceeded the limit
        self.passed: list[int] = []
        self.open()

    def open(self) -> None:
        disk = FileDisk(WatchedFiles(self.dir / "fc", self.look_at_use), timeout_s=TIMEOUT_S)
        self.cache = Fscache(disk, max_size=self.blocks_max * BLOCK_BYTES, clock=self.clock)

    def look_at_use(self) -> None:
        if (use := self.use()) > self.blocks_max * BLOCK_BYTES:
            self.passed.append(use)

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    def teardown(self) -> None:
        self.runner.run(self.cache.close())
        self.check_accounts()
        self.runner.close()
        shutil.rmtree(self.dir)

    async def fetch(self, key: str) -> bytes:
        assert key not in self.running
        self.fetched.append(key)
        self.running.add(key)
        data = self.objects[key]
        await asyncio.sleep(0)
        self.running.discard(key)
        return data

    def of(self, key: str) -> Callable[[], Awaitable[bytes]]:
        return lambda: self.fetch(key)

    def file_of(self, key: str) -> Path:
        return disks.file_of(self.dir / "fc", key)

    def use(self) -> int:
        blocks = 0
        for root, _, names in os.walk(self.dir / "fc"):
            for name in names:
                try:
                    blocks += -(-os.stat(os.path.join(root, name)).st_size // BLOCK_BYTES)
                except FileNotFoundError:
                    # A reader, or the test, has removed the file.
                    pass
        return blocks * BLOCK_BYTES

    def check_accounts(self) -> None:
        """While no operation runs, the cache never counts fewer bytes than there
        are."""
        stats = self.cache.stats()
        assert self.use() <= stats.bytes <= self.blocks_max * BLOCK_BYTES
        assert self.cache.check() == []

    @rule(key=KEY)
    def get(self, key: str) -> None:
        before = len(self.fetched)
        assert self.runner.run(self.cache.get(key, self.of(key))) == self.objects[key]
        assert key not in self.dropped or self.fetched[before:] == [key]
        self.dropped.discard(key)

    @rule(keys=st.lists(KEY, max_size=10), parallel=st.integers(1, 4))
    def get_many(self, keys: list[str], parallel: int) -> None:
        found = self.runner.run(self.cache.get_many(keys, self.fetch, parallel=parallel))
        assert found == [self.objects[key] for key in keys]
        self.dropped.difference_update(keys)

    @rule(keys=st.lists(KEY, min_size=2, max_size=6))
    def get_at_once(self, keys: list[str]) -> None:
        async def all_of_them() -> list[bytes]:
            return await asyncio.gather(*(self.cache.get(key, self.of(key)) for key in keys))

        assert self.runner.run(all_of_them()) == [self.objects[key] for key in keys]
        self.dropped.difference_update(keys)

    @rule(key=KEY, start=st.integers(0, 20000), count=st.integers(0, 9000))
    def read(self, key: str, start: int, count: int) -> None:
        found = self.runner.run(self.cache.read(key, start, start + count))
        assert found is None or found == self.objects[key][start : start + count]
        assert key not in self.dropped or found is None

    @rule(key=KEY, size=SIZES, fill=st.integers(0, 255))
    def put(self, key: str, size: int, fill: int) -> None:
        self.objects[key] = bytes([fill]) * size
        self.runner.run(self.cache.put(key, self.objects[key]))
        self.dropped.discard(key)

    @rule(key=KEY)
    def drop(self, key: str) -> None:
        self.runner.run(self.cache.drop(key))
        self.dropped.add(key)
        assert not self.file_of(key).exists()

    @rule(key=KEY, start=st.integers(0, 20000), count=st.integers(0, 20000))
    def read_range(self, key: str, start: int, count: int) -> None:
        """Read a range of an object that never changes. Pieces of the object may stay
        when its own key is put again."""

        async def fetch(low: int, high: int) -> bytes:
            await asyncio.sleep(0)
            return LARGE[low:high]

        found = self.runner.run(self.cache.read_range("large/" + key, start * 40, start * 40 + count, fetch))
        assert found == LARGE[start * 40 : start * 40 + count]

    @rule(at_once=st.lists(KEY, max_size=4))
    def rescan(self, at_once: list[str]) -> None:
        """Rescan beside reads and writes. The counts are right at once, and a second
        rescan finds no difference."""

        async def beside() -> None:
            tasks = [asyncio.create_task(self.cache.put(key, self.objects[key])) for key in at_once]
            await self.cache.rescan()
            await asyncio.gather(*tasks)

        self.runner.run(beside())
        self.dropped.difference_update(at_once)
        self.runner.run(self.cache.flush())
        assert self.runner.run(self.cache.rescan()).right
        assert self.use() == self.cache.stats().bytes

    @rule(key=KEY, size=SIZES)
    def add_by_hand(self, key: str, size: int) -> None:
        """Add a foreign file under a name of the cache. The cache finds and counts it,
        and never serves it. The bound holds only for files of the cache."""
        self.runner.run(self.cache.flush())
        if self.use() + disk_bytes(size) > self.blocks_max * BLOCK_BYTES:
            return
        path = self.file_of("foreign/" + key)
        there = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Writing into a file does not change its directory. A rescan finds the new
        # size, and a read finds the new content.
        if there:
            path.write_bytes(bytes(size))
            self.runner.run(self.cache.rescan())
            return
        # A scan that finds a file while it grows would count a part of it.
        whole = self.dir / "by hand"
        whole.write_bytes(bytes(size))
        whole.rename(path)
        self.runner.run(self.cache.look())

    @rule()
    def look(self) -> None:
        self.runner.run(self.cache.look())

    @rule()
    def flush(self) -> None:
        self.runner.run(self.cache.flush())
        self.check_accounts()

    @rule(key=KEY)
    def remove_by_hand(self, key: str) -> None:
        self.file_of(key).unlink(missing_ok=True)

    @rule(key=KEY, at=st.integers(0, 10000))
    def damage(self, key: str, at: int) -> None:
        # The scan at the start has ended.
        self.runner.run(self.cache.look())
        self.runner.run(self.cache.flush())
        if not self.file_of(key).exists():
            return
        raw = bytearray(self.file_of(key).read_bytes())
        raw[at % len(raw)] ^= 0x55
        self.file_of(key).write_bytes(raw)

    @rule()
    def remove_all_by_hand(self) -> None:
        self.runner.run(self.cache.flush())
        shutil.rmtree(self.dir / "fc", ignore_errors=True)

    @rule(blocks=st.sampled_from([4, 8, BLOCKS_MAX]))
    def reopen(self, blocks: int) -> None:
        self.runner.run(self.cache.close())
        self.blocks_max = max(self.blocks_max, blocks)
        self.check_accounts()
        self.blocks_max = blocks
        self.open()
        # This wakes the writer, which makes the files fit.
        self.runner.run(self.cache.put("none", b""))
        self.runner.run(self.cache.flush())

    @rule(blocks=st.sampled_from([4, 8, BLOCKS_MAX]))
    def resize(self, blocks: int) -> None:
        async def work() -> None:
            await self.cache.flush()
            self.blocks_max = blocks
            self.cache.resize(blocks * BLOCK_BYTES)
            await self.cache.flush()

        self.runner.run(work())
        self.check_accounts()

    @invariant()
    def bounded(self) -> None:
        assert self.passed == []


FscacheMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestFscache = FscacheMachine.TestCase
