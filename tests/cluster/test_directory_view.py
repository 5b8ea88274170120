"""What a member knows of the directory while the directory has old rows, does not
answer, comes back empty, or has rows of a newer release."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog.testing
from sim.loop import simulate

from obox.cluster import (
    Assigned,
    Beat,
    Changes,
    Faults,
    Kept,
    KeptFile,
    Kind,
    Member,
    MemoryDirectory,
    MemoryReplica,
    Move,
    Orders,
    Row,
    Settings,
    View,
    encode,
    group_key,
    make_settings,
    read_settings,
)
from obox.cluster import view as module
from obox.cluster.view import SETTINGS_POLLS
from obox.errors import ConfigError
from obox.forms import FORMS, OF_PROXIES, Form

NOTHING = Changes(*[frozenset()] * 6)
NOW = 1_800_000_000_000_000


class World:
    """A directory, a member that writes, and a member that reads."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.replica = MemoryReplica(self.loop.time)
        self.writer = self.way()
        self.faults = Faults()
        self.way_in = MemoryDirectory(self.replica, sleep=asyncio.sleep, rng=random.Random(1), faults=self.faults)
        self.stamp = NOW

    def way(self) -> MemoryDirectory:
        return MemoryDirectory(self.replica, sleep=asyncio.sleep)

    def view(self, keeper: Any = None) -> View:
        return View(
            self.way_in, clock=self.loop.time, now=lambda: 1e9 + self.loop.time(), sleep=asyncio.sleep, keeper=keeper
        )

    async def put(self, kind: Kind, key: str, record: msgspec.Struct | bytes) -> Row:
        self.stamp += 1
        value = record if isinstance(record, bytes) else encode(record)
        await self.writer.put(kind, key, value, self.stamp)
        return Row(value, self.stamp)

    async def group(self, number: int, backend: str, assigned: int) -> Row:
        return await self.put(Kind.GROUPS, group_key(number), Assigned(backend, assigned, 7))


class Memory:
    """A Keeper that keeps the rows in memory."""

    def __init__(self) -> None:
        self.kept: Kept | None = None
        self.saves = 0

    def load(self) -> Kept | None:
        return self.kept

    async def save(self, kept: Kept) -> None:
        self.kept, self.saves = kept, self.saves + 1


def play(story: Any) -> None:
    async def reported() -> None:
        await story(World())

    simulate(reported)


def test_one_query_for_each_kind_and_the_settings_once_a_minute() -> None:
    async def story(world: World) -> None:
        await make_settings(
            world.writer, 4, now=lambda: 1.0, sleep=asyncio.sleep, random_bytes=random.Random(1).randbytes
        )
        view = world.view()
        running = asyncio.create_task(view.run())
        await asyncio.sleep(119.5)
        running.cancel()
        counts = {kind: world.way_in.operations.count(("all", kind)) for kind in Kind}
        assert counts == dict.fromkeys(Kind, 0) | dict.fromkeys(module.POLLED, 120) | {Kind.SETTINGS: 2}
        assert len(world.way_in.operations) == 842
        assert view.settings
        assert view.settings.groups == 4

    play(story)


def test_listeners_get_what_changed_and_nothing_else() -> None:
    async def story(world: World) -> None:
        view, reported = world.view(), []
        others: list[Changes] = []
        view.listen(others.append)
        view.listen(reported.append)
        await world.group(1, "a", 1)
        await world.put(Kind.MEMBERS, "a", Member("backend", "x", "host"))
        await view.poll()
        assert reported.pop() == NOTHING._replace(groups=frozenset({1}), members=frozenset({"a"})) == others.pop()
        await world.put(Kind.BEATS, "a", Beat(1))
        # The row has the same value again, with a newer timestamp.
        await world.group(1, "a", 1)
        await view.poll()
        assert reported == []
        assert view.beats["a"].counter == 1
        await world.put(Kind.PINS, "anna", Assigned("a", 1, 1))
        await world.put(Kind.MOVES, group_key(1), Move("b", 1.0))
        await world.put(Kind.ORDERS, "a", Orders(evacuate=True))
        await view.poll()
        assert reported.pop() == Changes(
            frozenset(), frozenset({"anna"}), frozenset({group_key(1)}), frozenset({"a"}), frozenset(), frozenset()
        )
        assert view.groups == {1: Assigned("a", 1, 7)}
        assert view.owners() == {"a": "x"}

    play(story)


