"""The state of a mailbox: what commands change, whether a client's MODSEQ is trusted,
and what may be deleted."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from obox.errors import Limit
from obox.mailbox import (
    CLAIM_PURGED,
    KEYWORDS_MAX,
    KEYWORDS_STAMPED_MAX,
    MODSEQ_MAX,
    UIDS_MAX,
    Delta,
    FlagOp,
    Gone,
    Holders,
    Rows,
    State,
    UidArray,
    _records,
    expunge_delta,
    flag_delta,
    pack_ranges,
    takeover_delta,
    uid_array,
    unpack_ranges,
)
from obox.mailbox.invariants import check, fingerprint
from obox.mailbox.view import View
from obox.types import Guid

OTHER = Guid("b" * 32)


def uids(*numbers: int) -> UidArray:
    return np.array(numbers, dtype=np.uint32)


def rows(uid: int, *flags: str, modseq: int = 5, home: Guid | None = None, home_uid: int = 0) -> Rows:
    return Rows.one(
        uid,
        size=100,
        internaldate=0,
        zone=0,
        savedate=0,
        modseq=modseq,
        oid=uid.to_bytes(16, "big"),
        flags=flags,
        home=home,
        home_uid=home_uid,
    )


def state_of(*mails: Rows) -> State:
    state = State(Guid("a" * 32))
    for mail in mails:
        state.join(Delta(rows=mail))
    check(state)
    return state


def flags_of(state: State, uid: int) -> set[str]:
    position = state.position(uid)
    assert position is not None
    return set(state.flags.of_bits(state.flag_bits(slice(position, position + 1))[0]))


# -- reading -----------------------------------------------------------------------------------------------------------


def test_empty() -> None:
    state = State(Guid("a" * 32))
    check(state)
    where, there = state.positions(uids(1, 2))
    assert (len(where), there.tolist()) == (2, [False, False])
    assert state.position(1) is None
    assert not state.join(Delta())
    assert not state.join(
        Delta(rows=Rows.empty(), flags=[("\\Seen", 3, uids())], gone=Gone.at(9, uids()), purged=uids())
    )
    assert len(state.gone_since(0)) == len(state.dead(10**15)) == 0
    assert flag_delta(state, uids(1), "add", ["\\Seen"], 10)[0] is None
    assert expunge_delta(state, uids(1), 10)[0] is None
    assert Delta.decode(state.extract().encode()).rows is None


def test_positions() -> None:
    state = state_of(rows(2), rows(9), rows(5))
    where, there = state.positions(uids(1, 2, 5, 6, 9, 4_294_967_295))
    assert there.tolist() == [False, True, True, False, True, False]
    assert where[there].tolist() == [0, 1, 2]
    assert [state.position(uid) for uid in (1, 2, 5, 9, 10)] == [None, 0, 1, 2, None]
    assert state.uidnext == 10


def test_next_modseq() -> None:
    state = State(Guid("a" * 32))
    assert state.next_modseq(1000) == 1000
    state.join(Delta(highestmodseq=2000))
    assert state.next_modseq(1000) == 2001
    state.join(Delta(highestmodseq=MODSEQ_MAX))
    assert state.next_modseq(0) == MODSEQ_MAX


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "flags", "want", "changed"),
    [
        ("add", ["\\Seen"], {1: {"\\Seen"}, 2: {"\\Seen", "work"}, 3: {"\\Seen"}}, [3]),
        ("add", ["\\Seen", "WORK"], {1: {"\\Seen", "work"}, 2: {"\\Seen", "work"}, 3: {"\\Seen", "work"}}, [1, 3]),
        ("add", [], {1: {"\\Seen"}, 2: {"\\Seen", "work"}, 3: set()}, []),
        ("add", ["new", "New"], {1: {"\\Seen", "new"}, 2: {"\\Seen", "work", "new"}, 3: {"new"}}, [1, 2, 3]),
        ("remove", ["work"], {1: {"\\Seen"}, 2: {"\\Seen"}, 3: set()}, [2]),
        ("remove", ["unheard"], {1: {"\\Seen"}, 2: {"\\Seen", "work"}, 3: set()}, []),
        ("replace", ["\\seen"], {1: {"\\Seen"}, 2: {"\\Seen"}, 3: {"\\Seen"}}, [2, 3]),
        ("replace", [], {1: set(), 2: set(), 3: set()}, [1, 2]),
        ("replace", ["a", "\\Flagged"], {uid: {"a", "\\Flagged"} for uid in (1, 2, 3)}, [1, 2, 3]),
    ],
)
def test_flag_delta(op: FlagOp, flags: list[str], want: dict[int, set[str]], changed: list[int]) -> None:
    state = state_of(rows(1, "\\Seen"), rows(2, "\\Seen", "work"), rows(3))
    before = fingerprint(state)
    delta, altered = flag_delta(state, uids(1, 2, 3, 7), op, flags, 50)
    assert fingerprint(state) == before
    assert altered.tolist() == changed
    assert (delta is None) == (not changed)
    if delta is not None:
        got = state.join(Delta.decode(delta.encode()))
        assert got.flags.tolist() == changed
        assert state.modseqs[np.isin(state.uids, changed)].tolist() == [50] * len(changed)
        assert flag_delta(state, uids(1, 2, 3), op, flags, 60)[0] is None
    check(state)
    assert {uid: flags_of(state, uid) for uid in (1, 2, 3)} == want


def test_a_replay_changes_nothing() -> None:
    state = state_of(rows(1))
    delta, _ = flag_delta(state, uids(1), "add", ["\\Seen"], 50)
    assert delta is not None
    assert state.join(delta)
    assert not state.join(delta)
    assert not state.join(Delta(rows=rows(1)))
    later, _ = flag_delta(state, uids(1), "remove", ["\\Seen"], 60)
    assert later is not None
    state.join(later)
    assert not state.join(delta)
    assert flags_of(state, 1) == set()
    assert state.unseen == 1


def test_unsorted_uids_are_put_in_order() -> None:
    state = state_of(rows(1), rows(2), rows(3))
    delta, altered = flag_delta(state, uids(3, 1, 1), "add", ["\\Seen"], 50)
    assert delta is not None
    assert altered.tolist() == [1, 3]
    assert Delta.decode(delta.encode()).flags[0][2].tolist() == [1, 3]
    delta, altered = expunge_delta(state, uids(3, 2, 3), 50)
    assert delta is not None
    assert altered.tolist() == [2, 3]
    state.join(delta)
    check(state)


def test_keyword_limit() -> None:
    state = state_of(rows(1, *(f"k{i}" for i in range(KEYWORDS_MAX - 1))))
    with pytest.raises(Limit, match="59 keywords"):
        flag_delta(state, uids(1), "add", ["x", "y"], 50)
    with pytest.raises(Limit):
        state.spell(["x", "y"])
    delta, _ = flag_delta(state, uids(1), "add", ["x", "X", "K1"], 50)
    assert delta is not None
    state.join(delta)
    assert len(state.flags.keywords) == KEYWORDS_MAX
    assert flag_delta(state, uids(1), "add", ["x", "k5", "\\Seen"], 60)[0] is not None
    with pytest.raises(Limit):
        flag_delta(state, uids(1), "add", ["y"], 50)
    assert flag_delta(state, uids(1), "remove", ["y"], 50)[0] is None
    # Bit 63 is handled as the other bits.
    assert "x" in flags_of(state, 1)
    assert state.flags.mask(["X"]) == 1 << 63


def test_another_writers_keyword_in_another_case_is_the_same() -> None:
    state = state_of(rows(1, "$Forwarded"))
    state.join(Delta(flags=[("$forwarded", 20, uids(1))]))
    assert flags_of(state, 1) == set()
    state.join(Delta(rows=rows(2, "$FORWARDED", "\\SEEN")))
    assert flags_of(state, 2) == {"$Forwarded", "\\Seen"}
    assert state.unseen == 1
    check(state)


def test_a_merge_that_brings_too_many_keywords_takes_none_from_any_mail() -> None:
    """A join may bring more keywords than are allowed, whichever state comes first. All
    of them are shown, found and changed as usual, but no new keyword is accepted."""
    many = [f"b{i:02}" for i in range(KEYWORDS_MAX)]
    parts = [rows(1, *many), rows(2, "c"), rows(3, "a", "\\Seen")]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        state = state_of(*(parts[at] for at in order))
        assert [flags_of(state, uid) for uid in (1, 2, 3)] == [set(many), {"c"}, {"a", "\\Seen"}]
        assert state.full
        assert state.has_flag("C", slice(None)).tolist() == [False, True, False]
        assert state.has_flag("b58", slice(None)).tolist() == [True, False, False]
        with pytest.raises(Limit):
            state.spell(["d"])
        assert state.spell(["A", "c", "B00"]) == ["a", "c", "b00"]
        assert flag_delta(state, uids(1, 2, 3), "add", ["c"], 40)[1].tolist() == [1, 3]
        delta, altered = flag_delta(state, uids(1, 2, 3), "replace", ["\\Seen"], 50)
        assert delta is not None
        assert altered.tolist() == [1, 2, 3]
        changed = state.join(delta)
        assert changed.flags.tolist() == [1, 2, 3]
        assert [flags_of(state, uid) for uid in (1, 2, 3)] == [{"\\Seen"}] * 3
        assert state.unseen == 0
        check(state)
        again = State(state.guid)
        again.join(Delta.decode(state.extract().encode()))
        assert fingerprint(again) == fingerprint(state)
        assert again.flags.keywords == [], "no mail has one"


def test_a_keyword_that_no_mail_has_makes_room() -> None:
    """RFC 3501 §2.3.2 has no way to delete a keyword. It is forgotten when no mail has
    it."""
    state = state_of(rows(1, *(f"k{i}" for i in range(KEYWORDS_MAX))), rows(2))
    assert state.full
    version = state.flags.version
    delta, _ = flag_delta(state, uids(1), "remove", ["k7"], 40)
    assert delta is not None
    state.join(delta)
    assert not state.full
    assert "k7" in state.flags.keywords, "nothing wants its place yet"
    assert state.flags.version == version
    delta, _ = flag_delta(state, uids(2), "add", ["new"], 50)
    assert delta is not None
    state.join(delta)
    assert state.flags.version > version
    assert set(state.flags.keywords) == {*(f"k{i}" for i in range(KEYWORDS_MAX) if i != 7), "new"}
    assert (state.full, flags_of(state, 2), "k7" in flags_of(state, 1)) == (True, {"new"}, False)
    with pytest.raises(Limit):
        flag_delta(state, uids(1), "add", ["k7"], 60)
    # This change is older than the removal of the keyword.
    state.join(Delta(flags=[("K7", 39 * 2 + 1, uids(1))]))
    assert "k7" not in flags_of(state, 1)
    state.join(Delta(gone=Gone.at(70, uids(1))))
    assert state.spell(["k7", *(f"n{i}" for i in range(KEYWORDS_MAX - 2))])
    check(state)


def test_keywords_of_mails_in_the_making_count() -> None:
    state = state_of(rows(1, *(f"k{i}" for i in range(KEYWORDS_MAX - 2))))
    one, two = state.flags.expect(["a", "\\Seen"]), state.flags.expect(["A", "b"])
    with pytest.raises(Limit):
        state.spell(["c"])
    assert state.spell(["a", "b"]) == ["a", "b"]
    one()
    with pytest.raises(Limit):
        state.spell(["c"])
    two()
    assert state.spell(["c", "d"]) == ["c", "d"]


def test_keywords_that_come_and_go_are_bounded_until_they_are_forgotten() -> None:
    """The state remembers which keywords a mail had lately, for a join with another
    writer. That takes 8 bytes for each mail and keyword."""
    state = state_of(rows(1), rows(2))
    for at in range(KEYWORDS_STAMPED_MAX):
        for op, now in (("add", 100 + at), ("remove", 1000 + at)):
            delta, _ = flag_delta(state, uids(1), op, [f"k{at}"], now)
            assert delta is not None
            state.join(delta)
        assert state.full == (at == KEYWORDS_STAMPED_MAX - 1), "PERMANENTFLAGS promises no new keyword then"
    with pytest.raises(Limit, match="remembers"):
        state.spell(["one-more"])
    assert state.spell(["k5"]) == ["k5"]
    last = 1000 + KEYWORDS_STAMPED_MAX - 1
    assert len(state.forgettable(1010)) < KEYWORDS_STAMPED_MAX
    names = state.forgettable(last + 1000)
    assert len(names) == KEYWORDS_STAMPED_MAX
    base = Delta.decode(state.extract(without=names).encode())
    assert base.rows is not None
    assert not base.rows.stamps
    delta, _ = flag_delta(state, uids(2), "add", ["k5"], last + 10)
    assert delta is not None
    # This delta came while the base was being uploaded.
    state.join(delta)
    state.forget(names, last + 1000)
    assert flags_of(state, 2) == {"k5"}
    assert not state.full
    assert state.spell([f"n{i}" for i in range(KEYWORDS_MAX - 1)])
    check(state)


# -- expunged mails that sessions still count --------------------------------------------------------------------------


def test_records_of_expunged_mails_are_kept_for_who_counts_them() -> None:
    state = state_of(rows(1, "\\Flagged"), rows(2, "label"), rows(3), rows(4))
    one, two = View(state), View(state)
    table, where, known = state.records(uids(1, 3))
    assert table is state
    assert known.tolist() == [1, 3]
    for uid in (2, 4):
        delta, _ = expunge_delta(state, uids(uid), 50 + uid)
        assert delta is not None
        state.join(delta)
    table, where, known = state.records(uids(1, 2, 4, 9))
    assert known.tolist() == [1, 2, 4]
    assert table.uids[where].tolist() == [1, 2, 4]
    assert [state.flags.of_bits(bits) for bits in table.flag_bits(where)] == [["\\Flagged"], ["label"], []]
    assert one.poll(state, expunge=False) is None
    assert one.poll(state, expunge=True) is not None
    assert len(state.retained) == 2, "the other has not heard"
    two.close()
    assert len(state.retained) == 0
    assert state.records(uids(1, 2))[2].tolist() == [1]
    del two
    delta, _ = expunge_delta(state, uids(1), 90)
    assert delta is not None
    state.join(delta)
    # This session has ended without the usual steps.
    del one
    gc.collect()
    state.join(Delta(gone=Gone.at(95, uids(3))))
    View(state).close()
    assert len(state.retained) == 0


def test_a_keyword_of_a_retained_mail_keeps_its_place() -> None:
    state = state_of(rows(1, *(f"k{i}" for i in range(KEYWORDS_MAX))), rows(2))
    view = View(state)
    delta, _ = expunge_delta(state, uids(1), 50)
    assert delta is not None
    state.join(delta)
    assert state.full
    with pytest.raises(Limit):
        state.spell(["new"])
    view.poll(state, expunge=True)
    assert state.spell(["new"]) == ["new"]


def test_what_is_retained_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_records, "RETAINED_MAX", 100)
    state = state_of(*(rows(uid) for uid in range(1, 302)))
    view = View(state)
    for first, last in ((1, 1), (2, 2), (3, 60), *((uid, uid) for uid in range(61, 141)), (141, 300)):
        state.join(Delta(gone=Gone.at(90, uids(*range(first, last + 1)))))
        assert len(state.retained) == min(last, 100)
        assert len(state.retained.parts) <= _records.PARTS_MAX
        known = state.records(uids(*range(1, last + 1)))[2].tolist()
        assert known == list(range(max(1, last - 99), last + 1))
    assert len(view) == 301


# -- what comes early --------------------------------------------------------------------------------------------------


def test_flags_before_their_mail() -> None:
    state = State(Guid("a" * 32))
    assert not state.join(Delta(flags=[("\\Seen", 41, uids(3, 4))]))
    # A LIST from this UID on still finds the mail.
    assert state.uidnext == 1
    again = State(Guid("a" * 32))
    again.join(Delta.decode(state.extract(30).encode()))
    for one in (state, again):
        changed = one.join(Delta(rows=rows(3, "work")))
        assert (changed.new.tolist(), changed.flags.tolist()) == ([3], [])
        assert flags_of(one, 3) == {"\\Seen", "work"}
        assert (one.unseen, int(one.modseqs[0])) == (0, 20)
        check(one)


def test_purge_before_its_expunge() -> None:
    state = state_of(rows(3))
    state.join(Delta(purged=uids(3, 7)))
    assert state.position(3) is not None
    state.join(Delta(gone=Gone.at(30, uids(3, 7))))
    assert len(state.dead(10**15)) == 0
    check(state)


def test_an_expunge_before_its_mail_wins() -> None:
    state = State(Guid("a" * 32))
    state.join(Delta(gone=Gone.at(30, uids(3))))
    assert not state.join(Delta(rows=rows(3, modseq=90)))
    assert not state.join(Delta(flags=[("\\Seen", 201, uids(3))]))
    assert (len(state), state.uidnext, state.highestmodseq) == (0, 4, 100)
    check(state)


# -- MODSEQ and its gaps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gaps", "modseq", "want"),
    [
        ([], 15, 15),
        ([(10, 20)], 10, 10),
        ([(10, 20)], 11, 0),
        ([(10, 20)], 20, 0),
        ([(10, 20)], 21, 21),
        ([(10, 20), (20, 30)], 25, 0),
        ([(10, 20), (15, 30)], 25, 0),
        ([(10, 40), (20, 30)], 25, 0),
        ([(10, 10)], 10, 10),
        ([(10, 12), (10, 20)], 15, 0),
        ([], 101, 0),
    ],
)
def test_trusted(gaps: list[tuple[int, int]], modseq: int, want: int) -> None:
    state = State(Guid("a" * 32))
    state.join(Delta(highestmodseq=100))
    for gap in gaps:
        state.join(Delta(gaps=[gap]))
    assert state.trusted(modseq) == want


def test_gone_since() -> None:
    state = state_of(*(rows(uid) for uid in range(1, 6)))
    for modseq, uid in ((20, 2), (30, 4), (25, 5)):
        state.join(Delta(gone=Gone.at(modseq, uids(uid))))
    assert state.gone_since(19).tolist() == [2, 4, 5]
    assert state.gone_since(20).tolist() == [4, 5]
    assert state.gone_since(30).tolist() == []
    assert state.gone_since(0, uids(1, 2, 3, 4)).tolist() == [2, 4]
    state.join(Delta(gaps=[(10, 28)]))
    assert state.gone_since(27).tolist() == [2, 4, 5]
    assert state.gone_since(29).tolist() == [4]


def test_takeover() -> None:
    state = state_of(rows(1, modseq=100))
    state.join(takeover_delta(state, 50, ahead_ms=10))
    assert (state.highestmodseq, state.trusted(100)) == (100, 100)
    state.join(takeover_delta(state, 1000, ahead_ms=10))
    assert (state.highestmodseq, state.trusted(500), state.trusted(100)) == (1010, 0, 100)
    assert state.next_modseq(1000) == 1011
    assert Delta.decode(state.extract().encode()).gaps == state.gaps


# -- what may be deleted -----------------------------------------------------------------------------------------------


def test_dead() -> None:
    state = state_of(rows(1), rows(2), rows(3), rows(4, home=OTHER, home_uid=9))
    held = (2, OTHER, 8)
    state.join(Delta(holders=Holders.of({held: 0})))
    delta, _ = expunge_delta(state, uids(1, 2, 4), 1000)
    assert delta is not None
    state.join(Delta.decode(delta.encode()))
    assert state.holders.needed().tolist() == [2]
    assert state.dead(1000).tolist() == []
    # UID 2 has a holder, and the object of UID 4 lies in another mailbox.
    assert state.dead(1001).tolist() == [1]
    state.join(Delta(holders=Holders.of({held: 2000})))
    state.join(Delta(holders=Holders.of({held: 0})))
    assert state.holders.needed().tolist() == []
    assert state.dead(2000).tolist() == [1]
    assert state.dead(2001).tolist() == [1, 2]
    state.join(Delta(purged=uids(1)))
    assert state.dead(2001).tolist() == [2]
    assert state.dead(-5).tolist() == []


def test_claims() -> None:
    state = state_of(rows(1))
    state.join(Delta(claims={4: 3, 9: 1}))
    state.join(Delta(claims={9: CLAIM_PURGED}))
    assert state.extract().claims == {4: 3}
    assert state.extract(3).claims == {4: 3, 9: CLAIM_PURGED}


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_ranges() -> None:
    assert len(pack_ranges(np.arange(1, 10_001, dtype=np.uint32))) == 8
    for array in (uids(), uids(7), uids(1, 2, 4, 4_294_967_295)):
        assert unpack_ranges(pack_ranges(array)).tolist() == array.tolist()
    assert unpack_ranges(pack_ranges(uids(5, 3, 3))).tolist() == [3, 5]
    for bad in ([5, 3], [1, 3, 3, 4], [4, 5, 1, 2], [1, UIDS_MAX + 1]):
        with pytest.raises(ValueError, match="UID"):
            unpack_ranges(np.array(bad, dtype="<u4").tobytes())
    with pytest.raises(ValueError, match="size"):
        unpack_ranges(b"123")


@pytest.mark.parametrize("broken", ["order", "home", "length", "cut", "type"])
def test_damaged_bytes_are_refused(broken: str) -> None:
    record = Delta(rows=rows(3, home=OTHER))
    assert record.rows is not None
    if broken == "order":
        record.rows = record.rows.take(np.array([0, 0]))
    elif broken == "home":
        record.rows.homes = []
    elif broken == "length":
        record.rows.size = np.zeros(2, dtype=np.uint32)
    data = record.encode()
    if broken == "cut":
        data = data[:-3]
    elif broken == "type":
        data = b"\x93\x01\x02\x03"
    with pytest.raises(ValueError, match="not a mailbox delta"):
        Delta.decode(data)


def test_uid_array() -> None:
    assert uid_array([3, 1, 3]).tolist() == [1, 3]
    assert uid_array(iter(())).dtype == np.uint32
