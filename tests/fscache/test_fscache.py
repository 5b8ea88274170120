"""What a caller of the fscache relies on. Each test shows a single property."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import disks
import pytest
from disks import gated

from fscache import Fscache, FscacheError
from fscache.disk import BLOCK_BYTES

MIB = 1 << 20


class Source:
    """Objects, and how often each was fetched."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def data(self, key: str) -> bytes:
        return key.encode() * 10

    async def __call__(self, key: str) -> bytes:
        self.fetched.append(key)
        await asyncio.sleep(0)
        return self.data(key)

    def of(self, key: str) -> Callable[[], Awaitable[bytes]]:
        return lambda: self(key)


def open_cache(path: Path, max_size: int = MIB) -> Fscache:
    return Fscache(path / "fc", max_size=max_size, clock=lambda: 1000.0)


def file_of(path: Path, key: str) -> Path:
    return disks.file_of(path / "fc", key)


def disk_use(path: Path) -> int:
    return disks.disk_use(path / "fc")


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Fscache]:
    cache = open_cache(tmp_path)
    yield cache
    await cache.close()


@pytest.fixture
def source() -> Source:
    return Source()


async def test_a_miss_fetches_once_and_stays(cache: Fscache, source: Source, tmp_path: Path) -> None:
    for _ in range(2):
        assert await cache.get("k", source.of("k")) == source.data("k")
        await cache.flush()
    assert source.fetched == ["k"]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.files, stats.bytes, stats.errors) == (1, 1, 1, BLOCK_BYTES, 0)
    assert disk_use(tmp_path) == stats.bytes
    assert cache.peek("k")
    await cache.drop("k")
    assert not cache.peek("k")
    assert disk_use(tmp_path) == cache.stats().bytes == 0
    assert await cache.get("k", source.of("k")) == source.data("k")
    assert source.fetched == ["k", "k"]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 200_000])
async def test_put_is_read_back_before_and_after_it_is_written(cache: Fscache, source: Source, size: int) -> None:
    data = os.urandom(size)
    await cache.put("k", data)
    for _ in range(2):
        assert await cache.get("k", source.of("k")) == data
        assert await cache.get_many(["k", "k"], source) == [data, data]
        assert await cache.read("k", 10, 20) == data[10:20]
        assert await cache.read("k", 0, size + 9) == data
        assert await cache.read("k", size, size + 9) == b""
        await cache.flush()
    assert source.fetched == []
    await cache.put("k", b"other")
    assert await cache.get("k", source.of("k")) == b"other"
    assert await cache.read("absent", 0, 1) is None


async def test_single_flight_outlives_a_cancelled_waiter(cache: Fscache) -> None:
    started, release, calls = asyncio.Event(), asyncio.Event(), 0

    async def fetch() -> bytes:
        nonlocal calls
        calls += 1
        started.set()
        await release.wait()
        return b"data"

    tasks = [asyncio.create_task(cache.get("k", fetch)) for _ in range(3)]
    await started.wait()
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    await asyncio.sleep(0)
    release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [b"data", b"data"]
    assert calls == 1


async def test_the_last_waiter_takes_the_fetch_with_it(cache: Fscache, source: Source) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def fetch() -> bytes:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b"never"

    task = asyncio.create_task(cache.get("k", fetch))
    await started.wait()
    task.cancel()
    await cancelled.wait()
    assert await cache.get("k", source.of("k")) == source.data("k")


