"""The decisions of the cache, over a disk in memory, so that nothing depends on threads
or on time.

The disk fails as often as a test says. Whatever fails, a caller gets the right data,
the files never exceed the limit, each failure is counted once, and the counts add up.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from disks import File, MemoryDisk

from fscache import Fscache
from fscache.disk import BLOCK_BYTES, Disk, name_of

BLOCKS = 24
KEYS = [f"key-{n}" for n in range(60)]


def data_of(key: str) -> bytes:
    """Return an object of one to four blocks."""
    return key.encode() * (100 + 300 * (int(key.rpartition("-")[2]) % 7))


async def fetch(key: str) -> bytes:
    await asyncio.sleep(0)
    return data_of(key)


async def fetch_nothing() -> bytes:
    raise AssertionError("fetched")


def open_cache(disk: Disk, blocks: int = BLOCKS) -> Fscache:
    return Fscache(disk, max_size=blocks * BLOCK_BYTES, clock=lambda: 1000.0)


async def work(cache: Fscache, disk: MemoryDisk, chance: random.Random) -> None:
    """Call each method of the cache that callers use, at random."""
    key = chance.choice(KEYS)
    match chance.randrange(10):
        case 0 | 1 | 2:
            assert await cache.get(key, lambda: fetch(key)) == data_of(key)
        case 3:
            keys = chance.sample(KEYS, 6)
            assert await cache.get_many(keys, fetch, parallel=2) == [data_of(key) for key in keys]
        case 4:
            assert await cache.read(key, 50, 900) in (None, data_of(key)[50:900])
        case 5 | 6:
            await cache.put(key, data_of(key))
        case 7:
            await cache.drop(key)
        case 8:
            if (file := disk.files.get(name_of(key))) is not None:
                file.damaged = True
        case _:
            disk.by_hand(name_of(key), None)
            await cache.look()


@pytest.mark.parametrize("failing", [0, 10, 60])
@pytest.mark.parametrize("seed", range(5))
async def test_whatever_fails_the_data_is_right_and_the_limit_holds(seed: int, failing: int) -> None:
    chance = random.Random(seed)
    files: dict[str, File] = {}
    for _ in range(3):
        disk = MemoryDisk(files, chance=chance, failing=failing)
        cache = open_cache(disk)
        for _ in range(150):
            await asyncio.gather(*(work(cache, disk, chance) for _ in range(chance.randint(1, 4))))
        await cache.flush()
        stats = cache.stats()
        assert stats.errors == disk.reported
        assert (stats.errors > 0) or not failing
        assert stats.hits > 0
        assert cache.check() == []
        assert disk.most <= BLOCKS * BLOCK_BYTES
        assert disk.removed_while_read == []
        disk.failing = 0
        await cache.rescan()
        await cache.flush()
        assert cache.stats().bytes == disk.used()
        await cache.close()


async def test_objects_that_wait_are_written_in_a_single_hop() -> None:
    disk = MemoryDisk()
    cache = open_cache(disk, 1000)
    for n in range(40):
        await cache.put(f"k-{n}", b"x")
    assert await cache.get_many([f"k-{n}" for n in range(40)], fetch) == [b"x"] * 40
    assert disk.hops == 0, "out of memory"
    await cache.flush()
    assert disk.hops == 1
    assert await cache.get_many([f"k-{n}" for n in range(40)], fetch) == [b"x"] * 40
    assert disk.hops == 2
    await cache.close()


async def test_a_file_that_cannot_be_removed_does_not_keep_the_others() -> None:
    """The cache tries to remove this file again after all others, and counts its bytes
    until it is removed."""

    class Stubborn(MemoryDisk):
        def _fails(self, what: str) -> str:
            fails = what == "remove" and name_of("k-0") in self.files and self.denied > 0
            self.denied -= fails
            self.reported += fails
            return "denied (made)" if fails else ""

        denied = 1

    disk = Stubborn()
    cache = open_cache(disk, 8)
    for n in range(8):
        await cache.put(f"k-{n}", b"x")
        await cache.flush()
    await cache.put("new", b"x")
    await cache.flush()
    assert (cache.stats().errors, cache.stats().skipped) == (1, 1)
    assert cache.stats().bytes == disk.used() == 8 * BLOCK_BYTES
    assert await cache.get("k-0", fetch_nothing) == b"x"
    await cache.put("new", b"x")
    await cache.flush()
    assert disk.used() == 8 * BLOCK_BYTES
    assert await cache.get("new", fetch_nothing) == b"x"
    assert await cache.get("k-0", fetch_nothing) == b"x"
    assert cache.check() == []
    await cache.close()


async def test_the_order_survives_a_restart_by_the_times_of_the_files() -> None:
    now = 1000.0
    disk = MemoryDisk()
    cache = Fscache(disk, max_size=8 * BLOCK_BYTES, clock=lambda: now)
    for n in range(8):
        now += 1
        await cache.put(f"k-{n}", b"x")
        await cache.flush()
    now += 1000
    assert await cache.get("k-0", fetch_nothing) == b"x"
    await cache.close()
    disk = MemoryDisk(disk.files)
    cache = Fscache(disk, max_size=8 * BLOCK_BYTES, clock=lambda: now)
    await cache.put("new", b"x")
    await cache.flush()
    assert await cache.get("k-0", fetch_nothing) == b"x"
    assert [n for n in range(8) if not cache.peek(f"k-{n}")] == [1]
    await cache.close()
