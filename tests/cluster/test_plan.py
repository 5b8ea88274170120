"""What a backend does next about its groups: cases of the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from obox.cluster import Assigned, Member, Move, Orders, State, rank
from obox.cluster.plan import MOVED_AT_ONCE, Picture, Release, plan

UNITS = frozenset(f"{number:05}" for number in range(40))
MEMBERS = {name: Member("backend", "default", name) for name in ("a", "b", "c")}
ONE = "00000"


def picture(me: str = "a", **more: Any) -> Picture:
    known: dict[str, Any] = {"rows": {}, "held": {}, "orders": {}}
    return Picture(me=me, units=UNITS, members=MEMBERS, **{**known, **more})


def all_of(backend: str, number: int = 1) -> dict[str, Assigned]:
    return dict.fromkeys(UNITS, Assigned(backend, number, 7))


def test_every_vacant_group_is_claimed_by_exactly_one() -> None:
    claims = [plan(picture(me)).claim for me in MEMBERS]
    assert frozenset().union(*claims) == UNITS
    assert sum(map(len, claims)) == len(UNITS)


def test_a_backend_that_knows_of_no_other_claims_all() -> None:
    assert plan(replace(picture(), members={"a": MEMBERS["a"]})).claim.keys() == UNITS


@pytest.mark.parametrize(
    "orders",
    [Orders(State.STANDBY), Orders(State.OFFLINE), Orders(State.REMOVED), Orders(load_factor=0), Orders(evacuate=True)],
    ids=["standby", "offline", "removed", "load factor 0", "evacuate"],
)
def test_who_is_to_get_nothing_claims_nothing(orders: Orders) -> None:
    assert not plan(picture(orders={"a": orders})).claim


def test_groups_of_a_dead_backend_are_shared_and_its_boot_is_fenced() -> None:
    plans = [plan(picture(me, rows=all_of("c"), dead={"c": "boot7"})) for me in ("a", "b")]
    assert plans[0].claim.keys() | plans[1].claim.keys() == UNITS
    assert not plans[0].claim.keys() & plans[1].claim.keys()
    assert all(one.fence == {("c", "boot7")} for one in plans)


def test_a_dead_backend_without_groups_is_fenced_by_one() -> None:
    fences = [plan(picture(me, rows=all_of("a"), held=all_of("a"), dead={"c": "boot7"})).fence for me in ("a", "b")]
    assert sorted(map(len, fences)) == [0, 1]


def test_a_dead_backend_without_groups_is_fenced_no_more_once_it_was() -> None:
    known = {"rows": all_of("a"), "held": all_of("a"), "dead": {"c": "boot7"}}
    fences = [plan(picture(me, **known, fenced=frozenset({("c", "boot7")}))).fence for me in ("a", "b")]
    assert fences == [frozenset(), frozenset()]
    again = [plan(picture(me, **known, fenced=frozenset({("c", "boot6")}))).fence for me in ("a", "b")]
    assert sorted(map(len, again)) == [0, 1]


def test_a_newer_row_of_another_is_a_loss() -> None:
    held = all_of("a", 3)
    assert plan(picture(rows={**held, ONE: Assigned("b", 4, 1)}, held=held)).lose == {ONE}


@pytest.mark.parametrize("row", [Assigned("b", 2, 9), Assigned("b", 3, 6)], ids=["lower number", "lower token"])
def test_an_older_row_of_another_is_no_loss(row: Assigned) -> None:
    held = all_of("a", 3)
    assert not plan(picture(rows={**held, ONE: row}, held=held)).lose


def test_a_row_that_names_us_is_gained_once() -> None:
    rows = all_of("a")
    assert plan(picture(rows=rows)).gain == rows
    assert not plan(picture(rows=rows, held=rows)).gain


def test_groups_of_a_backend_that_lives_are_left_alone() -> None:
    found = plan(picture(rows=all_of("c")))
    assert [found.claim, found.gain, found.lose, found.fence, found.release] == [{}, {}, set(), set(), None]


def test_a_move_releases_the_group_to_its_destination() -> None:
    held = all_of("a")
    assert plan(picture(rows=held, held=held, moves={ONE: Move("b", 0.0)})).release == Release("b", (ONE,))


@pytest.mark.parametrize(
    ("move", "dead"),
    [(Move("b", 0.0, done=True), {}), (Move("a", 0.0), {}), (Move("z", 0.0), {}), (Move("b", 0.0), {"b": "boot"})],
    ids=["done", "to ourselves", "to nobody", "to a dead one"],
)
def test_a_move_that_cannot_be_releases_nothing(move: Move, dead: dict[str, str]) -> None:
    held = all_of("a")
    assert plan(picture(rows=held, held=held, moves={ONE: move}, dead=dead)).release is None


def test_an_evacuation_goes_batch_by_batch_to_those_that_rank_next() -> None:
    held = all_of("a")
    found = plan(picture(rows=held, held=held, orders={"a": Orders(evacuate=True)})).release
    assert found is not None
    assert 0 < len(found.units) <= MOVED_AT_ONCE
    assert all(rank(unit, {"b": 100.0, "c": 100.0})[0] == found.to for unit in found.units)


def test_an_evacuation_with_nobody_to_go_to_waits() -> None:
    held = all_of("a")
    alone = replace(picture(rows=held, held=held, orders={"a": Orders(evacuate=True)}), members={"a": MEMBERS["a"]})
    assert plan(alone).release is None


def test_a_backend_that_stops_gives_its_groups_to_the_others_and_is_their_home() -> None:
    held = all_of("a")
    found = plan(picture(rows=held, held=held, ending=frozenset("a"))).release
    assert found is not None
    assert found.home == "a"
    assert all(rank(unit, {"b": 100.0, "c": 100.0})[0] == found.to for unit in found.units)


def test_a_backend_that_stops_while_all_others_stop_keeps_its_groups() -> None:
    held = all_of("a")
    assert plan(picture(rows=held, held=held, ending=frozenset("abc"))).release is None


def test_who_stops_gets_nothing() -> None:
    assert not plan(picture(ending=frozenset("a"))).claim
    held = all_of("a")
    assert plan(picture(rows=held, held=held, moves={ONE: Move("b", 0.0)}, ending=frozenset("b"))).release is None


def test_the_first_home_stays_while_one_backend_after_the_other_stops() -> None:
    held = all_of("b")
    rows = dict.fromkeys(UNITS, Assigned("b", 1, 7, released=True, home="a"))
    found = plan(picture("b", rows=rows, held=held, ending=frozenset("ab"))).release
    assert found is not None
    assert (found.to, found.home) == ("c", "a")


def test_groups_go_home_when_their_backend_is_back() -> None:
    held = all_of("b")
    rows = {**held, ONE: Assigned("b", 1, 7, released=True, home="a")}
    known: dict[str, Any] = {"rows": rows, "held": held}
    assert plan(picture("b", **known, back=frozenset("a"))).release == Release("a", (ONE,))
    assert plan(picture("b", **known)).release is None, "it was not heard of since"
    assert plan(picture("b", **known, back=frozenset("a"), ending=frozenset("a"))).release is None
    assert plan(picture("b", **known, back=frozenset("a"), dead={"a": "boot"})).release is None
    no_more = {"a": Orders(State.STANDBY)}
    assert plan(picture("b", **known, back=frozenset("a"), orders=no_more)).release is None


def test_groups_of_a_backend_that_stopped_with_nobody_there_go_home_later() -> None:
    """It was dead for long enough; a backend that crashed does not get its groups
    back."""
    dead = {"c": "boot7"}
    stopped = plan(picture(rows=all_of("c"), dead=dead, ending=frozenset("c")))
    assert set(stopped.claim.values()) == {"c"}
    assert set(plan(picture(rows=all_of("c"), dead=dead)).claim.values()) == {""}


def test_an_evacuation_leaves_no_home() -> None:
    held = all_of("a")
    found = plan(picture(rows=held, held=held, orders={"a": Orders(evacuate=True)})).release
    assert found is not None
    assert found.home == ""
