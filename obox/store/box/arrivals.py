"""Mails that wait to be written to a mailbox while another write is under way.

A sender adds an `Arrival` and waits for its slot. The writer takes as many as fit into
one object, in the order of their arrival, and gives all of them the same slot.

Invariant: an arrival is either waiting, or has a slot, or has failed. A sender that
gives up while it waits withdraws its arrival, so that nothing of it is written.

This module does not know how mails are written, or what a sender does with its slot.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ..api import Source
from .slots import Slot

BATCH_MAILS_MAX: Final = 256
"""Mails of a batch, unless a single sender has more. A LIST page of a rebuild then
names a quarter of a million mails."""

BATCH_BYTES_MAX: Final = 4 << 20
"""Octets of the mails of a batch, unless a single sender has more. A batch is in memory
once, and is sent again as a whole."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A mail to be written. internaldate: None means now."""

    source: bytes | Source
    flags: tuple[str, ...]
    internaldate: int | None
    zone: int


@dataclass(eq=False, slots=True)
class Arrival:
    """The mails of a sender that become visible together. visible: called when they
    have become visible. taken: called with the slot. first: the place of its first mail
    in the slot."""

    drafts: list[Draft]
    visible: Callable[[], None]
    taken: Callable[[Slot], None]
    slot: asyncio.Future[Slot]
    octets: int = 0
    serial: int = 0
    first: int = 0
    alone: bool = field(init=False)
    """Whether it shares no object with the mails of others: a mail has to be read from
    a file, which may fail."""

    def __post_init__(self) -> None:
        self.octets = sum(len(draft.source) for draft in self.drafts)
        self.alone = not all(isinstance(draft.source, bytes) for draft in self.drafts)


def _serial(arrival: Arrival) -> int:
    return arrival.serial


class Arrivals:
    """The arrivals of a mailbox."""

    __slots__ = ("_count", "_waiting", "writing")

    def __init__(self) -> None:
        self._waiting: list[Arrival] = []
        self._count = 0
        self.writing = False
        """Whether a task writes what waits."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def mails(self) -> int:
        """Return how many mails wait."""
        return sum(len(arrival.drafts) for arrival in self._waiting)

    def add(self, arrival: Arrival) -> None:
        """Let an arrival wait. If it has waited before, and its UIDs were lost, it is
        before those that came later."""
        if not arrival.serial:
            self._count += 1
            arrival.serial = self._count
            self._waiting.append(arrival)
        else:
            insort(self._waiting, arrival, key=_serial)

    def withdraw(self, arrival: Arrival) -> None:
        """Forget an arrival that still waits."""
        if arrival in self._waiting:
            self._waiting.remove(arrival)

    def is_full(self) -> bool:
        """Return whether what waits fills an object."""
        octets = sum(arrival.octets for arrival in self._waiting)
        return self.mails >= BATCH_MAILS_MAX or octets >= BATCH_BYTES_MAX

    def take(self, uids: int) -> list[Arrival]:
        """Return the arrivals of the next object, in order. They do not wait any more.
        uids: at most so many mails, unless the first arrival has more."""
        most = min(uids, BATCH_MAILS_MAX)
        count = mails = octets = 0
        for arrival in self._waiting:
            mails += len(arrival.drafts)
            octets += arrival.octets
            if count and (arrival.alone or mails > most or octets > BATCH_BYTES_MAX):
                break
            count += 1
            if arrival.alone:
                break
        part, self._waiting = self._waiting[:count], self._waiting[count:]
        first = 0
        for arrival in part:
            arrival.first = first
            first += len(arrival.drafts)
        return part

    def fail(self, error: BaseException) -> None:
        """Let all that wait fail."""
        waiting, self._waiting = self._waiting, []
        for arrival in waiting:
            if not arrival.slot.done():
                arrival.slot.set_exception(error)
