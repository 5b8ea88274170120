"""Members of a cluster, step by step, over a store that only records what it is
asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest
from fleet import GROUPS, Fleet, _Always
from structlog.testing import capture_logs

from obox.cluster import (
    Assigned,
    Here,
    Kind,
    Member,
    MemoryDirectory,
    Merge,
    Move,
    Orders,
    State,
    decode,
    home_of,
    user_key,
)
from obox.cluster.member import HOME_BEATS, POLL_S, QUICK_S
from obox.cluster.writer import WRITES_AT_ONCE
from obox.types import StorageId


async def test_an_evacuated_backend_stands_by_when_it_holds_nothing(fleet: Fleet) -> None:
    await fleet.put(Kind.ORDERS, "a", Orders(load_factor=70, evacuate=True))
    await fleet.members["a"].step()
    assert (await fleet.orders("a")).state is State.ONLINE, "it still holds groups, or has only just released them"
    await fleet.seconds(10)
    assert fleet.stores["a"].units == {}
    assert len(fleet.stores["b"].units) == GROUPS
    assert await fleet.orders("a") == Orders(State.STANDBY, 70, evacuate=True)


async def test_a_backend_that_cannot_release_does_not_stand_by(fleet: Fleet) -> None:
    await fleet.put(Kind.ORDERS, "b", Orders(load_factor=0))
    await fleet.put(Kind.ORDERS, "a", Orders(evacuate=True))
    held = dict(fleet.stores["a"].units)
    await fleet.seconds(10)
    assert fleet.stores["a"].units == held, "nobody may take its groups"
    assert (await fleet.orders("a")).state is State.ONLINE


@pytest.mark.parametrize("arrives", [False, True])
async def test_a_release_whose_row_was_not_answered_is_not_served_and_written_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """The backend cannot know whether such a write arrives, and the other backend reads
    only bundles of what was released."""
    monkeypatch.setattr("obox.cluster.writer.WRITES_AT_ONCE", 1)
    member, store = fleet.members["a"], fleet.stores["a"]
    way = member.view.directory
    assert isinstance(way, MemoryDirectory)
    await fleet.put(Kind.ORDERS, "a", Orders(evacuate=True))
    had = set(store.units)
    way.faults.unanswered, way.rng = 1.0, _Always(arrives)
    with capture_logs() as logs:
        await member.step()
    assert "groups may have been released" in {entry["event"] for entry in logs}
    (tried,) = had - store.units.keys()
    row = member.owners.row(tried)
    assert row is not None
    assert row.backend == "b", "its clients are forwarded"
    assert (tried in await fleet.of("b")) == arrives
    way.faults.unanswered = 0.0
    await member.step()
    assert tried in await fleet.of("b"), "written again at once"
    await fleet.seconds(3)
    assert tried in fleet.stores["b"].units


async def test_a_backend_that_lost_units_informs_the_owner_also_if_nothing_was_left(fleet: Fleet) -> None:
    """It may have uploaded after the owner compared, and before it knew of the loss."""
    store = fleet.stores["a"]
    unit = min(store.units)
    row = Assigned("b", max(number for number, _ in store.units.values()) + 50, 5)
    await fleet.put(Kind.GROUPS, unit, row)
    await fleet.seconds(3)
    assert unit not in store.units
    merges = await fleet.directory.all(Kind.MERGES)
    assert {key: decode(found.value, Merge).by for key, found in merges.items()} == {unit: "a"}


async def test_online_again_brings_new_groups_and_no_standby(fleet: Fleet) -> None:
    await fleet.put(Kind.ORDERS, "a", Orders(evacuate=True))
    await fleet.seconds(10)
    await fleet.put(Kind.ORDERS, "a", Orders())
    await fleet.seconds(10)
    assert await fleet.orders("a") == Orders()


async def test_boots_are_noted_with_their_end(fleet: Fleet) -> None:
    boots = await fleet.boots()
    assert sorted(boots) == ["a/boot1", "b/boot1"]
    assert boots["a/boot1"].began == pytest.approx(fleet.time, abs=60)
    assert (boots["a/boot1"].ended, boots["a/boot1"].clean) == (0.0, False)
    await fleet.members["a"].end(clean=True)
    ended = (await fleet.boots())["a/boot1"]
    assert (ended.began, ended.clean) == (boots["a/boot1"].began, True)
    assert ended.ended >= ended.began


async def test_a_boot_that_was_fenced_is_closed_when_the_bucket_says_so(fleet: Fleet) -> None:
    store, member = fleet.stores["a"], fleet.members["a"]
    store.present = "boot2"
    await fleet.seconds(2)
    boots = await fleet.boots()
    assert boots["a/boot1"].ended > 0
    assert not boots["a/boot1"].clean
    assert boots["a/boot2"].ended == 0
    assert member.counts.fenced == 1
    for one in fleet.stores.values():
        one.unclean = {("a", "boot1")}
    await fleet.seconds(600)
    assert not (await fleet.boots())["a/boot1"].clean
    for one in fleet.stores.values():
        one.unclean = set()
    await fleet.seconds(400)
    boots = await fleet.boots()
    assert boots["a/boot1"].clean
    assert not boots["a/boot2"].clean, "a boot that goes on is not clean"
    assert not boots["b/boot1"].clean


async def test_figures_count_what_was_done(fleet: Fleet) -> None:
    a, b = fleet.members["a"], fleet.members["b"]
    had = len(fleet.stores["a"].units)
    assert a.figures()["groups"] == had
    assert a.figures()["gains_total"] == had
    assert a.figures()["directory_age_seconds"] <= 2.0
    await fleet.put(Kind.ORDERS, "a", Orders(evacuate=True))
    await fleet.seconds(10)
    assert a.figures()["releases_total"] == had
    assert b.figures()["gains_total"] == GROUPS
    assert b.figures()["losses_total"] == b.figures()["fences_total"] == b.figures()["merges_total"] == 0


# -- single users ------------------------------------------------------------------------------------------------------

SID = StorageId("anna")
ANNA = user_key(SID)


def owner_and_other(fleet: Fleet) -> tuple[str, str]:
    group = home_of(SID, GROUPS)
    return ("a", "b") if group in fleet.stores["a"].units else ("b", "a")


async def pin(fleet: Fleet) -> Assigned:
    row = await fleet.directory.get(Kind.PINS, SID)
    assert row is not None
    return decode(row.value, Assigned)


async def test_a_user_moves_alone(fleet: Fleet) -> None:
    owner, other = owner_and_other(fleet)
    groups = [set(fleet.stores[name].units) for name in (owner, other)]
    await fleet.put(Kind.MOVES, ANNA, Move(other, 0.0))
    await fleet.seconds(6)
    assert set(fleet.stores[owner].units) == groups[0]
    assert set(fleet.stores[other].units) == groups[1] | {ANNA}
    assert fleet.stores[other].gained[-1] == ({ANNA}, True), "the owner has handed over in order"
    row = await pin(fleet)
    assert (row.backend, row.released, row.removed) == (other, True, False)
    assert all(member.unit_of(SID) == ANNA for member in fleet.members.values())
    assert all(member.owner(SID) == other for member in fleet.members.values())
    moves = await fleet.directory.all(Kind.MOVES)
    assert decode(moves[ANNA].value, Move).done
    assert fleet.members[owner].counts.losses == fleet.members[other].counts.losses == 0


async def test_a_user_is_pinned_in_place_without_a_takeover(fleet: Fleet) -> None:
    owner, _ = owner_and_other(fleet)
    gained = len(fleet.stores[owner].gained)
    await fleet.put(Kind.MOVES, ANNA, Move(owner, 0.0))
    await fleet.seconds(4)
    row = await pin(fleet)
    assert fleet.stores[owner].units[ANNA] == (row.number, row.token)
    assert len(fleet.stores[owner].gained) == gained
    assert row.backend == owner
    assert decode((await fleet.directory.all(Kind.MOVES))[ANNA].value, Move).done


async def test_a_pinned_user_stays_when_the_group_moves_and_follows_it_later(fleet: Fleet) -> None:
    owner, other = owner_and_other(fleet)
    group = home_of(SID, GROUPS)
    await fleet.put(Kind.MOVES, ANNA, Move(owner, 0.0))
    await fleet.seconds(4)
    await fleet.put(Kind.MOVES, group, Move(other, 0.0))
    await fleet.seconds(4)
    assert group in fleet.stores[other].units
    assert ANNA in fleet.stores[owner].units
    row = await pin(fleet)
    await fleet.put(Kind.PINS, SID, Assigned(row.backend, row.number, row.token, row.released, removed=True))
    await fleet.seconds(4)
    assert ANNA in fleet.stores[other].units
    assert ANNA not in fleet.stores[owner].units
    assert (await pin(fleet)).removed, "it stays a follower"
    await fleet.put(Kind.MOVES, group, Move(owner, 0.0))
    await fleet.seconds(6)
    assert {group, ANNA} <= fleet.stores[owner].units.keys()
    await fleet.put(Kind.MOVES, ANNA, Move(other, 0.0))
    await fleet.seconds(4)
    assert ANNA in fleet.stores[other].units
    assert not (await pin(fleet)).removed, "a move pins the user again"


async def test_a_pin_has_the_highest_number(fleet: Fleet) -> None:
    owner, other = owner_and_other(fleet)
    await fleet.put(Kind.MOVES, ANNA, Move(other, 0.0))
    await fleet.seconds(5)
    row = await pin(fleet)
    assert row.number == fleet.members[owner].number() == fleet.members[other].number()


async def test_a_pin_that_was_made_while_this_backend_did_not_hear_of_it_is_a_loss(fleet: Fleet) -> None:
    """The old backend gives up the pinned user and keeps the group."""
    owner, other = owner_and_other(fleet)
    await fleet.put(Kind.PINS, SID, Assigned(other, 1, 5))
    await fleet.seconds(3)
    assert ANNA not in fleet.stores[owner].units
    assert home_of(SID, GROUPS) in fleet.stores[owner].units
    assert ANNA in fleet.stores[other].units
    assert fleet.members[owner].counts.losses == 1


async def leave(fleet: Fleet, *names: str) -> None:
    """Stop these members in order, as backends that get SIGTERM, at the same time."""
    leaving = [asyncio.ensure_future(fleet.members[name].leave()) for name in names]
    for _ in range(1000):
        if all(one.done() for one in leaving):
            break
        for member in fleet.members.values():
            await member.step()
    for one in leaving:
        await one
    for name in names:
        del fleet.members[name]


async def test_a_stop_gives_the_groups_away_and_a_start_brings_them_back(fleet: Fleet) -> None:
    before = {name: set(store.units) for name, store in fleet.stores.items()}
    await leave(fleet, "a")
    assert fleet.stores["a"].units == {}
    assert len(fleet.stores["b"].units) == GROUPS
    await fleet.seconds(60)
    assert len(fleet.stores["b"].units) == GROUPS, "a backend that has stopped gets none"
    await fleet.join("a")
    await fleet.seconds(HOME_BEATS + 5)
    assert {name: set(store.units) for name, store in fleet.stores.items()} == before
    assert not any(row.home for row in fleet.members["b"].view.groups.values())


async def test_a_stop_of_all_moves_nothing(fleet: Fleet) -> None:
    before = {name: dict(store.units) for name, store in fleet.stores.items()}
    await leave(fleet, "a", "b")
    assert {name: dict(store.units) for name, store in fleet.stores.items()} == before


async def test_a_stop_of_one_after_the_other_is_undone_by_their_starts(fleet: Fleet) -> None:
    """The backend that stops last has all groups. It gives them back when the others
    start."""
    await fleet.join("c")
    await fleet.seconds(5)
    before = {name: set(store.units) for name, store in fleet.stores.items()}
    await leave(fleet, "a")
    await fleet.seconds(2)
    await leave(fleet, "b")
    assert len(fleet.stores["c"].units) == GROUPS
    await leave(fleet, "c")
    stopped = fleet.stores["c"]
    for name in ("c", "b", "a"):
        await fleet.join(name)
    # The new process has the local state of the old process.
    fleet.stores["c"].units = stopped.units
    await fleet.seconds(20)
    assert {name: set(store.units) for name, store in fleet.stores.items()} == before


async def test_a_share_of_a_backend_that_is_not_there_is_not_nobodys(fleet: Fleet) -> None:
    """A backend that is registered but never beats owns nothing. For a while the plan
    gives it a share of the groups of a dead backend; then the backend that is alive
    gets them."""
    await fleet.put(Kind.MEMBERS, "x", Member("backend", "default", "127.0.0.1"))
    await fleet.seconds(1)
    fleet.answers = False
    del fleet.members["a"]
    await fleet.seconds(60)
    assert len(fleet.stores["b"].units) == GROUPS


async def test_rows_of_very_many_units_are_written_a_part_at_a_time(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory refuses too many writes at once. If a backend wrote all rows of a
    dead backend at once, it would be refused each time, and nobody would take over."""
    one = await fleet.join("one")
    waiting = most = 0
    plain = one.view.put

    async def put(kind: Kind, key: str, record: msgspec.Struct, *, insist: bool = False) -> None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0)
        await plain(kind, key, record, insist=insist)
        waiting -= 1

    monkeypatch.setattr(one.view, "put", put)
    rows = await one.rows.write("one", {user_key(f"u{n}"): "" for n in range(3 * WRITES_AT_ONCE)}, released=False)
    assert len(rows) == 3 * WRITES_AT_ONCE
    assert 1 < most <= WRITES_AT_ONCE


