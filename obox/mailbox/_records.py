"""Index records apart from the state: records of expunged mails that some session still
counts.

A client may ask for a mail that another session has expunged until it gets the EXPUNGE,
and the server should answer (RFC 2180 §4.1). `Retained` keeps such records for as long
as a view needs them. `Records` is a table of some mails, live or retained, and is read
like a state.

Invariant: retained records change only answers about expunged mails. This module does
not know which of the records a view still counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ..types import Guid
from ._uidset import UidArray

RETAINED_MAX: Final = 65_536
"""A mailbox retains at most 65,536 records, of about 80 bytes each. For mails beyond
the limit, sessions that count them get EXPUNGEISSUED.
"""

PARTS_MAX: Final = 32
"""Arrays of records, each of which a lookup searches. Beyond the limit, the older half
becomes a single array.
"""

Where = npt.NDArray[np.intp]


class Table(Protocol):
    """What is read of mails by position: a `State`, or `Records` of some mails."""

    @property
    def uids(self) -> UidArray:
        """Return the UIDs, ascending."""

    @property
    def modseqs(self) -> npt.NDArray[np.uint64]: ...

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column: uid size internaldate zone savedate modseq home home_uid oid
        bits."""

    def flag_bits(self, where: Where | slice) -> list[int]:
        """Return flags of the mails at `where`.

        Bit i stands for `State.flags.names[i]`, however many names there are.
        """


class Records:
    """Records of some mails. columns: as in a state, in UID order. wide: masks of wide
    keywords.
    """

    __slots__ = ("columns", "names", "wide")

    def __init__(
        self, columns: dict[str, npt.NDArray[Any]], wide: Mapping[str, npt.NDArray[np.bool_]], names: Sequence[str]
    ) -> None:
        self.columns = columns
        self.wide = wide
        self.names = names

    def __len__(self) -> int:
        return len(self.columns["uid"])

    @property
    def uids(self) -> UidArray:
        return self.columns["uid"]

    @property
    def modseqs(self) -> npt.NDArray[np.uint64]:
        return self.columns["modseq"]

    def column(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def flag_bits(self, where: Where | slice) -> list[int]:
        masks = {name: mask[where] for name, mask in self.wide.items()}
        return with_wide(self.columns["bits"][where].tolist(), masks, self.names)

    def take(self, index: npt.NDArray[np.bool_] | Where | slice) -> Records:
        columns = {name: column[index] for name, column in self.columns.items()}
        return Records(columns, {name: mask[index] for name, mask in self.wide.items()}, self.names)

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """All records of `parts`, which have no UID in common, in UID order."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        wide = {
            name: np.concatenate([part.wide.get(name, np.zeros(len(part), dtype=np.bool_)) for part in parts])
            for name in {name for part in parts for name in part.wide}
        }
        return cls(columns, wide, parts[0].names).take(np.argsort(columns["uid"], kind="stable"))


def with_wide(bits: list[int], masks: Mapping[str, npt.NDArray[np.bool_]], names: Sequence[str]) -> list[int]:
    """Return words of flags with the bits of wide keywords, which are beyond the
    64th."""
    for name, mask in masks.items():
        if name in names:
            bit = 1 << names.index(name)
            for at in np.flatnonzero(mask).tolist():
                bits[at] |= bit
    return bits


class Retained:
    """Records of expunged mails, in the order of expunging; see the module's text."""

    __slots__ = ("__weakref__", "_count", "_end", "_seen", "parts")

    def __init__(self) -> None:
        self.parts: list[tuple[int, Records]] = []
        self._count = 0
        self._end = 0
        self._seen: dict[int, int] = {}  # by id: a view leaves before it is gone

    def __len__(self) -> int:
        """Return how many records there are."""
        return self._count

    @property
    def wanted(self) -> bool:
        """Return whether a view may still count mails that are expunged now."""
        return bool(self._seen)

    def enter(self, view: object) -> None:
        """`view` counts the mails that are in the mailbox now."""
        self._seen[id(view)] = self._end
        self._drop()

    def leave(self, view: object) -> None:
        """`view` will ask for no record any more."""
        self._seen.pop(id(view), None)
        self._drop()

    def add(self, records: Records) -> None:
        """Retain records of mails that are expunged now. The oldest beyond RETAINED_MAX
        are dropped.
        """
        if len(records) > RETAINED_MAX:
            records = records.take(slice(-RETAINED_MAX, None))
        self._end += 1
        self.parts.append((self._end, records))
        self._count += len(records)
        while (excess := self._count - RETAINED_MAX) > 0:
            number, oldest = self.parts.pop(0)
            if excess < len(oldest):
                self.parts.insert(0, (number, oldest.take(slice(excess, None))))
            self._count -= min(excess, len(oldest))
        if len(self.parts) > PARTS_MAX:
            half = PARTS_MAX // 2
            older = Records.joined([part for _, part in self.parts[:half]])
            self.parts[:half] = [(self.parts[half - 1][0], older)]

    def find(self, uids: UidArray) -> list[Records]:
        """The retained records of `uids`, in parts."""
        found = []
        for _, part in self.parts:
            mask = np.isin(part.uids, uids, assume_unique=True)
            if mask.any():
                found.append(part.take(mask))
        return found

    def used(self, names: Sequence[str]) -> set[str]:
        """Return the flags that some record has."""
        bits = 0
        out: set[str] = set()
        for _, part in self.parts:
            bits |= int(np.bitwise_or.reduce(part.columns["bits"]))
            out.update(name for name, mask in part.wide.items() if mask.any())
        return out | {name for i, name in enumerate(names[:64]) if bits >> i & 1}

    def _drop(self) -> None:
        if not self.parts:
            return
        low = min(self._seen.values(), default=self._end)
        self.parts = [(number, part) for number, part in self.parts if number > low]
        self._count = sum(len(part) for _, part in self.parts)


def by_home(
    uids: UidArray, home: npt.NDArray[np.int32], home_uid: UidArray, own: Guid, homes: Sequence[Guid]
) -> dict[Guid, tuple[UidArray, UidArray]]:
    """Return the mails that are not in the object of their own UID, by the mailbox that
    has their object: their UIDs, and the UIDs of the objects.

    uids, home, home_uid: columns of records of the mailbox `own`.
    """
    found = {}
    for number in (np.flatnonzero(np.bincount(home + 1)) - 1).tolist():
        mine = home == number
        if number < 0:
            mine &= home_uid != uids
        if mine.any():
            found[own if number < 0 else homes[number]] = uids[mine], home_uid[mine]
    return found


def home_of(table: Table, position: int, own: Guid, homes: Sequence[Guid]) -> tuple[Guid, int]:
    """Return (mailbox guid, uid) of the object that holds the mail at a position."""
    home = int(table.column("home")[position])
    return (own if home < 0 else homes[home]), int(table.column("home_uid")[position])
