"""What a caller of the metacache relies on. Each test shows a single property."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import lmdb
import pytest

from metacache import Change, Copy, Metacache, MetacacheBusy, MetacacheError, MetacacheFull
from metacache.layout import CHUNK_BYTES, PAGE_BYTES

MIB = 1 << 20


def open_cache(path: Path, *, max_space: int = 32 * MIB, sync: bool = True, **more: float) -> Metacache:
    return Metacache(path / "mc", max_space=max_space, max_grace=0, clock=lambda: 1000.0, sync=sync, **more)


def transactions(path: Path) -> int:
    """Return how many write transactions a closed environment has had, with those of
    its creation."""
    with lmdb.open(str(path / "mc"), readonly=True, lock=False, max_dbs=5) as env:
        return int(env.info()["last_txnid"])


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Metacache]:
    cache = open_cache(tmp_path)
    yield cache
    assert cache.accounts.check() == []
    await cache.close()


async def test_reads_see_what_is_staged_and_what_is_committed(cache: Metacache) -> None:
    assert cache.load("u", "INBOX") is None
    cache.append("u", "INBOX", b"d1", Change.UNIMPORTANT, priority=2)
    first = Copy(b"", None, [b"d1"], Change.UNIMPORTANT)
    assert cache.load("u", "INBOX") == first
    await cache.commit()
    assert cache.load("u", "INBOX") == first
    cache.append("u", "INBOX", b"d2", Change.IMPORTANT)
    cache.append("u", "INBOX", b"", Change.UNIMPORTANT)
    assert cache.load("u", "INBOX") == Copy(b"", None, [b"d1", b"d2", b""], Change.IMPORTANT)
    cache.replace("u", "INBOX", b"base", b"stamp", change=Change.NONE, priority=2)
    cache.append("u", "INBOX", b"d3", Change.UNIMPORTANT)
    await cache.commit()
    assert cache.load("u", "INBOX") == Copy(b"stamp", b"base", [b"d3"], Change.UNIMPORTANT)
    cache.mark("u", "INBOX", Change.NONE, b"s2")
    cache.mark("u", "absent", Change.IMPORTANT)
    assert cache.load("u", "INBOX") == Copy(b"s2", b"base", [b"d3"], Change.NONE)
    await cache.commit()
    assert cache.load("u", "INBOX") == Copy(b"s2", b"base", [b"d3"], Change.NONE)
    assert cache.load("u", "absent") is None
    assert cache.boxes("u") == ["INBOX"]


async def test_a_large_copy_is_loaded_with_what_is_staged_and_written_meanwhile(
    cache: Metacache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is the same as that of `load`, while the base is written, staged, or
    staged in parts."""
    monkeypatch.setattr("metacache._large.LOAD_INLINE_BYTES", 1000)
    base = os.urandom(3 * CHUNK_BYTES)
    parts = [base[:5], memoryview(base)[5 : CHUNK_BYTES + 7], b"", memoryview(base)[CHUNK_BYTES + 7 :]]
    cache.replace("u", "b", parts, b"stamp", change=Change.NONE, priority=3)
    expected = Copy(b"stamp", base, [], Change.NONE)
    assert await cache.large.load("u", "b") == cache.load("u", "b") == expected
    assert cache.peek("u", "b") == Copy(b"stamp", None, [], Change.NONE)
    await cache.commit()
    assert await cache.large.load("u", "b") == cache.load("u", "b") == expected
    for number in range(100):
        loading = asyncio.create_task(cache.large.load("u", "b"))
        await asyncio.sleep(0)
        cache.append("u", "b", b"%d" % number, Change.UNIMPORTANT)
        written = asyncio.create_task(cache.commit())
        if number % 10 == 9:
            cache.replace("u", "b", [base, b"%d" % number], b"stamp", change=Change.NONE, priority=3)
        copy = await loading
        assert copy == cache.load("u", "b")
        await written
    assert await cache.large.load("u", "absent") is None


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 300_000])
async def test_sizes_around_the_chunk(cache: Metacache, size: int) -> None:
    blob = os.urandom(size)
    cache.replace("u", "b", blob, b"", change=Change.NONE, priority=3)
    cache.append("u", "b", blob, Change.NONE)
    cache.append("u", "b", b"small", Change.NONE)
    cache.put_fields("u", "b", [(7, blob), (8, b"eight")])
    for _ in range(2):
        assert cache.load("u", "b") == Copy(b"", blob, [blob, b"small"], Change.NONE)
        assert cache.get_fields("u", "b", [7, 8, 9]) == [blob, b"eight", None]
        assert cache.iter_fields("u", "b", 1, 0xFFFFFFFF) == [(7, blob), (8, b"eight")]
        await cache.commit()
    cache.put_fields("u", "b", [(7, b"shorter")])
    await cache.commit()
    assert cache.iter_fields("u", "b", 7, 7) == [(7, b"shorter")]


