"""Packs: objects that have many mails of a mailbox, by their names (docs/packs.md).

A pack is written once, so that what a delta says of it is the same in all deltas. It
says where the mails lie at present; a record does not change when its mail moves.

This module does not know the bucket. What it says of a mail is a hint: the pack may be
gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ._uidset import UidArray

_U4: Final = np.dtype("<u4")


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """covers: names of the packs that this one makes superfluous. uid, offset, length:
    of the mails, in UID order; offset: from the beginning of the object. The lengths
    are those of the envelopes."""

    covers: tuple[str, ...]
    uid: UidArray
    offset: npt.NDArray[np.uint32]
    length: npt.NDArray[np.uint32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pack) and self._order() == other._order()

    def __hash__(self) -> int:
        return hash(self._order())

    def __len__(self) -> int:
        return len(self.uid)

    def moved(self, by: int) -> Pack:
        """Return the same mails, behind `by` more bytes. Raises ValueError if an offset
        becomes too large."""
        if len(self) and int(self.offset.max()) + by > 0xFFFFFFFF:
            raise ValueError(f"a pack of more than {0xFFFFFFFF} bytes")
        return Pack(self.covers, self.uid, (self.offset + np.uint32(by)).astype(_U4), self.length)

    def find(self, uid: int) -> tuple[int, int] | None:
        """Return offset and length of a mail, None if it is not here."""
        at = int(np.searchsorted(self.uid, uid))
        if at == len(self.uid) or self.uid.item(at) != uid:
            return None
        return self.offset.item(at), self.length.item(at)

    def pack(self) -> list[object]:
        """Return the value for a delta."""
        columns = [column.astype(_U4, copy=False).tobytes() for column in (self.uid, self.offset, self.length)]
        return [list(self.covers), *columns]

    @classmethod
    def unpack(cls, raw: Any) -> Pack:
        """Undo `pack`. Raises ValueError or TypeError."""
        covers, *columns = raw
        uid, offset, length = (np.frombuffer(column, dtype=_U4) for column in columns)
        if not len(uid) == len(offset) == len(length):
            raise ValueError("columns of a pack of different lengths")
        if not all(isinstance(name, str) for name in covers):
            raise ValueError("a pack that covers something without a name")
        if len(uid) and (not int(uid[0]) or not bool((uid[1:] > uid[:-1]).all()) or not bool(length.all())):
            raise ValueError("a pack whose mails are not in UID order, or have no bytes")
        return cls(tuple(covers), uid, offset, length)

    def _order(self) -> tuple[Any, ...]:
        columns = (column.astype(_U4, copy=False).tobytes() for column in (self.uid, self.offset, self.length))
        return self.covers, *columns


Packs = dict[str, Pack]


def join_packs(mine: Packs, others: Mapping[str, Pack]) -> None:
    """Join packs by their names. If two differ, which only damage can cause, the same
    one wins for every order."""
    for name, pack in others.items():
        known = mine.get(name)
        if known is None or (known is not pack and known._order() < pack._order()):
            mine[name] = pack


def counting(packs: Mapping[str, Pack]) -> list[str]:
    """Return the packs that no other covers, the newest first."""
    covered = {name for pack in packs.values() for name in pack.covers}
    return sorted((name for name in packs if name not in covered), reverse=True)


def spots(packs: Mapping[str, Pack], uids: Iterable[int]) -> dict[int, tuple[str, int, int]]:
    """Return the newest known place of each mail: the pack, offset and length. Mails
    that are in no pack are left out."""
    out: dict[int, tuple[str, int, int]] = {}
    left = set(uids)
    for name in counting(packs) if packs else ():
        pack = packs[name]
        wanted = np.fromiter(left, dtype=np.uint32, count=len(left))
        at = np.searchsorted(pack.uid, wanted)
        there = at < len(pack)
        there[there] = pack.uid[at[there]] == wanted[there]
        at = at[there]
        found = wanted[there].tolist()
        places = zip(pack.offset[at].tolist(), pack.length[at].tolist(), strict=True)
        out.update((uid, (name, *place)) for uid, place in zip(found, places, strict=True))
        left.difference_update(found)
        if not left:
            break
    return out


def lasting_packs(packs: Mapping[str, Pack]) -> Packs:
    """Return the packs that a base has: those that count."""
    return {name: packs[name] for name in counting(packs)} if packs else {}
