"""The judge of `python -m bench.cluster` finds each kind of loss. It finds nothing if
nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bench.witness import Place, Shown, Verdict, Witness

USER = "anna@example.org"
ONE = Place(USER, "INBOX", 1)
COPY = Place(USER, "Archive", 7)
NO_FLAGS: frozenset[str] = frozenset()


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def witness(clock: Clock) -> Witness:
    """Return a witness that knows a mail with a flag, and a copy of this mail."""
    made = Witness(clock, 1.0)
    made.validity(USER, "INBOX", 5)
    made.accepted(USER, "m1")
    made.seen(ONE, "m1")
    made.seen(COPY, "m1")
    made.flagged(ONE, "k1", is_set=True)
    return made


def shown(
    inbox: dict[int, tuple[str, frozenset[str]]],
    archive: dict[int, tuple[str, frozenset[str]]] | None = None,
    validity: int = 5,
) -> dict[str, Shown]:
    return {
        "INBOX": Shown(validity, inbox),
        "Archive": Shown(6, {7: ("m1", NO_FLAGS)} if archive is None else archive),
    }


ALL = {1: ("m1", frozenset({"k1"}))}


def judged(witness: Witness, boxes: dict[str, Shown]) -> Verdict:
    witness.judge(USER, boxes)
    return witness.found


def test_nothing_is_lost(witness: Witness) -> None:
    found = judged(witness, shown(ALL))
    assert found == Verdict()


def test_a_mail_that_is_nowhere(witness: Witness) -> None:
    witness.accepted(USER, "m2")
    assert len(judged(witness, shown(ALL)).mails) == 1


def test_a_copy_that_is_gone(witness: Witness) -> None:
    assert len(judged(witness, shown(ALL, {})).mails) == 1


def test_a_mail_that_was_expunged_is_not_missed(witness: Witness) -> None:
    witness.leaves(ONE, expunged=True)
    assert judged(witness, shown({})) == Verdict()


def test_a_mail_that_was_moved_has_to_be_somewhere(witness: Witness) -> None:
    witness.leaves(ONE, expunged=False)
    witness.leaves(COPY, expunged=False)
    assert len(judged(witness, shown({}, {})).mails) == 1


@pytest.mark.parametrize(
    "boxes",
    [
        shown({2: ("m1", frozenset({"k1"}))}),
        shown({1: ("m9", NO_FLAGS)}, {7: ("m1", NO_FLAGS), 8: ("m1", NO_FLAGS)}),
        shown(ALL, validity=6),
    ],
    ids=["moved", "used twice", "another UIDVALIDITY"],
)
def test_uids_that_do_not_hold(witness: Witness, boxes: dict[str, Shown]) -> None:
    assert len(judged(witness, boxes).uids) == 1


def test_a_uid_that_shows_two_mails_while_the_cluster_runs(witness: Witness) -> None:
    witness.seen(ONE, "m2")
    assert len(witness.found.uids) == 1


def test_a_flag_is_lost_unless_a_backend_was_killed_just_then(witness: Witness, clock: Clock) -> None:
    boxes = shown({1: ("m1", NO_FLAGS)})
    clock.now += 1.5
    witness.killed(clock.now)
    found = judged(witness, boxes)
    assert (len(found.flags), len(found.flags_within)) == (0, 1)
    clock.now += 5
    witness.flagged(ONE, "k1", is_set=True)
    clock.now += 5
    witness.killed(clock.now)
    assert len(judged(witness, boxes).flags) == 1


def test_a_flag_that_nobody_has_answered_is_not_judged(witness: Witness) -> None:
    witness.flagging(ONE, "k1")
    assert judged(witness, shown({1: ("m1", NO_FLAGS)})) == Verdict()


def test_an_expunge_that_is_undone(witness: Witness) -> None:
    witness.leaves(ONE, expunged=True)
    witness.has_left(ONE)
    assert len(judged(witness, shown(ALL)).flags) == 1


def test_a_suspended_backend_that_is_killed_loses_what_it_had_before(witness: Witness, clock: Clock) -> None:
    suspended = clock.now + 1
    clock.now += 60
    witness.killed(suspended)
    assert len(judged(witness, shown({1: ("m1", NO_FLAGS)})).flags_within) == 1


def test_a_select_without_a_known_mail(witness: Witness) -> None:
    had_to = witness.known(USER, "INBOX")
    witness.shown(USER, "INBOX", had_to, [1, 2])
    assert witness.old == []
    witness.shown(USER, "INBOX", had_to, [2])
    assert len(witness.old) == 1


def test_a_delivery_that_is_shown_twice(witness: Witness) -> None:
    assert len(judged(witness, shown({**ALL, 2: ("m1", NO_FLAGS)})).twice) == 1


def test_a_user_who_is_served_meanwhile_is_not_without_service(witness: Witness, clock: Clock) -> None:
    began = clock.now
    clock.now += 4
    witness.served(USER, began, "delivery")
    clock.now += 5
    witness.served(USER, began, "delivery")
    witness.served(USER, began, "session")
    assert [took for took, _, _ in witness.outages] == [4, 5, 9]