async def test_names_of_any_length_and_script(cache: Metacache) -> None:
    users = ["", "ü" * 300, "x" * 600, "x" * 601, "a\0b", "\udc80"]
    for user in users:
        cache.append(user, user + "/box", user.encode("utf-8", "replace"), Change.NONE)
    await cache.commit()
    for user in users:
        assert cache.boxes(user) == [user + "/box"]
        assert cache.load(user, user + "/box") is not None
    assert sorted(user.user for user in cache.users()) == sorted(users)


async def test_fields_are_by_box_and_dropped_with_it(cache: Metacache) -> None:
    cache.put_fields("u", "a", ((uid, b"a%d" % uid) for uid in range(1, 100)))
    cache.put_fields("u", "b", [(5, b"b5")])
    await cache.commit()
    assert cache.load("u", "a") is None
    assert cache.boxes("u") == ["a", "b"]
    assert cache.get_fields("u", "a", [99, 5, 100, 5]) == [b"a99", b"a5", None, b"a5"]
    cache.drop_fields("u", "a", [5, 6, 1000])
    assert [uid for uid, _ in cache.iter_fields("u", "a", 4, 8)] == [4, 7, 8]
    await cache.commit()
    assert [uid for uid, _ in cache.iter_fields("u", "a", 4, 8)] == [4, 7, 8]
    cache.drop("u", "a")
    assert cache.get_fields("u", "a", [4]) == [None]
    cache.put_fields("u", "a", [(8, b"new")])
    assert cache.iter_fields("u", "a", 1, 100) == [(8, b"new")]
    await cache.commit()
    assert cache.iter_fields("u", "a", 1, 100) == [(8, b"new")]
    assert cache.iter_fields("u", "b", 1, 100) == [(5, b"b5")]


async def test_drops_and_space(cache: Metacache) -> None:
    for user in ("u1", "u2"):
        for box, priority in (("root", 0), ("INBOX", 2), ("x", 3)):
            cache.replace(user, box, bytes(10_000), b"", change=Change(priority % 3), priority=priority)
    await cache.commit()
    one, two = sorted(cache.users())
    assert one.space_bytes.keys() == {0, 2, 3}
    assert one.change == Change.IMPORTANT
    assert cache.space() == sum(one.space_bytes.values()) + sum(two.space_bytes.values()) > 60_000
    spaces = cache.box_spaces("u1")
    found = [(space.box, space.priority, space.change) for space in spaces]
    assert found == [("INBOX", 2, 2), ("root", 0, 0), ("x", 3, 0)]
    assert sum(space.space_bytes for space in spaces) == sum(one.space_bytes.values())
    cache.replace("u1", "x", b"", b"", change=Change.NONE, priority=2)
    cache.drop_user("u2")
    cache.append("u2", "later", b"d", Change.NONE)
    assert cache.boxes("u2") == ["later"]
    await cache.commit()
    assert cache.boxes("u2") == ["later"]
    assert {user.user: set(user.space_bytes) for user in cache.users()} == {"u1": {0, 2}, "u2": {3}}
    cache.put_state("seq", b"1")
    cache.drop_all()
    assert cache.load("u1", "x") is None
    await cache.commit()
    assert cache.space() == 0
    assert list(cache.users()) == []
    assert cache.get_state("seq") == b"1"


