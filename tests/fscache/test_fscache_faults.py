"""The fscache with a slow disk, with programs that change its files, with slow readers,
and with clients that read a huge mail in parts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import disks
import pytest
from disks import gated

from fscache import PIECE_BYTES, Fscache
from fscache.disk import BLOCK_BYTES

MIB = 1 << 20


def file_of(path: Path, key: str) -> Path:
    return disks.file_of(path / "fc", key)


def disk_use(path: Path) -> int:
    return disks.disk_use(path / "fc")


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Fscache]:
    cache = Fscache(tmp_path / "fc", max_size=32 * MIB, clock=time.time)
    yield cache
    await cache.close()


async def no_fetch() -> bytes:
    raise AssertionError("fetched")


async def other() -> bytes:
    return b"fetched"


class Large:
    """An object in a bucket that is read by ranges."""

    def __init__(self, size: int) -> None:
        self.data = os.urandom(size)
        self.asked: list[tuple[int, int]] = []

    async def __call__(self, low: int, high: int) -> bytes:
        self.asked.append((low, high))
        await asyncio.sleep(0.001)
        return self.data[low:high]


async def test_a_huge_object_read_in_parts_is_fetched_once(cache: Fscache) -> None:
    large = Large(5 * MIB + 1234)
    for low in range(0, len(large.data), 64 << 10):
        assert await cache.read_range("big", low, low + (64 << 10), large) == large.data[low : low + (64 << 10)]
    # Each piece is requested once.
    assert len(large.asked) == 81
    assert sum(high - low for low, high in large.asked) < len(large.data) + PIECE_BYTES
    large.asked.clear()
    assert await cache.read_range("big", MIB - 5, 4 * MIB, large) == large.data[MIB - 5 : 4 * MIB]
    assert await cache.read_range("big", 5 * MIB, 9 * MIB, large) == large.data[5 * MIB :]
    assert [ask for ask in large.asked if ask[0] < len(large.data)] == []
    await cache.drop("big")
    assert await cache.read_range("big", 0, 10, large) == large.data[:10]
    assert large.asked[-1] == (0, PIECE_BYTES)
    assert await cache.read_range("big", 10, 10, large) == b""


async def test_neighbouring_pieces_are_one_request_and_waiters_share_it(cache: Fscache) -> None:
    large = Large(4 * MIB)
    found = await asyncio.gather(*(cache.read_range("big", 100, 3 * MIB, large) for _ in range(5)))
    assert set(found) == {large.data[100 : 3 * MIB]}
    assert large.asked == [(0, 3 * MIB)]
    whole = Large(MIB)
    await cache.put("whole", whole.data)
    assert await cache.read_range("whole", 5, 50, whole) == whole.data[5:50]
    assert whole.asked == []


async def test_a_range_that_fails_or_is_left_fails_nobody_later(cache: Fscache) -> None:
    async def fail(low: int, high: int) -> bytes:
        await asyncio.sleep(0.01)
        raise ConnectionError("no bucket")

    with pytest.raises(ConnectionError):
        await cache.read_range("big", 0, MIB, fail)
    task = asyncio.create_task(cache.read_range("big", 0, MIB, fail))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    large = Large(2 * MIB)
    assert await cache.read_range("big", 0, MIB, large) == large.data[:MIB]


async def test_a_file_being_read_is_counted_and_stays_until_it_was_read(tmp_path: Path) -> None:
    disk, files = gated(tmp_path / "fc")
    cache = Fscache(disk, max_size=8 * BLOCK_BYTES, clock=lambda: 1.0)
    for n in range(8):
        await cache.put(f"k{n}", b"x")
    await cache.flush()
    files.reads.clear()
    readers = [asyncio.create_task(cache.get(f"k{n}", no_fetch)) for n in range(3)]
    while len(disk.reading()) < 3:  # noqa: ASYNC110 - the disk says no more of it
        await asyncio.sleep(0)
    for n in range(12):
        await cache.put(f"new{n}", b"x")
    dropped = asyncio.create_task(cache.drop("k1"))
    await asyncio.sleep(0)
    await cache.flush()
    assert all(file_of(tmp_path, f"k{n}").exists() for n in range(3))
    assert disk_use(tmp_path) == cache.stats().bytes == 8 * BLOCK_BYTES
    assert not dropped.done()
    files.reads.set()
    assert await asyncio.gather(*readers) == [b"x"] * 3
    await dropped
    assert not file_of(tmp_path, "k1").exists()
    await cache.flush()
    assert disk_use(tmp_path) == cache.stats().bytes == 7 * BLOCK_BYTES
    await cache.close()


async def test_a_disk_that_hangs_is_not_waited_for_and_comes_back(tmp_path: Path) -> None:
    disk, files = gated(tmp_path / "fc", timeout_s=0.05)
    cache = Fscache(disk, max_size=32 * MIB, clock=time.time)
    keys = [f"k{n}" for n in range(6)]
    for key in keys:
        await cache.put(key, b"x")
    await cache.flush()
    files.reads.clear()
    assert await asyncio.gather(*(cache.get(key, other) for key in keys[:4])) == [b"fetched"] * 4
    before = cache.stats().errors
    assert before >= 4
    assert len(disk.reading()) == 4, "the threads go on"
    assert await cache.get_many(keys[4:], lambda key: other()) == [b"fetched"] * 2
    assert cache.stats().errors == before + 1
    assert len(disk.reading()) == 4, "all threads hang, so the disk is not asked"
    files.reads.set()
    while disk.reading():  # noqa: ASYNC110 - the disk comes back when its threads do
        await asyncio.sleep(0.001)
    await cache.flush()
    for key in keys:
        await cache.drop(key)
    await cache.put("k0", b"again")
    await cache.flush()
    while (stats := cache.stats()) and await cache.get("k0", other) != b"again":
        assert cache.stats().errors > stats.errors, "a miss without a reason"
        # The machine was too slow for this timeout.
        await cache.put("k0", b"again")
        await cache.flush()
    await cache.close()


async def test_a_change_that_hangs_holds_no_drop_and_no_stop(tmp_path: Path) -> None:
    disk, files = gated(tmp_path / "fc", timeout_s=0.05)
    cache = Fscache(disk, max_size=32 * MIB, clock=time.time)
    await cache.put("k", b"x")
    await cache.flush()
    files.rounds.clear()
    files.began.clear()
    await cache.put("l", b"y")
    assert await asyncio.to_thread(files.began.wait, 10)
    while not disk.hangs():  # noqa: ASYNC110 - as soon as the disk has lost its patience
        await asyncio.sleep(0.01)
    for n in range(20):
        await cache.drop(f"k{n}")
    await cache.drop("k")
    assert await cache.get("l", no_fetch) == b"y"
    await cache.close()
    assert not files.rounds.is_set(), "nobody has waited for the disk"
    files.rounds.set()


async def test_hands_are_noticed(cache: Fscache, tmp_path: Path) -> None:
    """Another program removes, adds and lengthens files. The next look corrects the
    counts, whatever is read meanwhile."""
    for n in range(30):
        await cache.put(f"k{n}", bytes(5000))
    await cache.flush()
    await cache.look()
    assert cache.stats().bytes == disk_use(tmp_path) == 60 * BLOCK_BYTES
    for n in range(10):
        file_of(tmp_path, f"k{n}").unlink()
    copied = file_of(tmp_path, "k20")
    copied.with_name(copied.name[:-4] + "0000").write_bytes(copied.read_bytes())
    copied.with_name("notes.txt").write_bytes(b"foreign")
    await cache.look()
    assert cache.stats().files == 21
    assert cache.stats().bytes == 42 * BLOCK_BYTES
    done = await cache.rescan()
    assert done.right
    longer = file_of(tmp_path, "k21")
    with longer.open("ab") as file:
        file.write(bytes(9000))
    done = await cache.rescan()
    assert (done.right, done.changed, done.bytes) == (False, 1, 44 * BLOCK_BYTES)
    assert await cache.get("k21", other) == b"fetched"
    (tmp_path / "fc").rename(tmp_path / "away")
    await cache.look()
    # These objects were fetched just now.
    assert (cache.stats().files, cache.stats().bytes) == (1, BLOCK_BYTES)


async def test_a_range_of_a_file_that_was_changed_by_hand_is_checked_again(cache: Fscache, tmp_path: Path) -> None:
    await cache.put("k", bytes(9000))
    await cache.flush()
    assert await cache.read("k", 100, 200) == bytes(100)
    raw = bytearray(file_of(tmp_path, "k").read_bytes())
    raw[150] = 1
    await asyncio.sleep(0.01)
    file_of(tmp_path, "k").write_bytes(raw)
    assert await cache.read("k", 100, 200) is None


async def test_rescan_beside_traffic_is_right_and_removes_what_is_old(tmp_path: Path) -> None:
    now = 1000.0
    cache = Fscache(tmp_path / "fc", max_size=200 * BLOCK_BYTES, clock=lambda: now)

    async def traffic() -> None:
        for n in range(400):
            await cache.put(f"t{n % 90}", bytes(n * 10))
            if n % 7 == 0:
                await cache.drop(f"t{n % 50}")
            if n % 20 == 0:
                await asyncio.sleep(0.001)

    busy = asyncio.create_task(traffic())
    while not busy.done():
        assert (await cache.rescan()).right
        await asyncio.sleep(0)
    await cache.flush()
    now += 5000
    await cache.put("new", b"x")
    await cache.flush()
    done = await cache.rescan(max_age_s=3600)
    await cache.flush()
    assert done.expired > 10
    assert cache.stats().files == 1
    assert cache.stats().oldest == now
    assert disk_use(tmp_path) == cache.stats().bytes == BLOCK_BYTES
    await cache.close()
