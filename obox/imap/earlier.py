"""QRESYNC: what has changed since a client was last here. VANISHED (EARLIER) has the
UIDs that are reported as expunged. RFC 7162 §3.2.5.1, §3.2.6, §3.2.10.1.

If the client's MODSEQ can be trusted (`State.trusted`), these are the expunges since.
Otherwise it is every UID below UIDNEXT without a mail, because the client may know
mails that this mailbox never had: the bucket may have been restored from a backup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from obox.imap import ast, wire
from obox.imap.session import Session
from obox.imap.sets import SequenceSet, format_ranges, format_set
from obox.imap.updates import write_flags
from obox.mailbox import State, UidArray, united
from obox.mailbox.view import View

Ranges = Sequence[tuple[int, int]]

SAMPLES_MAX: Final = 10_000
"""Pairs of the sequence match data that are used. The data is an optimisation, so
further pairs are ignored."""


def vanished_earlier(
    state: State, modseq: int, known: SequenceSet | None, *, above: int = 0, shown: UidArray | None = None
) -> bytes:
    """Return the UIDs in wire form, or nothing if there are none.

    known: the UIDs that the client asks about, None for all. above: no UID up to this
    one is gone. shown: ascending UIDs that are reported to the client in another way,
    when numbers may change.
    """
    last = state.uidnext - 1
    if not state.trusted(modseq):
        there = state.uids if shown is None else united(state.uids, shown)
        ranges = _overlap(_between(there, last), [(above + 1, last)])
        return format_ranges(ranges if known is None else _overlap(ranges, known.resolve(last)))
    gone = state.gone_since(modseq)
    if known is not None:
        gone = within(gone, known, last)
    gone = gone[gone > above]
    if shown is not None:
        gone = gone[~np.isin(gone, shown, assume_unique=True)]
    return format_set(gone)


def within(uids: UidArray, known: SequenceSet, last: int) -> UidArray:
    """Return those of the ascending `uids` that are in a set. The set may be far larger
    than the mailbox. last: the value of `*`."""
    ranges = known.resolve(last)
    edges = np.array(ranges, dtype=np.uint64).reshape(-1, 2)
    where = np.searchsorted(edges[:, 0], uids, side="right")
    inside = where > 0
    inside[inside] = uids[inside] <= edges[where[inside] - 1, 1]
    return uids[inside]


def _between(uids: UidArray, last: int) -> Ranges:
    """Return the ranges from 1 to `last` that are not in the ascending `uids`."""
    edges = np.concatenate(([0], uids.astype(np.int64), [last + 1]))
    where = np.flatnonzero(edges[1:] - edges[:-1] > 1)
    return list(zip((edges[where] + 1).tolist(), (edges[where + 1] - 1).tolist(), strict=True))


def _overlap(one: Ranges, two: Ranges) -> Ranges:
    """Return the intersection. Both are ascending and without overlaps."""
    out: list[tuple[int, int]] = []
    a = b = 0
    while a < len(one) and b < len(two):
        low, high = max(one[a][0], two[b][0]), min(one[a][1], two[b][1])
        if low <= high:
            out.append((low, high))
        if one[a][1] < two[b][1]:
            a += 1
        else:
            b += 1
    return out


async def resync(session: Session, state: State, view: View, known: ast.QResync) -> None:
    """Write what has changed since the client last had the mailbox selected. RFC 7162
    §3.2.5.1, §3.2.5.2."""
    changed = state.uids[state.modseqs > np.uint64(state.trusted(known.modseq))]
    if known.known_uids is not None:
        changed = within(changed, known.known_uids, state.uidnext - 1)
    known_below = 0 if known.seq_match is None else _known_below(view, *known.seq_match)
    if gone := vanished_earlier(state, known.modseq, known.known_uids, above=known_below):
        session.write(wire.line(b"VANISHED (EARLIER)", gone))
    await write_flags(session, changed, uid=True)


def _known_below(view: View, seqs: SequenceSet, uids: SequenceSet) -> int:
    """Return the highest UID that still has the sequence number by which the client
    knows it. No mail below it was expunged.

    A sequence number only decreases when a lower mail is expunged, and new mails get
    higher numbers. RFC 7162 §3.2.5.2.
    """
    best = 0
    for seq, uid in zip(_expand(seqs, len(view)), _expand(uids, 2**32), strict=False):
        if seq <= len(view) and int(view.uids[seq - 1]) == uid:
            best = uid
    return best


def _expand(numbers: SequenceSet, most: int) -> list[int]:
    """Return the numbers of a set up to `most`, at most as many as a client sends
    samples."""
    out: list[int] = []
    for low, high in numbers.resolve(0):
        out.extend(range(low, min(high, most, low + SAMPLES_MAX) + 1))
        if len(out) > SAMPLES_MAX:
            break
    return out[:SAMPLES_MAX]
