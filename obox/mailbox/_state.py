"""A mailbox in memory: how deltas are joined.

Its mails are columns that all its sessions share (`_columns.Columns`).

Invariant: a UID is either a row, or gone, or was never given; nothing that is gone
comes back. Only `join` changes a state. A command first makes a delta (`_changes`).

This module does not know the bucket, the journal, or who asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from ..types import Guid
from ._batches import lasting
from ._columns import FIXED, Columns
from ._delta import (
    CLAIM_PURGED,
    SYSTEM_FLAGS,
    Changed,
    Delta,
    Gone,
    Rows,
    largest,
)
from ._flags import NARROW
from ._holders import Holders
from ._packs import Packs, join_packs, lasting_packs
from ._records import RETAINED_MAX
from ._uidset import UidArray, merged, uid_array, united

ANSWERED, FLAGGED, DELETED, SEEN, DRAFT = (1 << i for i in range(5))
_EMPTY: Final[UidArray] = np.empty(0, dtype=np.uint32)
MODSEQ_MAX: Final = 2**53 - 1


class State(Columns):
    """The state of one mailbox; see the module's text."""

    def __init__(self, guid: Guid) -> None:
        super().__init__(guid)
        self.uidnext = 1
        self.highestmodseq = 1
        self.recent = 1
        self.gone_uid: UidArray = _EMPTY
        self.gone_modseq: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self.gone_purged: npt.NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
        self.holders = Holders()
        self.claims: dict[int, int] = {}
        self.batches: dict[int, int] = {}
        self.packs: Packs = {}
        self.gaps: list[tuple[int, int]] = []
        self.bytes = 0
        self.unseen = 0
        # These changes have a mail or expunge that comes later, from another writer.
        self._early_flags: dict[str, dict[int, int]] = {}
        self._early_purged: set[int] = set()

    # -- what has gone, and since when -------------------------------------------------------------------------------

    def gone_since(self, modseq: int, known: UidArray | None = None) -> UidArray:
        """Return UIDs expunged after `modseq`, out of `known`. RFC 7162 §3.2.5.2."""
        uids = self.gone_uid[self.gone_modseq > np.uint64(self.trusted(modseq))]
        return uids if known is None else uids[np.isin(uids, known, assume_unique=True)]

    def trusted(self, modseq: int) -> int:
        """Return the modseq to use for a client that presents `modseq`: the same, or 0
        for "everything".

        It is 0 inside a gap that a takeover or a merge has left, where the client may
        have received changes that were lost, and above the highest modseq.
        """
        if modseq > self.highestmodseq or any(low < modseq <= high for low, high in self.gaps):
            return 0
        return modseq

    def next_modseq(self, now_ms: int) -> int:
        """Return max(last + 1, unix milliseconds), so that owners need no
        communication."""
        return min(max(self.highestmodseq + 1, now_ms), MODSEQ_MAX)

    def dead(self, before_modseq: int) -> UidArray:
        """Return expunged UIDs to whose object nothing has referred since then."""
        mask = ~self.gone_purged & (self.gone_modseq < np.uint64(max(before_modseq, 0)))
        uids = self.gone_uid[mask]
        if len(uids) and self.holders:
            uids = uids[~np.isin(uids, self.holders.needed(before_modseq), assume_unique=True)]
        return uids

    def garbage_since(self) -> int:
        """Return the modseq of the earliest expunge, or last claim, with an object
        left; or 0."""
        left = self.gone_modseq[~self.gone_purged]
        if len(left):
            return int(left.min())
        return self.highestmodseq if any(count < CLAIM_PURGED for count in self.claims.values()) else 0

    # -- joining ---------------------------------------------------------------------------------------------------

    def join(self, delta: Delta) -> Changed:
        """Join `delta`: commutative, associative, idempotent. Returns the effect."""
        changed_new = changed_flags = changed_gone = _EMPTY
        if delta.gone is not None and len(delta.gone.uid):
            changed_gone = self._join_gone(delta.gone)
        if delta.purged is not None and len(delta.purged):
            self.gone_purged = self.gone_purged | np.isin(self.gone_uid, delta.purged)
            self._early_purged.update(delta.purged[~np.isin(delta.purged, self.gone_uid)].tolist())
        if delta.rows is not None and len(delta.rows):
            changed_new, changed_flags = self._join_rows(delta.rows)
        for flag, stamp, uids in delta.flags:
            touched = self._join_flag(flag, stamp, uids)
            if len(touched):
                changed_flags = united(changed_flags, touched)
        if len(changed_new) and len(changed_flags):
            changed_flags = np.setdiff1d(changed_flags, changed_new, assume_unique=True)
        self.holders.join(delta.holders)
        for uid, count in delta.claims.items():
            self.claims[uid] = max(self.claims.get(uid, 0), count)
        for uid, count in delta.batches.items():
            self.batches[uid] = max(self.batches.get(uid, 0), count)
        if delta.packs:
            join_packs(self.packs, delta.packs)
        if delta.gaps:
            self.gaps = sorted({*self.gaps, *delta.gaps})
        self.uidnext = max(self.uidnext, delta.uidnext)
        self.highestmodseq = max(self.highestmodseq, delta.highestmodseq)
        self.recent = max(self.recent, delta.recent)
        return Changed(changed_new, changed_flags, changed_gone)

    def _join_gone(self, gone: Gone) -> UidArray:
        """Remove rows for good; returns the UIDs that were live."""
        self.highestmodseq = max(self.highestmodseq, int(gone.modseq.max()))
        self.uidnext = max(self.uidnext, int(gone.uid[-1]) + 1)
        known = np.isin(gone.uid, self.gone_uid, assume_unique=True)
        if known.any():
            at = np.searchsorted(self.gone_uid, gone.uid[known])
            self.gone_modseq = self.gone_modseq.copy()
            self.gone_modseq[at] = np.maximum(self.gone_modseq[at], gone.modseq[known])
        fresh = gone.uid[~known]
        if len(fresh) == 0:
            return _EMPTY
        purged = np.isin(fresh, uid_array(self._early_purged))
        mine = self.gone_uid, self.gone_modseq, self.gone_purged
        self.gone_uid, self.gone_modseq, self.gone_purged = merged(mine, (fresh, gone.modseq[~known], purged))
        if self._early_purged:
            self._early_purged.difference_update(fresh.tolist())
        for early in filter(None, self._early_flags.values()):
            for uid in early.keys() & set(fresh.tolist()):
                del early[uid]
        where, there = self.positions(fresh)
        where = where[there]
        if len(where) == 0:
            return _EMPTY
        if self.retained.wanted:
            self.retained.add(self._records(where[-RETAINED_MAX:]))
        self.bytes -= int(self._columns["size"][where].sum(dtype=np.uint64))
        self.unseen -= int(np.count_nonzero(self.bits[where] & np.uint64(SEEN) == 0))
        keep = np.ones(self._n, dtype=np.bool_)
        keep[where] = False
        left = np.flatnonzero(keep)
        for table in (self._columns, self.flag_stamps):
            for name, column in table.items():
                table[name] = column.take(left, axis=0)
        self._n -= len(where)
        return fresh[there]

    def _join_rows(self, rows: Rows) -> tuple[UidArray, UidArray]:
        """Add records that are neither here nor gone; join the stamps of the others."""
        self.highestmodseq = max(self.highestmodseq, largest(rows.modseq))
        self.uidnext = max(self.uidnext, int(rows.uid[-1]) + 1)
        highest = max(int(column[-1]) if len(column) else 0 for column in (self.uids, self.gone_uid))
        if int(rows.uid[0]) <= highest:
            rows, _ = rows.parted(np.isin(rows.uid, self.gone_uid, assume_unique=True))
            rows, old = rows.parted(self.positions(rows.uid)[1])
        else:
            old = None
        flags = _EMPTY
        if old is not None and len(old):
            where, _ = self.positions(old.uid)
            modseq = self._own(self._columns, "modseq")
            modseq[where] = np.maximum(modseq[where], old.modseq)
            altered = np.zeros(len(where), dtype=np.bool_)
            for flag, stamps in old.stamps.items():
                altered |= self._stamp(flag, where, stamps)
            flags = old.uid[altered].astype(np.uint32, copy=False)
        if len(rows):
            self._append(rows)
            self._join_early(rows.uid)
        return rows.uid.astype(np.uint32), flags

    def _join_early(self, uids: UidArray) -> None:
        """Apply flag changes that came before their mails."""
        if not any(self._early_flags.values()):
            return
        fresh = set(uids.tolist())
        for flag, early in self._early_flags.items():
            for uid in early.keys() & fresh:
                self._join_flag(flag, early.pop(uid), np.array([uid], dtype=np.uint32))

    def _append(self, rows: Rows) -> None:
        count = len(rows)
        stamps: dict[str, npt.NDArray[np.uint64]] = {}
        for flag, values in rows.stamps.items():
            name = self._stamped_name(flag)
            stamps[name] = np.maximum(stamps[name], values) if name in stamps else values
        on = [name for name, values in stamps.items() if bool((values & np.uint64(1)).any())]
        for name in on:
            if name not in self.flags.names:
                self.flags.allot(name, lambda: self._used().union(name.lower() for name in on))
        home = rows.home
        if rows.homes:
            table = [self._home_index(guid) for guid in rows.homes]
            home = np.where(home < 0, -1, np.array([*table, -1], dtype=np.int32)[home]).astype(np.int32)
        bits = np.zeros(count, dtype=np.uint64)
        for name, values in stamps.items():
            if name in self.flags.names and (bit := self.flags.names.index(name)) < NARROW:
                bits |= (values & np.uint64(1)) << np.uint64(bit)
        at_end = self._n == 0 or int(rows.uid[0]) > int(self.uids[-1])
        self.reserve(self._n + count)
        n = self._n
        for name in FIXED:
            self._columns[name][n : n + count] = home if name == "home" else getattr(rows, name)
        self._columns["bits"][n : n + count] = bits
        for name, column in self.flag_stamps.items():
            column[n : n + count] = stamps.get(name, 0)
        self._n += count
        if count == 1:  # a delivery: numpy takes 3 µs for each sum
            self.bytes += int(rows.size[0])
            self.unseen += not int(bits[0]) & SEEN
        else:
            self.bytes += int(rows.size.sum(dtype=np.uint64))
            self.unseen += int(np.count_nonzero(bits & np.uint64(SEEN) == 0))
        if not at_end:
            order = np.argsort(self.uids, kind="stable")
            for name, array in self._columns.items():
                self._columns[name] = array[: self._n][order]
            for name, column in self.flag_stamps.items():
                self.flag_stamps[name] = column[: self._n][order]

    def _join_flag(self, flag: str, stamp: int, uids: UidArray) -> UidArray:
        where, there = self.positions(uids)
        self.highestmodseq = max(self.highestmodseq, stamp >> 1)
        where = where[there]
        if len(where) < len(uids):
            unknown = uids[~there]
            early = self._early_flags.setdefault(flag, {})
            for uid in unknown[~np.isin(unknown, self.gone_uid)].tolist():
                early[uid] = max(early.get(uid, 0), stamp)
        if len(where) == 0:
            return _EMPTY
        modseq = self._own(self._columns, "modseq")
        modseq[where] = np.maximum(modseq[where], np.uint64(stamp >> 1))
        altered: UidArray = uids[there][self._stamp(flag, where, np.uint64(stamp))]
        return altered

    def _stamp(
        self, flag: str, where: npt.NDArray[np.intp], stamps: npt.NDArray[np.uint64] | np.uint64
    ) -> npt.NDArray[np.bool_]:
        """Join stamps of a flag into the rows at `where`.

        Returns which rows have the flag now and did not before, or the reverse.
        """
        name = self._stamped_name(flag)
        column = self._own(self.flag_stamps, name)
        before = column[where]
        after = column[where] = np.maximum(before, stamps)
        altered: npt.NDArray[np.bool_] = ((before ^ after) & np.uint64(1)).astype(np.bool_)
        if not altered.any():
            return altered
        if name not in self.flags.names:
            self.flags.allot(name, self._used)
        index = self.flags.names.index(name)
        if index < NARROW:
            bit = np.uint64(index)
            bits = self._columns["bits"]
            words = bits[where]
            bits[where] = words & ~(np.uint64(1) << bit) | (after & np.uint64(1)) << bit
            self._count_seen(words, bits[where])
        return altered

    def _count_seen(self, before: npt.NDArray[np.uint64], after: npt.NDArray[np.uint64]) -> None:
        seen = np.uint64(SEEN)
        self.unseen += int(np.count_nonzero(before & seen)) - int(np.count_nonzero(after & seen))

    def _stamped_name(self, flag: str) -> str:
        """Return our spelling of a flag that some mail has had; makes its column if
        needed."""
        if flag in self.flag_stamps:
            return flag
        low = flag.lower()
        name = next((known for known in self.flag_stamps if known.lower() == low), None)
        if name is None:
            name = self.flags.known(flag) or flag
            self.flag_stamps[name] = np.zeros(len(self._columns["uid"]), dtype=np.uint64)
        return name

    def forgettable(self, before_modseq: int) -> list[str]:
        """Return keywords that no mail has, and that no mail has had since
        `before_modseq`."""
        out = []
        for name, column in self.flag_stamps.items():
            stamps = column[: self._n]
            old = int(stamps.max(initial=0)) >> 1 < before_modseq
            if old and name not in SYSTEM_FLAGS and not bool((stamps & np.uint64(1)).any()):
                out.append(name)
        return out

    def forget(self, names: Iterable[str], before_modseq: int) -> None:
        """Drop stamps of forgettable keywords, once a base without them covers all.

        After that, an older change of another writer to such a keyword is no longer
        known to be older. docs/format.md, "Bundles".
        """
        for name in set(names).intersection(self.forgettable(before_modseq)):
            del self.flag_stamps[name]

    def _home_index(self, guid: Guid) -> int:
        if guid == self.guid:
            return -1
        if guid not in self.homes:
            self.homes.append(guid)
        return self.homes.index(guid)

    # -- bundles ---------------------------------------------------------------------------------------------------

    def extract(self, since: int = 0, *, without: Iterable[str] = ()) -> Delta:
        """Return everything that was changed after modseq `since`, as a delta.

        0 gives the content of a base bundle, other values the content of a diff bundle.
        without: keywords whose stamps are left out.
        """
        rows = self.rows(self.modseqs > np.uint64(since) if since else None)
        for name in without:
            rows.stamps.pop(name, None)
        fresh = self.gone_modseq > np.uint64(since)
        return Delta(
            rows=rows,
            flags=[
                (flag, stamp, uid_array(uid for uid, known in early.items() if known == stamp))
                for flag, early in self._early_flags.items()
                for stamp in sorted(set(early.values()))
            ],
            gone=Gone(self.gone_uid[fresh], self.gone_modseq[fresh]),
            holders=self.holders.copy(),
            claims={uid: count for uid, count in self.claims.items() if since or count < CLAIM_PURGED},
            batches=dict(self.batches) if since else lasting(self),
            packs={} if since else lasting_packs(self.packs),
            purged=united(self.gone_uid[self.gone_purged], uid_array(self._early_purged)),
            gaps=list(self.gaps),
            uidnext=self.uidnext,
            highestmodseq=self.highestmodseq,
            recent=self.recent,
        )

    def snapshot(self, since: int = 0, *, without: Iterable[str] = ()) -> Delta:
        """`extract` for a thread that encodes it: later changes leave it as it is. If
        it has all mails, nothing of them is copied."""
        if not since:
            self._lend()
        return self.extract(since, without=without)