def test_during_an_outage_the_last_good_answer_holds_and_its_age_grows() -> None:
    async def story(world: World) -> None:
        view = world.view()
        assert view.age() is None
        await world.group(1, "a", 1)
        await view.poll()
        world.faults.cut = True
        with structlog.testing.capture_logs() as logs:
            for _ in range(150):
                assert not await view.poll()
                await asyncio.sleep(1)
            world.faults.cut = False
            await view.poll()
        assert [line["log_level"] for line in logs] == ["warning", "warning", "warning", "info"], "once a minute"
        assert [line.get("age_s") for line in logs] == [0, 60, 120, None]
        assert view.groups == {1: Assigned("a", 1, 7)}
        assert view.age() == 0

    play(story)


def test_a_poll_of_which_one_query_fails_changes_nothing() -> None:
    async def story(world: World) -> None:
        view, reported = world.view(), []
        view.listen(reported.append)
        await world.group(1, "a", 1)
        world.faults.failed = 0.5
        good = [await view.poll() for _ in range(200)]
        assert 0 < sum(good) < 20
        assert len(reported) == 1
        await world.group(1, "b", 2)
        while not await view.poll():
            assert view.groups == {1: Assigned("a", 1, 7)}
        assert view.groups == {1: Assigned("b", 2, 7)}

    play(story)


def test_a_restart_during_an_outage_serves_what_was_kept() -> None:
    async def story(world: World) -> None:
        memory = Memory()
        view = world.view(memory)
        await make_settings(
            world.writer, 4, now=lambda: 1.0, sleep=asyncio.sleep, random_bytes=random.Random(1).randbytes
        )
        await world.group(1, "a", 1)
        await view.poll()
        for counter in range(5):
            await world.put(Kind.BEATS, "a", Beat(counter))
            await view.poll()
        assert memory.saves == 1, "beats alone are not kept"
        world.faults.cut = True
        await asyncio.sleep(30)
        again = world.view(memory)
        assert again.restore()
        assert not await again.poll()
        assert again.groups == {1: Assigned("a", 1, 7)}
        assert again.settings
        assert again.age() == pytest.approx(30)

    play(story)


@pytest.mark.parametrize("seed", range(5))
def test_a_view_never_goes_back_while_the_directory_shows_old_rows(seed: int) -> None:
    async def story(world: World) -> None:
        world.faults.old, world.faults.old_s = 0.7, 20.0
        world.way_in.rng.seed(seed)
        view = world.view()
        last = 0
        for number in range(1, 60):
            await world.group(1, random.Random(number).choice("ab"), number)
            await asyncio.sleep(1)
            await view.poll()
            found = view.groups.get(1, Assigned("", 0, 0)).number
            assert last <= found <= number
            last = found
        assert last > 40

    play(story)


def test_rows_that_the_directory_lost_are_written_back_by_their_owner() -> None:
    async def story(world: World) -> None:
        view = world.view()
        await world.group(1, "a", 3)
        await world.put(Kind.MEMBERS, "a", Member("backend", "x", "host"))
        await view.poll()
        yesterday = dict(world.replica.rows())
        await world.group(1, "a", 4)
        await world.group(2, "b", 1)
        await world.put(Kind.ORDERS, "a", Orders(evacuate=True))
        await view.poll()
        assert not view.behind
        world.replica.restore(yesterday)
        await view.poll()
        assert view.groups == {1: Assigned("a", 4, 7), 2: Assigned("b", 1, 7)}
        assert view.behind == {(Kind.GROUPS, group_key(1)), (Kind.GROUPS, group_key(2)), (Kind.ORDERS, "a")}
        assert await view.write_back("a") == 2
        for _ in range(module.BEHIND_POLLS - 1):
            assert await view.write_back("a") == 0
            await view.poll()
        assert await view.write_back("a") == 1, "b has not come back for its own"
        await view.poll()
        assert not view.behind
        fresh = View(world.writer, clock=world.loop.time, now=world.loop.time, sleep=asyncio.sleep)
        await fresh.poll()
        assert (fresh.groups, fresh.orders, fresh.members) == (view.groups, view.orders, view.members)

    play(story)


def test_a_directory_that_comes_back_empty_is_full_again_after_some_polls() -> None:
    async def story(world: World) -> None:
        view = world.view()
        for number in range(150):
            await world.group(number, "a", 1)
        await view.poll()
        before = world.replica.rows()
        world.replica.restore({})
        written = []
        for _ in range(4):
            await view.poll()
            written.append(await view.write_back("a"))
        assert written == [64, 64, 22, 0]
        assert world.replica.rows() == before

    play(story)


