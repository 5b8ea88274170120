"""The invariants of a mailbox's state, and the parts in which equal states agree, for
tests. The product does not import it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._flags import NARROW
from ._packs import counting
from ._state import State


def fingerprint(state: State) -> tuple[object, ...]:
    """Return the parts in which equal states agree for every order of their joins."""
    stamps, early_flags, early_purged = state.flag_stamps, state._early_flags, state._early_purged
    mails: dict[int, Any] = {}
    flags = state.flag_bits(slice(0, len(state)))
    for position, uid in enumerate(state.uids.tolist()):
        mails[uid] = (
            tuple(sorted(name.lower() for name in state.flags.of_bits(flags[position]))),
            tuple(sorted((f.lower(), int(s[position])) for f, s in stamps.items() if s[position])),
            tuple(int(state.column(name)[position]) for name in ("size", "internaldate", "zone", "savedate")),
            int(state.modseqs[position]),
            state.home_of(position),
            bytes(state.column("oid")[position]),
            tuple(state.column("place")[position].tolist()),
        )
    early: dict[tuple[str, int], int] = {}
    for flag, waiting in early_flags.items():
        for uid, stamp in waiting.items():
            early[flag.lower(), uid] = max(early.get((flag.lower(), uid), 0), stamp)
    gone = tuple(zip(state.gone_uid.tolist(), state.gone_modseq.tolist(), state.gone_purged.tolist(), strict=True))
    ranges = tuple(sorted(state.claims.items())), tuple(sorted(state.batches.items()))
    packs = tuple((name, state.packs[name]) for name in counting(state.packs))
    rest = (tuple(sorted(state.holders.items())), *ranges, packs, tuple(state.gaps))
    late = (tuple(sorted(early.items())), tuple(sorted(early_purged)))
    return state.uidnext, state.highestmodseq, state.recent, mails, gone, rest, late


def check(state: State) -> None:
    """Assert the invariants of a state.

    Raises AssertionError that names the first broken invariant.
    """
    stamps, early_flags, early_purged = state.flag_stamps, state._early_flags, state._early_purged
    uids, count = state.uids, len(state)
    assert bool((uids[1:] > uids[:-1]).all()), "rows are not sorted by UID"
    assert bool((state.gone_uid[1:] > state.gone_uid[:-1]).all()), "expunged UIDs are not sorted"
    assert len(state.gone_uid) == len(state.gone_modseq) == len(state.gone_purged), "expunged UIDs: columns"
    assert not len(uids) or int(uids[-1]) < state.uidnext, "a UID at or above UIDNEXT"
    assert not len(state.gone_uid) or int(state.gone_uid[-1]) < state.uidnext, "an expunged UID at or above UIDNEXT"
    assert not np.isin(uids, state.gone_uid).any(), "a UID is both live and gone"
    assert not len(uids) or int(state.modseqs.max()) <= state.highestmodseq, "a modseq above HIGHESTMODSEQ"
    assert not len(state.gone_uid) or int(state.gone_modseq.max()) <= state.highestmodseq, "an expunge beyond it"
    assert state.bytes == int(state.column("size").sum(dtype=np.uint64)), "byte count"
    seen = state.has_flag("\\Seen", slice(0, count))
    assert state.unseen == count - int(np.count_nonzero(seen)), "unseen count"
    assert len({name.lower() for name in state.flags.names}) == len(state.flags.names), "a flag has two bits"
    bits = np.zeros(count, dtype=np.uint64)
    for i, name in enumerate(state.flags.names[:NARROW]):
        if name in stamps:
            bits |= (stamps[name][:count] & np.uint64(1)) << np.uint64(i)
    assert bool((bits == state.bits).all()), "flags differ from their stamps"
    for name, column in stamps.items():
        assert name in state.flags.names or not (column[:count] & np.uint64(1)).any(), "a mail's keyword has no place"
    early = {uid for waiting in early_flags.values() for uid in waiting}
    assert not early & {*uids.tolist(), *state.gone_uid.tolist()}, "a flag still waits for a mail that has come"
    assert not early_purged & {*state.gone_uid.tolist()}, "a purge still waits for an expunge that has come"
