"""The journal of this process as its groups read it: objects in the order in which they
landed, each with a number.

Recent objects are in memory, with their events decoded once for all groups. Others are
read back from the bucket, so a group that is slow costs no memory.

Invariant: numbers are without a gap, and the objects of a boot have ascending numbers.
Diagnostics: an object that is damaged is logged and has no events.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from typing import Final, NamedTuple

import structlog

from ..errors import Corrupt
from ..store.env import Env
from ..store.log.fence import read
from ..store.log.journal import INLINE_BYTES, JournalObject
from .event import Event
from .made import events_by_user, is_deletion

log = structlog.get_logger()

RECENT_BYTES_MAX: Final = 8 << 20
"""Bytes of deltas of recent objects that are kept in memory. A group that is further
behind reads objects from the bucket."""

RECENT_MAX: Final = 1000
"""Recent objects that are kept in memory: a quarter of an hour of a quiet backend."""

Boot = tuple[str, str]


class Heard(NamedTuple):
    """What groups hear of an object: events by storage id, and users that were
    deleted."""

    boot: Boot
    seq: int
    events: dict[str, list[Event]]
    deleted: tuple[str, ...]


async def heard(written: JournalObject) -> Heard:
    """Return what groups hear of an object. A thread decodes much of it."""
    deleted = tuple(line.sid for line in written.lines if is_deletion(line))
    if size_of(written) > INLINE_BYTES:
        events = await asyncio.to_thread(events_by_user, written)
    else:
        events = events_by_user(written)
    return Heard((written.backend, written.boot), written.seq, events, deleted)


def size_of(written: JournalObject) -> int:
    """Return the bytes of the deltas of an object."""
    return sum(len(delta) for line in written.lines for _, delta in line.changes)


class Tail:
    """See the module's text."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._recent: OrderedDict[int, JournalObject] = OrderedDict()
        self._decoded: tuple[int, Heard] | None = None
        self._bytes = 0
        self.end = 0
        """The number of the next object."""
        self._boots: list[tuple[int, Boot, int]] = []
        """Number and `seq` of the first object of each boot."""
        self._grew = asyncio.Event()

    def add(self, written: JournalObject) -> bool:
        """Add an object that has landed. Returns whether it is the first of a boot."""
        boot = written.backend, written.boot
        first = not self._boots or self._boots[-1][1] != boot
        if first:
            self._boots.append((self.end, boot, written.seq))
        self._recent[self.end] = written
        self._bytes += size_of(written)
        self.end += 1
        while len(self._recent) > RECENT_MAX or (self._bytes > RECENT_BYTES_MAX and len(self._recent) > 1):
            self._bytes -= size_of(self._recent.popitem(last=False)[1])
        self._grew.set()
        return first

    def place(self, number: int) -> tuple[Boot, int]:
        """Return boot and `seq` of an object."""
        first, boot, seq = self._boots[bisect_right(self._boots, number, key=lambda one: one[0]) - 1]
        return boot, seq + number - first

    @property
    def first(self) -> int:
        """Return the number of the first object of the present boot."""
        return self._boots[-1][0] if self._boots else 0

    def number(self, boot: Boot, seq: int) -> int | None:
        """Return the number of an object; None if the boot is not of this process."""
        for first, known, at in self._boots:
            if known == boot:
                return first + seq - at
        return None

    async def grown(self, number: int) -> None:
        """Return when there is an object of a number."""
        while number >= self.end:
            self._grew.clear()
            await self._grew.wait()

    async def get(self, number: int) -> Heard:
        """Return what groups hear of an object. Raises Unavailable."""
        if self._decoded is not None and self._decoded[0] == number:
            return self._decoded[1]
        written = self._recent.get(number)
        if written is None:
            written = await self._read(number)
        found = await heard(written)
        self._decoded = number, found
        return found

    async def _read(self, number: int) -> JournalObject:
        (backend, boot), seq = self.place(number)
        try:
            return await read(self._env, backend, boot, seq)
        except Corrupt as exc:
            log.error("journal object makes no events", error=str(exc))
            return JournalObject(backend, boot, seq, seq)
