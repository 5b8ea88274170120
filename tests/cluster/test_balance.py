"""The calculation of how many groups each backend should have."""

from __future__ import annotations

import random

import pytest

from obox.cluster.balance import SHIFT_MAX, Load, People, balance, shares
from obox.membership import LOAD_S, MachineLoad


def after(
    owned: dict[str, list[str]], weights: dict[str, float], loads: dict[str, Load] | None = None
) -> dict[str, int]:
    has = {name: set(owned.get(name, ())) for name in weights}
    for shift in balance(owned, weights, loads):
        has[shift.source].remove(shift.unit)
        has[shift.to].add(shift.unit)
    return {name: len(units) for name, units in has.items()}


def units(first: int, last: int) -> list[str]:
    return [f"{number:05}" for number in range(first, last)]


def test_groups_follow_load_factors() -> None:
    assert after({"a": units(0, 100)}, {"a": 100, "b": 100}) == {"a": 50, "b": 50}
    assert after({"a": units(0, 100)}, {"a": 75, "b": 25}) == {"a": 75, "b": 25}
    assert after({"a": units(0, 50), "b": units(50, 100)}, {"a": 100, "b": 100, "c": 100}) == {
        "a": 34,
        "b": 33,
        "c": 33,
    }
    assert after({"a": units(0, 10)}, {"a": 0, "b": 100, "c": 100}) == {"a": 0, "b": 5, "c": 5}


def test_nothing_moves_without_a_gain() -> None:
    assert balance({"a": units(0, 4), "b": units(4, 7)}, {"a": 100, "b": 100}) == []
    assert balance({"a": units(0, 4)}, {"a": 100}) == []
    assert balance({"a": units(0, 4)}, {"a": 0}) == []
    assert balance({}, {}) == []


def test_each_group_moves_once() -> None:
    shifts = balance({"a": units(0, 60), "b": units(60, 64), "c": []}, {"a": 100, "b": 50, "c": 10})
    assert len({shift.unit for shift in shifts}) == len(shifts)
    assert shifts == balance({"a": units(0, 60), "b": units(60, 64), "c": []}, {"a": 100, "b": 50, "c": 10})


# -- the load of machines ----------------------------------------------------------------------------------------------

EVEN = {"a": 100.0, "b": 100.0}
HALVES = {"a": units(0, 50), "b": units(50, 100)}
HALVES_OF_80 = {"a": units(0, 40), "b": units(40, 80)}


def busy(**cpu: float) -> dict[str, Load]:
    return {name: Load(share, 0.3) for name, share in cpu.items()}


def test_a_busy_machine_gives_groups_to_an_idle_one_and_says_why() -> None:
    shifts = balance(HALVES, EVEN, busy(a=0.9, b=0.3))
    assert shifts
    assert {(shift.source, shift.to) for shift in shifts} == {("a", "b")}
    assert "a has 50 groups with 90% CPU and 30% memory in use, its share is 40.0" in shifts[0].why
    assert "b has 50 groups with 30% CPU" in shifts[0].why


def test_load_factors_bound_what_the_load_of_machines_does() -> None:
    moved = after(HALVES, EVEN, busy(a=1.0, b=0.0))
    assert 50 * (1 - SHIFT_MAX) - 1 <= moved["a"] < 50
    again = {"a": units(0, moved["a"]), "b": units(moved["a"], 100)}
    assert after(again, EVEN, busy(a=1.0, b=0.0))["a"] >= 50 * (1 - SHIFT_MAX) - 1


def test_machines_that_are_idle_or_alike_move_nothing() -> None:
    assert balance(HALVES, EVEN, busy(a=0.45, b=0.05)) == []
    assert balance(HALVES, EVEN, busy(a=0.9, b=0.75)) == []
    assert balance(HALVES, EVEN, busy(a=0.9)) == [], "the load of b is not known"


def test_what_was_moved_for_the_load_does_not_come_back_while_machines_are_busy() -> None:
    apart = {"a": units(0, 42), "b": units(42, 100)}
    assert balance(apart, EVEN, busy(a=0.7, b=0.65)) == []
    assert after(apart, EVEN, busy(a=0.2, b=0.1)) == {"a": 50, "b": 50}, "load factors count again"


def test_a_new_backend_gets_its_share_whatever_the_load() -> None:
    got = after({"a": units(0, 50), "b": units(50, 100)}, {**EVEN, "c": 100.0}, busy(a=0.8, b=0.8, c=0.02))
    assert 25 <= got["c"] <= 42
    assert abs(got["a"] - got["b"]) <= 1


def test_a_backend_that_is_back_gets_its_share_by_load_factor_if_all_are_as_busy() -> None:
    assert after({"a": [], "b": units(0, 64)}, EVEN, busy(a=0.95, b=1.0)) == {"a": 32, "b": 32}


def test_a_machine_without_memory_gets_nothing() -> None:
    loads = {"a": Load(0.1, 0.3), "b": Load(0.1, 0.97)}
    assert balance({"a": units(0, 10), "b": []}, EVEN, loads) == []
    assert after({"a": [], "b": units(0, 10)}, EVEN, loads) == {"a": 5, "b": 5}, "it may give"


# -- users -------------------------------------------------------------------------------------------------------------


