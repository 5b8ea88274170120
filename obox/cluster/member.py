"""A backend as a member of the cluster. It beats, reads, plans and acts once a second.

`step` makes a pass over the directory (`view.View`) and a plan (`plan.plan`), and then
does what the plan says.

Invariant: a unit is gained only after the row that names this backend was read back,
and released only after the store has flushed it. This module does not know what is in a
mailbox, or how an engine of the directory works. Diagnostics: groups that cannot be
taken over or released yet are logged at each attempt. `View` logs a directory that does
not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Final

import structlog
from msgspec.structs import replace

from obox.errors import ConfigError, OboxError, Unavailable
from obox.types import StorageId

from .assign import digest, home_of, newer, rank
from .boots import Boots
from .dead import DeadWatch, Observation
from .directory import Kind
from .plan import Picture, Plan, Release, plan
from .raising import Raising
from .records import Assigned, Beat, Merge, Orders, State, group_key, user_key, user_of
from .route import Here, There
from .units import Units
from .view import View
from .world import Counts, Myself, Store, World
from .writer import Writer

log = structlog.get_logger()

POLL_S: Final = 1.0
"""The interval of passes over the directory."""

ARRIVE_S: Final = 10.0
"""A login waits so long for its unit to be gained."""
ARRIVE_POLL_S: Final = 0.02

SWEEP_S: Final = 300.0
"""The interval of searches for boots that concern this backend. A search takes a LIST
for each backend that ever existed."""

FIRST_CLAIM_S: Final = 2.0
"""The time between joining and the first claim of a group that never had an owner.
Members that start at the same time know of each other by then, and claim different
groups."""

TIES_MAX: Final = 1000
"""At most 1,000 ties are remembered, so that each is marked once."""

QUICK_S: Final = 0.2
"""The interval of passes while groups may arrive, since their users wait."""

LEAVE_S: Final = 0.5
"""The time between the beat that says that this backend stops and the first group that
it releases. Backends that stop at the same time know of each other by then."""

LEAVE_POLL_S: Final = 0.05

RELEASE_AGAIN_S: Final = 0.2
"""The pause before the next attempt to release groups."""

HOME_BEATS: Final = 3
"""A backend that has started again gets its groups back after three beats."""

CONFIRM_S: Final = 1.0
"""A login waits at most a second for the directory after this process was suspended."""


class BackendMember:
    """A backend as a member; see the text of the module."""

    def __init__(self, view: View, store: Store, watch: DeadWatch, world: World) -> None:
        self.view = view
        self._store = store
        self.watch = watch
        self.me = watch.name
        self._world = world
        self.owners = Units(view, store.split)
        self._raising = Raising(view, store)
        self.rows = Writer(view, self.owners, self.number, world)
        self._counter = 0
        self._last_beat: tuple[Mapping[str, tuple[int, int]], int] = {}, digest({})
        """The units of the last beat, and their digest, which is slow for many."""
        self._began = world.now()
        self._fence: set[tuple[str, str]] = set()
        """Boots of dead backends that are to be fenced with the next gain."""
        self._fenced: set[tuple[str, str]] = set()
        """Boots that were fenced and whose backend is still dead."""
        self._merged: dict[str, Merge] = {}
        """Merges whose units were compared. A start compares all, since some may have
        come while this backend was away."""
        self._ties: set[tuple[str, int, int]] = set()
        """The ties that were marked: the unit and both tokens of each."""
        self._ready = asyncio.Event()
        self._tried_at = float("-inf")
        self._joined_at = float("-inf")
        self._at_start: dict[str, Assigned] = {}
        self._sweep_at = world.clock() + SWEEP_S
        self._ending = False
        """Whether this process is stopping; see `leave`."""
        self._hasten = asyncio.Event()
        """If it is set, the next pass begins at once."""
        self._beaten: dict[str, tuple[Beat, int]] = {}
        """The last beat of each backend, and how often the beat has changed."""
        self._losing: set[asyncio.Task[None]] = set()
        self.counts = Counts()
        self._boots = Boots(view, self.me, world, self.counts, began=self._began)

    # -- what the store asks (store.owned.Cluster) -----------------------------------------------------------------

    def unit_of(self, sid: str) -> str:
        """Return the unit of a user: the key of the group, or of the pinned user."""
        return self.owners.of(sid)

    async def ready(self) -> None:
        """Return once the directory was read, or once its kept copy is in use."""
        await self._ready.wait()

    def units(self) -> dict[str, tuple[int, int]]:
        """Return the units whose newest row names this backend."""
        rows = self.owners.rows()
        return {unit: (row.number, row.token) for unit, row in rows.items() if row.backend == self.me}

    def number(self) -> int:
        """Return the highest number of an assignment that was seen."""
        return self.owners.number()

    async def reread_rows(self) -> frozenset[str]:
        """Read the rows. Repeat that until the directory answers. Returns the units of
        this backend that other backends own.

        This backend gives these units up in the background. The caller stops serving
        them at once.
        """
        while not await self._read_rows():
            await self._world.sleep(POLL_S)
        return self._give_up()

    async def confirm(self) -> frozenset[str]:
        """Read the rows if that was not tried lately, because this process was
        suspended. Returns the units of this backend that other backends own.

        It waits at most CONFIRM_S.
        """
        if self._world.clock() - self._tried_at <= self.watch.dead_after_s / 2:
            return frozenset()
        try:
            async with asyncio.timeout(CONFIRM_S):
                await self._read_rows()
        except TimeoutError:
            return frozenset()
        return self._give_up()

    async def _read_rows(self) -> bool:
        """Make a pass over the directory. Returns False if it does not answer."""
        try:
            return await self.view.poll()
        finally:
            self._tried_at = self._world.clock()

    def _give_up(self) -> frozenset[str]:
        rows = self.owners.rows()
        lost = frozenset(unit for unit in self._store.held() if unit not in rows or rows[unit].backend != self.me)
        if lost:
            self._lose(lost)
        return lost

    # -- what protocols ask (route.Router) -------------------------------------------------------------------------

    async def route(self, sid: StorageId) -> Here | There:
        """See `route.Router`."""
        found = self.known(sid)
        if found is None:
            raise Unavailable("it is not known yet which backend serves the user; try again")
        if isinstance(found, Here):
            await self._arrived(self.unit_of(sid))
        return found

    def known(self, sid: StorageId) -> Here | There | None:
        """See `route.Router`."""
        row = self._row(sid)
        if row is None or row.backend == self.me:
            return None if row is None else Here(row)
        found = self.view.members.get(row.backend)
        return None if found is None else There(row.backend, found.address, found.ports, row)

    async def _arrived(self, unit: str) -> None:
        """Wait a little until a unit whose row names this backend is taken over. The
        pass that takes it over begins at once."""
        if not self._store.holds(unit):
            self._hasten.set()
        late = self._world.clock() + ARRIVE_S
        while not self._store.holds(unit) and self._world.clock() < late:
            await self._world.sleep(ARRIVE_POLL_S)

    def owner(self, sid: StorageId) -> str | None:
        """Return the backend of a user, None if it is not known."""
        row = self._row(sid)
        return None if row is None else row.backend

    def _row(self, sid: StorageId) -> Assigned | None:
        return None if self.view.settings is None else self.owners.row(self.unit_of(sid))

    async def reread(self, sid: StorageId, seen: Assigned) -> Here | There:
        """See `route.Router.reread`."""
        row = self._row(sid)
        if row is None or row == seen or newer(row, seen):
            await self.view.poll()
        route = await self.route(sid)
        ours = route.assigned
        if isinstance(route, Here) and ours.number == seen.number and ours.token != seen.token:
            await self._tie(self.unit_of(sid), ours, seen)
        return route

    async def _tie(self, unit: str, ours: Assigned, other: Assigned) -> None:
        """Mark a unit for a merge, once, and compare it. Two backends have assigned it
        at the same time, so both may have written to its users."""
        tie = unit, ours.token, other.token
        if not self._store.holds(unit) or not self._is_new(tie):
            return
        log.warning("two backends have assigned the same users", group=unit, assignment=ours.number)
        try:
            await self._store.doubt([unit])
            await self.view.put(Kind.MERGES, unit, Merge(other.backend, self._world.now(), 0))
        except Unavailable as exc:
            self._ties.discard(tie)  # the next forward tries again
            log.info("merge cannot be marked yet", group=unit, error=str(exc))

    # -- life ------------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Read the directory once, for a tool that does not change it. Raises
        ConfigError, Unavailable."""
        if not await self.view.poll() and self.view.settings is None:
            raise Unavailable("the cluster directory does not answer")
        self.begin()

    async def run(self, myself: Myself) -> None:
        """Join, then beat and make passes until cancelled. Raises ConfigError: the
        directory is newer than this code."""
        self.myself = myself
        while not await self.join():
            if self.view.settings is not None:
                self.begin()  # users are served by the kept copy
            await self._world.sleep(POLL_S)
        self._joined_at = self._world.clock()
        self.begin()
        async with asyncio.TaskGroup() as tasks:
            # Beats have a task of their own, because a step may take long.
            tasks.create_task(self._again_and_again(self.beat, lambda: self._world.sleep(POLL_S)))
            tasks.create_task(self._again_and_again(self.step, self.pause))

    def may_claim(self, unit: str) -> bool:
        """Return whether a group may be claimed already; see FIRST_CLAIM_S."""
        return self.owners.row(unit) is not None or self._world.clock() >= self._joined_at + FIRST_CLAIM_S

    def begin(self) -> None:
        if not self._ready.is_set():
            self.owners.take()
            self._at_start = self.owners.rows()
            self._ready.set()

    async def join(self) -> bool:
        """Read the directory, or create it, and register this backend. Returns False if
        it does not answer."""
        try:
            await self.myself.make_settings()
            if not await self.view.poll():
                return False
            if self.me not in self.view.orders:
                state = self.myself.state(self.me, self.view.members, self.view.orders)
                await self.view.put(Kind.ORDERS, self.me, Orders(state))
            if self.view.members.get(self.me) != self.myself.member:
                await self.view.put(Kind.MEMBERS, self.me, self.myself.member)
        except Unavailable as exc:
            log.debug("cluster cannot be joined yet", error=str(exc))
            return False
        return True

    async def leave(self) -> None:
        """Give all groups to other backends, because this process stops.

        Returns when no group is left, or when there is no backend that takes them. A
        caller may cancel it if it takes too long. The groups that are left then stay
        with this backend.
        """
        self._ending = True
        try:
            await self.beat()
        except Unavailable:
            return  # no other member can know that this backend stops
        await self._world.sleep(LEAVE_S)
        while self.view.settings is not None and (self._store.held() or self.units()):
            if not any(self._picture().heirs().values()):
                log.info("no other backend takes the groups, they stay", groups=len(self._store.held()))
                return
            self._hasten.set()
            await self._world.sleep(LEAVE_POLL_S)

    async def pause(self) -> None:
        """Wait for the next pass."""
        sleeping = asyncio.ensure_future(self._world.sleep(QUICK_S if self._awaits_groups() else POLL_S))
        hastened = asyncio.ensure_future(self._hasten.wait())
        try:
            await asyncio.wait((sleeping, hastened), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            hastened.cancel()
            self._hasten.clear()

    def _awaits_groups(self) -> bool:
        """Return whether a backend may be about to release groups to this backend,
        because it is evacuated, stops, or was asked to move some."""
        view, owners = self.view, self.view.owners()
        if any(move.to == self.me and not move.done for move in view.moves.values()):
            return True
        evacuated = {name for name, orders in view.orders.items() if orders.evacuate}
        return not (evacuated | self._ending_members()).isdisjoint(owners.keys() - {self.me})

    async def _again_and_again(
        self, work: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[object]]
    ) -> None:
        while True:
            try:
                await work()
            except Unavailable as exc:
                log.debug("cluster upkeep waits", error=str(exc))
            except ConfigError:
                raise
            except Exception as exc:
                log.error("cluster upkeep failed, it tries again", error=repr(exc), exc_info=exc)
            await pause()

    async def beat(self) -> None:
        """Say that this backend lives. Raises Unavailable."""
        self._counter += 1
        boot, site = self._store.boot(), self.myself.member.site
        held = self._store.held()
        if held != self._last_beat[0]:
            self._last_beat = dict(held), digest(held)
        load = dict(self._world.load())
        beat = Beat(self._counter, boot, site, self._began, load, self._ending, len(held), self._last_beat[1])
        await self.view.put(Kind.BEATS, self.me, beat)
        await self._boots.begin(boot)

    async def end(self, *, clean: bool) -> None:
        """Write that the boot has ended in order. clean: bundles have everything."""
        await self._boots.end(clean=clean)

    async def step(self) -> None:
        """Read the directory, make a plan, act. Raises Unavailable, ConfigError."""
        if not await self._read_rows():
            return
        await self._watch_others()
        await self.view.write_back(self.me)
        await self._stand_by()
        await self._act(plan(self._picture()))
        await self._take_merges()
        await self._raising.look()
        if self._world.clock() >= self._sweep_at:
            self._sweep_at = self._world.clock() + SWEEP_S
            await self._boots.close(await self._store.sweep(self._clears))

    async def _stand_by(self) -> None:
        """End an evacuation when this backend holds no unit any more."""
        orders = self.view.orders.get(self.me, Orders())
        if not orders.evacuate or orders.state is not State.ONLINE or self._store.held() or self._losing:
            return
        if not self.units():
            await self.view.put(Kind.ORDERS, self.me, replace(orders, state=State.STANDBY))
            log.info("evacuation done, this backend is standby")

    def _clears(self, backend: str) -> bool:
        """Return whether this backend deletes what a backend has left in the journal.
        For each backend the rank chooses a single backend that is online."""
        return next(iter(rank(f"journal:{backend}", self._picture().weights())), None) == self.me

    def figures(self) -> dict[str, float]:
        """Return figures for metrics. The age is infinite before the first answer."""
        age, held = self.view.age(), self._store.held()
        users = sum(user_of(unit) is not None for unit in held)
        counts = {f"{name}_total": float(count) for name, count in asdict(self.counts).items()}
        return {
            "directory_age_seconds": float("inf") if age is None else age,
            "groups": float(len(held) - users),
            "single_users": float(users),
            **counts,
        }

    async def _watch_others(self) -> None:
        """Observe beats, and greet a backend whose beat has stopped. docs/cluster.md
        has the rules: "When a backend counts as dead"."""
        view, watch, clock = self.view, self.watch, self._world.clock
        gone = self._world.gone()
        for name, beat in view.beats.items():
            before, count = self._beaten.get(name, (beat, -1))
            self._beaten[name] = beat, 0 if beat.ending else count + (before != beat)
        suspect = watch.observe(Observation(clock(), view.beats, view.beat_read(self.me), view.watched(), gone))
        if suspect is not None:
            answered = await self._world.greets(view.members.get(suspect))
            if watch.greeted(suspect, answered, clock()):
                log.warning("backend taken for dead", backend=suspect)

    def _picture(self) -> Picture:
        view, settings = self.view, self.view.settings
        assert settings is not None, "a poll has succeeded"
        # The view may be newer than what was observed.
        boots = self.watch.boots(view.beats)
        self._fenced &= boots.items()
        return Picture(
            me=self.me,
            units=frozenset(map(group_key, range(settings.groups))),
            rows=self.owners.rows(),
            held={unit: Assigned(self.me, number, token) for unit, (number, token) in self._store.held().items()},
            orders=view.orders,
            members=view.members,
            dead=boots,
            moves=view.moves,
            fenced=frozenset(self._fenced),
            ending=self._ending_members(),
            back=frozenset(name for name, (_, count) in self._beaten.items() if count >= HOME_BEATS),
        )

    def _ending_members(self) -> frozenset[str]:
        """Return the backends that stop or have stopped. The row of this backend's own
        beat does not count: an earlier process may have written it."""
        others = {name for name, beat in self.view.beats.items() if beat.ending and name != self.me}
        return frozenset({*others, self.me} if self._ending else others)

    # -- acting ----------------------------------------------------------------------------------------------------

    async def _act(self, todo: Plan) -> None:
        if todo.lose:
            self._lose(todo.lose)
        before, self._fence = self._fence, self._fence | todo.fence
        gain = dict(todo.gain)
        if claim := sorted(filter(self.may_claim, todo.claim)):
            kept = await self.rows.write(self.me, {unit: todo.claim[unit] for unit in claim}, released=False)
            self._fence -= todo.raced(kept) - before
            gain |= kept
        if gain or self._fence:
            await self._gain(gain)
        for unit in sorted(todo.pin):
            await self._pin(unit)
        for unit in sorted(todo.arrived):
            await self._end_move(unit)
        if todo.release is not None:
            await self._release(todo.release)

    async def _gain(self, units: Mapping[str, Assigned]) -> None:
        fence, fresh = sorted(self._fence), units.keys() - self._store.held().keys()
        # A row that named this backend when the process began may have been released to
        # an earlier process, which has written since.
        orderly = not fence and all(row.released and row != self._at_start.get(unit) for unit, row in units.items())
        try:
            await self._store.gain(units, fence, orderly=orderly)
        except OboxError as exc:
            log.warning("groups cannot be taken over yet", groups=len(units), error=str(exc))
            return
        self.counts.fences += len(fence)
        self.counts.gains += len(fresh)
        self._fence.clear()
        self._fenced |= set(fence)
        for unit in units:
            await self._end_move(unit)

    async def _pin(self, unit: str) -> None:
        """Pin a user of a group of this backend. A move follows."""
        kept = await self.rows.write(self.me, {unit: ""}, released=False)
        if unit in kept:
            self._store.renumber(unit, kept[unit])

    async def _end_move(self, unit: str) -> None:
        """Mark the move of a unit as done, because the unit has arrived."""
        move = self.view.moves.get(unit)
        if move is not None and not move.done and move.to == self.me:
            await self.view.put(Kind.MOVES, unit, replace(move, done=True))

    async def _release(self, release: Release) -> None:
        async def hand(units: frozenset[str]) -> frozenset[str]:
            try:
                await self.rows.write(release.to, dict.fromkeys(sorted(units), release.home), released=True)
            except Unavailable as exc:
                # A row that was tried may have arrived. So its unit is not served here
                # any more, and the row is written until the directory shows it.
                log.warning("groups may have been released", groups=len(units), to=release.to, error=str(exc))
            rows = {unit: self.owners.row(unit) for unit in units}
            return frozenset(unit for unit, row in rows.items() if row is not None and row.backend != self.me)

        try:
            given = await self._store.release(release.units, hand)
            if given:
                self.counts.releases += len(given)
                log.info("groups released", groups=len(given), to=release.to)
                self._hasten.set()  # the next batch follows at once
        except OboxError as exc:
            log.warning("groups cannot be released yet", groups=len(release.units), to=release.to, error=str(exc))
            await self._world.sleep(RELEASE_AGAIN_S)

    def _lose(self, units: frozenset[str]) -> None:
        self.counts.losses += len(units & self._store.held().keys())

        async def lose() -> None:
            try:
                users = await self._store.lose(sorted(units))
            except OboxError as exc:
                log.warning("groups cannot be given up yet", groups=len(units), error=str(exc))
                return  # the next plan has it again
            merge = Merge(self.me, self._world.now(), users)
            # The row is written also if nothing was left to be uploaded. This backend
            # may have written a bundle after the owner had compared.
            for unit in units:
                while True:
                    try:
                        await self.view.put(Kind.MERGES, unit, merge)
                        break
                    except Unavailable:
                        await self._world.sleep(POLL_S)

        def ended(task: asyncio.Task[None]) -> None:
            self._losing.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # The local disk has failed, or this process ends.
                log.warning("groups cannot be given up", groups=len(units), error=repr(error))

        task = asyncio.ensure_future(lose())
        self._losing.add(task)
        task.add_done_callback(ended)

    async def _take_merges(self) -> None:
        """Compare units of this backend to which other backends have written.

        A merge of a group is also a merge of its pinned users: the other backend may
        not have known of the pin, or has pinned the user itself. A backend whose
        assignment has lost against another with the same number may have written, too.
        """
        held, merges, settings = self._store.held(), self.view.merges, self.view.settings
        fresh = {unit for unit, merge in merges.items() if self._merged.get(unit) != merge}
        units = {unit for unit in fresh if unit in held}
        if fresh and settings is not None:
            alone = {unit: sid for unit in held if (sid := user_of(unit)) is not None}
            units |= {unit for unit, sid in alone.items() if home_of(sid, settings.groups) in fresh}
        for (kind, key), other in self.view.take_ties().items():
            unit = user_key(key) if kind is Kind.PINS else group_key(int(key))
            ours = self.owners.row(unit)
            if unit in held and ours is not None and self._is_new((unit, ours.token, other.token)):
                units.add(unit)
        if units:
            await self._store.doubt(sorted(units))
            self.counts.merges += len(units)
        self._merged = merges

    def _is_new(self, tie: tuple[str, int, int]) -> bool:
        """Remember a tie. Returns False if it was remembered already."""
        if tie in self._ties:
            return False
        if len(self._ties) >= TIES_MAX:
            self._ties.clear()
        self._ties.add(tie)
        return True
