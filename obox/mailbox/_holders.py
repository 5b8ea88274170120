"""Records in other mailboxes that share objects of a mailbox, in columns.

A COPY of 100,000 mails makes 100,000 holders. Each takes 16 bytes here: by mailbox, a
sorted column of UID and home UID in one number, and a column of what released it.

Invariant: a join is by maximum, as that of all fields of a delta (docs/format.md,
"Delta"). Columns are never changed in place, so that copies share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..types import Guid
from ._uidset import UidArray, distinct

Holder = tuple[int, Guid, int]
"""(home UID, mailbox guid, uid): a record in another mailbox that shares the object of
`home UID`.
"""

Numbers = npt.NDArray[np.uint64]

_UID_BITS: Final = np.uint64(32)
_UID_MASK: Final = np.uint64(0xFFFFFFFF)


class Holders:
    """See the module's text. The released of a holder is 0 while it holds, and then the
    modseq at which it ceased.
    """

    __slots__ = ("_late", "by_home")

    LATE_MAX: Final = 64
    """At most 64 joins of one mailbox wait to be merged. So a COPY of one mail does not
    copy the holders of all mails.
    """
    COLUMNS_MIN: Final = 16
    """Holders of one mailbox that are encoded as columns and not one by one."""

    def __init__(self) -> None:
        self.by_home: dict[Guid, tuple[Numbers, Numbers]] = {}
        self._late: dict[Guid, list[tuple[Numbers, Numbers]]] = {}

    @classmethod
    def of(cls, holders: Mapping[Holder, int]) -> Holders:
        found = cls()
        for (home_uid, guid, uid), released in holders.items():
            found.add(guid, np.array([home_uid], dtype=np.uint32), np.array([uid], dtype=np.uint32), released)
        return found

    def add(self, guid: Guid, home_uids: UidArray, uids: UidArray, released: int) -> None:
        """Join holders of one mailbox: pairs of home UID and UID, quickest by UID."""
        keys = distinct(uids.astype(np.uint64) << _UID_BITS | home_uids)
        self._add(guid, keys, np.full(len(keys), released, dtype=np.uint64))

    def join(self, other: Holders) -> None:
        for table in (other.by_home, *({guid: part} for guid, late in other._late.items() for part in late)):
            for guid, (keys, released) in table.items():
                self._add(guid, keys, released)

    def copy(self) -> Holders:
        found = Holders()
        found.by_home = dict(self.merge())
        return found

    def __bool__(self) -> bool:
        return bool(self.by_home or self._late)

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self.merge().values())

    def items(self) -> Iterator[tuple[Holder, int]]:
        """Yield each holder: for few, and for tests."""
        for guid, (keys, released) in self.merge().items():
            for key, modseq in zip(keys.tolist(), released.tolist(), strict=True):
                yield (key & 0xFFFFFFFF, guid, key >> 32), modseq

    def needed(self, since: int | None = None) -> UidArray:
        """Return home UIDs that a record shares, or has shared at `since` or later;
        sorted."""
        found = []
        for keys, released in self.merge().values():
            mask = released == 0
            if since is not None:
                mask |= released >= np.uint64(max(since, 0))
            found.append((keys[mask] & _UID_MASK).astype(np.uint32))
        return distinct(np.concatenate(found)) if found else np.empty(0, dtype=np.uint32)

    def pack(self) -> list[list[object]]:
        """Return [home uid, guid, uid, released] for each; many of a mailbox as
        columns."""
        out: list[list[object]] = []
        for guid, (keys, released) in sorted(self.merge().items()):
            raw = bytes.fromhex(guid)
            if len(keys) < self.COLUMNS_MIN:
                pairs = zip(keys.tolist(), released.tolist(), strict=True)
                out += [[key & 0xFFFFFFFF, raw, key >> 32, modseq] for key, modseq in pairs]
                continue
            one = int(released[0])
            same = bool((released == np.uint64(one)).all())
            homes, uids = (keys & _UID_MASK).astype("<u4"), (keys >> _UID_BITS).astype("<u4")
            out.append([homes.tobytes(), raw, uids.tobytes(), one if same else released.astype("<u8").tobytes()])
        return out

    @classmethod
    def unpack(cls, data: Any) -> Holders:
        """Undo `pack`. Raises ValueError or TypeError on what is none."""
        found = cls()
        single: dict[Guid, dict[int, int]] = {}
        for homes, raw, uids, released in data:
            guid = Guid(raw.hex())
            if not isinstance(homes, bytes):
                of_box = single.setdefault(guid, {})
                key = int(uids) << 32 | int(homes)
                of_box[key] = max(of_box.get(key, 0), int(released))
                continue
            columns = [np.frombuffer(column, dtype="<u4").astype(np.uint64) for column in (homes, uids)]
            if len(columns[0]) != len(columns[1]):
                raise ValueError("holders: columns of different lengths")
            keys = columns[1] << _UID_BITS | columns[0]
            if not _ascends(keys):
                raise ValueError("holders are not in order")
            if isinstance(released, bytes):
                modseqs = np.frombuffer(released, dtype="<u8").astype(np.uint64)
            else:
                modseqs = np.full(len(keys), int(released), dtype=np.uint64)
            if len(modseqs) != len(keys):
                raise ValueError("holders: columns of different lengths")
            found._add(guid, keys, modseqs)
        for guid, of_box in single.items():
            order = sorted(of_box)
            modseqs = np.array([of_box[key] for key in order], dtype=np.uint64)
            found._add(guid, np.array(order, dtype=np.uint64), modseqs)
        return found

    def _add(self, guid: Guid, keys: Numbers, released: Numbers) -> None:
        if len(keys) == 0:
            return
        mine = self.by_home.get(guid)
        late = self._late.get(guid)
        if mine is None and late is None:
            self.by_home[guid] = keys, released
            return
        if late is None:
            late = self._late[guid] = []
        late.append((keys, released))
        if len(late) > self.LATE_MAX:
            self.merge()

    @property
    def late(self) -> int:
        """Return how many wait to be merged."""
        return sum(len(keys) for late in self._late.values() for keys, _ in late)

    def merge(self) -> dict[Guid, tuple[Numbers, Numbers]]:
        """Merge what has been joined. Reads do it too."""
        for guid, late in self._late.items():
            parts = [self.by_home[guid], *late] if guid in self.by_home else late
            keys = np.concatenate([keys for keys, _ in parts])
            released = np.concatenate([released for _, released in parts])
            if not _ascends(keys):
                order = np.argsort(keys, kind="stable")  # merges the sorted runs
                keys, released = keys[order], released[order]
                first = np.flatnonzero(np.concatenate((_TRUE, keys[1:] != keys[:-1])))
                keys, released = keys[first], np.maximum.reduceat(released, first)
            self.by_home[guid] = keys, released
        self._late.clear()
        return self.by_home


_TRUE: Final = np.ones(1, dtype=np.bool_)


def _ascends(keys: Numbers) -> bool:
    return len(keys) < 2 or bool((keys[1:] > keys[:-1]).all())
