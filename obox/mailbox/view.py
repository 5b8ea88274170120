"""What a client knows of a mailbox, against what is true now; has sequence numbers.

Theory of operation. A client counts mails by sequence number, so the server may
change those numbers only with a response that says so: `* n EXPUNGE` (or VANISHED)
and `* n EXISTS`. The view holds the UIDs in the client's order, the modseq up to which
the client knows all flags, and the session's own changes since. `poll` compares that
with the state and returns what to send. From then on the client counts as knowing it.

    known       state           poll(expunge=False)      poll(expunge=True)
    1 2 3       1 3 4           EXISTS 4 (1 2 3 4)       EXPUNGE 2, EXISTS 3 (1 3 4)

Invariants: `uids` is sorted; a UID enters only at the end, and leaves only in a poll
that may expunge. `uids` is the state's own array while both agree, so that a view of
100,000 mails costs nothing. A poll without change is three comparisons.

If the history of another writer brings in a mail below UIDs that the client knows, the
mail stays invisible until the client selects again: in the middle it would change the
numbers of other mails. The view knows no wire format.

`State.retained` has the records of mails that are gone and whose EXPUNGE the client has
not received. The view is registered there until `close`, or until it is collected.
RFC 3501 §7.4.1, RFC 9051 §7.5.1, RFC 7162 §3.2.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ._state import State
from ._uidset import UidArray, within

_EMPTY: Final[UidArray] = np.empty(0, dtype=np.uint32)
_FEW_RANGES: Final = 16
"""So few are looked up without making an array: a search may have thousands of sets."""
RECENT_RANGES_MAX: Final = 256
"""Intervals of \\Recent mails that a session holds. Beyond the limit the oldest mails
lose it. RFC 9051 has dropped \\Recent.
"""

Ranges = Sequence[tuple[int, int]]


class Updates(NamedTuple):
    """What the client does not know yet.

    It is sent in this order: names, expunged, exists, recent, changed.
    """

    expunged: list[int]
    """Sequence numbers, descending: each is right after all before it have been sent.
    """
    vanished: UidArray
    """The same mails by UID."""
    exists: int | None
    """The number of mails, if it grew."""
    recent: int | None
    changed: UidArray
    """Mails whose flags differ from what the client knows."""
    names: bool
    """Whether the mailbox has keywords that the client does not know; `note_names`
    follows.
    """


class View:
    """A session's view of a mailbox; see the module's text."""

    __slots__ = (
        "_hidden",
        "_key",
        "_modseq",
        "_names",
        "_own",
        "_recent",
        "_recent_sent",
        "_retained",
        "_uidnext",
        "names",
        "uids",
    )

    def __init__(self, state: State) -> None:
        self.uids: UidArray = state.uids
        self._uidnext = state.uidnext
        self._modseq = state.highestmodseq
        self.names: tuple[str, ...] = tuple(state.flags.names)
        """The flags that the client knows, and the version of the names when the view
        was made.
        """
        self._names = (state.flags.version, state.full)
        self._key = _key(state)
        self._hidden = False  # whether there are expunges that the client does not know
        self._own: tuple[tuple[int, UidArray], ...] = ()
        self._recent: tuple[tuple[int, int], ...] = ()
        self._recent_sent = 0
        self._retained = state.retained
        self._retained.enter(self)

    def close(self) -> None:
        """End the session's interest in expunged mails."""
        self._retained.leave(self)

    def __del__(self) -> None:
        self._retained.leave(self)

    def __len__(self) -> int:
        return len(self.uids)

    # -- numbers ---------------------------------------------------------------------------------------------------

    def seqs(self, uids: UidArray) -> npt.NDArray[np.intp]:
        """Return the sequence numbers of `uids`, all of which the client knows."""
        return self.uids.searchsorted(uids) + 1

    def by_seq(self, ranges: Ranges) -> UidArray:
        """The UIDs at the sequence numbers in `ranges`, which are ascending and do not
        overlap.

        Numbers beyond the last mail have no UID.
        """
        return _joined([self.uids[low - 1 : high] for low, high in ranges])

    def uid_ranges(self, ranges: Ranges) -> tuple[tuple[int, int], ...]:
        """Return the mails at the sequence numbers in `ranges` as ranges of UIDs.

        A range may name UIDs that the client does not know; numbers beyond the last
        mail are ignored. There are no more ranges than were given, however many mails
        there are.
        """
        count, uids = len(self.uids), self.uids
        inside = [(low - 1, min(high, count) - 1) for low, high in ranges if low <= count]
        if len(inside) <= _FEW_RANGES:
            return tuple([(uids.item(low), uids.item(high)) for low, high in inside])
        edges = uids[np.array(inside, dtype=np.intp)].tolist()
        return tuple([(low, high) for low, high in edges])

    def by_uid(self, ranges: Ranges) -> UidArray:
        """Return the UIDs in `ranges`, which are ascending and do not overlap.

        UIDs that do not exist are ignored. RFC 9051 §6.4.9.
        """
        if len(ranges) == 1:
            low, high = ranges[0]
            first, last = np.searchsorted(self.uids, np.array((low, high + 1), dtype=np.uint64))
            return self.uids[first:last]
        edges = np.array(ranges, dtype=np.uint64).reshape(-1, 2)
        firsts = np.searchsorted(self.uids, edges[:, 0])
        lasts = np.searchsorted(self.uids, edges[:, 1], side="right")
        pairs = zip(firsts.tolist(), lasts.tolist(), strict=True)
        return _joined([self.uids[first:last] for first, last in pairs if first < last])

    # -- \Recent ---------------------------------------------------------------------------------------------------

    def add_recent(self, low: int, high: int) -> None:
        """Mails with UIDs from `low` to below `high` are recent in this session."""
        if low >= high:
            return
        if self._recent and self._recent[-1][1] >= low:
            self._recent = (*self._recent[:-1], (self._recent[-1][0], high))
            return
        self._recent = (*self._recent, (low, high))[-RECENT_RANGES_MAX:]

    def recent_uids(self) -> UidArray:
        """Return the mails that are recent in this session."""
        ranges = self.recent_ranges()
        return self.by_uid(ranges) if ranges else _EMPTY

    def is_recent(self, uids: UidArray) -> npt.NDArray[np.bool_] | None:
        """Return which of `uids`, all of which the client knows, are recent in this
        session. None means that no mail is."""
        if not self._recent:
            return None
        mask = np.zeros(len(uids), dtype=np.bool_)
        for low, high in self._recent:
            mask |= (uids >= low) & (uids < high)
        return mask

    def recent_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return the same as ranges of UIDs, some of which the client may not know."""
        return tuple([(low, high - 1) for low, high in self._recent])

    def recent_count(self) -> int:
        """Return the number for a RECENT response, which the client knows
        afterwards."""
        self._recent_sent = len(self.recent_uids()) if self._recent else 0
        return self._recent_sent

    # -- names of flags --------------------------------------------------------------------------------------------

    def has_new_names(self, state: State) -> bool:
        """Return whether the mailbox has flags that the client does not know, or
        PERMANENTFLAGS has changed.
        """
        return self._names != (state.flags.version, state.full)

    def note_names(self, state: State, names: Sequence[str]) -> None:
        """Note that the client knows these names of flags, all of the state's among
        them."""
        self.names = tuple(names)
        self._names = (state.flags.version, state.full)

    # -- changes ---------------------------------------------------------------------------------------------------

    def unreported(self, state: State, uids: UidArray) -> npt.NDArray[np.bool_]:
        """Return which of `uids`, all in the state, have changes of others that the
        client does not know.
        """
        where, _ = state.positions(uids)
        modseqs = state.modseqs[where]
        mask = modseqs > np.uint64(self._modseq)
        for modseq, own in self._own:
            mask &= ~((modseqs == np.uint64(modseq)) & within(uids, own))
        return mask

    def note_own(self, modseq: int, uids: UidArray) -> None:
        """This session gave `uids` the modseq, and the client knows their flags: no
        poll repeats them.
        """
        if modseq and len(uids):
            self._own = (*self._own, (modseq, uids))

    def pending(self, state: State) -> bool:
        """Return whether a poll might return something."""
        return self._hidden or self._key != _key(state)

    def poll(self, state: State, *, expunge: bool, take_recent: Callable[[], int] | None = None) -> Updates | None:
        """Return what has changed and must be sent now; None if there is nothing.

        expunge: whether numbers may change now. take_recent: claims new mails for this
        session (`Mailbox.take_recent`). It is None if the mailbox is open read-only:
        \\Recent is then shown and stays for other sessions.
        """
        key = _key(state)
        if expunge and len(state.retained):
            state.retained.enter(self)
        if key == self._key and not (self._hidden and expunge):
            self._own = ()
            return None
        self._key = key
        reported = len(self.uids)
        vanished, expunged = _EMPTY, []
        kept = self.uids
        same = len(state) >= reported and np.array_equal(state.uids[:reported], kept)
        self._hidden = False
        if not same:
            _, there = state.positions(kept)
            if not there.all():
                if expunge:
                    expunged = (np.flatnonzero(~there)[::-1] + 1).tolist()
                    vanished, kept = kept[~there], kept[there]
                else:
                    self._hidden = True
        first = int(np.searchsorted(state.uids, self._uidnext))
        fresh = state.uids[first:]
        total = len(kept) + len(fresh)
        # Both are sorted, and kept is a part of the state unless something is hidden:
        # if their lengths are equal, they are equal.
        self.uids = state.uids if total == len(state) and not self._hidden else np.concatenate((kept, fresh))
        changed = self._changed(state, first)
        if len(fresh):
            self.add_recent(state.recent if take_recent is None else take_recent(), state.uidnext)
        self._uidnext = max(self._uidnext, state.uidnext)
        recent_before = self._recent_sent
        recent = self.recent_count() if len(fresh) or expunged else recent_before
        names = self.has_new_names(state)
        if not (expunged or len(fresh) or len(changed) or names or recent != recent_before):
            return None
        return Updates(
            expunged,
            vanished,
            total if len(fresh) else None,
            recent if recent != recent_before or len(fresh) else None,
            changed,
            names,
        )

    def _changed(self, state: State, first: int) -> UidArray:
        """Return mails before row `first` whose flags differ from what the client
        knows."""
        low, self._modseq = self._modseq, max(self._modseq, state.highestmodseq)
        own, self._own = self._own, ()
        modseqs = state.modseqs[:first]
        rows = np.flatnonzero(modseqs > np.uint64(low))
        if len(rows) == 0:
            return _EMPTY
        uids = state.uids[rows]
        keep = np.ones(len(rows), dtype=np.bool_)
        for modseq, mine in own:
            keep &= ~((modseqs[rows] == np.uint64(modseq)) & within(uids, mine))
        uids = uids[keep]
        if len(self.uids) != len(state):
            uids = uids[within(uids, self.uids)]
        return uids


def _key(state: State) -> tuple[int, int, int, int]:
    """A key that differs whenever a poll may have something to return."""
    return state.highestmodseq, state.uidnext, len(state), state.flags.version


def _joined(pieces: list[UidArray]) -> UidArray:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else _EMPTY
