"""What SORT and THREAD remember of mails."""

import random
from collections.abc import Generator, Sequence
from typing import TypeVar

import numpy as np
import pytest

from obox.mailbox import UidArray, values
from obox.mailbox.values import Counted, Linked, Ranked, Values

T = TypeVar("T")


def run(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def uids(*numbers: int) -> UidArray:
    return np.array(numbers, dtype=np.uint32)


def ranked(pairs: Sequence[tuple[int, str]], known: Ranked | None = None) -> Ranked:
    return run((known or Ranked()).with_more(uids(*(uid for uid, _ in pairs)), [text for _, text in pairs]))


def test_equal_texts_have_equal_numbers() -> None:
    found = ranked([(1, "b"), (2, "a"), (3, "b"), (4, "c"), (5, "")])
    assert found.of(uids(1, 2, 3, 4, 5)).tolist() == [2, 1, 2, 3, 0]
    assert found.of(uids(2, 4)).tolist() == [1, 3]


def test_no_text_has_the_number_of_the_empty_text() -> None:
    assert ranked([(1, "b"), (2, "a")]).of(uids(1, 2)).tolist() == [2, 1]


@pytest.mark.parametrize("seed", range(20))
def test_more_mails_change_the_order_of_none(seed: int) -> None:
    """Mails come in several portions. The numbers have the order of the texts."""
    chance = random.Random(seed)
    texts = {uid: chance.choice(["", "a", "b", "ab", f"{chance.randrange(40):x}"]) for uid in range(1, 200)}
    found, left = Ranked(), list(texts)
    chance.shuffle(left)
    while left:
        count = chance.randrange(1, 80)
        part, left = sorted(left[:count]), left[count:]
        found = ranked([(uid, texts[uid]) for uid in part], found)
    order = {text: at for at, text in enumerate(sorted({"", *texts.values()}))}
    some = sorted(chance.sample(list(texts), 50))
    numbers = found.of(uids(*some)).tolist()
    expected = [order[texts[uid]] for uid in some]
    ranks = {number: at for at, number in enumerate(sorted(set(numbers) | {0}))}
    again = {number: at for at, number in enumerate(sorted(set(expected) | {0}))}
    assert [ranks[number] for number in numbers] == [again[number] for number in expected]
    assert found.chars == sum(map(len, set(texts.values())))
    assert found.uids.tolist() == sorted(texts)


def test_no_step_handles_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "RUN", 10)
    count = sum(1 for _ in Ranked().with_more(uids(*range(1, 101)), [f"{at:03}" for at in range(100)]))
    assert count >= 40


def test_numbers() -> None:
    found = run(Counted().with_more(uids(3, 5), [30, None]))
    found = run(found.with_more(uids(1, 4), [10, 0]))
    assert found.of(uids(1, 3, 4, 5), np.array([7, 7, 7, 7])).tolist() == [10, 30, 0, 7]


def test_links() -> None:
    found = run(Linked().with_more(uids(3), [(b"<3>", (b"<1>",))]))
    found = run(found.with_more(uids(1, 5), [(b"<1>", ()), (b"", (b"<3>", b"<1>"))]))
    assert found.of(uids(1, 3, 5)) == [(b"<1>", ()), (b"<3>", (b"<1>",)), (b"", (b"<3>", b"<1>"))]
    assert found.of(uids(3)) == [(b"<3>", (b"<1>",))]


def test_the_least_recently_used_is_forgotten() -> None:
    one = ranked([(1, "x" * 100)])
    held = Values(bytes_max=5 * one.nbytes)
    for name in range(5):
        held.put(name, one)
    assert held.get(0) is one
    held.put(5, one)
    assert held.get(0) is one
    assert held.get(1) is None
    assert held.nbytes <= held.bytes_max


def test_values_that_are_too_large_are_not_kept() -> None:
    one = ranked([(1, "x" * 100)])
    held = Values(bytes_max=4 * one.nbytes)
    held.put("box", one)
    assert held.get("box") is one
    held.put("box", ranked([(2, "y" * 500)], one))
    assert held.get("box") is None
    assert held.nbytes == 0
