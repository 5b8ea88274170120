"""The merge: deltas of several writers are joined to a single state, in any order, any
number of times, from either side.

Writers change copies of a common state without seeing each other. A plain model keeps
what each of them acknowledged: dictionaries with the rules of docs/format.md, "Merge".
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from obox.mailbox import (
    CLAIM_PURGED,
    Delta,
    Gone,
    Holders,
    MailboxEntry,
    Root,
    RootDelta,
    Rows,
    State,
    Totals,
    annotation_key,
    expunge_delta,
    flag_delta,
    rights_key,
    takeover_delta,
    uid_array,
)
from obox.mailbox.invariants import check, fingerprint
from obox.types import Guid

GUID = Guid("a" * 32)
OTHERS = [Guid("b" * 32), Guid("c" * 32)]
FLAGS = ["\\Seen", "\\Flagged", "\\Deleted", "$Forwarded", "$forwarded", "work"]


@dataclass
class Model:
    """What was acknowledged: stamps by (uid, flag), expunged UIDs, purged UIDs,
    holders, claims."""

    mails: set[int] = field(default_factory=set)
    stamps: dict[tuple[int, str], int] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)
    purged: set[int] = field(default_factory=set)
    holders: dict[tuple[int, Guid, int], int] = field(default_factory=dict)
    claims: dict[int, int] = field(default_factory=dict)

    def take(self, delta: Delta) -> None:
        stamps: list[tuple[int, str, int]] = []
        if delta.rows is not None:
            self.mails.update(delta.rows.uid.tolist())
            for flag, column in delta.rows.stamps.items():
                stamps += [
                    (uid, flag, stamp) for uid, stamp in zip(delta.rows.uid.tolist(), column.tolist(), strict=True)
                ]
        for flag, stamp, uids in delta.flags:
            stamps += [(uid, flag, stamp) for uid in uids.tolist()]
        for uid, flag, stamp in stamps:
            key = (uid, flag.lower())
            self.stamps[key] = max(self.stamps.get(key, 0), stamp)
        if delta.gone is not None:
            for uid, modseq in zip(delta.gone.uid.tolist(), delta.gone.modseq.tolist(), strict=True):
                self.gone[uid] = max(self.gone.get(uid, 0), modseq)
        self.purged.update(() if delta.purged is None else delta.purged.tolist())
        for holder, released in delta.holders.items():
            self.holders[holder] = max(self.holders.get(holder, 0), released)
        for uid, count in delta.claims.items():
            self.claims[uid] = max(self.claims.get(uid, 0), count)

    def check(self, state: State) -> None:
        live = self.mails - self.gone.keys()
        assert state.uids.tolist() == sorted(live)
        for position, uid in enumerate(state.uids.tolist()):
            want = {flag for (u, flag), stamp in self.stamps.items() if u == uid and stamp & 1}
            bits = state.flag_bits(slice(position, position + 1))[0]
            assert {flag.lower() for flag in state.flags.of_bits(bits)} == want
        assert dict(zip(state.gone_uid.tolist(), state.gone_modseq.tolist(), strict=True)) == self.gone
        assert set(state.gone_uid[state.gone_purged].tolist()) == self.purged & self.gone.keys()
        assert dict(state.holders.items()) == self.holders
        assert state.claims == self.claims


class Writer:
    """A backend that believes it owns the mailbox. The MODSEQ values of two writers may
    be equal, because their clocks may be."""

    def __init__(self, number: int, common: State, log: list[Delta]) -> None:
        self.number = number
        self.state = common
        self.log = log
        self.now = 1000

    def apply(self, delta: Delta | None) -> None:
        if delta is not None:
            self.state.join(Delta.decode(delta.encode()))
            check(self.state)
            self.log.append(delta)

    def deliver(self, uid: int, flags: tuple[str, ...]) -> None:
        # An object is the same for each reader.
        home = uid % 5
        if uid in self.state.uids or uid in self.state.gone_uid:
            return
        modseq = self.state.next_modseq(self.now)
        row = Rows.one(
            uid,
            size=uid * 10,
            internaldate=uid,
            zone=60,
            savedate=uid * 1000,
            modseq=modseq,
            oid=uid.to_bytes(16, "big"),
            flags=flags,
            home=OTHERS[home] if home < len(OTHERS) else None,
            home_uid=uid + 100 if home < len(OTHERS) else 0,
        )
        self.apply(Delta(rows=row, uidnext=uid + 1, highestmodseq=modseq, recent=uid))

    def flag(self, uids: Iterable[int], op: str, flags: list[str]) -> None:
        delta, changed = flag_delta(self.state, uid_array(uids), op, flags, self.now)
        self.apply(delta)
        again, none = flag_delta(self.state, uid_array(uids), op, flags, self.now)
        assert again is None
        assert len(none) == 0
        assert (delta is None) == (len(changed) == 0)

    def expunge(self, uids: Iterable[int]) -> None:
        delta, _ = expunge_delta(self.state, uid_array(uids), self.now)
        self.apply(delta)

    def purge(self, uids: Iterable[int]) -> None:
        uids = uid_array(uids)
        self.apply(Delta(purged=uids[np.isin(uids, self.state.gone_uid)]))

    def hold(self, uid: int, other: int, released: bool) -> None:
        holder = (uid, OTHERS[other % len(OTHERS)], uid)
        self.apply(Delta(holders=Holders.of({holder: self.state.next_modseq(self.now) if released else 0})))

    def claim(self, uid: int, count: int) -> None:
        self.apply(Delta(claims={uid: count}, uidnext=uid + count))

    def takeover(self) -> None:
        self.apply(takeover_delta(self.state, self.now, 50))


COMMON = 5
_uid = st.integers(1, COMMON + 3)
_uids = st.sets(_uid, min_size=1, max_size=5)
_deliver = st.tuples(st.just("deliver"), _uid, st.lists(st.sampled_from(FLAGS), max_size=2).map(tuple))
_action = st.one_of(
    _deliver,
    st.tuples(
        st.just("flag"),
        _uids,
        st.sampled_from(["add", "remove", "replace"]),
        st.lists(st.sampled_from(FLAGS), max_size=3),
    ),
    st.tuples(st.just("expunge"), _uids),
    st.tuples(st.just("purge"), _uids),
    st.tuples(st.just("hold"), _uid, st.integers(0, 1), st.booleans()),
    st.tuples(st.just("claim"), _uid, st.sampled_from([1, 3, CLAIM_PURGED])),
    st.tuples(st.just("takeover")),
)
_history = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), _action), min_size=2, max_size=25)
_prefix = st.builds(
    lambda mails, actions: [*mails, *actions],
    st.lists(_deliver, min_size=3, max_size=6, unique_by=lambda action: action[1]),
    st.lists(_action, max_size=6),
)


def _act(writer: Writer, action: tuple[object, ...]) -> None:
    """Do `action`. UIDs above COMMON belong to this writer alone: the bucket hands them
    out, so two writers never have the same new UID."""
    name, *args = action
    if args and isinstance(args[0], int):
        args[0] = _own(writer.number, args[0])
    elif args and isinstance(args[0], set):
        args[0] = {_own(writer.number, uid) for uid in args[0]}
    getattr(writer, str(name))(*args)


def _own(number: int, uid: int) -> int:
    return uid if uid <= COMMON else 20 * number + uid


def _joined(deltas: Iterable[Delta]) -> State:
    state = State(GUID)
    for delta in deltas:
        before = set(state.uids.tolist())
        changed = state.join(Delta.decode(delta.encode()))
        check(state)
        after = set(state.uids.tolist())
        assert set(changed.new.tolist()) == after - before
        assert set(changed.gone.tolist()) == before - after
        assert not set(changed.flags.tolist()) & set(changed.new.tolist())
        for uids in (changed.new, changed.flags, changed.gone):
            assert uids.dtype == np.uint32
            assert uids.tolist() == sorted(set(uids.tolist()))
    return state


def _histories(
    prefix: list[tuple[object, ...]], history: list[tuple[int, int, tuple[object, ...]]]
) -> list[list[Delta]]:
    """Return the common deltas, and those of each of three writers who do not see each
    other."""
    common: list[Delta] = []
    first = Writer(0, State(GUID), common)
    for action in prefix:
        _act(first, action)
    logs: list[list[Delta]] = [[], [], []]
    writers = [Writer(number + 1, _joined(common), logs[number]) for number in range(3)]
    for number, tick, action in history:
        writers[number].now += tick
        _act(writers[number], action)
    return [common, *logs]


@settings(max_examples=200, deadline=None)
@given(_prefix, _history, st.randoms(use_true_random=False))
def test_any_order_gives_the_same(
    prefix: list[tuple[object, ...]], history: list[tuple[int, int, tuple[object, ...]]], rng: random.Random
) -> None:
    logs = _histories(prefix, history)
    deltas = [delta for log in logs for delta in log]
    model = Model()
    for delta in deltas:
        model.take(delta)
    want = _joined(deltas)
    model.check(want)
    for _ in range(3):
        shuffled = [*deltas, *(delta for delta in deltas if rng.random() < 0.3)]
        rng.shuffle(shuffled)
        got = _joined(shuffled)
        assert fingerprint(got) == fingerprint(want)
        assert got.bytes == want.bytes
        assert got.unseen == want.unseen
        assert not got.join(want.extract())
        assert fingerprint(got) == fingerprint(want)


@settings(max_examples=100, deadline=None)
@given(_prefix, _history, st.data())
def test_states_join_from_either_side(
    prefix: list[tuple[object, ...]], history: list[tuple[int, int, tuple[object, ...]]], data: st.DataObject
) -> None:
    """Bundles carry whole states. A join of these states in either order gives the same
    state as the deltas joined one after another."""
    common, a, b, c = _histories(prefix, history)
    left, right, third = (_joined([*common, *log]) for log in (a, b, c))
    want = _joined([*common, *a, *b, *c])
    for order in ([left, right, third], [third, left, right], [right, third, left, right]):
        state = State(GUID)
        for other in order:
            state.join(Delta.decode(other.extract(1).encode()))
            check(state)
        assert fingerprint(state) == fingerprint(want)


@settings(max_examples=100, deadline=None)
@given(_prefix, _history, st.data())
def test_bundles_rebuild_the_state(
    prefix: list[tuple[object, ...]], history: list[tuple[int, int, tuple[object, ...]]], data: st.DataObject
) -> None:
    """A base has everything except the claims that are resolved. A base and a diff give
    the state in either order."""
    common, log, *_ = _histories(prefix, history)
    state = _joined(common)
    base, since = state.extract().encode(), state.highestmodseq
    again = _joined([Delta.decode(base)])
    for uid in [uid for uid, count in state.claims.items() if count >= CLAIM_PURGED]:
        again.claims[uid] = CLAIM_PURGED
    assert fingerprint(again) == fingerprint(state)
    for delta in log:
        state.join(delta)
    diff = Delta.decode(state.extract(since).encode())
    for order in ([Delta.decode(base), diff], [diff, Delta.decode(base)], [diff, Delta.decode(base), diff]):
        got = _joined(order)
        assert fingerprint(got) == fingerprint(state)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 79), max_size=30), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_too_many_keywords_together(groups: list[set[int]], rng: random.Random) -> None:
    """There are more keywords than bits. All keywords are shown from either side, and
    none is forgotten."""
    deltas = [
        Delta(
            rows=Rows.one(
                number + 1,
                size=1,
                internaldate=0,
                zone=0,
                savedate=0,
                modseq=5 + number,
                oid=bytes(16),
                flags=tuple(f"k{keyword:02}" for keyword in group),
            )
        )
        for number, group in enumerate(groups)
    ]
    deltas.append(Delta(gone=Gone.at(50, uid_array([1]))))
    deltas.append(Delta(flags=[(f"K{keyword:02}", 41 * 2, uid_array([2])) for keyword in groups[1]]))
    want = _joined(deltas)
    for _ in range(3):
        rng.shuffle(deltas)
        got = _joined(deltas)
        assert fingerprint(got) == fingerprint(want)
        assert fingerprint(_joined([Delta.decode(got.extract().encode())])) == fingerprint(want)
    used = {f"k{keyword:02}" for group in groups[1:] for keyword in group}
    used -= {f"k{keyword:02}" for keyword in groups[1]} - {f"k{k:02}" for group in groups[2:] for k in group}
    for state in (want, got):
        shown = {name.lower() for bits in state.flag_bits(slice(0, len(state))) for name in state.flags.of_bits(bits)}
        assert shown == used
        check(state)


@settings(max_examples=60, deadline=None)
@given(_prefix, _history, st.integers(0, 2000))
def test_a_view_keeps_what_it_saw(
    prefix: list[tuple[object, ...]], history: list[tuple[int, int, tuple[object, ...]]], known: int
) -> None:
    """The UID array of a session does not change, whatever is joined to the state."""
    common, log, *_ = _histories(prefix, history)
    state = _joined(common)
    uids = state.uids
    kept = uids.copy()
    for delta in log:
        state.join(delta)
        assert (uids == kept).all()
        trusted = state.trusted(known)
        assert trusted <= known
        assert all(not low < trusted <= high for low, high in state.gaps)


# -- root --------------------------------------------------------------------------------------------------------------

_guids = st.sampled_from([Guid(f"{i:x}" * 32) for i in range(4)])
_entry = st.builds(
    MailboxEntry,
    guid=_guids,
    name=st.sampled_from(["INBOX", "a", "a-00000000", "a-11111111", "b", "a/b"]),
    stamp=st.integers(1, 5),
    created=st.integers(1, 2),
    uidvalidity=st.integers(1, 3),
    special_use=st.sampled_from(["", "\\Sent"]),
    deleted=st.sampled_from([0, 0, 3, 4]),
)
_totals = st.lists(st.integers(0, 5), min_size=7, max_size=7).map(lambda numbers: Totals(*numbers))
_root_delta = st.builds(
    RootDelta,
    entries=st.lists(_entry, max_size=2),
    subscriptions=st.dictionaries(st.sampled_from(["a", "b", "x"]), st.integers(0, 9), max_size=2),
    totals=st.dictionaries(_guids, _totals, max_size=2),
    annotations=st.dictionaries(
        st.builds(annotation_key, st.one_of(_guids, st.just("")), st.sampled_from(["/private/a", "/shared/b/c"])),
        st.tuples(st.integers(1, 5), st.sampled_from([None, b"", b"x", b"y"])),
        max_size=3,
    ),
    rights=st.dictionaries(
        st.builds(rights_key, st.one_of(_guids, st.just("")), st.sampled_from(["anna", "-anna", "anyone"])),
        st.tuples(st.integers(1, 5), st.sampled_from([None, b"", b"lr", b"lrs"])),
        max_size=3,
    ),
    highestmodseq=st.integers(0, 9),
    uidvalidity=st.integers(0, 9),
)


def _root(deltas: Iterable[RootDelta]) -> Root:
    root = Root()
    for delta in deltas:
        root.join(RootDelta.decode(delta.encode()))
    return root


@settings(max_examples=200, deadline=None)
@given(st.lists(_root_delta, max_size=8), st.randoms(use_true_random=False))
def test_roots_join_in_any_order(deltas: list[RootDelta], rng: random.Random) -> None:
    want = _root(deltas)
    shuffled = [*deltas, *(delta for delta in deltas if rng.random() < 0.5)]
    rng.shuffle(shuffled)
    got = _root(shuffled)
    assert got.fingerprint() == want.fingerprint()
    assert got.names() == want.names()
    half = len(deltas) // 2
    left, right = _root(deltas[:half]), _root(deltas[half:])
    both = copy.deepcopy(right)
    both.join(RootDelta.decode(left.extract().encode()))
    left.join(RootDelta.decode(right.extract().encode()))
    assert left.fingerprint() == both.fingerprint() == want.fingerprint()


@settings(max_examples=200, deadline=None)
@given(st.lists(_root_delta, max_size=8))
def test_every_live_mailbox_has_a_name_of_its_own(deltas: list[RootDelta]) -> None:
    root = _root(deltas)
    live = {guid for guid, entry in root.entries.items() if not entry.deleted}
    assert {Guid(entry.guid) for entry in root.names().values()} == live
    for delta in deltas:
        for entry in delta.entries:
            assert not (entry.deleted and Guid(entry.guid) in live)
