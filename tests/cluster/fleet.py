"""Members of a cluster over a directory in memory, with stores that do nothing and a
clock of the test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
import pytest

from obox.cluster import (
    Assigned,
    BackendMember,
    BootRow,
    DeadWatch,
    Kind,
    Member,
    MemoryDirectory,
    MemoryReplica,
    Myself,
    Orders,
    State,
    View,
    World,
    decode,
    make_settings,
)
from obox.cluster.world import Hand

GROUPS = 12


class FakeStore:
    """A `world.Store` that gains and loses units at once."""

    def __init__(self) -> None:
        self.units: dict[str, tuple[int, int]] = {}
        self.present = "boot1"
        self.unclean: set[tuple[str, str]] = set()
        self.gained: list[tuple[set[str], bool]] = []
        self.allowed: Mapping[str, int] | None = {}
        self.raised: list[dict[str, int]] = []

    def held(self) -> Mapping[str, tuple[int, int]]:
        return self.units

    def boot(self) -> str:
        return self.present

    async def gain(self, units: Mapping[str, Assigned], fence: Sequence[tuple[str, str]], *, orderly: bool) -> None:
        self.units |= {unit: (row.number, row.token) for unit, row in units.items()}
        self.gained.append((set(units), orderly))

    def forms(self) -> Mapping[str, int] | None:
        return self.allowed

    async def raise_forms(self, wanted: Mapping[str, int]) -> None:
        assert self.allowed is not None
        self.raised.append(dict(wanted))
        self.allowed = {**self.allowed, **wanted}

    def split(self, group: str, unit: str) -> None:
        if group in self.units:
            self.units[unit] = (0, 0)

    def renumber(self, unit: str, row: Assigned) -> None:
        if unit in self.units:
            self.units[unit] = (row.number, row.token)

    def holds(self, unit: str) -> bool:
        return unit in self.units

    async def release(self, units: Sequence[str], hand: Hand) -> frozenset[str]:
        given = await hand(frozenset(units))
        for unit in given:
            del self.units[unit]
        return given

    async def lose(self, units: Sequence[str]) -> int:
        for unit in units:
            self.units.pop(unit, None)
        return 0

    async def doubt(self, units: Sequence[str]) -> None:
        pass

    async def sweep(self, clears: Callable[[str], bool]) -> Collection[tuple[str, str]]:
        return self.unclean


class _Always(random.Random):
    """Chance that says whether an unanswered write arrives."""

    def __init__(self, arrives: bool) -> None:
        super().__init__(0)
        self._arrives = arrives

    def random(self) -> float:
        return 0.9 if self._arrives else 0.0


class Fleet:
    """Members on one directory and one clock, each driven by hand."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self.replica = MemoryReplica(lambda: self.time)
        self.directory = self.way()
        self.stores: dict[str, FakeStore] = {}
        self.members: dict[str, BackendMember] = {}
        self.answers = True
        """Whether members greet."""
        self.joins_as = State.ONLINE

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)

    def way(self) -> MemoryDirectory:
        return MemoryDirectory(self.replica, sleep=self.sleep)

    async def join(self, name: str) -> BackendMember:
        way, store = self.way(), FakeStore()
        view = View(way, clock=lambda: self.time, now=lambda: self.time, sleep=self.sleep)
        world = World(lambda: self.time, lambda: self.time, self.sleep, lambda n: b"r" * n, dict, self.greets)
        member = BackendMember(view, store, DeadWatch(name, "default", 15.0), world)
        self.stores[name], self.members[name] = store, member

        async def begin() -> None:
            await make_settings(way, GROUPS, now=lambda: self.time, sleep=self.sleep, random_bytes=lambda n: b"r" * n)

        member.myself = Myself(Member("backend", "default", "127.0.0.1"), self.joins_as, begin)
        assert await member.join()
        return member

    async def greets(self, member: Member | None) -> bool:
        return self.answers

    async def seconds(self, count: int) -> None:
        for _ in range(count):
            for member in self.members.values():
                await member.beat()
            for member in self.members.values():
                await member.step()
            self.time += 1.0

    async def put(self, kind: Kind, key: str, record: msgspec.Struct) -> None:
        await self.directory.put(kind, key, msgspec.msgpack.encode(record), int(self.time * 1_000_000) + 1)

    async def orders(self, name: str) -> Orders:
        row = await self.directory.get(Kind.ORDERS, name)
        assert row is not None
        return decode(row.value, Orders)

    async def of(self, name: str) -> set[str]:
        """Return the groups whose rows in the directory name a backend."""
        rows = await self.directory.all(Kind.GROUPS)
        return {key for key, row in rows.items() if decode(row.value, Assigned).backend == name}

    async def boots(self) -> dict[str, BootRow]:
        rows = await self.directory.all(Kind.BOOTS)
        return {key: decode(row.value, BootRow) for key, row in rows.items()}


@pytest.fixture
async def fleet() -> Fleet:
    made = Fleet()
    await made.join("a")
    await made.join("b")
    await made.seconds(5)
    assert len(made.stores["a"].units) + len(made.stores["b"].units) == GROUPS
    assert made.stores["a"].units
    assert made.stores["b"].units
    return made
