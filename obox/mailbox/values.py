"""What mails of a mailbox have for one criterion of SORT: kept in memory between two
commands, because a mail never changes.

A value of a text criterion is the rank of the text among those of all mails that are
known, so that a SORT compares numbers. `Ranked.with_more` takes in new mails without
sorting the texts of known mails again. `Values` keeps what several mailboxes have, up
to a bound. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ._uidset import UidArray
from .sorting import RUN, Numbers, in_order

TEXTS_BYTES_MAX: Final = 32 << 20
"""Memory of the texts of all mailboxes, about. 10,000 mails take one megabyte for a
criterion. The texts that were used least recently are dropped."""
DATES_BYTES_MAX: Final = 8 << 20
"""Memory of the dates of all mailboxes. 10,000 mails take 130 kB."""
TEXT_BYTES: Final = 64
"""What a text takes beside its characters, which take up to four octets each."""

_NO_UIDS: Final[UidArray] = np.empty(0, dtype=np.uint32)
_NO_NUMBERS: Final[Numbers] = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Ranked:
    """Texts of mails. uids: ascending. ranks: for each, its text's place in `texts`,
    which are in order and differ."""

    uids: UidArray = field(default_factory=_NO_UIDS.copy)
    ranks: Numbers = field(default_factory=_NO_NUMBERS.copy)
    texts: Sequence[str] = ()
    chars: int = 0

    @property
    def nbytes(self) -> int:
        return len(self.uids) * 12 + len(self.texts) * TEXT_BYTES + 2 * self.chars

    def of(self, uids: UidArray) -> Numbers:
        """Return a number for each of `uids`, all of which are known. The numbers have
        the order of the texts. An empty text has the number 0, and no other has it."""
        found: Numbers = self.ranks[self.uids.searchsorted(uids)]
        return found if self.texts and not self.texts[0] else found + 1

    def with_more(self, uids: UidArray, texts: Sequence[str]) -> Generator[None, None, Ranked]:
        """Return these mails and others. uids: ascending, and none is known yet.

        It works in steps of some milliseconds.
        """
        known, chars, new = self.texts, self.chars, []
        for at in range(0, len(texts), RUN):
            part = dict.fromkeys(texts[at : at + RUN])
            new += [text for text in part if not _has(known, text)]
            yield
        new = yield from in_order(list(dict.fromkeys(new)))
        places: list[int] = []
        for at in range(0, len(new), RUN):
            places += [bisect_left(known, text) for text in new[at : at + RUN]]
            yield
        merged: list[str] = []
        begin = 0
        for at, (place, text) in enumerate(zip(places, new, strict=True)):
            merged += known[begin:place]
            merged.append(text)
            begin = place
            chars += len(text)
            if not (at + 1) % RUN:
                yield
        merged += known[begin:]
        yield
        ranks: list[int] = []
        for at in range(0, len(texts), RUN):
            ranks += [bisect_left(merged, text) for text in texts[at : at + RUN]]
            yield
        moved = self.ranks + np.array(places, dtype=np.intp).searchsorted(self.ranks, side="right")
        all_uids = np.concatenate((self.uids, uids))
        all_ranks = np.concatenate((moved, np.array(ranks, dtype=np.int64)))
        order = np.argsort(all_uids, kind="stable")
        return Ranked(all_uids[order], all_ranks[order], merged, chars)


def _has(texts: Sequence[str], text: str) -> bool:
    at = bisect_left(texts, text)
    return at < len(texts) and texts[at] == text


@dataclass(frozen=True)
class Dated:
    """Sent dates of mails. uids: ascending. seconds: since 1970. given: whether the
    mail has a date."""

    uids: UidArray = field(default_factory=_NO_UIDS.copy)
    seconds: Numbers = field(default_factory=_NO_NUMBERS.copy)
    given: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=np.bool_))

    @property
    def nbytes(self) -> int:
        return len(self.uids) * 13

    def of(self, uids: UidArray, otherwise: Numbers) -> Numbers:
        """Return the date of each of `uids`, all of which are known, or the number of
        `otherwise`."""
        where = self.uids.searchsorted(uids)
        found: Numbers = np.where(self.given[where], self.seconds[where], otherwise)
        return found

    def with_more(self, uids: UidArray, dates: Sequence[int | None]) -> Dated:
        """Return these mails and others. uids: ascending, and none is known yet."""
        all_uids = np.concatenate((self.uids, uids))
        seconds = np.concatenate((self.seconds, np.array([date or 0 for date in dates], dtype=np.int64)))
        given = np.concatenate((self.given, np.array([date is not None for date in dates], dtype=np.bool_)))
        order = np.argsort(all_uids, kind="stable")
        return Dated(all_uids[order], seconds[order], given[order])


V = TypeVar("V", Ranked, Dated)


class Values(Generic[V]):
    """Values by name, within a bound of octets."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self._held: OrderedDict[Hashable, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, name: Hashable) -> V | None:
        found = self._held.get(name)
        if found is not None:
            self._held.move_to_end(name)
        return found

    def put(self, name: Hashable, value: V) -> None:
        if (old := self._held.pop(name, None)) is not None:
            self.nbytes -= old.nbytes
        if value.nbytes > self.bytes_max // 4:
            return
        self._held[name] = value
        self.nbytes += value.nbytes
        while self.nbytes > self.bytes_max:
            self.nbytes -= self._held.popitem(last=False)[1].nbytes
