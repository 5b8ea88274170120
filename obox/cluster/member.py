"""A backend as a member of the cluster: it beats, reads, plans and acts, once a second.

`step` is the whole of it: one pass over the directory, one plan (`plan.plan`), and what
the plan says. What it knows survives a directory that does not answer, and a restart:
`remember` gets the newest assignments, and `recalled` brings them back.

Invariant: a unit is gained only after the row that names this backend was read back, and
released only after the store has flushed it. Of each unit the newest assignment that was
ever seen counts, whatever the directory shows now.
Refuses to know: what is in a mailbox; how an engine of the directory works.
Diagnostics: a directory that does not answer is logged once a minute; `age_s` says for
how long it has not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import structlog

from obox.errors import OboxError, Unavailable
from obox.types import StorageId

from .assign import group_of, newer
from .directory import Directory, Kind, Row, next_timestamp
from .plan import Picture, Plan, Release, plan
from .records import (
    Assigned,
    Beat,
    Member,
    Merge,
    Move,
    Orders,
    Record,
    Settings,
    State,
    decode,
    encode,
    group_key,
)
from .route import Here, There

log = structlog.get_logger()

POLL_S: Final = 1.0
"""Between two passes over the directory."""

READ_BACK_S: Final = 0.05
"""Between writing a row and reading who has it: what two that write at once are apart."""

SWEEP_S: Final = 300.0
"""Between looks at the journals of all backends for boots that concern this one: a LIST
for each backend that ever was.
"""

TOLD_EVERY_S: Final = 60.0
"""Between lines of the log that say the same."""

_READ: Final = (Kind.GROUPS, Kind.PINS, Kind.MOVES, Kind.ORDERS, Kind.MEMBERS, Kind.BEATS, Kind.MERGES)


class Store(Protocol):
    """What a member asks of the backend's store; the wiring makes it of `obox.store`."""

    def held(self) -> Mapping[str, tuple[int, int]]:
        """What is served: by unit, number and token of the assignment."""

    def boot(self) -> str:
        """The present boot of the journal."""

    async def gain(self, units: Mapping[str, Assigned], fence: Sequence[tuple[str, str]], *, orderly: bool) -> None:
        """Serve units. Raises Unavailable, Corrupt."""

    async def release(self, units: Sequence[str], hand: Callable[[], Awaitable[bool]]) -> bool:
        """Give units up; `hand` writes the rows. Raises Unavailable, InUse."""

    async def lose(self, units: Sequence[str]) -> int:
        """Another backend has the units. Returns of how many users changes were uploaded."""

    async def doubt(self, units: Sequence[str]) -> None:
        """Another backend has written to the units' users."""

    async def sweep(self) -> None:
        """Look for boots that are over and name users of this backend."""


class Watch(Protocol):
    """Who is dead; see docs/cluster.md, "When a backend counts as dead"."""

    async def dead(self, beats: Mapping[str, Beat], members: Mapping[str, Member]) -> Mapping[str, str]:
        """By backend, the boot that was seen dying."""


@dataclass(frozen=True)
class Myself:
    """What a backend is told of itself.

    member: what the directory is told; joins_as: the state if the directory does not
    know this backend; groups: their number if this backend makes the directory.
    """

    name: str
    member: Member
    joins_as: State
    groups: int


@dataclass(frozen=True)
class World:
    """Time, chance and load. now: unix seconds; clock: monotonic seconds; load: see `Beat`."""

    now: Callable[[], float]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    random_bytes: Callable[[int], bytes]
    load: Callable[[], Mapping[str, float]]


