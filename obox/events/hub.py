"""The events of a backend: its groups, what they have handled, and what is left.

It follows the journal of the store (`store.log.journal.Follower`). Only a backend that
serves calls `begin`; a tool that opens the store has groups too, so that the next
backend handles what the tool has changed.

Invariant: nothing of the store waits for a group, but for acknowledgements if the
settings say so. This module does not know what a listener does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from ..errors import OboxError, Unavailable
from ..store.backend.store import MailStore
from ..store.log.journal import Journal, JournalObject
from . import dead
from .cursors import Keeper
from .event import Format
from .group import Runner
from .lanes import Bars
from .listener import Delivery, Group, is_sync
from .rest import Rest
from .scan import Scan
from .tail import Tail

log = structlog.get_logger()

CURSOR_S: Final = 10.0
"""Interval of cursors. After a crash the events of this time may come again."""

SOON_S: Final = 1.0
"""Interval of cursors after a hand-over, because the next owner waits for them."""

SOON_FOR_S: Final = 30.0
"""How long cursors come at that interval."""

AGAIN_S: Final = 1.0
"""Pause before the next look at the journals while the bucket does not answer."""

SYNC_S: Final = 5.0
"""How long an acknowledgement waits for groups. Then it is given without them."""

STOP_S: Final = 5.0
"""How long a stop waits for groups. What is left is handled by the next owner."""

COUNT_S: Final = 900.0
"""Interval at which dead letters are counted: a LIST for each group."""

COUNTED_MAX: Final = 1000
"""Dead letters of a group that are counted: a page of a LIST."""

MARKS_MAX: Final = 1000
"""Times of objects that wait. With more, every second is forgotten."""


@dataclass(frozen=True)
class EventSettings:
    """The settings of events. max_lag_s: how long journal objects are kept for a group
    that is behind."""

    format: Format = "msgpack"
    delivery: Delivery = "mixed"
    max_lag_s: float = 86400.0


class Events:
    """See the module's text."""

    def __init__(self, store: MailStore, groups: Sequence[Group], settings: EventSettings) -> None:
        """Take the groups. It follows the journal of the store from now on."""
        self._store, self._env, self._settings = store, store.env, settings
        self._names = [group.name for group in groups]
        env = self._env
        self._tail = Tail(env)
        self._bars = Bars(env.owned.unit_of)
        self.tasks: set[asyncio.Task[None]] = set()
        self.runners = [
            Runner(env, self._journal, group, self._tail, self._bars, settings.format, self._spawn) for group in groups
        ]
        self._keepers = {group.name: Keeper(env, group.name) for group in groups}
        self._rest = Rest(env, lambda: store.journal.boot, self.runners, self._spawn)
        self._scan = Scan(store)
        self._sync = [runner for runner in self.runners if is_sync(runner.group, settings.delivery)]
        self._gained: set[str] = set()
        self._look = asyncio.Event()
        self._begun = False
        self._hurries = False
        self._marks: list[tuple[int, float]] = []
        self._letters: dict[str, int] = {}
        """How many dead letters each group had in the bucket when they were
        counted."""
        store.journal.follower = self

    def _journal(self) -> Journal:
        return self._store.journal

    # -- what the store says -------------------------------------------------------------------------------------------

    @property
    def groups(self) -> Sequence[str]:
        """See `Follower`."""
        return self._names

    def landed(self, written: JournalObject) -> None:
        """See `Follower`."""
        before = self._tail.end
        if self._tail.add(written) and before and self._begun:
            self._fenced(written.boot)

    def gained(self, units: Collection[str], *, orderly: bool) -> None:
        """See `Follower`."""
        if units and self._begun:
            self._bars.units |= dict.fromkeys(units, self._tail.end)
            if orderly:
                self._spawn(self._wait_and_look(frozenset(units)))
            else:
                self._look_for(units)
            if not self._env.owned.unclean.isdisjoint(units):
                self._scan.want()

    def _look_for(self, units: Collection[str]) -> None:
        self._gained |= set(units)
        self._look.set()

    async def _wait_and_look(self, units: frozenset[str]) -> None:
        """Wait until the previous owner has handled what it wrote."""
        try:
            await self._rest.wait_for_others()
        except OboxError as exc:
            log.warning("cursors of other backends cannot be read", error=str(exc))
        self._look_for(units)

    def released(self) -> None:
        """See `Follower`."""
        if self._begun and not self._hurries:
            self._hurries = True
            self._spawn(self._write_soon())

    async def let_go(self, boot: str, below: int, since: float) -> bool:
        """See `Follower`. Raises Unavailable."""
        late = since < self._env.clock() - self._settings.max_lag_s
        number = self._tail.number((self._env.settings.backend, boot), below)
        if number is None or not self._begun:
            return late
        if boot != self._store.journal.boot:
            return late or not self._rest.holds((self._env.settings.backend, boot))
        for runner in self.runners:
            if runner.behind >= number:
                continue
            if not late:
                return False
            await runner.let_go(number)
            await self._write_cursor(runner)
            runner.ask_to_rescan(list(runner.rescan))
        return True

    async def _until_heard(self) -> None:
        """Return when the groups for which acknowledgements wait have handled all that
        was staged before, SYNC_S at most. Raises Unavailable."""
        try:
            async with asyncio.timeout(SYNC_S):
                await self._store.journal.sync()
                number = self._tail.end
                for runner in self._sync:
                    await runner.caught_up(number)
        except TimeoutError:
            log.warning("acknowledged before the listeners were done")

    # -- life ----------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Call the listeners from now on. The store has started."""
        self._begun = True
        if self._sync:
            self._env.until_heard = self._until_heard
        self._look.set()
        for runner in self.runners:
            runner.clear()
            self._spawn(runner.run())
        self._spawn(self._look_again())
        self._spawn(self._write_cursors())
        self._spawn(self._count_again())
        self._scan.begin()
        self._spawn(self._scan.run())

    async def close(self) -> None:
        """Let the groups handle what has come, STOP_S at most, and write their cursors.
        The store is closed."""
        if self._begun:
            self._begun = False
            try:
                async with asyncio.timeout(STOP_S):
                    for runner in self.runners:
                        await runner.caught_up(self._tail.end)
            except TimeoutError:
                log.warning("events are left for the next owner of their users")
            for runner in self.runners:
                try:
                    async with asyncio.timeout(STOP_S):
                        await self._write_cursor(runner)
                        await self._keepers[runner.group.name].tidy()
                except (OboxError, TimeoutError) as exc:
                    log.warning("cursor cannot be written", group=runner.group.name, error=repr(exc))
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("task of events failed", error=repr(exc), exc_info=exc)

    def _fenced(self, boot: str) -> None:
        """Handle that a new boot has begun, because another backend has fenced the boot
        before."""
        for runner in self.runners:
            if (end := runner.end()) is not None:
                self._spawn(self._last_cursor(runner, *end))
            runner.clear()
        self._rest.clear()
        self._bars.everybody = True
        self._look.set()

    # -- the rest of other boots ---------------------------------------------------------------------------------------

    async def _look_again(self) -> None:
        while True:
            await self._look.wait()
            self._look.clear()
            everybody, units = self._bars.everybody, set(self._gained)
            boot = self._store.journal.boot
            try:
                await self._rest.look(None if everybody else units)
            except OboxError as exc:
                log.warning("journals cannot be read for events yet", error=str(exc))
                await self._env.sleep(AGAIN_S)
                self._look.set()
                continue
            if boot != self._store.journal.boot:
                continue  # it was fenced meanwhile, and looks again
            if everybody:
                self._bars.everybody = False
            self._gained -= units
            for unit in units - self._gained:
                self._bars.units.pop(unit, None)
            for runner in self.runners:
                runner.start_all()

    # -- cursors -------------------------------------------------------------------------------------------------------

    async def _write_cursors(self) -> None:
        while True:
            await self._env.sleep(CURSOR_S)
            self._mark(self._env.clock())
            await self._write_all()

    async def _write_soon(self) -> None:
        until = self._env.clock() + SOON_FOR_S
        while self._env.clock() < until:
            await self._env.sleep(SOON_S)
            await self._write_all()
        self._hurries = False

    async def _write_all(self) -> None:
        for runner in self.runners:
            try:
                await self._write_cursor(runner)
            except OboxError as exc:
                log.info("cursor is written later", group=runner.group.name, error=str(exc))

    async def _write_cursor(self, runner: Runner) -> None:
        """Raises Unavailable."""
        if (end := runner.end()) is not None:
            await self._keepers[runner.group.name].write(*end, frozenset(runner.rescan))

    async def _last_cursor(self, runner: Runner, boot: tuple[str, str], seq: int) -> None:
        """Write how far the group is in a boot that was fenced."""
        try:
            await self._keepers[runner.group.name].write(boot, seq)
        except Unavailable:
            log.info("cursor of a fenced boot is not written, events come again", group=runner.group.name)

    # -- for operators -------------------------------------------------------------------------------------------------

    def _mark(self, now: float) -> None:
        """Remember when objects landed, for `lag_s`."""
        behind = min((runner.behind for runner in self.runners), default=self._tail.end)
        self._marks = [mark for mark in self._marks if mark[0] > behind]
        if self._tail.end > behind and (not self._marks or self._marks[-1][0] < self._tail.end):
            self._marks.append((self._tail.end, now))
            if len(self._marks) > MARKS_MAX:
                del self._marks[1::2]

    def lag_s(self, runner: Runner) -> float:
        """Return for how long the oldest object has waited for a group."""
        behind = runner.behind
        at = next((at for end, at in self._marks if end > behind), None)
        return 0.0 if at is None else max(0.0, self._env.clock() - at)

    def idle(self) -> bool:
        """Return whether nothing is left to be handled."""
        barred = self._bars.everybody or self._bars.units
        return not barred and not any(one.lag() or one.lanes.own or one.lanes.rest for one in self.runners)

    def figures(self) -> Mapping[str, float]:
        """Return numbers for metrics."""
        return {
            "handled_total": sum(runner.handled for runner in self.runners),
            "failures_total": sum(runner.failed for runner in self.runners),
            "dead_letters_total": sum(runner.letters for runner in self.runners),
            "dead_letters": sum(self._letters.values()),
            "waiting": sum(runner.lanes.own + runner.lanes.rest for runner in self.runners),
            "lag_objects": max((runner.lag() for runner in self.runners), default=0),
            "lag_seconds": max((self.lag_s(runner) for runner in self.runners), default=0.0),
        }

    async def count_letters(self) -> None:
        """Count the dead letters in the bucket, for `figures`. Raises Unavailable."""
        for name in self._names:
            self._letters[name] = len(await dead.list_keys(self._env, name, limit=COUNTED_MAX))

    async def _count_again(self) -> None:
        while True:
            try:
                await self.count_letters()
            except OboxError as exc:
                log.info("dead letters are counted later", error=str(exc))
            await self._env.sleep(COUNT_S)
