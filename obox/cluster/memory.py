"""A directory in memory with the faults of real directories, for tests and simulations.

`MemoryReplica` has the rows of one site. Each member reaches it through a
`MemoryDirectory` of its own, which has faults of its own: it does not answer, loses
writes, or answers with old rows. Replicas that are joined send each other their writes
late. Clock, sleep and chance are parameters, so that a run under a virtual clock can be
repeated.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from obox.errors import Unavailable

from .directory import Kind, Row, checked

Place = tuple[Kind, str]


@dataclass
class Faults:
    """The faults of one member's directory. Fractions are of 1.

    cut: nothing is answered. lost: writes that are answered and never arrive.
    unanswered: writes that raise Unavailable, half of which arrive. failed: reads that
    raise Unavailable. old: reads that are answered with the rows as they were at most
    old_s ago. latency_s: the longest time that an operation takes.
    """

    cut: bool = False
    lost: float = 0.0
    unanswered: float = 0.0
    failed: float = 0.0
    old: float = 0.0
    old_s: float = 5.0
    latency_s: float = 0.0


class _Write(NamedTuple):
    at: float
    place: Place
    row: Row


HISTORY_MAX: Final = 128
"""At most 128 rows of a key are kept. They last for a minute at least."""


class MemoryReplica:
    """The rows of one site, and the earlier rows of each key."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._written: dict[Kind, dict[str, list[_Write]]] = {kind: {} for kind in Kind}
        self._joined: list[_Join] = []

    def write(self, place: Place, row: Row) -> None:
        self.arrive(place, row)
        for join in self._joined:
            join.send(self._clock(), place, row)

    def arrive(self, place: Place, row: Row) -> None:
        """Take a write, and do not pass it on."""
        writes = self._written[place[0]].setdefault(place[1], [])
        if row.beats(writes[-1].row if writes else None):
            writes.append(_Write(self._clock(), place, row))
        if len(writes) > HISTORY_MAX:  # a beat is written each second
            del writes[: HISTORY_MAX // 2]

    def rows(self, *, age_s: float = 0.0) -> dict[Place, Row]:
        """Return all rows as they were age_s ago."""
        return {(kind, key): row for kind in Kind for key, row in self.rows_of(kind, age_s=age_s).items()}

    def rows_of(self, kind: Kind, *, age_s: float = 0.0) -> dict[str, Row]:
        """Return the rows of a kind as they were age_s ago."""
        for join in self._joined:
            join.deliver(self._clock())
        until = self._clock() - age_s
        found: dict[str, Row] = {}
        for key, writes in self._written[kind].items():
            for write in reversed(writes):
                if write.at <= until:
                    found[key] = write.row
                    break
        return found

    def restore(self, rows: dict[Place, Row]) -> None:
        """Replace all rows by these rows, as a restore from a backup does. Later rows
        are lost."""
        self._written = {kind: {} for kind in Kind}
        for (kind, key), row in rows.items():
            self._written[kind][key] = [_Write(self._clock(), (kind, key), row)]

    def join(self, other: MemoryReplica, delay_s: float) -> _Join:
        """Pass all later writes to the other replica and back, delay_s late. Returns
        the link, which can be cut. It then keeps the writes, and delivers them when it
        is healed.
        """
        link = _Join(self, other, delay_s)
        self._joined.append(link)
        other._joined.append(link)
        return link


class _Join:
    """The link between two replicas."""

    def __init__(self, one: MemoryReplica, other: MemoryReplica, delay_s: float) -> None:
        self.cut = False
        self._both, self._delay_s = (one, other), delay_s
        self._sent: list[_Write] = []

    def send(self, now: float, place: Place, row: Row) -> None:
        self._sent.append(_Write(now + self._delay_s, place, row))

    def deliver(self, now: float) -> None:
        if self.cut:
            return
        due = [write for write in self._sent if write.at <= now]
        self._sent = [write for write in self._sent if write.at > now]
        for write in due:
            for replica in self._both:  # the sender has the row already
                replica.arrive(write.place, write.row)


class MemoryDirectory:
    """A `Directory`: one member's way to a replica.

    sleep: called once for each operation, so that others run between them.
    """

    def __init__(
        self,
        replica: MemoryReplica,
        *,
        sleep: Callable[[float], Awaitable[object]],
        rng: random.Random | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.replica = replica
        self.faults = faults if faults is not None else Faults()
        self._sleep = sleep
        self.rng = rng if rng is not None else random.Random(0)
        self.operations: list[tuple[str, Kind]] = []
        """Every get, all and put, with its kind, for tests that count them."""

    async def get(self, kind: Kind, key: str) -> Row | None:
        return (await self._read("get", kind)).get(key)

    async def all(self, kind: Kind) -> dict[str, Row]:
        return await self._read("all", kind)

    async def put(self, kind: Kind, key: str, value: bytes, timestamp: int) -> None:
        row = checked(key, value, timestamp)
        await self._begin("put", kind)
        unanswered = self._chance(self.faults.unanswered)
        if not (self._chance(0.5) if unanswered else self._chance(self.faults.lost)):
            self.replica.write((kind, key), row)
        if unanswered:
            raise Unavailable("the directory does not answer")

    async def close(self) -> None:
        pass

    async def _read(self, operation: str, kind: Kind) -> dict[str, Row]:
        await self._begin(operation, kind)
        if self._chance(self.faults.failed):
            raise Unavailable("the directory does not answer")
        old = self._chance(self.faults.old)
        return self.replica.rows_of(kind, age_s=self.rng.uniform(0, self.faults.old_s) if old else 0.0)

    async def _begin(self, operation: str, kind: Kind) -> None:
        self.operations.append((operation, kind))
        await self._sleep(self.rng.uniform(0, self.faults.latency_s) if self.faults.latency_s else 0)
        if self.faults.cut:
            raise Unavailable("the directory does not answer")

    def _chance(self, share: float) -> bool:
        return share > 0 and self.rng.random() < share
