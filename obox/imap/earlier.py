"""VANISHED (EARLIER): what a client that comes back is told is gone. RFC 7162 §3.2.5.1,
§3.2.6, §3.2.10.1.

For a modseq that can be trusted: the expunges since. Else (`State.trusted`) every UID
below UIDNEXT without a mail, because such a client may know mails of which this mailbox
has no trace: the bucket was restored from a backup.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from obox.imap.sets import SequenceSet, format_ranges, format_set
from obox.mailbox import State, UidArray, united

Ranges = Sequence[tuple[int, int]]


def vanished_earlier(
    state: State, modseq: int, known: SequenceSet | None, *, above: int = 0, shown: UidArray | None = None
) -> bytes:
    """The UIDs in wire form; empty: none.

    known: what the client asks about, None for all; above: nothing up to this UID is
    gone; shown: UIDs, ascending, that the client is told of otherwise, when numbers may
    change.
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
    """Those of `uids`, ascending, that are in a set; the set may be far larger than the
    mailbox. last: what `*` is."""
    ranges = known.resolve(last)
    edges = np.array(ranges, dtype=np.uint64).reshape(-1, 2)
    where = np.searchsorted(edges[:, 0], uids, side="right")
    inside = where > 0
    inside[inside] = uids[inside] <= edges[where[inside] - 1, 1]
    return uids[inside]


def _between(uids: UidArray, last: int) -> Ranges:
    """What is not in `uids`, ascending, from 1 to `last`."""
    edges = np.concatenate(([0], uids.astype(np.int64), [last + 1]))
    where = np.flatnonzero(edges[1:] - edges[:-1] > 1)
    return list(zip((edges[where] + 1).tolist(), (edges[where + 1] - 1).tolist(), strict=True))


def _overlap(one: Ranges, two: Ranges) -> Ranges:
    """What is in both; each ascending and without overlaps."""
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
