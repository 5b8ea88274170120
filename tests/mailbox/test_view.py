"""What a client knows of a mailbox, compared with the truth. Sequence numbers change
only when a poll may expunge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obox.mailbox import Delta, Gone, Rows, State, flag_delta
from obox.mailbox.view import Updates, View
from obox.types import Guid


def state_of(count: int) -> State:
    state = State(Guid("0" * 32))
    add(state, count)
    return state


def rows(uids: list[int], modseq: int) -> Rows:
    n = len(uids)
    return Rows(
        uid=np.array(uids, dtype=np.uint32),
        size=np.full(n, 10, dtype=np.uint32),
        internaldate=np.zeros(n, dtype=np.int64),
        zone=np.zeros(n, dtype=np.int16),
        savedate=np.zeros(n, dtype=np.int64),
        modseq=np.full(n, modseq, dtype=np.uint64),
        home=np.full(n, -1, dtype=np.int32),
        home_uid=np.array(uids, dtype=np.uint32),
        oid=np.zeros((n, 16), dtype=np.uint8)
        if Rows.empty().oid.ndim == 2
        else np.zeros(n, dtype=Rows.empty().oid.dtype),
        place=np.zeros((n, 3), dtype=np.uint32),
        stamps={},
        homes=[],
    )


def add(state: State, count: int) -> None:
    if count:
        first = state.uidnext
        state.join(Delta(rows=rows(list(range(first, first + count)), state.highestmodseq + 1), uidnext=first + count))


def expunge(state: State, *uids: int) -> None:
    state.join(Delta(gone=Gone.at(state.highestmodseq + 1, np.array(uids, dtype=np.uint32))))


def flag(state: State, *uids: int, name: str = "\\Seen") -> int:
    delta, _ = flag_delta(state, np.array(uids, dtype=np.uint32), "add", [name], 0)
    assert delta is not None
    state.join(delta)
    return delta.highestmodseq


def reported(updates: Updates | None) -> tuple[object, ...]:
    if updates is None:
        return ()
    return updates.expunged, updates.vanished.tolist(), updates.exists, updates.changed.tolist()


def test_nothing_new() -> None:
    state = state_of(3)
    view = View(state)
    # The array is shared and not copied.
    assert view.uids.base is state.uids.base
    assert view.poll(state, expunge=True) is None
    assert not view.pending(state)


def test_new_mails() -> None:
    state = state_of(2)
    view = View(state)
    add(state, 2)
    assert view.pending(state)
    assert reported(view.poll(state, expunge=False)) == ([], [], 4, [])
    assert view.uids.tolist() == [1, 2, 3, 4]
    assert view.poll(state, expunge=True) is None


def test_expunges_wait() -> None:
    state = state_of(5)
    view = View(state)
    expunge(state, 2, 4)
    assert view.poll(state, expunge=False) is None
    assert view.uids.tolist() == [1, 2, 3, 4, 5]
    assert view.pending(state)
    add(state, 1)
    assert reported(view.poll(state, expunge=False)) == ([], [], 6, [])
    assert view.uids.tolist() == [1, 2, 3, 4, 5, 6]
    assert reported(view.poll(state, expunge=True)) == ([4, 2], [2, 4], None, [])
    assert view.uids.tolist() == [1, 3, 5, 6]
    assert view.uids.base is state.uids.base


def test_new_and_gone_at_once() -> None:
    """A mail comes and goes between two polls. The client never learns of it."""
    state = state_of(1)
    view = View(state)
    add(state, 2)
    expunge(state, 1, 2)
    assert reported(view.poll(state, expunge=True)) == ([1], [1], 1, [])
    assert view.uids.tolist() == [3]


def test_flags_of_others_and_own() -> None:
    state = state_of(4)
    view = View(state)
    mine = flag(state, 1, 2)
    view.note_own(mine, np.array([1, 2], dtype=np.uint32))
    flag(state, 2, 3, name="\\Flagged")
    assert view.unreported(state, np.array([1, 2, 3, 4], dtype=np.uint32)).tolist() == [False, True, True, False]
    assert reported(view.poll(state, expunge=False)) == ([], [], None, [2, 3])
    assert view.poll(state, expunge=True) is None


def test_flags_of_a_mail_that_is_gone_or_new() -> None:
    state = state_of(3)
    view = View(state)
    flag(state, 1, 2)
    expunge(state, 2)
    add(state, 1)
    flag(state, 4, name="\\Flagged")
    # The client has to fetch the flags of new mails itself.
    assert reported(view.poll(state, expunge=False)) == ([], [], 4, [1])
    assert reported(view.poll(state, expunge=True)) == ([2], [2], None, [])


def test_new_keywords() -> None:
    state = state_of(1)
    view = View(state)
    flag(state, 1, name="$Label")
    updates = view.poll(state, expunge=False)
    assert updates is not None
    assert updates.names


def test_merged_below_stays_unseen() -> None:
    """A join with another writer may bring mails below known UIDs. They would change
    sequence numbers, so the session does not see them until it selects the mailbox
    again."""
    state = state_of(0)
    state.join(Delta(rows=rows([1, 2, 5], 2), uidnext=6))
    view = View(state)
    state.join(Delta(rows=rows([3], 9)))
    assert view.poll(state, expunge=True) is None
    assert view.uids.tolist() == [1, 2, 5]
    add(state, 1)
    assert reported(view.poll(state, expunge=True)) == ([], [], 4, [])
    assert view.uids.tolist() == [1, 2, 5, 6]
    assert View(state).uids.tolist() == [1, 2, 3, 5, 6]


def test_recent() -> None:
    state = state_of(3)
    view, other = View(state), View(state)
    view.add_recent(2, 4)
    assert view.recent_uids().tolist() == [2, 3]
    assert view.recent_count() == 2
    add(state, 1)
    taken = iter([4, 5])
    updates = view.poll(state, expunge=False, take_recent=lambda: next(taken))
    assert updates is not None
    assert updates.recent == 3
    updates = other.poll(state, expunge=False, take_recent=lambda: next(taken))
    assert updates is not None
    assert updates.recent == 0
    expunge(state, 3)
    updates = view.poll(state, expunge=True)
    assert updates is not None
    assert updates.recent == 2


@pytest.mark.parametrize(
    ("ranges", "by_seq", "by_uid"),
    [
        ([(1, 2)], [2, 4], [2]),
        ([(3, 9)], [6, 8], [4, 6, 8]),
        ([(1, 1), (4, 4)], [2, 8], [4]),
        ([(1, 4294967295)], [2, 4, 6, 8], [2, 4, 6, 8]),
        ([], [], []),
    ],
)
def test_sets(ranges: list[tuple[int, int]], by_seq: list[int], by_uid: list[int]) -> None:
    state = state_of(0)
    state.join(Delta(rows=rows([2, 4, 6, 8], 2), uidnext=9))
    view = View(state)
    assert view.by_seq(ranges).tolist() == by_seq
    assert view.by_uid(ranges).tolist() == by_uid
    assert view.seqs(np.array([4, 8], dtype=np.uint32)).tolist() == [2, 4]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 3)),
        st.tuples(st.just("expunge"), st.sets(st.integers(1, 20), min_size=1, max_size=4)),
        st.tuples(st.just("flag"), st.sets(st.integers(1, 20), min_size=1, max_size=4)),
        st.tuples(st.just("own"), st.sets(st.integers(1, 20), min_size=1, max_size=4)),
        st.tuples(st.just("poll"), st.booleans()),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_a_client_that_believes_the_server_is_right(steps: list[tuple[str, object]]) -> None:
    """A client applies all answers. After a poll that may expunge, its list is the
    mailbox, whatever has happened."""
    state = state_of(3)
    view = View(state)
    # This is the client's own list, by sequence number.
    mails = view.uids.tolist()
    bits = {uid: 0 for uid in mails}
    for number, (what, argument) in enumerate([*steps, ("poll", True)]):
        if what == "add":
            add(state, argument)
        elif what == "poll":
            updates = view.poll(state, expunge=bool(argument))
            if updates is not None:
                assert argument or not updates.expunged
                for seq in updates.expunged:
                    bits.pop(mails.pop(seq - 1))
                if updates.exists is not None:
                    assert updates.exists > len(mails)
                    fresh = view.uids[len(mails) :].tolist()
                    mails += fresh
                    bits.update({uid: bits_of(state, uid) for uid in fresh})
                for uid in updates.changed.tolist():
                    bits[uid] = bits_of(state, uid)
            assert mails == view.uids.tolist()
        else:
            known = np.array(sorted(u for u in argument if state.position(u) is not None), dtype=np.uint32)
            if what == "own":
                known = known[np.isin(known, view.uids)]
            if not len(known):
                continue
            if what == "expunge":
                expunge(state, *known.tolist())
                continue
            delta, changed = flag_delta(state, known, "add", [f"k{number % 5}"], 0)
            if delta is None:
                continue
            state.join(delta)
            # The answer has the flags, as the answer to a STORE.
            if what == "own":
                view.note_own(delta.highestmodseq, changed)
                bits.update({uid: bits_of(state, uid) for uid in changed.tolist()})
    assert mails == state.uids.tolist()
    assert bits == {uid: bits_of(state, uid) for uid in mails}


def bits_of(state: State, uid: int) -> int:
    position = state.position(uid)
    return 0 if position is None else int(state.bits[position])


@given(
    st.sets(st.integers(1, 60), max_size=40),
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)).map(lambda pair: (min(pair), max(pair))), max_size=30),
)
def test_sequence_numbers_as_ranges_of_uids(uids: set[int], ranges: list[tuple[int, int]]) -> None:
    """The result has at most as many ranges as were given. Among the mails of the view
    both name the same mails."""
    state = State(Guid("0" * 32))
    if uids:
        state.join(Delta(rows=rows(sorted(uids), 5)))
    view = View(state)
    made = view.uid_ranges(ranges)
    assert len(made) <= len(ranges)
    named = {uid for low, high in made for uid in range(low, high + 1)} & uids
    assert named == {uid for one in ranges for uid in view.by_seq([one]).tolist()}
