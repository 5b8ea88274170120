"""What SORT and THREAD compare, mail by mail. It is kept in memory between two
commands, because a mail never changes.

The value of a text is its rank among the texts of all mails that are known, so that a
SORT compares numbers. `Ranked.with_more` takes in new mails without sorting the texts
of known mails again. `Values` keeps the values of several mailboxes, up to a bound.
Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ._uidset import UidArray
from .sorting import RUN, Numbers, in_order

VALUES_BYTES_MAX: Final = 64 << 20
"""Memory of the values of all mailboxes, about. 10,000 mails take one megabyte for a
text, and some five for their references."""
TEXT_BYTES: Final = 64
"""What a text takes beside its characters, which take up to four octets each."""

_NO_UIDS: Final[UidArray] = np.empty(0, dtype=np.uint32)
_NO_NUMBERS: Final[Numbers] = np.empty(0, dtype=np.int64)


Links = tuple[bytes, tuple[bytes, ...]]
"""The Message-ID of a mail, b"" if it has none, and those that it refers to."""


class Held(Protocol):
    """What is known of some mails for one criterion. uids: ascending. chars: characters
    of their texts. nbytes: its memory, about."""

    @property
    def uids(self) -> UidArray: ...

    @property
    def chars(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def with_more(self, uids: UidArray, values: Sequence[Any], /) -> Generator[None, None, Held]:
        """Return these mails and others, in steps."""


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
        known, chars = self.texts, self.chars
        different: dict[str, None] = {}
        for at in range(0, len(texts), RUN):
            different.update((text, None) for text in texts[at : at + RUN] if not _has(known, text))
            yield
        new = yield from in_order(list(different))
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
class Counted:
    """A number of each mail, such as a date. uids: ascending. given: whether the mail
    has a number."""

    uids: UidArray = field(default_factory=_NO_UIDS.copy)
    numbers: Numbers = field(default_factory=_NO_NUMBERS.copy)
    given: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=np.bool_))
    chars: int = 0

    @property
    def nbytes(self) -> int:
        return len(self.uids) * 13

    def of(self, uids: UidArray, otherwise: Numbers) -> Numbers:
        """Return the number of each of `uids`, all of which are known, or the number of
        `otherwise`."""
        where = self.uids.searchsorted(uids)
        found: Numbers = np.where(self.given[where], self.numbers[where], otherwise)
        return found

    def with_more(self, uids: UidArray, numbers: Sequence[int | None]) -> Generator[None, None, Counted]:
        """Return these mails and others. uids: ascending, and none is known yet."""
        yield
        all_uids = np.concatenate((self.uids, uids))
        all_numbers = np.concatenate((self.numbers, np.array([one or 0 for one in numbers], dtype=np.int64)))
        given = np.concatenate((self.given, np.array([one is not None for one in numbers], dtype=np.bool_)))
        order = np.argsort(all_uids, kind="stable")
        return Counted(all_uids[order], all_numbers[order], given[order])


@dataclass(frozen=True)
class Linked:
    """Message-IDs of mails. uids: ascending. links: for each, its own and those that it
    refers to. chars: octets of all of them."""

    uids: UidArray = field(default_factory=_NO_UIDS.copy)
    links: Sequence[Links] = ()
    chars: int = 0

    @property
    def nbytes(self) -> int:
        return len(self.uids) * 4 * TEXT_BYTES + self.chars

    def of(self, uids: UidArray) -> list[Links]:
        """Return the Message-IDs of each of `uids`, all of which are known."""
        return [self.links[at] for at in self.uids.searchsorted(uids).tolist()]

    def with_more(self, uids: UidArray, links: Sequence[Links]) -> Generator[None, None, Linked]:
        """Return these mails and others. uids: ascending, and none is known yet."""
        chars = self.chars
        for at, (own, others) in enumerate(links):
            # A Message-ID that several mails refer to is in memory for each of them.
            chars += len(own) + sum(map(len, others)) + TEXT_BYTES * len(others)
            if not (at + 1) % RUN:
                yield
        all_uids = np.concatenate((self.uids, uids))
        order = np.argsort(all_uids, kind="stable")
        everything = [*self.links, *links]
        yield
        ordered: list[Links] = []
        for at in range(0, len(order), RUN):
            ordered += [everything[place] for place in order[at : at + RUN].tolist()]
            yield
        return Linked(all_uids[order], ordered, chars)


class Values:
    """Values of mailboxes by name, within a bound of octets. The values that were used
    least recently are dropped."""

    def __init__(self, bytes_max: int = VALUES_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self._held: OrderedDict[Hashable, Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, name: Hashable) -> Held | None:
        found = self._held.get(name)
        if found is not None:
            self._held.move_to_end(name)
        return found

    def put(self, name: Hashable, value: Held) -> None:
        """Keep values instead of those that the name had. Values of more than a quarter
        of the bound are not kept."""
        if (old := self._held.pop(name, None)) is not None:
            self.nbytes -= old.nbytes
        if value.nbytes > self.bytes_max // 4:
            return
        self._held[name] = value
        self.nbytes += value.nbytes
        while self.nbytes > self.bytes_max:
            self.nbytes -= self._held.popitem(last=False)[1].nbytes