async def test_a_client_that_comes_before_its_group_has_the_next_pass_begin(fleet: Fleet) -> None:
    """The row names this backend. Without the client the backend would read the row up
    to a second later."""
    b = fleet.members["b"]
    unit = min(fleet.stores["a"].units)
    row = Assigned("b", 99, 1, released=True)
    await fleet.put(Kind.GROUPS, unit, row)
    await b.view.poll()
    pausing = asyncio.ensure_future(b.pause())
    real, b._world = b._world, replace(b._world, sleep=lambda _: asyncio.Event().wait())
    await asyncio.sleep(0)
    assert not pausing.done()
    b._world = real
    sid = next(sid for sid in map(str, range(1000)) if b.unit_of(sid) == unit)
    fleet.stores["b"].holds = lambda unit: pausing.done()
    assert await b.route(StorageId(sid)) == Here(row)


async def test_passes_are_quick_while_groups_may_come(fleet: Fleet) -> None:
    waits: list[float] = []
    b = fleet.members["b"]

    async def pause() -> float:
        real = b._world

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        b._world = replace(real, sleep=sleep)
        await b.pause()
        b._world = real
        return waits[-1]

    assert await pause() == POLL_S
    await fleet.put(Kind.ORDERS, "a", Orders(evacuate=True))
    await b.view.poll()
    assert await pause() == QUICK_S
    await fleet.seconds(10)
    assert await pause() == POLL_S, "it holds nothing any more"


