"""A backend as a member of the cluster: it beats, reads, plans and acts, once a second.

`step` is the whole of it: one pass over the directory (`view.View`), one plan
(`plan.plan`), and what the plan says.

Invariant: a unit is gained only after the row that names this backend was read back, and
released only after the store has flushed it.
Refuses to know: what is in a mailbox; how an engine of the directory works.
Diagnostics: groups that cannot be taken over or released yet are logged at each attempt;
`View` logs a directory that does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from msgspec.structs import replace

from obox.errors import ConfigError, OboxError, Unavailable
from obox.types import StorageId

from .assign import group_of, newer
from .dead import DeadWatch, Observation
from .directory import Kind
from .plan import Picture, Plan, Release, plan
from .records import Assigned, Beat, Member, Merge, Orders, State, group_key
from .route import Here, There
from .view import View

log = structlog.get_logger()

POLL_S: Final = 1.0
"""Between two passes over the directory."""

READ_BACK_S: Final = 0.05
"""Between writing a row and reading who has it: what two that write at once are apart."""

SWEEP_S: Final = 300.0
"""Between looks at the journals of all backends for boots that concern this one: a LIST
for each backend that ever was.
"""


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


@dataclass(frozen=True)
class Myself:
    """What the directory is told of a backend.

    joins_as: the state if the directory does not know it; settle: makes the directory's
    settings if there are none.
    """

    member: Member
    joins_as: State
    settle: Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class World:
    """Time, chance, load, and others. now: unix seconds; clock: monotonic seconds; load: see
    `Beat`; greets: whether a backend, None if it is not registered, answers a connection.
    """

    now: Callable[[], float]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    random_bytes: Callable[[int], bytes]
    load: Callable[[], Mapping[str, float]]
    greets: Callable[[Member | None], Awaitable[bool]]


class BackendMember:
    """See the module's text. `restore` first, then `run`."""

    def __init__(self, view: View, store: Store, watch: DeadWatch, world: World) -> None:
        self.view = view
        self._store = store
        self._watch = watch
        self.me = watch.name
        self._world = world
        self._counter = 0
        self._began = world.now()
        self._fence: set[tuple[str, str]] = set()
        """Boots that were seen dying, until the units that they had are gained."""
        self._fenced: set[tuple[str, str]] = set()
        """Boots that were fenced, as long as their backend is dead."""
        self._merged: dict[str, Merge] | None = None
        """What has been compared already; None before the first pass."""
        self._ready = asyncio.Event()
        self._at_start: dict[str, Assigned] = {}
        self._sweep_at = world.clock() + SWEEP_S
        self._losing: set[asyncio.Task[None]] = set()

    # -- what the store asks (store.owned.Cluster) -----------------------------------------------------------------

    def unit_of(self, sid: str) -> str:
        """The unit of a user: its group, as a key."""
        settings = self.view.settings
        assert settings is not None, "nobody asks before `ready`"
        return group_key(group_of(sid, settings.groups))

    async def ready(self) -> None:
        """Return once the directory was read, or what was kept of it is all that can be had."""
        await self._ready.wait()

    def units(self) -> dict[str, tuple[int, int]]:
        """The units whose newest row names this backend."""
        return {unit: (row.number, row.token) for unit, row in self._rows().items() if row.backend == self.me}

    def number(self) -> int:
        """The highest number of an assignment that was seen."""
        return max((row.number for row in self.view.groups.values()), default=0)

    async def reread_rows(self) -> frozenset[str]:
        """Read who has what, however long the directory does not answer; which units of ours others have.

        Gives those up in the background; the caller stops serving them at once.
        """
        while not await self.view.poll():
            await self._world.sleep(POLL_S)
        rows = self._rows()
        lost = frozenset(unit for unit in self._store.held() if unit not in rows or rows[unit].backend != self.me)
        if lost:
            self._lose(lost)
        return lost

    def _rows(self) -> dict[str, Assigned]:
        return {group_key(number): row for number, row in self.view.groups.items()}

    # -- what protocols ask (route.Router) -------------------------------------------------------------------------

    async def route(self, sid: StorageId) -> Here | There:
        """See `route.Router`."""
        if self.view.settings is None:
            raise Unavailable("the directory is not known yet; try again")
        row = self.view.assigned(self.unit_of(sid))
        if row is None:
            raise Unavailable("no backend serves the user yet; try again")
        if row.backend == self.me:
            return Here(row)
        found = self.view.members.get(row.backend)
        if found is None:
            raise Unavailable("the user's backend is not known; try again")
        return There(row.backend, found.address, found.ports, row)

    def owner(self, sid: StorageId) -> str | None:
        """The backend of a user; None: not known."""
        row = None if self.view.settings is None else self.view.assigned(self.unit_of(sid))
        return None if row is None else row.backend

    async def reread(self, sid: StorageId, seen: Assigned) -> Here | There:
        """See `route.Router.reread`."""
        row = None if self.view.settings is None else self.view.assigned(self.unit_of(sid))
        if row is None or row == seen or newer(row, seen):
            await self.view.poll()
        return await self.route(sid)

    # -- life ------------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Read the directory once, for a tool that changes nothing in it. Raises ConfigError, Unavailable."""
        if not await self.view.poll() and self.view.settings is None:
            raise Unavailable("the cluster directory does not answer")
        self._begin()

    async def run(self, myself: Myself) -> None:
        """Until cancelled. Raises ConfigError: the directory is newer than this code."""
        self._myself = myself
        while not await self._join():
            if self.view.settings is not None:
                self._begin()  # what was kept is served
            await self._world.sleep(POLL_S)
        self._begin()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again_and_again(self.beat))  # apart, for a step may take its time
            tasks.create_task(self._again_and_again(self.step))

    def _begin(self) -> None:
        if not self._ready.is_set():
            self._at_start = self._rows()
            self._ready.set()

    async def _join(self) -> bool:
        """Read the directory, make it if it is new, and tell it of this backend; False if it does not answer."""
        try:
            await self._myself.settle()
            if not await self.view.poll():
                return False
            if self.me not in self.view.orders:
                await self.view.put(Kind.ORDERS, self.me, Orders(self._myself.joins_as))
            if self.view.members.get(self.me) != self._myself.member:
                await self.view.put(Kind.MEMBERS, self.me, self._myself.member)
        except Unavailable as exc:
            log.debug("joining the cluster", error=str(exc))
            return False
        return True

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Unavailable as exc:
                log.debug("the cluster's upkeep waits", error=str(exc))
            except ConfigError:
                raise
            except Exception as exc:
                log.error("the cluster's upkeep failed, will try again", error=repr(exc), exc_info=exc)
            await self._world.sleep(POLL_S)

    async def beat(self) -> None:
        """Say that this backend lives. Raises Unavailable."""
        self._counter += 1
        boot, site = self._store.boot(), self._myself.member.site
        beat = Beat(self._counter, boot, site, self._began, dict(self._world.load()))
        await self.view.put(Kind.BEATS, self.me, beat)

    async def step(self) -> None:
        """Read, plan, act. Raises Unavailable, ConfigError."""
        if not await self.view.poll():
            return
        await self._watch_others()
        await self.view.write_back(self.me)
        await self._act(plan(self._picture()))
        await self._take_merges()
        if self._world.clock() >= self._sweep_at:
            self._sweep_at = self._world.clock() + SWEEP_S
            await self._store.sweep()

    async def _watch_others(self) -> None:
        """See docs/cluster.md, "When a backend counts as dead"."""
        view, watch, clock = self.view, self._watch, self._world.clock
        suspect = watch.observe(Observation(clock(), view.beats, view.beat_read(self.me), view.owners()))
        if suspect is not None:
            answered = await self._world.greets(view.members.get(suspect))
            if watch.greeted(suspect, answered, clock()):
                log.warning("a backend is dead", backend=suspect)

    def _picture(self) -> Picture:
        view, settings = self.view, self.view.settings
        assert settings is not None, "a poll has succeeded"
        boots = self._watch.boots(view.beats)  # the view may be newer than what was observed
        self._fenced &= boots.items()
        return Picture(
            me=self.me,
            units=frozenset(map(group_key, range(settings.groups))),
            rows=self._rows(),
            held={unit: Assigned(self.me, number, token) for unit, (number, token) in self._store.held().items()},
            orders=view.orders,
            members=view.members,
            dead=boots,
            moves=view.moves,
            fenced=frozenset(self._fenced),
        )

    # -- acting ----------------------------------------------------------------------------------------------------

    async def _act(self, todo: Plan) -> None:
        if todo.lose:
            self._lose(todo.lose)
        self._fence |= todo.fence
        gain = dict(todo.gain)
        if todo.claim:
            gain |= await self._write(self.me, sorted(todo.claim), released=False)
        if gain or self._fence:
            await self._gain(gain)
        if todo.release is not None:
            await self._release(todo.release)

    async def _write(self, to: str, units: Sequence[str], *, released: bool) -> dict[str, Assigned]:
        """Write a name into rows; those that have it a little later. Raises Unavailable."""
        number, token = self.number() + 1, int.from_bytes(self._world.random_bytes(8), "big")
        row = Assigned(to, number, token, released=released)
        for unit in units:
            await self.view.put(Kind.GROUPS, unit, row)
        await self._world.sleep(READ_BACK_S)
        if not await self.view.poll():
            raise Unavailable("the directory does not answer")
        lost = {key for kind, key in self.view.behind if kind is Kind.GROUPS}
        kept = {unit: row for unit in units if self.view.assigned(unit) == row and unit not in lost}
        log.info("groups assigned", to=to, wanted=len(units), kept=len(kept), number=number)
        return kept

    async def _gain(self, units: Mapping[str, Assigned]) -> None:
        fence = sorted(self._fence)
        # A row that named us when we began may have been released to a life before, which wrote since.
        orderly = not fence and all(row.released and row != self._at_start.get(unit) for unit, row in units.items())
        try:
            await self._store.gain(units, fence, orderly=orderly)
        except OboxError as exc:
            log.warning("groups cannot be taken over yet", groups=len(units), error=str(exc))
            return
        self._fence.clear()
        self._fenced |= set(fence)
        for unit, move in self.view.moves.items():
            if unit in units and not move.done and move.to == self.me:
                await self.view.put(Kind.MOVES, unit, replace(move, done=True))

    async def _release(self, release: Release) -> None:
        async def hand() -> bool:
            kept = await self._write(release.to, release.units, released=True)
            return len(kept) == len(release.units)

        try:
            if await self._store.release(release.units, hand):
                log.info("groups released", groups=len(release.units), to=release.to)
        except OboxError as exc:
            log.warning("groups cannot be released yet", groups=len(release.units), to=release.to, error=str(exc))

    def _lose(self, units: frozenset[str]) -> None:
        async def lose() -> None:
            users = await self._store.lose(sorted(units))
            merge = Merge(self.me, self._world.now(), users)
            while users:
                try:
                    for unit in units:
                        await self.view.put(Kind.MERGES, unit, merge)
                    break
                except Unavailable:
                    await self._world.sleep(POLL_S)

        task = asyncio.ensure_future(lose())
        self._losing.add(task)
        task.add_done_callback(self._losing.discard)

    async def _take_merges(self) -> None:
        """Compare what others have written to units of ours."""
        held, merges = self._store.held(), self.view.merges
        before = merges if self._merged is None else self._merged
        fresh = [unit for unit, merge in merges.items() if unit in held and before.get(unit) != merge]
        if fresh:
            await self._store.doubt(fresh)
        self._merged = merges
