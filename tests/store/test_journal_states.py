"""The journals of two backends that wrote at the same time."""

from __future__ import annotations

import pytest

from obox.store.operate.journals import BootState, writers_at_once

Times = dict[int, tuple[float, float]]


def state(backend: str, **users: Times) -> BootState:
    return BootState(backend, f"boot of {backend}", False, users, 9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({3: (10.0, 20.0)}, {5: (21.0, 30.0)}),
        ({3: (10.0, 20.0), 7: (40.0, 50.0)}, {5: (21.0, 30.0)}),
        ({3: (10.0, 20.0)}, {3: (15.0, 30.0)}),
    ],
    ids=["handed over", "and back", "the same assignment"],
)
def test_who_is_handed_over_has_one_writer_at_a_time(one: Times, other: Times) -> None:
    assert writers_at_once([state("a", anna=one), state("b", anna=other)]) == {}


def test_who_writes_without_knowing_of_the_newer_assignment_is_found() -> None:
    states = [
        state("b", anna={5: (21.0, 30.0)}, ben={5: (1.0, 2.0)}),
        state("a", anna={3: (10.0, 25.0)}, zoe={3: (1.0, 1.0)}),
    ]
    assert writers_at_once(states) == {("a", "b"): ["anna"]}
    assert writers_at_once(states[::-1]) == {("a", "b"): ["anna"]}


def test_two_boots_of_one_backend_are_one_writer() -> None:
    assert writers_at_once([state("a", anna={3: (10.0, 25.0)}), state("a", anna={5: (12.0, 13.0)})]) == {}