async def test_a_failed_fetch_fails_all_who_wait_and_nobody_later(cache: Fscache, source: Source) -> None:
    async def fail(*_: str) -> bytes:
        await asyncio.sleep(0.01)
        raise ConnectionError("no bucket")

    results = await asyncio.gather(*(cache.get("k", fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionError] * 3
    with pytest.raises(ConnectionError):
        await cache.get_many(["k", "l"], fail)
    assert await cache.get("k", source.of("k")) == source.data("k")


async def test_get_many_leaves_a_place_for_what_is_absent(cache: Fscache) -> None:
    """Each object is fetched once. Nothing is kept for an object that does not
    exist."""
    asked: list[str] = []

    async def fetch(key: str) -> bytes:
        asked.append(key)
        await asyncio.sleep(0)
        if key in ("b", "d"):
            raise LookupError(key)
        return key.encode()

    await cache.put("a", b"a")
    keys = ["a", "b", "c", "d", "e"]
    assert await cache.get_many(keys, fetch, absent=(LookupError,)) == [b"a", None, b"c", None, b"e"]
    assert sorted(asked) == ["b", "c", "d", "e"]
    assert not cache.peek("b")
    with pytest.raises(LookupError):
        await cache.get_many(keys, fetch)


async def test_get_many_keeps_the_order_and_bounds_the_fetches(cache: Fscache) -> None:
    running = most = 0

    async def fetch(key: str) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return key.encode()

    keys = [f"k{n}" for n in range(50)]
    for key in keys[::3]:
        await cache.put(key, key.encode())
    await cache.flush()
    assert await cache.get_many(keys, fetch, parallel=4) == [key.encode() for key in keys]
    assert most == 4
    assert (cache.stats().hits, cache.stats().misses) == (17, 33)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "longer"])
async def test_a_damaged_file_is_fetched_again(cache: Fscache, source: Source, tmp_path: Path, damage: str) -> None:
    await cache.put("k", bytes(range(256)) * 40)
    await cache.put("other", b"other")
    await cache.flush()
    file = file_of(tmp_path, "k")
    whole = bytearray(file.read_bytes())
    whole[5000] ^= 1
    changed = {
        "flip": bytes(whole), "cut": bytes(whole[:6000]), "empty": b"", "longer": bytes(whole) + b"x",
        "foreign": file_of(tmp_path, "other").read_bytes(),
    }  # fmt: skip
    file.write_bytes(changed[damage])
    assert await cache.read("k", 0, 10) is None
    assert not file.exists()
    assert await cache.get("k", source.of("k")) == source.data("k")
    await cache.flush()
    assert cache.stats().errors == 1
    assert await cache.get_many(["k", "other"], source) == [source.data("k"), b"other"]
    assert cache.stats().bytes == disk_use(tmp_path)


async def test_a_file_or_the_directory_deleted_by_hand_is_a_miss(
    cache: Fscache, source: Source, tmp_path: Path
) -> None:
    keys = [f"k{n}" for n in range(20)]
    assert await cache.get_many(keys, source) == [source.data(key) for key in keys]
    await cache.flush()
    file_of(tmp_path, "k3").unlink()
    assert await cache.get("k3", source.of("k3")) == source.data("k3")
    await cache.flush()
    assert cache.stats().bytes == disk_use(tmp_path) == 20 * BLOCK_BYTES
    os.rename(tmp_path / "fc", tmp_path / "gone")
    assert await cache.get_many(keys, source) == [source.data(key) for key in keys]
    await cache.flush()
    assert cache.stats().bytes == disk_use(tmp_path) == 20 * BLOCK_BYTES
    assert cache.stats().errors == 0


async def test_least_recently_used_goes_first_and_the_bound_holds(tmp_path: Path, source: Source) -> None:
    cache = open_cache(tmp_path, 10 * BLOCK_BYTES)
    for n in range(10):
        await cache.put(f"k{n}", b"x")
        await cache.flush()
    await cache.get("k0", source.of("k0"))
    # The object and its header take two blocks.
    await cache.put("new", bytes(BLOCK_BYTES))
    await cache.flush()
    assert disk_use(tmp_path) == cache.stats().bytes == 10 * BLOCK_BYTES
    assert cache.stats().evictions == 2
    assert [n for n in range(10) if not cache.peek(f"k{n}")] == [1, 2]
    await cache.put("huge", bytes(3 * BLOCK_BYTES))
    await cache.flush()
    assert not cache.peek("huge")
    assert cache.stats().skipped == 1
    await cache.close()
    # The limit was lowered meanwhile.
    cache = open_cache(tmp_path, 4 * BLOCK_BYTES)
    cache.stats()
    await cache.get("any", source.of("any"))
    await cache.flush()
    assert disk_use(tmp_path) == cache.stats().bytes <= 4 * BLOCK_BYTES
    await cache.close()


