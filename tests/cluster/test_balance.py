"""The calculation of how many groups each backend should have."""

from __future__ import annotations

from obox.cluster.balance import SHIFT_MAX, Load, balance
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


def test_cpu_is_an_average() -> None:
    now = [0.1]
    load = MachineLoad(lambda: now[0], lambda: 0.5)
    assert load() == {"cpu": 0.1, "memory": 0.5}
    now[0] = 1.0
    assert load()["cpu"] < 0.12, "a second says little"
    for _ in range(3 * LOAD_S):
        load()
    assert load()["cpu"] > 0.9
