"""Mails that wait to be written to a mailbox while another write is under way.

A sender adds an `Arrival` and waits until it is done. The writer takes as many as fit
into one object, in the order of their arrival, and gives all of them the same slot.

Invariant: an arrival is either waiting, or has a slot, or is done. A sender that gives
up while its arrival waits withdraws it, so that nothing of it is written.

This module does not know how mails are written, or what a sender does with its slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

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


class Reserved(Protocol):
    """What mails have reserved of the quota; see `mails.quota.Room`."""

    slots: Sequence[Slot]

    def used(self, size: int, messages: int = 1) -> None:
        """Count mails as usage from now on."""


class Arrival:
    """The mails of a sender that become visible together.

    octets: of all mails. alone: whether it shares no object with the mails of others,
    because a mail has to be read from a file, which may fail. held: gets the slot.
    done: its result is the UID of the first mail, 0 if the UIDs were lost.
    """

    __slots__ = ("alone", "done", "drafts", "first", "held", "octets", "room")

    def __init__(
        self, drafts: list[Draft], octets: int, alone: bool, room: Reserved, held: list[Slot], done: asyncio.Future[int]
    ) -> None:
        self.drafts, self.octets, self.alone = drafts, octets, alone
        self.room, self.held, self.done = room, held, done
        self.first = 0
        """The place of its first mail among those of the slot."""


class Arrivals:
    """The arrivals of a mailbox."""

    __slots__ = ("waiting", "writing")

    def __init__(self) -> None:
        self.waiting: list[Arrival] = []
        self.writing = False
        """Whether a task writes what waits."""

    @property
    def mails(self) -> int:
        """Return how many mails wait."""
        return sum([len(arrival.drafts) for arrival in self.waiting])

    def withdraw(self, arrival: Arrival) -> None:
        """Forget an arrival that still waits."""
        if arrival in self.waiting:
            self.waiting.remove(arrival)

    def is_full(self) -> bool:
        """Return whether what waits fills an object."""
        octets = sum(arrival.octets for arrival in self.waiting)
        return self.mails >= BATCH_MAILS_MAX or octets >= BATCH_BYTES_MAX

    def take(self, uids: int) -> list[Arrival]:
        """Return the arrivals of the next object, in order. They do not wait any more.
        uids: the most mails, unless the first arrival has more."""
        most = min(uids, BATCH_MAILS_MAX)
        count = mails = octets = 0
        for arrival in self.waiting:
            mails += len(arrival.drafts)
            octets += arrival.octets
            if count and (arrival.alone or mails > most or octets > BATCH_BYTES_MAX):
                break
            count += 1
            if arrival.alone:
                break
        part, self.waiting = self.waiting[:count], self.waiting[count:]
        first = 0
        for arrival in part:
            arrival.first = first
            first += len(arrival.drafts)
        return part

    def fail(self, error: BaseException) -> None:
        """Let all that wait fail."""
        waiting, self.waiting = self.waiting, []
        for arrival in waiting:
            if not arrival.done.done():
                arrival.done.set_exception(error)
