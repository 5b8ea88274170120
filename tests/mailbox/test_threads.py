"""Threads, RFC 5256 §3: the algorithms, and that they stay within bounds."""

import asyncio
import random
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pytest

from obox.errors import Limit
from obox.mailbox import threads
from obox.mailbox.threads import References, by_subject
from tests.turns import turns

T = TypeVar("T")


class Mail(NamedTuple):
    id: str
    references: str = ""
    subject: int = 0
    reply: bool = False


def run(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def threaded(mails: Sequence[Mail], dates: Sequence[int] = ()) -> str:
    """Return the answer for mails 1, 2, …, which came in this order, unless dates say
    otherwise."""
    links = References(len(mails))
    for mail in mails:
        links.add(mail.id.encode(), [one.encode() for one in mail.references.split()])
    ranks = np.empty(len(mails), dtype=np.int64)
    ranks[np.argsort(np.array(dates or range(len(mails))), kind="stable")] = np.arange(len(mails))
    forest = run(links.forest(ranks, [mail.subject for mail in mails], [mail.reply for mail in mails]))
    return run(forest.written(range(1, len(mails) + 1))).decode()


@pytest.mark.parametrize(
    ("mails", "expected"),
    [
        ([], ""),
        ([Mail("a")], "(1)"),
        ([Mail("a"), Mail("b", "a"), Mail("c", "a b")], "(1 2 3)"),
        ([Mail("a"), Mail("b", "a"), Mail("c", "a"), Mail("d", "a b")], "(1 (2 4)(3))"),
        # the parent comes later
        ([Mail("b", "a"), Mail("a")], "(2 1)"),
        # a mail that is not there: its only child takes its place, others stay
        # together
        ([Mail("b", "x")], "(1)"),
        ([Mail("b", "x"), Mail("c", "x")], "((1)(2))"),
        ([Mail("a"), Mail("b", "a x"), Mail("c", "a x")], "(1 (2)(3))"),
        ([Mail("b", "x y z"), Mail("c", "x y z")], "((1)(2))"),
        # loops
        ([Mail("a", "a")], "(1)"),
        ([Mail("a", "b"), Mail("b", "a")], "(2 1)"),
        ([Mail("a", "b c"), Mail("b", "c a"), Mail("c", "a b")], "(2 3 1)"),
        # two mails of one Message-ID, and mails without one
        ([Mail("a"), Mail("a"), Mail("b", "a")], "(1 3)(2)"),
        ([Mail(""), Mail("")], "(1)(2)"),
        # the mail's own References are right, others may have guessed
        ([Mail("a"), Mail("b"), Mail("d", "a c"), Mail("c", "b")], "(1)(2 4 3)"),
        # the same base subject: a reply below a mail that is none, else below a dummy
        ([Mail("a", "", 1), Mail("b", "", 1, True)], "(1 2)"),
        ([Mail("b", "", 1, True), Mail("a", "", 1)], "(2 1)"),
        ([Mail("a", "", 1), Mail("b", "", 1)], "((1)(2))"),
        ([Mail("a", "", 1, True), Mail("b", "", 1, True), Mail("c", "", 1, True)], "((1)(2)(3))"),
        ([Mail("a", "", 1), Mail("b", "x", 1), Mail("c", "x", 1)], "((1)(2)(3))"),
        ([Mail("a", "x", 1), Mail("b", "x", 1), Mail("c", "y", 1), Mail("d", "y", 1)], "((1)(2)(3)(4))"),
        ([Mail("a", "", 0), Mail("b", "", 0)], "(1)(2)"),
        ([Mail("a", "", 1, True), Mail("b", "", 1), Mail("c", "", 1), Mail("d", "", 1, True)], "((2 1)(3)(4))"),
    ],
)
def test_references(mails: list[Mail], expected: str) -> None:
    assert threaded(mails) == expected


def by_newest(mails: Sequence[Mail], dates: Sequence[int]) -> str:
    """Return the answer of REFS."""
    links = References(len(mails))
    for mail in mails:
        links.add(mail.id.encode(), [one.encode() for one in mail.references.split()])
    forest = run(links.by_newest(np.array(dates)))
    return run(forest.written(range(1, len(mails) + 1))).decode()


@pytest.mark.parametrize(
    ("mails", "dates", "expected"),
    [
        ([], [], ""),
        # the thread with the newest mail is the last, however deep it lies
        ([Mail("a"), Mail("b"), Mail("c", "a"), Mail("d", "a c")], [0, 1, 2, 3], "(2)(1 3 4)"),
        ([Mail("a"), Mail("b"), Mail("c", "a"), Mail("d")], [3, 1, 0, 2], "(2)(4)(1 3)"),
        # siblings come by date
        ([Mail("a"), Mail("b", "a"), Mail("c", "a")], [0, 2, 1], "(1 (3)(2))"),
        ([Mail("b", "x"), Mail("c", "x"), Mail("d")], [3, 0, 1], "(3)((2)(1))"),
        # the same subject joins nothing
        ([Mail("a", "", 1), Mail("b", "", 1, True)], [1, 0], "(2)(1)"),
    ],
)
def test_refs(mails: list[Mail], dates: list[int], expected: str) -> None:
    assert by_newest(mails, dates) == expected


def test_threads_and_siblings_come_by_date() -> None:
    mails = [Mail("a"), Mail("b", "a"), Mail("c", "a"), Mail("d"), Mail("e", "x"), Mail("f", "x")]
    assert threaded(mails, [5, 9, 7, 3, 8, 4]) == "(4)((6)(5))(1 (3)(2))"


def test_ordered_subject() -> None:
    subjects, dates = np.array([1, 2, 1, 3, 2, 1]), np.array([9, 2, 5, 1, 8, 7])
    forest = by_subject(subjects, dates)
    assert run(forest.written([10, 20, 30, 40, 50, 60])) == b"(40)(20 50)(30 (60)(10))"
    empty = np.array([], dtype=np.int64)
    assert run(by_subject(empty, empty).written([])) == b""


def test_each_mail_is_in_one_thread() -> None:
    chance = random.Random(4)
    for _ in range(300):
        count = chance.randint(1, 30)
        ids = [f"m{chance.randint(1, count)}" if chance.random() < 0.9 else "" for _ in range(count)]
        mails = [
            Mail(
                one,
                " ".join(f"m{chance.randint(1, count + 5)}" for _ in range(chance.randint(0, 4))),
                chance.randint(0, 6),
                chance.random() < 0.5,
            )
            for one in ids
        ]
        answer = threaded(mails, [chance.randint(1, 9) for _ in mails])
        numbers = answer.replace("(", " ").replace(")", " ").split()
        assert sorted(map(int, numbers)) == list(range(1, count + 1)), (mails, answer)


async def test_many_mails_in_short_steps() -> None:
    """There are a chain, a star, and mails that refer to many that are not there. Each
    step is a turn of the loop."""
    count = 30_000
    chain = [Mail(f"m{at}", f"m{at - 1}") for at in range(count)]
    star = [Mail(f"m{at}", "m0", 1, True) for at in range(count)]
    alone = [Mail(f"m{at}", "", 1, at % 2 == 0) for at in range(count)]
    others = [Mail(f"m{at}", f"x{at % 999} y{at % 31} z{at % 7}", at % 50) for at in range(count)]
    for mails in (chain, chain[::-1], star, alone, others):
        links = References(len(mails))
        for mail in mails:
            links.add(mail.id.encode(), [one.encode() for one in mail.references.split()])
        ranks = np.arange(len(mails))
        with turns() as found:
            steps = links.forest(ranks, [mail.subject for mail in mails], [mail.reply for mail in mails])
            forest = await _in_turns(steps)
            answer = await _in_turns(forest.written(range(1, count + 1)))
            found.check()
        assert answer.count(b"(") == answer.count(b")")


async def _in_turns(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        await asyncio.sleep(0)


def test_what_a_hostile_mailbox_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WALK_MAX", 10_000)
    deep = [Mail(f"m{at}", f"m{at - 1}") for at in range(2_000)]
    more = [Mail(f"r{at}", "") for at in range(500)] + [Mail(f"s{at}", f"m1999 r{at}") for at in range(500)]
    below = [Mail(f"t{at}", f"r{at}") for at in range(500)]
    with pytest.raises(Limit):
        threaded([*deep, *below, *more])
    monkeypatch.setattr(threads, "REFERENCES_MAX", 10)
    with pytest.raises(Limit):
        threaded([Mail("a", " ".join("bcdefghijkl"))])