class BackendMember:
    """See the module's text."""

    def __init__(
        self,
        directory: Directory,
        store: Store,
        watch: Watch,
        myself: Myself,
        world: World,
        *,
        recalled: bytes | None = None,
        remember: Callable[[bytes], None] = lambda state: None,
    ) -> None:
        """recalled: what `remember` got last, in a life before; it goes into the local state."""
        self._directory = directory
        self._store = store
        self._watch = watch
        self._myself = myself
        self.me = myself.name
        self._world = world
        self._remember = remember
        self.groups = 0
        self._rows: dict[str, Assigned] = {}
        self._read: dict[Kind, dict[str, Row]] = {kind: {} for kind in _READ}
        self._highest = 0
        self._counter = 0
        self._began = world.now()
        self._fence: set[tuple[str, str]] = set()
        """Boots that were seen dying, until the units that they had are gained."""
        self._merged: dict[str, int] = {}
        self._remembered = b""
        self._ready = asyncio.Event()
        self._read_at = float("-inf")
        self._told_at = float("-inf")
        self._passes = 0
        self._sweep_at = world.clock() + SWEEP_S
        self._losing: set[asyncio.Task[None]] = set()
        self._recall(recalled)

    # -- what the store asks (store.owned.Cluster) -----------------------------------------------------------------

    def unit_of(self, sid: str) -> str:
        """The unit of a user: its group, as a key."""
        return group_key(group_of(sid, self.groups))

    async def ready(self) -> None:
        """Return once the directory was read, or what was remembered is all there is to be had."""
        await self._ready.wait()

    def units(self) -> dict[str, tuple[int, int]]:
        """The units whose newest row names this backend."""
        return {unit: (row.number, row.token) for unit, row in self._rows.items() if row.backend == self.me}

    def number(self) -> int:
        """The highest number that was seen."""
        return self._highest

    def saw(self, number: int) -> None:
        """A journal has a number that may be higher than the directory's."""
        self._highest = max(self._highest, number)

    async def reread(self) -> frozenset[str]:
        """Read who has what, however long the directory does not answer; which units of ours others have.

        Gives those up in the background; the caller stops serving them at once.
        """
        while True:
            try:
                await self._poll((Kind.GROUPS, Kind.PINS))
                break
            except Unavailable as exc:
                self._tell(exc)
                await self._world.sleep(POLL_S)
        lost = frozenset(unit for unit in self._store.held() if self._rows.get(unit, _NOBODY).backend != self.me)
        if lost:
            self._lose(lost)
        return lost

    # -- what protocols ask (route.Router) -------------------------------------------------------------------------

    async def route(self, sid: StorageId) -> Here | There:
        """See `route.Router`."""
        unit = self.unit_of(sid)
        row = self._rows.get(unit)
        if row is None:
            raise Unavailable("no backend serves the user yet; try again")
        if row.backend == self.me:
            return Here(row)
        found = self._members().get(row.backend)
        if found is None:
            raise Unavailable("the user's backend is not known; try again")
        return There(row.backend, found.address, found.ports, row)

    async def route_again(self, sid: StorageId, seen: Assigned) -> Here | There:
        """See `route.Router.reread`."""
        row = self._rows.get(self.unit_of(sid))
        if row is None or newer(row, seen) or row == seen:
            await self._poll((Kind.GROUPS, Kind.PINS))
        return await self.route(sid)

    # -- life ------------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Tell the directory of this backend, and read it once. Raises Unavailable, ConfigError, ValueError."""
        settings = await self._directory.get(Kind.SETTINGS, "directory")
        if settings is None:
            made = Settings(self._myself.groups, self._world.random_bytes(16).hex(), self._world.now())
            await self._put(Kind.SETTINGS, "directory", made, None)
            settings = await self._directory.get(Kind.SETTINGS, "directory")
        if settings is None:
            raise Unavailable("the directory does not keep what is written")
        self.groups = decode(settings.value, Settings).groups
        await self._poll(_READ)
        if self.me not in self._read[Kind.ORDERS]:
            await self._put(Kind.ORDERS, self.me, Orders(self._myself.joins_as), None)
        await self._put(Kind.MEMBERS, self.me, self._myself.member, self._read[Kind.MEMBERS].get(self.me))
        self._ready.set()

    async def run(self) -> None:
        """Until cancelled."""
        joined = False
        while not joined:
            try:
                await self.join()
                joined = True
            except Unavailable as exc:
                self._tell(exc)
                if self.groups:
                    self._ready.set()  # what was remembered is served
                await self._world.sleep(POLL_S)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again_and_again(self.beat))  # apart, for a step may take its time
            tasks.create_task(self._again_and_again(self.step))

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Unavailable as exc:
                self._tell(exc)
            except Exception as exc:
                log.error("the cluster's upkeep failed, will try again", error=repr(exc), exc_info=exc)
            await self._world.sleep(POLL_S)

    async def step(self) -> None:
        """Read, plan, act. Raises Unavailable."""
        await self._poll(_READ)
        self._passes += 1
        await self._act(plan(await self._picture()))
        await self._take_merges()
        if self._world.clock() >= self._sweep_at:
            self._sweep_at = self._world.clock() + SWEEP_S
            await self._store.sweep()

    def age_s(self) -> float:
        """For how long the directory has not been read."""
        return self._world.clock() - self._read_at

    async def beat(self) -> None:
        """Say that this backend lives. Raises Unavailable."""
        self._counter += 1
        beat = Beat(self._counter, self._store.boot(), self._began, dict(self._world.load()))
        await self._put(Kind.BEATS, self.me, beat, self._read[Kind.BEATS].get(self.me))

    async def _poll(self, kinds: Sequence[Kind]) -> None:
        """Read rows, and keep the newest assignment of each unit."""
        found = await asyncio.gather(*(self._directory.all(kind) for kind in kinds))
        for kind, rows in zip(kinds, found, strict=True):
            self._read[kind] = rows
        for unit, row in self._shown().items():
            ours = self._rows.get(unit)
            if ours is None or newer(ours, row):
                self._rows[unit] = row
            self._highest = max(self._highest, row.number)
        self._read_at = self._world.clock()
        self._keep()

    def _shown(self) -> dict[str, Assigned]:
        return self._decoded(Kind.GROUPS, Assigned)

    def _members(self) -> dict[str, Member]:
        return self._decoded(Kind.MEMBERS, Member)

    def _decoded(self, kind: Kind, record: type[Record]) -> dict[str, Record]:
        found = {}
        for key, row in self._read[kind].items():
            try:
                found[key] = decode(row.value, record)
            except ValueError as exc:
                self._tell(exc, kind=kind.value, key=key)
        return found

    async def _picture(self) -> Picture:
        members, beats = self._members(), self._decoded(Kind.BEATS, Beat)
        held = self._store.held()
        return Picture(
            me=self.me,
            units=frozenset(map(group_key, range(self.groups))),
            rows=self._rows,
            read=self._shown(),
            held={unit: Assigned(self.me, number, token) for unit, (number, token) in held.items()},
            orders=self._decoded(Kind.ORDERS, Orders),
            members=members,
            dead=await self._watch.dead(beats, members),
            moves=self._decoded(Kind.MOVES, Move),
        )

    # -- acting ----------------------------------------------------------------------------------------------------

    async def _act(self, todo: Plan) -> None:
        if todo.lose:
            self._lose(todo.lose)
        for unit, row in todo.write_back.items():
            await self._put(Kind.GROUPS, unit, row, self._read[Kind.GROUPS].get(unit))
        self._fence |= todo.fence
        gain = dict(todo.gain)
        if todo.claim:
            gain |= await self._claim(sorted(todo.claim))
        if gain or todo.fence:
            await self._gain(gain)
        if todo.release is not None:
            await self._release(todo.release)

    async def _claim(self, units: Sequence[str]) -> dict[str, Assigned]:
        """Write our name into rows, and say which have it a little later."""
        number, token = self._highest + 1, int.from_bytes(self._world.random_bytes(8), "big")
        ours = Assigned(self.me, number, token)
        for unit in units:
            await self._put(Kind.GROUPS, unit, ours, self._read[Kind.GROUPS].get(unit))
        await self._world.sleep(READ_BACK_S)
        await self._poll((Kind.GROUPS,))
        won = {unit: ours for unit in units if self._rows.get(unit) == ours}
        log.info("groups claimed", wanted=len(units), won=len(won), number=number)
        return won

    async def _gain(self, units: Mapping[str, Assigned]) -> None:
        fence = sorted(self._fence)
        orderly = not fence and bool(units) and all(row.released for row in units.values())
        try:
            await self._store.gain(units, fence, orderly=orderly)
        except OboxError as exc:
            log.warning("groups cannot be taken over yet", groups=len(units), error=str(exc))
            return
        self._fence.clear()
        await self._end_moves(units)

    async def _release(self, release: Release) -> None:
        async def hand() -> bool:
            number, token = self._highest + 1, int.from_bytes(self._world.random_bytes(8), "big")
            theirs = Assigned(release.to, number, token, released=True)
            for unit in release.units:
                await self._put(Kind.GROUPS, unit, theirs, self._read[Kind.GROUPS].get(unit))
            await self._world.sleep(READ_BACK_S)
            await self._poll((Kind.GROUPS,))
            return all(self._rows.get(unit) == theirs for unit in release.units)

        try:
            if await self._store.release(release.units, hand):
                log.info("groups released", groups=len(release.units), to=release.to)
        except OboxError as exc:
            log.warning("groups cannot be released yet", groups=len(release.units), to=release.to, error=str(exc))

    async def _end_moves(self, units: Mapping[str, Assigned]) -> None:
        for unit, move in self._decoded(Kind.MOVES, Move).items():
            if unit in units and not move.done and move.to == self.me:
                done = msgspec.structs.replace(move, done=True)
                await self._put(Kind.MOVES, unit, done, self._read[Kind.MOVES].get(unit))

    def _lose(self, units: frozenset[str]) -> None:
        async def lose() -> None:
            users = await self._store.lose(sorted(units))
            merge = Merge(self.me, self._world.now(), users)
            while users:
                try:
                    for unit in units:
                        await self._put(Kind.MERGES, unit, merge, self._read[Kind.MERGES].get(unit))
                    break
                except Unavailable as exc:
                    self._tell(exc)
                    await self._world.sleep(POLL_S)

        task = asyncio.ensure_future(lose())
        self._losing.add(task)
        task.add_done_callback(self._losing.discard)

    async def _take_merges(self) -> None:
        """Compare what others have written to units of ours."""
        held = self._store.held()
        fresh = []
        for unit, row in self._read[Kind.MERGES].items():
            if unit in held and self._merged.get(unit, 0) < row.timestamp:
                fresh.append(unit)
                self._merged[unit] = row.timestamp
        if fresh and self._passes > 1:
            await self._store.doubt(fresh)

    # -- small things ----------------------------------------------------------------------------------------------

    async def _put(self, kind: Kind, key: str, record: msgspec.Struct, before: Row | None) -> None:
        value, timestamp = encode(record), next_timestamp(self._world.now, before)
        await self._directory.put(kind, key, value, timestamp)
        self._read.setdefault(kind, {})[key] = Row(value, timestamp)

    def _tell(self, exc: Exception, **more: object) -> None:
        if self._world.clock() - self._told_at >= TOLD_EVERY_S:
            self._told_at = self._world.clock()
            log.warning("the cluster directory", error=str(exc), **more)

    def _keep(self) -> None:
        state = msgspec.msgpack.encode([self.groups, self._highest, self._rows])
        if state != self._remembered:
            self._remembered = state
            self._remember(state)

    def _recall(self, state: bytes | None) -> None:
        if not state:
            return
        try:
            kept = msgspec.msgpack.decode(state, type=tuple[int, int, dict[str, Assigned]])
        except msgspec.MsgspecError as exc:
            log.warning("what was remembered of the cluster does not decode, dropped", error=str(exc))
            return
        self.groups, self._highest, self._rows = kept


_NOBODY: Final = Assigned("", 0, 0)