def test_a_row_with_a_lower_number_and_a_later_timestamp_does_not_hold() -> None:
    """A member wrote a row from an outdated view, and its clock is ahead."""

    async def story(world: World) -> None:
        view = world.view()
        await world.group(1, "a", 5)
        await view.poll()
        await world.writer.put(Kind.GROUPS, group_key(1), encode(Assigned("b", 4, 9)), NOW + 10**7)
        await view.poll()
        assert view.groups == {1: Assigned("a", 5, 7)}
        await view.write_back("a")
        row = await world.writer.get(Kind.GROUPS, group_key(1))
        assert row == Row(encode(Assigned("a", 5, 7)), NOW + 10**7 + 1)

    play(story)


def test_many_who_poll_at_once_share_a_pass_that_begins_after_their_call() -> None:
    async def story(world: World) -> None:
        world.faults.latency_s = 0.2
        view = world.view()
        first = asyncio.create_task(view.poll())
        await asyncio.sleep(0.01)
        # The first pass may have read the groups before this row was written.
        await world.group(1, "a", 1)
        assert await asyncio.gather(*(view.poll() for _ in range(100))) == [True] * 100
        assert view.groups == {1: Assigned("a", 1, 7)}
        assert await first
        assert world.way_in.operations.count(("all", Kind.GROUPS)) == 2
        world.faults.cut = True
        assert await asyncio.gather(*(view.poll() for _ in range(100))) == [False] * 100
        world.faults.cut = False
        gone, stays = asyncio.create_task(view.poll()), asyncio.create_task(view.poll())
        await asyncio.sleep(0.01)
        gone.cancel()
        assert await stays, "who waits for a pass that was cancelled makes it"

    play(story)


def test_a_write_of_ours_is_known_at_once() -> None:
    async def story(world: World) -> None:
        view, reported = world.view(), []
        view.listen(reported.append)
        row = await world.group(1, "a", 1)
        view.note(Kind.GROUPS, group_key(1), row)
        view.note(Kind.GROUPS, group_key(1), row)
        assert view.assigned(group_key(1)) == Assigned("a", 1, 7)
        assert len(reported) == 1

    play(story)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (Kind.GROUPS, group_key(1), b"\xff\xff"),
        (Kind.GROUPS, group_key(1), b""),
        (Kind.GROUPS, "first", encode(Assigned("a", 1, 1))),
        (Kind.MEMBERS, "a", encode(Assigned("a", 1, 1))),
        (Kind.BEATS, "a", msgspec.msgpack.encode({"counter": "x"})),
    ],
)
def test_rows_that_do_not_decode_are_ignored_and_logged_once(kind: Kind, key: str, value: bytes) -> None:
    async def story(world: World) -> None:
        view = world.view()
        await world.group(2, "b", 1)
        await world.put(kind, key, value)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                assert await view.poll()
        assert [(line["kind"], line["key"]) for line in logs] == [(kind.value, key)]
        assert view.groups == {2: Assigned("b", 1, 7)}
        assert not view.members
        assert view.beat_read("a") is None

    play(story)


NEWER = [
    encode(Settings(groups=4, id="0", made=1.0, major=2)),
    msgspec.msgpack.encode({"major": 2, "shards": 5}),
    b"\xc1",
]


@pytest.mark.parametrize("value", NEWER)
def test_a_newer_directory_is_refused(value: bytes) -> None:
    async def story(world: World) -> None:
        await world.put(Kind.SETTINGS, "directory", value)
        with pytest.raises(ConfigError, match=r"cluster\.directory: .*(cluster upgrade|cannot be read)"):
            await world.view().run()
        with pytest.raises(ConfigError):
            await read_settings(world.writer)
        with pytest.raises(ConfigError):
            await make_settings(world.writer, 4, now=lambda: 1.0, sleep=asyncio.sleep, random_bytes=bytes)

    play(story)


def test_a_kept_directory_that_is_newer_is_refused() -> None:
    async def story(world: World) -> None:
        memory = Memory()
        memory.kept = Kept(1.0, {"settings": {"directory": (NEWER[0], 1)}})
        with pytest.raises(ConfigError, match="cluster upgrade"):
            world.view(memory).restore()

    play(story)


