"""The mails of a mailbox as columns: what is asked of them by position, UID and flag.

Invariant: the columns are sorted by UID. Positions that exist are changed in place only
in the columns of flags and MODSEQs, and not before a column that was lent (`_lend`) has
been copied.

This module does not know how mails come and go (`_state.State`), the bucket, or who
asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..types import Guid
from ._delta import (
    KEYWORDS_MAX,
    KEYWORDS_STAMPED_MAX,
    SYSTEM_FLAGS,
    Rows,
)
from ._flags import NARROW, FlagNames
from ._records import Records, Retained, Table, home_of, with_wide
from ._uidset import UidArray

RUN_MIN: Final = 16
"""With more UIDs, checking first for neighbours takes a tenth of the time."""

FIXED: Final = ("uid", "size", "internaldate", "zone", "savedate", "modseq", "home", "home_uid", "oid", "place")
"""Columns that a bundle has of each mail, beside the stamps of flags."""


class Columns:
    """See the module's text."""

    def __init__(self, guid: Guid) -> None:
        self.guid = guid
        self.homes: list[Guid] = []
        self.flags = FlagNames()
        self.retained = Retained()
        """Records of expunged mails that some session still counts."""
        self._n = 0
        empty = Rows.empty()
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: getattr(empty, name).astype(getattr(empty, name).dtype.newbyteorder("=")) for name in FIXED
        }
        self._columns["bits"] = np.empty(0, dtype=np.uint64)
        self.flag_stamps: dict[str, npt.NDArray[np.uint64]] = {}
        self._lent: set[int] = set()
        """Identities of the columns that were lent."""

    def __len__(self) -> int:
        return self._n

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a view of a column: uid size internaldate zone savedate modseq home
        home_uid oid place bits."""
        return self._columns[name][: self._n]

    @property
    def uids(self) -> UidArray:
        return self._columns["uid"][: self._n]

    @property
    def bits(self) -> npt.NDArray[np.uint64]:
        """Flags of each row: bit i stands for `flags.names[i]`."""
        return self._columns["bits"][: self._n]

    @property
    def modseqs(self) -> npt.NDArray[np.uint64]:
        return self._columns["modseq"][: self._n]

    def positions(self, uids: UidArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Return for each of `uids` its row (any, if it is missing), and whether it
        exists."""
        mine = self.uids
        count = len(uids)
        if count > RUN_MIN:
            first = int(mine.searchsorted(uids[0]))
            run = mine[first : first + count]
            # neighbours, as in most commands
            if len(run) == count and bool((run == uids).all()):
                return np.arange(first, first + count), np.ones(count, dtype=np.bool_)
        where = mine.searchsorted(uids)
        if self._n == 0:
            return where, np.zeros(len(uids), dtype=np.bool_)
        np.minimum(where, self._n - 1, out=where)
        there: npt.NDArray[np.bool_] = mine[where] == uids
        return where, there

    def position(self, uid: int) -> int | None:
        """Return the row of a UID, or None."""
        where = int(np.searchsorted(self.uids, uid))
        return where if where < self._n and int(self.uids[where]) == uid else None

    def records(self, uids: UidArray) -> tuple[Table, npt.NDArray[np.intp], UidArray]:
        """Return where to read the records of `uids`, ascending.

        Returns a table, positions in it, and the UIDs that have a record. The table is
        the state itself if all of them are live; else it has the records that are live
        or retained.
        """
        where, there = self.positions(uids)
        if there.all():
            return self, where, uids
        kept = self.retained.find(uids[~there]) if len(self.retained) else []
        if not kept:
            return self, where[there], uids[there]
        table = Records.joined([*kept, self._records(where[there])]) if there.any() else Records.joined(kept)
        return table, np.arange(len(table)), table.uids

    def _records(self, where: npt.NDArray[np.intp]) -> Records:
        columns = {name: column[where] for name, column in self._columns.items()}
        return Records(columns, self._wide_masks(where), self.flags.names)

    def rows(self, where: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | None = None) -> Rows:
        """Return the records; with `where` those of a mask, or at these positions."""
        index: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice = slice(0, self._n) if where is None else where
        fixed = {name: self._columns[name][: self._n][index] for name in FIXED}
        stamps = {flag: column[: self._n][index] for flag, column in self.flag_stamps.items()}
        return Rows(**fixed, stamps=stamps, homes=self.homes)

    def reserve(self, count: int) -> None:
        """Make room for `count` rows; grows by half: n deliveries copy O(n) rows."""
        have = len(self._columns["uid"])
        if count <= have:
            return
        room = max(count, have + have // 2, 16)
        for table in (self._columns, self.flag_stamps):
            for name, old in table.items():
                shape = (room, *old.shape[1:])
                grown = np.zeros(shape, dtype=old.dtype)
                grown[: self._n] = old[: self._n]
                table[name] = grown

    def _lend(self) -> None:
        """Keep what `rows` has of all mails as it is now, so that a thread may read it
        later. A column is copied when it is changed for the first time after that."""
        self._lent = {id(column) for column in (self._columns["modseq"], *self.flag_stamps.values())}

    def _own(self, table: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
        """Return a column whose positions may be changed in place."""
        column = table[name]
        if id(column) in self._lent:
            self._lent.discard(id(column))
            column = table[name] = column.copy()
        return column

    # -- flags -------------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Return whether no new keyword is accepted: KEYWORDS_MAX are in use, or
        KEYWORDS_STAMPED_MAX are remembered.

        Of the latter, those that only expunged mails had count until they are
        forgotten, because each poll asks, and must not look at the mails.
        """
        stamped = len(self.flag_stamps) - sum(name in self.flag_stamps for name in SYSTEM_FLAGS)
        if stamped >= KEYWORDS_STAMPED_MAX:
            return True
        return len(self.flags.names) - len(SYSTEM_FLAGS) >= KEYWORDS_MAX and len(self._used()) >= KEYWORDS_MAX

    def has_flag(self, flag: str, where: npt.NDArray[np.intp] | slice) -> npt.NDArray[np.bool_]:
        """Return which of the mails at `where` have a flag."""
        name = self.flags.known(flag)
        bit = NARROW if name is None else self.flags.names.index(name)
        if name is None or (bit >= NARROW and name not in self.flag_stamps):
            return np.zeros(len(self.uids[where]), dtype=np.bool_)
        word = self.bits[where] >> np.uint64(bit) if bit < NARROW else self.flag_stamps[name][: self._n][where]
        found: npt.NDArray[np.bool_] = (word & np.uint64(1)).astype(np.bool_)
        return found

    def flag_bits(self, where: npt.NDArray[np.intp] | slice) -> list[int]:
        """Flags of the mails at `where`: bit i for `flags.names[i]`, for all names."""
        bits: list[int] = self.bits[where].tolist()
        return with_wide(bits, self._wide_masks(where), self.flags.names) if self.flags.wide else bits

    def spell(self, flags: Iterable[str]) -> list[str]:
        """Do `FlagNames.spelled`. Raises Limit if the keywords do not fit.

        They fit if the keywords that mails have or are about to get, and these, are at
        most KEYWORDS_MAX. Keywords that are all in use fit too, even if a merge has
        brought more.
        """
        names = self.flags.spelled(flags)
        if not names:
            return names
        asked = {name.lower() for name in names if name not in SYSTEM_FLAGS}
        if not self.flags.has_room(len(asked), len(self.flag_stamps)):
            stamped = {name.lower() for name, stamps in self.flag_stamps.items() if stamps[: self._n].any()}
            self.flags.check_room(asked, self._used(), stamped)
        return names

    def _wide_masks(self, where: npt.NDArray[np.intp] | slice) -> dict[str, npt.NDArray[np.bool_]]:
        return {name: self.has_flag(name, where) for name in self.flags.wide}

    def _used(self) -> set[str]:
        """Return keywords, in lower case, that some mail has; retained mails count."""
        bits = int(np.bitwise_or.reduce(self.bits))
        used = {name for i, name in enumerate(self.flags.names[:NARROW]) if bits >> i & 1}
        used |= {name for name, mask in self._wide_masks(slice(0, self._n)).items() if mask.any()}
        used |= self.retained.used(self.flags.names) if len(self.retained) else set()
        return {name.lower() for name in used.difference(SYSTEM_FLAGS)}

    def home_of(self, position: int) -> tuple[Guid, int]:
        """Return (mailbox guid, uid) of the object that holds the mail of a row."""
        return home_of(self, position, self.guid, self.homes)

    def foreign(self) -> npt.NDArray[np.bool_]:
        """Return which rows have their mail in an object under another UID: copies."""
        home: npt.NDArray[np.int32] = self._columns["home"][: self._n]
        home_uid: npt.NDArray[np.uint32] = self._columns["home_uid"][: self._n]
        foreign: npt.NDArray[np.bool_] = (home >= 0) | (home_uid != self.uids)
        return foreign
