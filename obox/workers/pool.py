"""All workers of a supervisor. They start and stop together. This module also writes
their rows in the directory.

Invariant: the directory knows all workers before the first of them starts, so that each
takes its part of the groups. If an earlier start had more workers, the others are
removed from the directory, and the present workers take their groups.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from obox import __version__
from obox.cluster import (
    Directory,
    Kind,
    Member,
    Move,
    Orders,
    State,
    View,
    group_key,
    make_settings,
    rank,
)
from obox.cluster.initial import GROUPS_LOCAL
from obox.errors import ConfigError, OboxError, Unavailable
from obox.forms import reads
from obox.server import Reloaded

from . import orders
from .orders import Start
from .worker import CRASHES_S, Worker

log = structlog.get_logger()

POLL_S: Final = 0.05
"""The interval of checks at the start whether all groups have an owner."""
LAST_S: Final = 2.0
"""A worker ends within this time after SIGKILL."""


class Pool:
    """See the module's text. changed: called when a worker becomes ready, or is no
    longer ready.
    """

    def __init__(
        self, starts: Sequence[Start], view: View, changed: Callable[[], None], watchdog_s: float | None
    ) -> None:
        self.workers = {start.name: Worker(start, self._on_change, watchdog_s) for start in starts}
        self.stopping = False
        self._view = view
        self._changed = changed
        self._watchdog_s = watchdog_s
        self._removed: frozenset[str] = frozenset()
        self._running: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()

    # -- the directory ---------------------------------------------------------------------------------------------

    async def register(self, directory: Directory) -> None:
        """Register all workers. Raises ConfigError, Unavailable."""
        await make_settings(directory, GROUPS_LOCAL, now=time.time, sleep=asyncio.sleep, random_bytes=os.urandom)
        view = self._view
        if not await view.poll():
            raise Unavailable("the directory of the workers does not answer")
        fresh = [
            name for name in self.workers if view.orders.get(name, Orders(State.REMOVED)).state is not State.ONLINE
        ]
        for name, worker in self.workers.items():
            member = Member(
                "backend", worker.start.config.cluster.site, f"unix:{worker.home}", {}, reads(), __version__
            )
            if view.members.get(name) != member:
                await view.put(Kind.MEMBERS, name, member)
        for name in fresh:
            await view.put(Kind.ORDERS, name, Orders(State.ONLINE))
        known = {name for name, member in view.members.items() if member.role == "backend"} | set(view.owners())
        self._removed = frozenset(known - set(self.workers))
        for name in sorted(self._removed):
            await view.put(Kind.ORDERS, name, Orders(State.REMOVED))
        if fresh and view.groups:
            self._chore(self._give(fresh))

    async def _give(self, names: Sequence[str]) -> None:
        """Move their part of the groups to workers that are new or serve again."""
        for name in names:
            await self.workers[name].ready.wait()
        view, now = self._view, time.time()
        settings = view.settings
        assert settings is not None, "the directory was read"
        weights = {
            name: float(one.load_factor)
            for name in self.workers
            if (one := view.orders.get(name)) is not None and one.state is State.ONLINE
        }
        moved = 0
        for unit in map(group_key, range(settings.groups)):
            row, heir = view.assigned(unit), next(iter(rank(unit, weights)), None)
            if heir is not None and heir in names and row is not None and row.backend != heir:
                await view.put(Kind.MOVES, unit, Move(heir, now, "supervisor"))
                moved += 1
        log.info("groups move to new workers", workers=list(names), groups=moved)

    def _released(self, worker: Worker) -> None:
        self._announce_gone()
        self._chore(self._view.put(Kind.ORDERS, worker.name, Orders(State.OFFLINE)))

    async def _again(self, worker: Worker) -> None:
        """Give groups again to a worker that has rested, if it does not end again."""
        await asyncio.sleep(CRASHES_S)
        if worker.ready.is_set() and worker.resting and not self.stopping:
            worker.resting = False
            await self._view.put(Kind.ORDERS, worker.name, Orders(State.ONLINE))
            await self._give([worker.name])

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start all workers. The task group ends if a worker refuses its
        configuration."""
        for worker in self.workers.values():
            self._running.append(tasks.create_task(worker.run(self._released), name=f"worker {worker.name}"))
        if self._watchdog_s is not None:
            self._watching = tasks.create_task(self._watch(self._watchdog_s))

    async def serving(self, within_s: float) -> bool:
        """Wait until all workers are ready and all groups have an owner.

        Return False if that takes longer than `within_s`.
        """
        try:
            async with asyncio.timeout(within_s):
                for worker in self.workers.values():
                    await worker.ready.wait()
                while (settings := self._view.settings) is None or len(self._view.groups) < settings.groups:
                    await asyncio.sleep(POLL_S)
                    await self._view.poll()
        except TimeoutError:
            return False
        return True

    async def until_started(self, within_s: float) -> None:
        """Wait until no worker is starting, but no longer than `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                for worker in self.workers.values():
                    if not worker.resting:
                        await worker.ready.wait()
        except TimeoutError:
            pass

    def answers(self) -> bool:
        """Return whether all loops answer. A worker that rests has no loop."""
        return all(worker.resting or worker.ready.is_set() for worker in self.workers.values())

    def let_end(self) -> None:
        """Note that the workers end soon, so that they are not started again."""
        self.stopping = True
        for worker in self.workers.values():
            worker.let_end()

    async def stop(self, *, to_return: bool) -> None:
        """Stop all workers in order. If this is cancelled, each worker hurries."""
        self.stopping = True
        try:
            for worker in self.workers.values():
                worker.stop(to_return=to_return)
            if self._running:
                await asyncio.wait(self._running)
        except asyncio.CancelledError:
            for worker in self.workers.values():
                worker.stop(to_return=to_return)
            raise

    async def kill(self) -> None:
        """Kill the workers that are left."""
        self.stopping = True
        for chore in (*self._chores, *([self._watching] if self._watching is not None else [])):
            chore.cancel()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=LAST_S)
            for task in late:
                task.cancel()  # this kills the process

    async def _watch(self, limit_s: float) -> None:
        """Kill a worker whose loop does not report. It is then started again."""
        while True:
            await asyncio.sleep(limit_s / 4)
            for worker in self.workers.values():
                if worker.silent_s > limit_s and not self.stopping:
                    log.error("worker does not answer and is killed", worker=worker.name)
                    worker.signal(signal.SIGABRT)
                    await asyncio.sleep(0)
                    worker.signal(signal.SIGKILL)

    # -- reload ----------------------------------------------------------------------------------------------------

    async def prepare_reload(self) -> Callable[[], Reloaded]:
        """Let all workers check the configuration. Return a function that lets them use
        it.

        Raises ConfigError, Unavailable: no worker has changed anything.
        """
        workers = list(self.workers.values())
        results = await asyncio.gather(*(worker.prepare_reload() for worker in workers), return_exceptions=True)
        wrong = [result for result in results if isinstance(result, BaseException)]
        if wrong:
            for worker in workers:
                worker.order(orders.DROP)
            raise wrong[0] if isinstance(wrong[0], ConfigError | OboxError) else ConfigError(str(wrong[0]))

        def use() -> Reloaded:
            for worker in workers:
                worker.order(orders.USE)
            return Reloaded()

        return use

    # -- inside ----------------------------------------------------------------------------------------------------

    def _on_change(self, worker: Worker) -> None:
        self._announce_gone()
        if worker.ready.is_set() and worker.resting:
            self._chore(self._again(worker))
        self._changed()

    def _announce_gone(self) -> None:
        """Name the workers that rest to all workers: their processes have ended."""
        gone = sorted(self._removed | {worker.name for worker in self.workers.values() if worker.gone})
        for worker in self.workers.values():
            worker.order(orders.GONE, *gone)

    def _chore(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_logged(work))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except (Unavailable, ConfigError) as error:
        log.warning("directory of the workers cannot be written", error=str(error))