def test_a_newer_minor_is_read_with_its_unknown_fields() -> None:
    async def story(world: World) -> None:
        fields = {"groups": 4, "id": "0", "made": 1.0, "major": 1, "minor": 9, "colour": "red"}
        await world.put(Kind.SETTINGS, "directory", msgspec.msgpack.encode(fields))
        view = world.view()
        await view.poll()
        assert view.settings == Settings(4, "0", 1.0, 1, 9)

    play(story)


def test_many_rows_let_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        for number in range(5000):
            world.replica.write((Kind.PINS, f"u{number}"), Row(encode(Assigned("a", 1, number)), NOW))
        turns = []

        async def sleep(seconds: float) -> None:
            turns.append(seconds)
            await asyncio.sleep(seconds)

        view = View(world.way_in, clock=world.loop.time, now=world.loop.time, sleep=sleep)
        await view.poll()
        assert turns == [0] * 10
        assert len(view.pins) == 5000
        decoded = []
        there = module.View.decoded
        monkeypatch.setattr(module.View, "decoded", lambda *words: decoded.append(words) or there(*words))
        await view.poll()
        assert not decoded, "rows that have not changed are not decoded again"

    play(story)


def test_of_two_members_that_make_the_settings_both_get_the_same() -> None:
    async def story(world: World) -> None:
        def make(seed: int) -> Coroutine[Any, Any, Settings]:
            return make_settings(
                world.way(), 4, now=lambda: 1e9, sleep=asyncio.sleep, random_bytes=random.Random(seed).randbytes
            )

        one, other = await asyncio.gather(make(1), make(2))
        assert one == other
        assert await make(3) == one

    play(story)


@pytest.mark.parametrize("groups", [0, -1, 10_001])
def test_a_bad_number_of_groups(groups: int) -> None:
    async def story(world: World) -> None:
        with pytest.raises(ValueError, match="1 to 10000 groups"):
            await make_settings(world.writer, groups, now=lambda: 1.0, sleep=asyncio.sleep, random_bytes=bytes)

    play(story)


async def test_the_file_of_what_was_kept(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / "deep" / "directory")
    assert file.load() is None
    kept = Kept(1.5, {"groups": {"00001": (b"\xff\0", 5)}})
    await file.save(kept)
    await file.save(kept)
    assert KeptFile(tmp_path / "deep" / "directory").load() == kept
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["directory"]
    assert (tmp_path / "deep" / "directory").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"", b"\xc1", b"half of a file", msgspec.msgpack.encode({"at": 1.0})])
def test_a_damaged_file_is_nothing_and_is_logged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "directory").write_bytes(data)
    with structlog.testing.capture_logs() as logs:
        assert KeptFile(tmp_path / "directory").load() is None
    assert len(logs) == 1


def test_a_disk_that_is_full_costs_no_poll() -> None:
    class Full(Memory):
        async def save(self, kept: Kept) -> None:
            await super().save(kept)
            raise OSError(28, "No space left on device")

    async def story(world: World) -> None:
        view, full = world.view(memory := Full()), memory
        await world.group(1, "a", 1)
        with structlog.testing.capture_logs():
            assert await view.poll()
            assert await view.poll()
        assert full.saves == 2, "tried again"

    play(story)


def test_forms_that_this_code_cannot_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend does not start, or it ends. A proxy needs `wire` alone."""
    monkeypatch.setitem(FORMS, "test", Form(first=1, reads=2))

    async def story(world: World) -> None:
        await world.put(Kind.SETTINGS, "directory", encode(Settings(4, "0", 1.0, forms={"test": 2})))
        view = world.view()
        assert await view.poll()
        for versions, words in (({"test": 3}, "test 3 .* reads test 2"), ({"more": 1}, "more 1 .* reads more 0")):
            await world.put(Kind.SETTINGS, "directory", encode(Settings(4, "0", 1.0, forms=versions)))
            with pytest.raises(ConfigError, match=rf"members may write {words}; install the version of obox"):
                await world.view().poll()
            proxy = View(world.writer, clock=lambda: 1.0, now=lambda: 1.0, sleep=asyncio.sleep, forms=OF_PROXIES)
            assert await proxy.poll()
        for _ in range(SETTINGS_POLLS - 1):
            assert await view.poll()
        with pytest.raises(ConfigError, match="members may write more 1"):
            await view.poll()
        memory = Memory()
        newer = encode(Settings(4, "0", 1.0, forms={"test": 3}))
        memory.kept = Kept(1.0, {"settings": {"directory": (newer, 1)}})
        with pytest.raises(ConfigError, match="members may write test 3"):
            world.view(memory).restore()

    play(story)