async def test_one_commit_serves_all_who_wait(tmp_path: Path) -> None:
    async def sessions(path: Path, count: int) -> int:
        cache = open_cache(path)
        cache.append("u", "b", b"first", Change.NONE)

        async def session(n: int) -> None:
            cache.append("u", f"box{n}", b"delta", Change.IMPORTANT)
            await cache.commit()

        await asyncio.gather(*(session(n) for n in range(count)))
        assert len(cache.boxes("u")) == count + 1
        await cache.close()
        return transactions(path)

    assert await sessions(tmp_path / "many", 100) <= await sessions(tmp_path / "few", 1) + 1


async def test_what_nobody_waits_for_is_written_soon(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, flush_delay_s=0.01)
    cache.append("u", "b", b"d", Change.UNIMPORTANT)
    for _ in range(200):
        await asyncio.sleep(0.01)
        if not cache.staged():
            break
    assert cache.staged() == 0
    assert cache.space() > 0
    await cache.close()


async def test_a_cancelled_waiter_disturbs_nobody(cache: Metacache) -> None:
    cache.append("u", "b", b"d", Change.NONE)
    tasks = [asyncio.create_task(cache.commit()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None)]


async def test_full_keeps_what_is_staged_until_a_drop_makes_room(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, max_space=2 * MIB)
    for n in range(15):
        cache.replace("u", f"b{n}", bytes(100_000), b"", change=Change.NONE, priority=3)
    await cache.commit()
    assert not cache.full()
    space = cache.space()
    cache.replace("u", "large", bytes(700_000), b"", change=Change.IMPORTANT, priority=3)
    cache.put_state("seq", b"7")
    with pytest.raises(MetacacheFull):
        await cache.commit()
    assert cache.full()
    assert cache.space() == space
    large = cache.load("u", "large")
    assert large is not None
    assert large.base == bytes(700_000)
    cache.append("u", "b1", b"waits as well", Change.NONE)
    for n in range(5):
        cache.drop("u", f"b{n}")
    await cache.commit()
    assert not cache.full()
    assert cache.accounts.check() == []
    assert "large" in cache.boxes("u")
    assert cache.load("u", "b1") is None
    await cache.close()
    cache = open_cache(tmp_path, max_space=2 * MIB)
    assert cache.load("u", "large") == large
    assert cache.get_state("seq") == b"7"
    await cache.close()


async def test_more_at_once_than_there_is_room_for_goes_in_portions(tmp_path: Path) -> None:
    """Six times the limit is staged before a commit. The commit writes what fits. After
    copies are dropped it writes more."""
    cache = open_cache(tmp_path, max_space=2 * MIB)
    names = [f"b{n:03}" for n in range(120)]
    for name in names:
        cache.replace("u", name, name.encode() * 25_000, b"", change=Change.NONE, priority=3)
    cache.put_state("seq", b"7")
    with pytest.raises(MetacacheFull):
        await cache.commit()
    assert cache.get_state("seq") == b"7"
    seen: list[str] = []
    for _ in names:
        assert cache.space() <= cache.status().limit
        written = [space.box for space in cache.box_spaces("u")]
        assert written, "nothing is written, so that nothing can be dropped"
        seen += written
        for name in written:
            copy = cache.load("u", name)
            assert copy is not None
            assert copy.base == name.encode() * 25_000
            cache.drop("u", name)
        try:
            await cache.commit()
            break
        except MetacacheFull:
            continue
    seen += [space.box for space in cache.box_spaces("u")]
    assert sorted(seen) == names
    assert cache.staged() == 0
    assert cache.accounts.check() == []
    await cache.close()
    cache = open_cache(tmp_path, max_space=2 * MIB)
    assert cache.get_state("seq") == b"7"
    await cache.close()


async def test_a_limit_that_was_lowered_leaves_room_to_delete(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, max_space=32 * MIB)
    for n in range(300):
        cache.replace("u", f"b{n}", bytes(90_000), b"", change=Change.NONE, priority=3)
    await cache.commit()
    await cache.close()
    cache = open_cache(tmp_path, max_space=2 * MIB)
    assert cache.over()
    for n in range(295):
        cache.drop("u", f"b{n}")
    await cache.commit()
    assert not cache.full()
    assert cache.accounts.check() == []
    await cache.close()


