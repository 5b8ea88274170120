"""The cleaner over a real cache, with an owner that says which copies are in use and
which are uploaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import lmdb
import pytest

from metacache import CLEAN_TO, Change, Cleaner, Copy, Metacache, MetacacheError, Refused, Weights

KIB, MIB = 1 << 10, 1 << 20
BASE = 100_000


class Owner:
    """An owner that "uploads" by changing the mark of the copy. It records the
    calls."""

    def __init__(self, cache: Metacache) -> None:
        self.cache = cache
        self.used: set[tuple[str, str]] = set()
        self.old: set[tuple[str, str]] = set()
        self.flushed: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.during_flush = lambda: None

    def in_use(self, user: str, box: str) -> bool:
        return (user, box) in self.used

    def must_upload(self, user: str, box: str, copy: Copy | None) -> bool:
        return copy is not None and copy.change is not Change.NONE and (user, box) not in self.old

    async def flush(self, user: str, box: str) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.flushed.append((user, box))
        self.cache.mark(user, box, Change.NONE)
        self.during_flush()

    def unload(self, user: str, box: str) -> bool:
        return (user, box) not in self.used


class World:
    def __init__(self, path: Path, weights: Weights) -> None:
        self.now = 1000.0
        self.path = path / "mc"
        self.open()
        self.owner = Owner(self.cache)
        self.cleaner = Cleaner(self.cache, self.owner, weights=weights, clock=lambda: self.now)

    def open(self) -> None:
        self.cache = Metacache(self.path, max_space=2 * MIB, max_grace=MIB, clock=lambda: self.now, sync=False)

    async def reopen(self, between: Callable[[Path], None]) -> None:
        await self.cache.close()
        between(self.path)
        self.open()

    async def put(self, user: str, box: str, *, change: Change = Change.NONE, priority: int = 3) -> None:
        self.now += 1
        self.cache.replace(user, box, bytes(BASE), b"", change=change, priority=priority)
        await self.cache.commit()

    def there(self) -> set[str]:
        return {
            f"{user}/{box.box}" for batch in self.cache.accounts.entries() for user, _, boxes in batch for box in boxes
        }


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path, Weights())
    yield world
    assert world.cache.accounts.check() == []
    assert world.cache.accounts.by_priority() == {p: n for p, n in enumerate(world.cache.status().by_priority) if n}
    await world.cache.close()


async def test_the_longest_unused_goes_first_down_to_the_mark(world: World) -> None:
    for n in range(25):
        await world.put(f"u{n:02}", "b")
    assert world.cache.over()
    assert not world.cache.full()
    world.now += 100
    assert world.cache.load("u00", "b") is not None
    await world.cleaner.make_room()
    assert world.cache.space() <= CLEAN_TO * 2 * MIB
    left = world.there()
    assert "u00/b" in left
    assert left == {"u00/b", *(f"u{n:02}/b" for n in range(25 - len(left) + 1, 25))}
    assert world.owner.flushed == []


async def test_priorities_keep_roots_longer(tmp_path: Path) -> None:
    world = World(tmp_path, Weights(((50, 86400.0), (10, 0), (50, 3600.0), (100, 0))))
    for n in range(8):
        await world.put(f"u{n}", "root", priority=0)
        await world.put(f"u{n}", "INBOX", priority=2)
        await world.put(f"u{n}", "x", priority=3)
    await world.cleaner.make_room()
    left = world.there()
    assert {f"u{n}/root" for n in range(8)} | {f"u{n}/INBOX" for n in range(8)} <= left
    assert not {"u0/x", "u1/x"} & left
    infos = await world.cleaner.list_users("u?")
    assert next(info.user for info in infos) == next(f"u{n}" for n in range(8) if f"u{n}/x" in left)
    assert infos[0].bytes[0] > BASE
    assert infos[0].weights[1] is None
    assert infos[0].accessed[3] > 1000
    await world.cache.close()


async def test_changed_is_flushed_first_obsolete_is_not_and_used_stays(world: World) -> None:
    world.owner.used = {("used", "b"), ("used", "c")}
    world.owner.old = {("old", "b")}
    await world.put("used", "b", change=Change.IMPORTANT)
    await world.put("used", "c")
    await world.put("old", "b", change=Change.IMPORTANT)
    await world.put("changed", "b", change=Change.UNIMPORTANT)
    for n in range(20):
        await world.put(f"u{n:02}", "b")
    await world.cleaner.make_room()
    left = world.there()
    assert {"used/b", "used/c"} <= left
    assert not {"old/b", "changed/b"} & left
    assert world.owner.flushed == [("changed", "b")]


async def test_a_failed_flush_leaves_the_copy_and_others_go(world: World) -> None:
    world.owner.error = ConnectionError("no bucket")
    for n in range(24):
        await world.put(f"u{n:02}", "b", change=Change.IMPORTANT if n < 12 else Change.NONE)
    await world.cleaner.make_room()
    assert {f"u{n:02}/b" for n in range(12)} <= world.there()
    assert not world.cache.over()


async def test_what_is_opened_or_changed_during_its_flush_stays(world: World) -> None:
    await world.put("opened", "b", change=Change.IMPORTANT)
    await world.put("changed", "b", change=Change.IMPORTANT)
    for n in range(20):
        await world.put(f"u{n:02}", "b")

    def meanwhile() -> None:
        world.owner.used = {("opened", "b")}
        world.cache.append("changed", "b", b"delta", Change.IMPORTANT)

    world.owner.during_flush = meanwhile
    await world.cleaner.make_room()
    assert {"opened/b", "changed/b"} <= world.there()


async def test_it_runs_by_itself_and_writers_go_on(world: World) -> None:
    """The test writes more than there is room for, without a pause. The bound holds at
    each sample."""
    running = asyncio.create_task(world.cleaner.run())
    for n in range(120):
        await world.put(f"u{n:03}", "b", change=Change(n % 3))
        assert world.cache.space() <= 3 * MIB
    for _ in range(100):
        if not world.cache.over():
            break
        await asyncio.sleep(0.01)
    assert not world.cache.over()
    running.cancel()


async def test_clean_refuses_and_names(world: World) -> None:
    await world.put("anna@a", "root", priority=0)
    await world.put("anna@a", "x", change=Change.UNIMPORTANT)
    await world.put("bo@a", "INBOX", priority=2)
    await world.put("bo@a", "y")
    await world.put("cy@b", "y")
    world.owner.used = {("bo@a", "y")}
    done = await world.cleaner.clean("*@a", min_priority=2)
    assert done.boxes == 1
    assert done.bytes > BASE
    assert sorted(done.refused) == [Refused("anna@a", "x", "not uploaded"), Refused("bo@a", "y", "in use")]
    assert world.there() == {"anna@a/root", "anna@a/x", "bo@a/y", "cy@b/y"}
    world.now += 7200
    world.cache.load("cy@b", "y")
    done = await world.cleaner.clean(unused_s=3600)
    assert world.there() == {"anna@a/x", "bo@a/y", "cy@b/y"}
    assert [info.user for info in await world.cleaner.list_users(changed=Change.UNIMPORTANT)] == ["anna@a"]
    assert [info.user for info in await world.cleaner.list_users(priority=2)] == []
    done = await world.cleaner.remove("*@a")
    assert done.refused == [Refused("bo@a", "y", "in use")]
    assert world.there() == {"bo@a/y", "cy@b/y"}


def damage(path: Path) -> None:
    """Delete a user's record, a counted field, and a part of a base."""
    with lmdb.open(str(path), max_dbs=5) as env:
        users, fields, blobs, state = (env.open_db(name) for name in (b"users", b"fields", b"blobs", b"state"))
        with env.begin(write=True) as txn:
            gone = next(key for key, _ in txn.cursor(users))
            # The boxes of this user then belong to nobody.
            txn.delete(gone, db=users)
            for db in (fields, blobs):
                with txn.cursor(db) as cursor:
                    cursor.last()
                    cursor.delete()
            txn.put(b"\0space", (12345).to_bytes(8, "big"), db=state)


