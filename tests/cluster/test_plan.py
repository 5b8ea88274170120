"""What a backend does next about its groups: a table of cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from obox.cluster import Assigned, Member, Move, Orders, State, home_of, rank, user_key
from obox.cluster.plan import MOVED_AT_ONCE, USERS_MOVED_AT_ONCE, Picture, Release, plan

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


# -- single users ------------------------------------------------------------------------------------------------------

ANNA = user_key("anna")
HOME = home_of("anna", len(UNITS))


def with_anna(backend: str, *, removed: bool = False) -> dict[str, Assigned]:
    return {ANNA: Assigned(backend, 9, 1, removed=removed)}


def test_a_move_of_a_user_without_a_pin_is_for_the_owner_of_the_group() -> None:
    moves = {ANNA: Move("b", 0.0)}
    assert plan(picture("a", rows=all_of("a"), held=all_of("a"), moves=moves)).pin == {ANNA}
    assert not plan(picture("b", rows=all_of("a"), moves=moves)).pin
    lost = {**all_of("a"), HOME: Assigned("c", 9, 9)}
    assert not plan(picture("a", rows=lost, held=all_of("a"), moves=moves)).pin, "the group has just been lost"
    assert not plan(picture("a", rows=all_of("a"), held=all_of("a"), moves={ANNA: Move("b", 0.0, done=True)})).pin


def test_a_pinned_user_moves_alone_and_no_user_moves_with_a_group() -> None:
    held = all_of("a") | with_anna("a")
    found = plan(picture("a", rows=held, held=held, moves={ANNA: Move("b", 0.0), HOME: Move("b", 0.0)}))
    assert found.release == Release("b", (HOME,)), "groups first, in their own batch"
    assert not found.pin
    found = plan(picture("a", rows=held, held=held, moves={ANNA: Move("b", 0.0)}))
    assert found.release == Release("b", (ANNA,))


def test_a_pinned_user_stays_when_the_group_leaves() -> None:
    rows = all_of("b") | with_anna("a")
    assert plan(picture("a", rows=rows, held=with_anna("a"))).release is None


def test_a_user_whose_pin_was_removed_follows_the_group() -> None:
    rows = all_of("b") | with_anna("a", removed=True)
    assert plan(picture("a", rows=rows, held=with_anna("a"))).release == Release("b", (ANNA,))
    rows = all_of("a") | with_anna("a", removed=True)
    assert plan(picture("a", rows=rows, held=rows)).release is None
    gone = all_of("b") | with_anna("a", removed=True)
    assert plan(picture("a", rows=gone, held=with_anna("a"), dead={"b": "boot"})).release is None


def test_users_of_a_dead_backend_have_one_heir_each() -> None:
    users = {user_key(f"user{number}"): Assigned("c", 9, 1) for number in range(40)}
    plans = [plan(picture(me, rows=all_of(me) | users, dead={"c": "boot7"})) for me in ("a", "b")]
    assert plans[0].claim.keys() | plans[1].claim.keys() == users.keys()
    assert not plans[0].claim.keys() & plans[1].claim.keys()
    assert all(one.fence == {("c", "boot7")} for one in plans)


def test_a_follower_of_a_dead_backend_goes_where_the_group_is() -> None:
    rows = all_of("b") | with_anna("c", removed=True)
    assert plan(picture("b", rows=rows, held=all_of("b"), dead={"c": "boot"})).claim.keys() == {ANNA}
    assert not plan(picture("a", rows=rows, dead={"c": "boot"})).claim
    both = all_of("c") | with_anna("c", removed=True)
    plans = {me: plan(picture(me, rows=both, dead={"c": "boot"})).claim for me in ("a", "b")}
    (heir,) = [me for me, claim in plans.items() if ANNA in claim]
    assert HOME in plans[heir]


def test_an_evacuation_takes_pinned_users_along() -> None:
    orders = {"a": Orders(evacuate=True)}
    found = plan(picture("a", rows=all_of("b") | with_anna("a"), held=with_anna("a"), orders=orders)).release
    assert found is not None
    assert found.units == (ANNA,)
    assert found.to in ("b", "c")


def test_many_single_users_go_together() -> None:
    users = {user_key(f"user{number:03}"): Assigned("a", 9, 1) for number in range(100)}
    found = plan(picture("a", rows=all_of("b") | users, held=users, orders={"a": Orders(evacuate=True)})).release
    assert found is not None
    assert MOVED_AT_ONCE < len(found.units) <= USERS_MOVED_AT_ONCE


def test_a_unit_that_is_where_its_move_wants_it_has_arrived() -> None:
    held = all_of("a")
    assert plan(picture("a", rows=held, held=held, moves={ONE: Move("a", 0.0)})).arrived == {ONE}
    assert not plan(picture("a", rows=held, held=held, moves={ONE: Move("a", 0.0, done=True)})).arrived
    assert not plan(picture("b", rows=held, moves={ONE: Move("b", 0.0)})).arrived


# -- sites -------------------------------------------------------------------------------------------------------------

SITES = {name: Member("backend", site, name) for name, site in (("a", "n"), ("b", "n"), ("c", "s"), ("d", "s"))}


def at_sites(me: str, **more: Any) -> Picture:
    return replace(picture(me, **more), members=SITES)


def test_groups_of_a_dead_backend_stay_at_its_site() -> None:
    """A backend of another site does not know that the owner is dead. If it were the
    heir, no backend would acquire the groups."""
    plans = {me: plan(at_sites(me, rows=all_of("b"), dead={"b": "boot7"})) for me in "ac"}
    assert plans["a"].claim.keys() == UNITS
    assert plans["a"].fence == {("b", "boot7")}
    empty = plan(at_sites("a", rows=all_of("c"), dead={"b": "boot7"}))
    assert empty.fence == {("b", "boot7")}, "the fence of a backend without groups, too"


def test_a_site_that_dies_as_a_whole_loses_nothing_by_itself() -> None:
    orders = {"a": Orders(State.STANDBY)}
    for me in ("c", "d"):
        assert not plan(at_sites(me, rows=all_of("b"), orders=orders)).claim


def test_a_site_that_is_set_offline_is_taken_over_by_the_other() -> None:
    orders = {"a": Orders(State.OFFLINE), "b": Orders(State.OFFLINE)}
    plans = [plan(at_sites(me, rows=all_of("b"), orders=orders)) for me in ("c", "d")]
    assert plans[0].claim.keys() | plans[1].claim.keys() == UNITS
    assert not plans[0].fence | plans[1].fence, "nobody was seen dying"


def test_an_evacuation_stays_at_the_site_while_it_can() -> None:
    held = all_of("a")
    found = plan(at_sites("a", rows=held, held=held, orders={"a": Orders(evacuate=True)})).release
    assert found is not None
    assert found.to == "b"
    away = {"a": Orders(evacuate=True), "b": Orders(evacuate=True)}
    found = plan(at_sites("a", rows=held, held=held, orders=away)).release
    assert found is not None
    assert found.to in ("c", "d")


# -- a stop ------------------------------------------------------------------------------------------------------------


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
    """The backend "c" stopped when no other backend was there, and counts as dead. It
    gets its groups back when it starts. A backend that crashed does not."""
    dead = {"c": "boot7"}
    stopped = plan(picture(rows=all_of("c"), dead=dead, ending=frozenset("c")))
    assert set(stopped.claim.values()) == {"c"}
    assert set(plan(picture(rows=all_of("c"), dead=dead)).claim.values()) == {""}


def test_an_evacuation_leaves_no_home() -> None:
    held = all_of("a")
    found = plan(picture(rows=held, held=held, orders={"a": Orders(evacuate=True)})).release
    assert found is not None
    assert found.home == ""


def test_who_follows_a_group_stops_with_it_and_does_not_return_before_it() -> None:
    rows = all_of("a") | with_anna("a", removed=True)
    stopping = frozenset("a")
    found = plan(picture("a", rows=rows, held={HOME: rows[HOME]}, ending=stopping)).release
    assert found is not None
    heir = found.to
    follower = plan(picture("a", rows=rows, held={ANNA: rows[ANNA]}, ending=stopping)).release
    assert follower == Release(heir, (ANNA,))
    there = all_of("a") | with_anna(heir, removed=True)
    assert plan(picture(heir, rows=there, held={ANNA: there[ANNA]}, ending=stopping)).release is None


def test_a_pinned_user_goes_home_like_a_group() -> None:
    rows = all_of("b") | {ANNA: Assigned("b", 9, 1, released=True, home="a")}
    assert plan(picture("b", rows=rows, held=rows, back=frozenset("a"))).release == Release("a", (ANNA,))


def test_a_stop_moves_nothing_to_another_site() -> None:
    held = all_of("a")
    assert plan(at_sites("a", rows=held, held=held, ending=frozenset("ab"))).release is None
    found = plan(at_sites("a", rows=held, held=held, ending=frozenset("a"))).release
    assert found is not None
    assert (found.to, found.home) == ("b", "a")