"""A form that only tests register."""


@pytest.mark.parametrize(
    ("site", "state", "joins"),
    [
        ("default", State.ONLINE, State.STANDBY),
        ("default", State.STANDBY, State.STANDBY),
        ("default", State.OFFLINE, State.ONLINE),
        ("default", State.REMOVED, State.ONLINE),
        ("other", State.ONLINE, State.ONLINE),
    ],
)
async def test_a_new_backend_joins_as_standby_unless_nobody_else_serves_its_site(
    site: str, state: State, joins: State
) -> None:
    """The directory is Cassandra. A backend that the directory knows keeps its
    state."""
    fleet = Fleet()
    fleet.joins_as = State.STANDBY
    for name in ("a", "b"):
        await fleet.put(Kind.MEMBERS, name, Member("backend" if name == "b" else "proxy", site, "host"))
        await fleet.put(Kind.ORDERS, name, Orders(state))
    member = await fleet.join("c")
    assert member.view.orders["c"].state is joins
    await fleet.put(Kind.ORDERS, "c", Orders(State.OFFLINE))
    member = await fleet.join("c")
    assert member.view.orders["c"].state is State.OFFLINE


async def test_the_first_backend_of_an_empty_cluster_gets_all_groups() -> None:
    fleet = Fleet()
    fleet.joins_as = State.STANDBY
    await fleet.join("a")
    await fleet.seconds(4)
    assert len(fleet.stores["a"].units) == GROUPS
    await fleet.join("b")
    await fleet.seconds(4)
    assert not fleet.stores["b"].units
    await fleet.put(Kind.ORDERS, "a", Orders(State.STANDBY))
    await fleet.put(Kind.ORDERS, "b", Orders(State.ONLINE))
    await fleet.seconds(4)
    assert len(fleet.stores["a"].units) == GROUPS, "standby serves what it has"