async def test_rescan_says_whether_it_was_right_and_corrects(world: World) -> None:
    for n in range(30):
        world.cache.replace(f"u{n}", "b", bytes(30_000), b"", change=Change.NONE, priority=n % 4)
        world.cache.put_fields(f"u{n}", "b", [(uid, bytes(50)) for uid in range(1, 200)])
    await world.cache.commit()
    done = await world.cache.rescan()
    assert done.right
    assert (done.users, done.before) == (30, done.space)
    space, used = world.cache.space(), world.cache.accounts.by_priority()
    await world.reopen(damage)
    assert world.cache.accounts.check() != []
    done = await world.cache.rescan()
    assert not done.right
    assert world.cache.accounts.check() == []
    assert done.space == world.cache.space() < space
    assert sum(world.cache.accounts.by_priority().values()) == done.space < sum(used.values())
    assert (await world.cache.rescan()).right
    assert world.cache.status().users == 28


async def test_rescan_goes_on_beside_writers_and_does_not_hold_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metacache._cache.RECOUNT_ENTRIES", 1000)  # it has 20 steps
    for n in range(20):
        world.cache.put_fields(f"u{n}", "b", [(uid, bytes(40)) for uid in range(1, 1000)])
    await world.cache.commit()
    rescan = asyncio.create_task(world.cache.rescan())
    writes = 0
    while not rescan.done():
        world.cache.append(f"u{writes % 30}", "b", b"delta", Change.IMPORTANT)
        await world.cache.commit()
        writes += 1
    assert (await rescan).right
    assert writes > 3
    await world.cache.close()
    with pytest.raises(MetacacheError):
        await world.cache.rescan()
    world.open()