async def test_reopen_knows_the_files_and_their_order(tmp_path: Path, source: Source) -> None:
    now = 1000.0
    cache = Fscache(tmp_path / "fc", max_size=10 * BLOCK_BYTES, clock=lambda: now)
    for n in range(10):
        now += 1
        await cache.put(f"k{n}", b"x")
    await cache.flush()
    now += 1000
    assert await cache.get("k0", source.of("k0")) == b"x"
    await cache.close()
    # The process was killed while it wrote this file.
    (tmp_path / "fc" / "new").write_bytes(bytes(100_000))
    cache = Fscache(tmp_path / "fc", max_size=10 * BLOCK_BYTES, clock=lambda: now)
    assert await cache.get("k5", source.of("k5")) == b"x"
    await cache.put("new", b"x")
    await cache.flush()
    assert cache.stats().bytes == disk_use(tmp_path) == 10 * BLOCK_BYTES
    assert cache.peek("k0")
    await cache.put("newer", b"x")
    await cache.flush()
    assert cache.peek("k0")
    assert source.fetched == []
    await cache.close()
    with pytest.raises(FscacheError):
        await cache.get("k0", source.of("k0"))


async def test_an_unusable_directory_costs_time_only(tmp_path: Path, source: Source) -> None:
    (tmp_path / "fc").write_bytes(b"a file where the directory should be")
    cache = open_cache(tmp_path)
    for _ in range(2):
        assert await cache.get("k", source.of("k")) == source.data("k")
        await cache.put("l", b"l")
        await cache.flush()
    assert cache.stats().errors > 0
    assert cache.stats().bytes == 0
    (tmp_path / "fc").unlink()
    await cache.put("l", b"l")
    await cache.flush()
    assert await cache.get("l", source.of("l")) == b"l"
    await cache.close()


