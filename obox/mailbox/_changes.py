"""The deltas that commands make of a state. Only `State.join` changes it afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import numpy as np

from ._delta import Changed, Delta, Gone
from ._state import State
from ._uidset import UidArray, uid_array, united

_EMPTY: Final[UidArray] = np.empty(0, dtype=np.uint32)

FlagOp = Literal["add", "remove", "replace"]


def flag_delta(
    state: State, uids: UidArray, op: FlagOp, flags: Iterable[str], now_ms: int
) -> tuple[Delta | None, UidArray]:
    """Return the change that adds, removes or replaces `flags`, and the UIDs that it
    alters.

    It is for those of `uids` that exist. The delta is None if all of them have these
    flags already: a STORE that changes nothing costs nothing. Raises Limit.
    """
    names = state.spell(flags) if op != "remove" else state.flags.spelled(filter(state.flags.known, flags))
    uids = uid_array(uids)
    where, there = state.positions(uids)
    where, uids = where[there], uids[there]
    modseq = state.next_modseq(now_ms)
    changes: list[tuple[str, int, UidArray]] = []
    altered = np.zeros(len(uids), dtype=np.bool_)
    turn_on = names if op != "remove" else []
    turn_off = names if op == "remove" else []
    if op == "replace":
        turn_off = [name for name in state.flags.names if name not in names]
    for value, group in ((1, turn_on), (0, turn_off)):
        for name in group:
            has = state.has_flag(name, where)
            todo = ~has if value else has
            if todo.any():
                altered |= todo
                changes.append((name, modseq * 2 + value, uids[todo]))
    if not changes:
        return None, _EMPTY
    return Delta(flags=changes, highestmodseq=modseq), uids[altered]


def expunge_delta(state: State, uids: UidArray, now_ms: int) -> tuple[Delta | None, UidArray]:
    """Return the change that expunges those of `uids` that exist, and those UIDs.

    Records whose object lies in another mailbox have no object here: `purged`.
    """
    uids = uid_array(uids)
    where, there = state.positions(uids)
    uids, where = uids[there], where[there]
    if len(uids) == 0:
        return None, _EMPTY
    modseq = state.next_modseq(now_ms)
    foreign = uids[state.foreign()[where]]
    return Delta(gone=Gone.at(modseq, uids), highestmodseq=modseq, purged=foreign if len(foreign) else None), uids


def takeover_delta(state: State, now_ms: int, ahead_ms: int = 60_000, *, merged: bool = False) -> Delta:
    """Return the gap of an unclean takeover: modseqs shown, but in no journal.

    merged: histories of two writers have been joined. Changes of each may lie below
    a modseq that the clients of the other know: no earlier value can be trusted.
    """
    high = max(state.highestmodseq, now_ms + ahead_ms)
    return Delta(gaps=[(0 if merged else state.highestmodseq, high)], highestmodseq=high)


def renewal(state: State, changed: Changed, now_ms: int) -> Delta | None:
    """Return a delta with a fresh modseq for changes of a merge, so that open sessions
    report them."""
    if not changed:
        return None
    modseq = state.next_modseq(now_ms)
    where, there = state.positions(united(changed.new, changed.flags))
    rows = state.rows(where[there])
    rows.modseq = np.full(len(rows), modseq, dtype=np.uint64)
    return Delta(rows=rows, gone=Gone.at(modseq, changed.gone), highestmodseq=modseq)
