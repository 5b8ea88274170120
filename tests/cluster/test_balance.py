"""Who should have how many groups."""

from __future__ import annotations

from obox.cluster.balance import balance


def after(owned: dict[str, list[str]], weights: dict[str, float]) -> dict[str, int]:
    has = {name: set(owned.get(name, ())) for name in weights}
    for shift in balance(owned, weights):
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