async def test_a_full_disk_costs_time_only(cache: Fscache, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        assert await cache.get("k", source.of("k")) == source.data("k")
        await cache.flush()
    assert cache.stats().errors == 1
    assert cache.stats().bytes == 0
    assert await cache.get("k", source.of("k")) == source.data("k")
    await cache.flush()
    assert cache.stats().files == 1


async def test_where_files_cannot_be_removed_nothing_is_written(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> None:
        raise PermissionError(1, "denied", path)

    cache = open_cache(tmp_path, 8 * BLOCK_BYTES)
    for n in range(8):
        await cache.put(f"k{n}", b"x")
    await cache.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", denied)
        await cache.put("new", b"x")
        await cache.put("k1", b"y")
        await cache.flush()
        assert await cache.get("new", source.of("new")) == source.data("new")
        await cache.flush()
    assert cache.stats().bytes == disk_use(tmp_path) == 8 * BLOCK_BYTES
    await cache.put("new", b"x")
    await cache.flush()
    assert cache.stats().bytes == disk_use(tmp_path) <= 8 * BLOCK_BYTES
    assert cache.peek("new")
    await cache.close()


async def test_drop_and_put_win_over_a_fetch_in_flight(cache: Fscache) -> None:
    for change in ("drop", "put"):
        started, release = asyncio.Event(), asyncio.Event()

        async def fetch(started: asyncio.Event = started, release: asyncio.Event = release) -> bytes:
            started.set()
            await release.wait()
            return b"old"

        task = asyncio.create_task(cache.get(change, fetch))
        await started.wait()
        await (cache.drop(change) if change == "drop" else cache.put(change, b"new"))
        release.set()
        assert await task == b"old"
        await cache.flush()
    assert not cache.peek("drop")
    assert await cache.read("put", 0, 9) == b"new"


async def test_a_drop_during_a_round_that_has_nothing_to_do(tmp_path: Path) -> None:
    """The object of a round was dropped, so the round has nothing to do. The next drop
    must not wait for a later round."""
    disk, files = gated(tmp_path / "fc")
    cache = Fscache(disk, max_size=MIB, clock=lambda: 1000.0)
    await cache.put("first", b"x")
    await cache.flush()
    path = file_of(tmp_path, "first")
    assert path.exists()
    files.rounds.clear()
    files.began.clear()
    await cache.put("second", b"x")
    # The writer then waits for more work.
    await asyncio.sleep(0)
    await cache.drop("second")
    assert await asyncio.to_thread(files.began.wait, 10)
    assert files.sizes[-1] == 0
    dropping = asyncio.create_task(cache.drop("first"))
    await asyncio.sleep(0)
    files.rounds.set()
    await dropping
    assert not path.exists()
    assert cache.stats().bytes == 0
    await cache.close()


CHILD = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[2])
from fscache import Fscache

async def main():
    cache = Fscache(sys.argv[1], max_size=64 * 4096, clock=lambda: 1.0)
    n = 0
    while True:
        n += 1
        await cache.put("k%d" % (n % 300), b"%d " % (n % 300) * 2000)
        if n % 5 == 0:
            await cache.flush()
            os.write(1, b"x")

asyncio.run(main())
"""


def test_killed_at_any_time_the_files_are_whole_and_counted(tmp_path: Path) -> None:
    async def look() -> None:
        assert disk_use(tmp_path) <= 64 * BLOCK_BYTES
        cache = Fscache(tmp_path / "fc", max_size=64 * BLOCK_BYTES, clock=lambda: 1.0)
        await cache.put("k", b"")
        await cache.flush()
        assert disk_use(tmp_path) == cache.stats().bytes <= 64 * BLOCK_BYTES
        for n in range(300):
            assert await cache.read(f"k{n}", 0, 10000) in {None, b"%d " % n * 2000}
        assert cache.stats().errors == 0
        assert cache.stats().hits > 0
        await cache.close()

    for n in range(4):
        root = Path(__file__).resolve().parents[2]
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "fc"), str(root)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.read(n * 3 + 1)
        time.sleep(0.003 * n)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        asyncio.run(look())


async def test_a_smaller_limit_evicts_at_once_and_a_larger_one_gives_room(cache: Fscache, tmp_path: Path) -> None:
    for number in range(8):
        await cache.put(f"k{number}", bytes(100_000))
    await cache.flush()
    before = cache.stats()
    assert (before.files, before.max_size) == (8, MIB)
    cache.resize(400_000)
    await cache.flush()
    after = cache.stats()
    assert after.max_size == 400_000
    assert disk_use(tmp_path) == after.bytes <= 400_000
    assert after.evictions == before.files - after.files > 0
    await cache.put("large", bytes(150_000))
    assert not cache.peek("large"), "more than its share"
    cache.resize(MIB)
    await cache.put("large", bytes(150_000))
    await cache.flush()
    assert cache.peek("large")
    assert cache.stats().evictions == after.evictions


async def test_a_smaller_limit_holds_for_what_waits_and_what_is_being_written(tmp_path: Path) -> None:
    """An object that is larger than the new limit is not kept, and evicts no other
    object. After the round that is running another round applies the new limit."""
    disk, files = gated(tmp_path / "fc")
    cache = Fscache(disk, max_size=MIB, clock=lambda: 1000.0)
    await cache.put("old", bytes(50_000))
    await cache.flush()
    await cache.put("huge", bytes(200_000))
    cache.resize(300_000)
    await cache.flush()
    assert cache.peek("old")
    assert not cache.peek("huge")
    cache.resize(MIB)
    for number in range(9):
        await cache.put(f"k{number}", bytes(90_000))
    files.rounds.clear()
    files.began.clear()
    flushed = asyncio.create_task(cache.flush())
    assert await asyncio.to_thread(files.began.wait, 10)
    cache.resize(400_000)
    files.rounds.set()
    await flushed
    await cache.flush()
    assert disk_use(tmp_path) == cache.stats().bytes <= 400_000
    await cache.close()
