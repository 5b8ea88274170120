"""Texts and numbers in order, in steps."""

import random
from collections.abc import Generator, Sequence
from typing import TypeVar

import numpy as np
import pytest

from obox.mailbox import collated, sorting
from obox.mailbox.sorting import in_order, sorted_rows

T = TypeVar("T")


def run(steps: Generator[None, None, T]) -> tuple[T, int]:
    """Return the result, and the number of steps."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


@pytest.mark.parametrize("count", [0, 1, 2, 4_096, 4_097, 30_000])
def test_texts_in_order(count: int) -> None:
    texts = [f"{random.Random(at).getrandbits(60):x}" for at in range(count)]
    found, steps = run(in_order(texts))
    assert found == sorted(texts)
    assert steps >= count // sorting.RUN


def test_no_step_has_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their order was: each 64th text comes before all others here."""
    sizes: list[int] = []

    def spy(texts: Sequence[str]) -> list[str]:
        sizes.append(len(texts))
        return sorted(texts)

    monkeypatch.setattr(sorting, "sorted", spy, raising=False)
    count = 60 * sorting.RUN
    texts = [f"{at % 64 > 0:d}{random.Random(at).getrandbits(60):x}" for at in range(count)]
    found, _ = run(in_order(texts))
    assert found == sorted(texts)
    assert max(sizes) < 8 * sorting.RUN


def test_rows_by_several_keys() -> None:
    first, second = np.array([2, 1, 2, 1]), np.array([5, 6, 7, 6])
    assert sorted_rows([(first, False), (second, False)], 4).tolist() == [1, 3, 0, 2]
    assert sorted_rows([(first, True), (second, True)], 4).tolist() == [2, 0, 1, 3]
    assert sorted_rows([], 3).tolist() == [0, 1, 2]


def test_texts_compare_without_case() -> None:
    """RFC 5051: capitals, so `_` comes behind letters, as under i;ascii-casemap."""
    assert sorted(["b", "_", "A", "a b", "B"], key=collated) == ["A", "a b", "b", "B", "_"]
    assert collated("\u00c9t\u00e9") == collated("e\u0301T\u00c9")
    assert collated("\uff21") == "A"
    assert collated("stra\u00dfe") == "STRA\u00dfE"


@pytest.mark.parametrize("text", ["a" * 10_000, "\ufdfa" * 1_000, "\u0301\u0316" * 5_000, "\u0345a" * 1_000])
def test_what_is_compared_is_bounded(text: str) -> None:
    assert len(collated(text)) <= 500
