"""What a backend, as a member of a cluster, asks of its store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import msgspec
import pytest

from obox.cluster import (
    Assigned,
    BackendMember,
    Beat,
    DeadWatch,
    Here,
    Kind,
    Member,
    MemoryDirectory,
    MemoryReplica,
    Merge,
    Orders,
    View,
    World,
    decode,
    encode,
    group_key,
    home_of,
    make_settings,
    user_key,
)
from obox.cluster.member import FIRST_CLAIM_S
from obox.cluster.world import Hand
from obox.types import StorageId

GROUPS = 4


class Store:
    """A `world.Store` that serves all groups and counts the calls."""

    def __init__(self) -> None:
        self.now = [1000.0]
        self.gained: list[Sequence[tuple[str, str]]] = []
        self.lost: list[str] = []
        self.doubted: list[Sequence[str]] = []
        self.units = {group_key(number): (1, 7) for number in range(GROUPS)}

    def held(self) -> Mapping[str, tuple[int, int]]:
        return self.units

    def boot(self) -> str:
        return "boot1"

    def holds(self, unit: str) -> bool:
        return unit in self.units

    def forms(self) -> None:
        return None

    async def raise_forms(self, wanted: Mapping[str, int]) -> None:
        raise AssertionError("nothing is raised")

    def split(self, group: str, unit: str) -> None:
        assert unit in self.units, "nobody else is pinned"

    def renumber(self, unit: str, row: Assigned) -> None:
        raise AssertionError("nobody is pinned")

    async def gain(self, units: Mapping[str, Assigned], fence: Sequence[tuple[str, str]], *, orderly: bool) -> None:
        assert not units
        self.gained.append(fence)

    async def release(self, units: Sequence[str], hand: Hand) -> frozenset[str]:
        raise AssertionError("nothing is released")

    async def lose(self, units: Sequence[str]) -> int:
        self.lost += units
        return 0

    async def doubt(self, units: Sequence[str]) -> None:
        self.doubted.append(units)

    async def sweep(self, clears: Callable[[str], bool]) -> None:
        return


async def make(store: Store) -> tuple[BackendMember, DeadWatch, MemoryDirectory]:
    """Make a backend "a" that serves all groups and has found backend "c" dead."""
    now = store.now

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    directory = MemoryDirectory(MemoryReplica(lambda: now[0]), sleep=sleep)
    await make_settings(directory, GROUPS, now=lambda: now[0], sleep=sleep, random_bytes=bytes)
    for number in range(GROUPS):
        await directory.put(Kind.GROUPS, group_key(number), encode(Assigned("a", 1, 7)), 1)
    await directory.put(Kind.ORDERS, "a", encode(Orders()), 1)
    await directory.put(Kind.MEMBERS, "a", encode(Member("backend", "s", "host")), 1)
    await directory.put(Kind.BEATS, "c", encode(Beat(9, "boot7")), 1)

    async def greets(member: Member | None) -> bool:
        return False

    view = View(directory, clock=lambda: now[0], now=lambda: now[0], sleep=sleep)
    world = World(lambda: now[0], lambda: now[0], sleep, bytes, dict, greets)
    watch = DeadWatch("a", "s", 15.0, {"c"})
    return BackendMember(view, store, watch, world), watch, directory


async def test_a_dead_backend_that_owns_nothing_is_fenced_once() -> None:
    """A fence reads the journals of all backends, so it must not be repeated at each
    step."""
    store = Store()
    member, watch, directory = await make(store)
    for _ in range(5):
        await member.step()
    assert store.gained == [[("c", "boot7")]]
    await directory.put(Kind.BEATS, "c", encode(Beat(1, "boot8")), 2)
    await member.step()
    assert len(store.gained) == 1
    # The backend has died again.
    watch.dead.add("c")
    for _ in range(5):
        await member.step()
    assert store.gained == [[("c", "boot7")], [("c", "boot8")]]


async def test_a_lost_race_fences_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two backends claim the groups of a dead one. The winner fences it."""
    store = Store()
    store.units = {}
    member, _, directory = await make(store)
    for number in range(GROUPS):
        await directory.put(Kind.GROUPS, group_key(number), encode(Assigned("c", 2, 7)), 2)
    put = member.view.put

    async def raced(kind: Kind, key: str, record: msgspec.Struct, *, insist: bool = False) -> None:
        await put(kind, key, record, insist=insist)
        if isinstance(record, Assigned):
            other = Assigned("b", record.number, record.token + 1)
            await directory.put(kind, key, encode(other), 10**18)

    monkeypatch.setattr(member.view, "put", raced)
    await member.step()
    assert member.view.groups[0].backend == "b"
    assert not store.gained