async def test_lmdbs_own_limit_is_the_same_failure(tmp_path: Path) -> None:
    """Values that are a little larger than a page take two pages. Their bytes fit into
    the map, but their pages do not."""
    # The map has its smallest size, 8 MiB.
    cache = open_cache(tmp_path, max_space=1 * MIB)
    cache.accounts.limit = 1 << 40
    for n in range(1500):
        cache.replace("u", f"b{n}", bytes(PAGE_BYTES), b"", change=Change.NONE, priority=3)
    with pytest.raises(MetacacheFull, match="no room left in the map"):
        await cache.commit()
    assert len(cache.boxes("u")) == 1500
    for n in range(1100):
        cache.drop("u", f"b{n}")
    await cache.commit()
    assert len(cache.boxes("u")) == 400
    assert cache.accounts.check() == []
    await cache.close()


async def test_a_write_larger_than_the_cache_is_refused_at_once(cache: Metacache) -> None:
    with pytest.raises(MetacacheFull):
        cache.replace("u", "b", bytes(33 * MIB), b"", change=Change.NONE, priority=3)
    assert cache.load("u", "b") is None


async def test_large_batches_are_cut_into_several_transactions(tmp_path: Path) -> None:
    async def batch(path: Path, size: int) -> int:
        cache = open_cache(path)
        for n in range(5):
            cache.put_fields("u", f"b{n}", ((uid, bytes(size)) for uid in range(1, 1000)))
        await cache.commit()
        assert cache.staged() == 0
        assert [len(cache.iter_fields("u", f"b{n}", 1, 5000)) for n in range(5)] == [999] * 5
        await cache.close()
        return transactions(path)

    assert await batch(tmp_path / "large", 2000) == await batch(tmp_path / "small", 20) + 1


async def test_reopen_keeps_everything(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.append("u", "b", b"d", Change.IMPORTANT)
    cache.put_fields("u", "b", [(1, b"one")])
    cache.put_state("boot", b"3")
    space = None
    for _ in range(2):
        # The close writes what is staged.
        await cache.close()
        cache = open_cache(tmp_path)
        assert space is None or cache.space() == space
        space = cache.space()
        assert cache.load("u", "b") == Copy(b"", None, [b"d"], Change.IMPORTANT)
        assert cache.get_fields("u", "b", [1]) == [b"one"]
        assert cache.get_state("boot") == b"3"
    assert next(cache.users()).accessed == 1000.0
    await cache.close()
    with pytest.raises(MetacacheError):
        cache.append("u", "b", b"d", Change.NONE)
    with pytest.raises(MetacacheError):
        await cache.commit()


async def test_one_path_serves_one_process(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    with pytest.raises(MetacacheBusy):
        open_cache(tmp_path)
    await cache.close()
    await open_cache(tmp_path).close()


@pytest.mark.parametrize("damage", ["garbage", "empty-pages", "short", "format"])
async def test_a_damaged_environment_is_moved_aside(tmp_path: Path, damage: str) -> None:
    for n in (1, 2):
        cache = open_cache(tmp_path)
        cache.replace("u", "b", bytes(500_000), b"", change=Change.NONE, priority=3)
        await cache.close()
        if damage == "format":
            with lmdb.open(str(tmp_path / "mc"), max_dbs=5) as env:
                state = env.open_db(b"state")
                with env.begin(write=True) as txn:
                    txn.put(b"\0format", b"\0\0\0\x63", db=state)
        data = tmp_path / "mc" / "data.mdb"
        if damage == "garbage":
            data.write_bytes(os.urandom(data.stat().st_size))
        elif damage == "empty-pages":
            data.write_bytes(bytes(data.stat().st_size))
        elif damage == "short":
            os.truncate(data, 2 * 4096)
        cache = open_cache(tmp_path)
        assert cache.load("u", "b") is None
        cache.append("u", "b", b"d", Change.NONE)
        await cache.commit()
        await cache.close()
        assert [name for name in os.listdir(tmp_path) if "broken" in name] == [f"mc.broken-{n}"]


async def test_without_sync_only_the_same_boot_is_trusted(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, sync=False)
    cache.append("u", "b", b"d", Change.NONE)
    await cache.commit()
    mark = tmp_path / "mc" / "unsynced"
    assert mark.exists()
    await cache.close()
    assert not mark.exists()
    mark.write_text("another boot")
    cache = open_cache(tmp_path, sync=False)
    assert cache.load("u", "b") is None
    await cache.close()