def users_after(
    owned: dict[str, list[str]], weights: dict[str, float], people: People
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Return how many users each backend has after the moves, and the groups."""
    has = {name: set(owned.get(name, ())) for name in weights}
    for shift in balance(owned, weights, None, people):
        has[shift.source].remove(shift.unit)
        has[shift.to].add(shift.unit)
    counts = {name: people.pinned.get(name, 0) for name in weights}
    for name, groups in has.items():
        counts[name] += sum(people.groups.get(group, 0) for group in groups)
    return counts, {name: sorted(groups) for name, groups in has.items()}


def test_users_are_shared_out_and_not_groups() -> None:
    """The groups of a have a hundred users each, those of b have none."""
    people = People(dict.fromkeys(units(0, 40), 100), {})
    assert users_after(HALVES_OF_80, EVEN, people)[0] == {"a": 2000, "b": 2000}
    assert users_after(HALVES_OF_80, {"a": 75.0, "b": 25.0}, people)[0] == {"a": 3000, "b": 1000}


def test_a_few_users_more_move_nothing() -> None:
    people = People({**dict.fromkeys(units(0, 40), 20), "00000": 26, "00003": 25}, {})
    assert balance({"a": units(0, 20), "b": units(20, 40)}, EVEN, None, people) == []


def test_new_users_come_in_proportion() -> None:
    """A backend gets its part of the groups also if they have no users yet."""
    counts, groups = users_after({"a": units(0, 60)}, {"a": 100.0, "b": 50.0}, People({}, {}))
    assert (len(groups["a"]), len(groups["b"])) == (40, 20)
    people = People({group: 1 for group in units(0, 20)}, {})
    counts, groups = users_after({"a": units(0, 60)}, EVEN, people)
    assert sum(counts.values()) == 20
    assert abs(counts["a"] + len(groups["a"]) - counts["b"] - len(groups["b"])) <= 1


def test_pinned_users_count_where_they_are() -> None:
    people = People(dict.fromkeys(units(0, 20), 9), {"a": 100})
    counts, groups = users_after({"a": units(0, 10), "b": units(10, 20)}, EVEN, people)
    assert (len(groups["a"]), len(groups["b"])) == (5, 15)
    assert counts == {"a": 145, "b": 135}


def test_a_large_group_is_not_moved_to_and_fro() -> None:
    """One group has nearly all users. Its move would only change who has too many."""
    people = People({"00000": 1000}, {})
    shifts = balance({"a": units(0, 4), "b": units(4, 8)}, EVEN, None, people)
    assert "00000" not in {shift.unit for shift in shifts}
    assert {(shift.source, shift.to) for shift in shifts} == {("a", "b")}, "the small ones make room"


def test_groups_with_few_sessions_move_first() -> None:
    """A move ends sessions. Without sessions, the same groups move as before."""
    owned = {"a": units(0, 40), "b": []}
    sessions = {unit: number % 4 for number, unit in enumerate(units(0, 40))}
    shifts = balance(owned, EVEN, sessions=sessions)
    assert [sessions[shift.unit] for shift in shifts] == [0] * 10 + [1] * 10
    assert shifts[0].why.endswith("; 0 sessions of the group's users end")
    assert shifts[-1].why.endswith("; 1 session of the group's users end")
    plain = balance(owned, EVEN)
    assert [shift.unit for shift in balance(owned, EVEN, sessions={})] == [shift.unit for shift in plain]
    assert {shift.unit for shift in plain} != {shift.unit for shift in shifts}


def test_sessions_do_not_go_before_what_a_move_brings() -> None:
    """The group that fits is moved, however many sessions it has."""
    people = People({"00000": 10, "00001": 90}, {})
    (shift,) = balance({"a": ["00000", "00001"], "b": ["00002"]}, {"a": 80.0, "b": 20.0}, None, people, {"00000": 9})
    assert shift.unit == "00000"


def test_the_reason_names_users_groups_and_shares() -> None:
    people = People(dict.fromkeys(units(0, 40), 10), {"b": 7})
    first = balance(HALVES_OF_80, EVEN, busy(a=0.2, b=0.1), people)[0]
    assert first.why == (
        "a has 400 users in 40 groups with 20% CPU and 30% memory in use, 90.3% of all, its share is 50.0%; "
        "b has 7 users in 40 groups with 10% CPU and 30% memory in use, 9.7% of all, its share is 50.0%"
    )


@pytest.mark.parametrize("seed", range(30))
def test_every_move_helps_and_a_second_balance_moves_nothing(seed: int) -> None:
    rng = random.Random(seed)
    names = "abcde"[: rng.randint(2, 5)]
    weights = {name: float(rng.choice([0, 10, 50, 100])) for name in names}
    owned: dict[str, list[str]] = {name: [] for name in names}
    for unit in units(0, rng.choice([3, 20, 80])):
        owned[rng.choice(names)].append(unit)
    groups = {unit: rng.choice([0, 1, 3, 40]) for all_of in owned.values() for unit in all_of}
    people = People(groups, {name: rng.choice([0, 0, 30]) for name in names})
    shifts = balance(owned, weights, None, people)
    assert len({shift.unit for shift in shifts}) == len(shifts)
    assert all(shift.unit in owned[shift.source] and weights[shift.to] for shift in shifts)

    def apart(has: dict[str, list[str]]) -> float:
        count = {name: people.pinned[name] + sum(1 + groups[unit] for unit in has[name]) for name in names}
        wanted = shares(count, weights, {})
        return sum((count[name] - wanted[name]) ** 2 for name in names)

    _, moved = users_after(owned, weights, people)
    assert apart(moved) < apart(owned) if shifts else moved == {name: sorted(all_of) for name, all_of in owned.items()}
    assert balance(moved, weights, None, people) == []


def test_cpu_is_an_average() -> None:
    now = [0.1]
    load = MachineLoad(lambda: now[0], lambda: 0.5)
    assert load() == {"cpu": 0.1, "memory": 0.5}
    now[0] = 1.0
    assert load()["cpu"] < 0.12, "a second says little"
    for _ in range(3 * LOAD_S):
        load()
    assert load()["cpu"] > 0.9