async def test_a_login_after_a_suspension_reads_the_rows_first() -> None:
    """Another backend may have taken the groups over during the suspension."""
    store = Store()
    member, _, directory = await make(store)
    await member.step()
    reads = len(directory.operations)
    assert await member.confirm() == frozenset()
    assert len(directory.operations) == reads, "the rows were read lately"
    store.now[0] += 20.0
    unit = group_key(2)
    await directory.put(Kind.GROUPS, unit, encode(Assigned("b", 2, 1)), 2)
    assert await member.confirm() == {unit}
    await asyncio.sleep(0)
    assert store.lost == [unit]


async def test_what_others_wrote_while_this_backend_was_away_is_compared_once() -> None:
    store = Store()
    member, _, directory = await make(store)
    unit = group_key(1)
    await directory.put(Kind.MERGES, unit, encode(Merge("b", 900.0, 1)), 1)
    await directory.put(Kind.MERGES, group_key(GROUPS), encode(Merge("b", 900.0, 1)), 1)
    for _ in range(3):
        await member.step()
    assert store.doubted == [[unit]], "the other unit is not served here"
    await directory.put(Kind.MERGES, unit, encode(Merge("b", 1100.0, 1)), 2)
    for _ in range(3):
        await member.step()
    assert store.doubted == [[unit], [unit]]


async def test_a_merge_of_a_group_is_one_of_its_pinned_users_here() -> None:
    """The other backend did not know of the pin, and wrote to the user of its group."""
    store = Store()
    member, _, directory = await make(store)
    await member.step()
    alone = user_key("anna")
    store.units[alone] = (2, 7)
    await directory.put(Kind.PINS, "anna", encode(Assigned("a", 2, 7)), 2)
    group = home_of("anna", GROUPS)
    await directory.put(Kind.MERGES, group, encode(Merge("b", 900.0, 0)), 2)
    await member.step()
    assert store.doubted == [sorted([group, alone])]


async def test_a_row_that_loses_with_the_same_number_is_of_a_backend_that_may_have_written() -> None:
    """It may be of a release, whose changes came into bundles after this backend had
    compared."""
    store = Store()
    member, _, directory = await make(store)
    await member.step()
    unit = group_key(1)
    old, tie = Assigned("b", 0, 9), Assigned("a", 1, 3, released=True)
    for timestamp, row in enumerate([old, tie, tie], 2):
        await directory.put(Kind.GROUPS, unit, encode(row), timestamp)
        await member.step()
    assert store.doubted == [[unit]], "once, and not for a row that is merely old"


async def test_a_directory_that_does_not_answer_stops_no_login() -> None:
    store = Store()
    member, _, directory = await make(store)
    await member.step()
    store.now[0] += 20.0
    directory.faults.cut = True
    assert await member.confirm() == frozenset()
    reads = len(directory.operations)
    assert await member.confirm() == frozenset()
    assert len(directory.operations) == reads, "it was asked just now"


async def test_groups_without_an_owner_wait_until_members_know_of_each_other() -> None:
    store = Store()
    member, _, _ = await make(store)
    member._joined_at = store.now[0]
    await member.view.poll()
    assert not member.may_claim("00099")
    assert member.may_claim(group_key(0)), "it had an owner, who may have died"
    store.now[0] += FIRST_CLAIM_S
    assert member.may_claim("00099")


async def test_a_tie_is_served_and_marked_for_a_merge_once() -> None:
    """Two backends have given the group to this one with the same number, so both may
    have written."""
    store = Store()
    member, _, directory = await make(store)
    await member.view.poll()
    member.begin()
    sid, unit = StorageId("anna"), member.unit_of("anna")
    for _ in range(3):
        route = await member.reread(sid, Assigned("b", 1, 99))
        assert isinstance(route, Here)
    assert store.doubted == [[unit]]
    row = await directory.get(Kind.MERGES, unit)
    assert row is not None
    assert decode(row.value, Merge).by == "b"
    await member.reread(sid, Assigned("a", 1, 7))
    assert isinstance(await member.reread(sid, Assigned("b", 0, 3)), Here), "an older one is no tie"
    assert store.doubted == [[unit]]


async def test_a_tie_is_marked_later_if_the_directory_does_not_answer() -> None:
    store = Store()
    member, _, directory = await make(store)
    await member.view.poll()
    member.begin()
    sid, unit = StorageId("anna"), member.unit_of("anna")
    directory.faults.cut = True
    assert isinstance(await member.reread(sid, Assigned("b", 1, 5)), Here), "it is served all the same"
    assert store.doubted == [[unit]], "and compared"
    directory.faults.cut = False
    await member.reread(sid, Assigned("b", 1, 5))
    assert await directory.get(Kind.MERGES, unit) is not None
