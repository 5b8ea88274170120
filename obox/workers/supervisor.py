"""The process that an operator starts with `workers = N`. It is a proxy, and it keeps
its workers running.

It binds the addresses, registers its workers in the directory, starts them, and accepts
clients when every group of users has a worker. A stop ends first the connections of
clients, then the workers, all in order. See docs/cluster.md, "Workers".

Invariant: only this process reports to the service manager, and only while all workers
answer. A reload changes this process and all workers, or none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from obox import __version__, wiring
from obox.admin import Session
from obox.changes import changes
from obox.cluster import Assigned, Directory, Here, Router, There
from obox.config import Config, load
from obox.errors import Unavailable
from obox.front import Front
from obox.proxy import ViewRouter
from obox.server import Lifecycle, Notifier, Reloaded
from obox.server.log import recent_problems
from obox.types import StorageId

from .derive import make_secret, of_front, of_worker
from .orders import Start
from .pool import Pool

if TYPE_CHECKING:
    from obox.server.http import HttpServer

log = structlog.get_logger()

START_S: Final = 10.0
"""Clients wait so long until all workers serve. Afterwards the users of a missing
worker get `[UNAVAILABLE]`. A backend without workers lets a login wait as long for its
bucket."""
POLL_S: Final = 0.05
"""The interval of checks whether the worker that a login waits for serves."""


class _Notifier(Notifier):
    """The notifier of a supervisor. It sends READY and WATCHDOG only while all workers
    answer."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.answers: Callable[[], bool] = lambda: True
        self._owed: str | None = None

    def ready(self, status: str = "") -> None:
        self._owed = status
        self.pay()

    def pay(self) -> None:
        """Send what was held back, if all workers answer by now."""
        if self._owed is not None and self.answers():
            super().ready(self._owed)
            self._owed = None

    def watchdog(self) -> None:
        if self.answers():
            super().watchdog()


class _WorkerRouter:
    """A `Router` that waits for a worker that is being started."""

    def __init__(self, inner: Router, pool: Pool) -> None:
        self._inner = inner
        self._pool = pool

    async def route(self, sid: StorageId) -> Here | There:
        """See `obox.cluster.Router`."""
        return await self._until_ready(lambda: self._inner.route(sid))

    def known(self, sid: StorageId) -> Here | There | None:
        """See `obox.cluster.Router`."""
        return self._inner.known(sid)

    async def reread(self, sid: StorageId, seen: Assigned) -> Here | There:
        """See `obox.cluster.Router`."""
        await self._inner.reread(sid, seen)
        return await self.route(sid)

    async def _until_ready(self, ask: Callable[[], Awaitable[Here | There]]) -> There:
        """Repeat `ask` until the worker is ready. Raises Unavailable: it takes too
        long."""
        loop = asyncio.get_running_loop()
        late = loop.time() + START_S
        while True:
            try:
                there = await ask()
                assert isinstance(there, There)
                if self._pool.workers[there.backend].ready.is_set():
                    return there
                why = Unavailable("The worker of this user is starting")
            except Unavailable as error:
                why = error
            except KeyError:
                why = Unavailable("The worker of this user has ended")
            if loop.time() >= late:
                raise why
            await asyncio.sleep(POLL_S)


class _Process:
    """This process as verbs control it (`admin.Server`). The workers have the
    sessions."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def sessions(self) -> Sequence[Session]:
        return ()

    def kick(self, sessions: Sequence[Session], reason: str) -> None:
        pass

    async def reload(self) -> tuple[Sequence[str], Sequence[str]]:
        return await self._front.lifecycle.reloaded()

    def stop_logins(self) -> None:
        self._front.listeners.stop(keep=self._front.http.names)

    def stop(self) -> None:
        self._front.lifecycle.stop()


class Supervisor(Front):
    """See the module's text."""

    def __init__(
        self, config: Config, *, environ: Mapping[str, str], overrides: Sequence[tuple[str, object]] = ()
    ) -> None:
        """config: the configuration as it was read. overrides: settings of the command
        line. Raises ConfigError.
        """
        make_secret(config)
        self._read_config, self._overrides = config, tuple(overrides)
        super().__init__(of_front(config), environ=environ)
        self._notifier = _Notifier(environ)
        # Clients have this time, and the workers have it once more afterwards.
        self.lifecycle = Lifecycle(log=log, notifier=self._notifier, drain_timeout_s=self._stop_s(config))
        self._workers = config.server.workers

    @staticmethod
    def _stop_s(config: Config) -> float:
        return 2 * config.server.shutdown_timeout

    # -- what differs from a proxy ---------------------------------------------------------------------------------

    def unused(self) -> list[str]:
        return []  # the workers use them

    def read(self) -> Config:
        config = self._read_config
        return of_front(load(str(config.file) if config.file else None, self._environ, overrides=self._overrides))

    def routed(self, router: ViewRouter, directory: Directory) -> Router:
        limit_s = self._notifier.watchdog_interval_s
        starts = [self._start_of(self._read_config, number) for number in range(1, self._workers + 1)]
        # The limit is half of the manager's, so that a worker that hangs is killed
        # before the manager ends the unit.
        self.pool = Pool(starts, self.view, self._notifier.pay, limit_s)
        self._notifier.answers = self.pool.answers
        self._store = directory
        self._inner = router
        return _WorkerRouter(self._inner, self.pool)

    def places(self) -> tuple[None, Callable[[], tuple[str, Mapping[str, int]]]]:
        """Name this process for all users, since front ends cannot reach a worker."""
        return None, lambda: (self.config.cluster.address or "127.0.0.1", self.ports())

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.pool.until_started(START_S)

    async def before(self, tasks: asyncio.TaskGroup) -> None:
        self._loop = asyncio.get_running_loop()
        while True:
            try:
                await self.pool.register(self._store)
                break
            except Unavailable as error:
                log.warning("workers wait for their directory", error=str(error))
                await asyncio.sleep(1.0)
        self.pool.start(tasks)
        if not await self.pool.serving(START_S):
            log.warning("some workers do not serve yet, clients of the others are accepted")

    def _on_stop(self) -> None:
        async def stop_workers() -> None:
            await self.pool.stop(to_return=self.lifecycle.returning)

        async def kill_workers() -> None:
            await self.pool.kill()

        super()._on_stop()
        self.lifecycle.on_stop("workers", stop_workers)
        self.lifecycle.on_stop("workers that are left", kill_workers)

    # -- HTTP ------------------------------------------------------------------------------------------------------

    def _administer(self) -> None:
        config = self.config
        self.admin = wiring.of_config(config, self.users)
        self.admin.authenticator = lambda: self.authenticator
        self.admin.recent = recent_problems
        self.admin.server = _Process(self)
        self.admin.find_cluster = wiring.find_cluster(config, directory=self.directory)

    def servers(self) -> dict[str, HttpServer]:
        """Make the HTTP servers as a backend does: the API, the probes, and the metrics
        of all workers."""
        from obox.admin.http import routes
        from obox.server import exposition
        from obox.server.http import HttpServer, application

        from .exposition import Exposition
        from .verbs import Relay

        config = self.config
        own = exposition.Exposition(self.metrics).text
        shown = Exposition(config.cluster.backend, own, lambda: list(self.pool.workers.values()))
        relay = Relay(self.pool, self._inner, _Process(self).stop_logins)
        verbs = routes(self.admin, key=self._api_key(), version=__version__, run=relay.run, asked=relay.answer)
        api = [*verbs, *self.nginx()]
        draining = lambda: self.lifecycle.draining  # noqa: E731 - a name for a short line
        probes = application(draining=draining, routes=[shown.route(), *([] if config.metrics else api)])
        out = {"admin": HttpServer(application(routes=api)), "metrics": HttpServer(probes)}
        out["http"] = out["metrics"] if config.metrics is None else HttpServer(application(routes=api))
        return out

    # -- a reload --------------------------------------------------------------------------------------------------

    def _prepare(self) -> Callable[[], Reloaded]:
        """Let this process and then all workers check the configuration. They do not
        use it yet."""
        read = self.read()
        mine = super()._prepare()
        theirs = asyncio.run_coroutine_threadsafe(self.pool.prepare_reload(), self._loop).result()

        def use() -> Reloaded:
            theirs()
            done = mine()
            self.admin.users = self.users
            self.admin.forget_names()
            # A worker that is started again gets this configuration.
            self._read_config = changes(self._read_config, read).config
            for worker in self.pool.workers.values():
                worker.start = self._start_of(self._config_of_workers(), worker.start.number)
            self.lifecycle.drain_timeout_s = self._stop_s(self.config)
            return done

        return use

    def _start_of(self, config: Config, number: int) -> Start:
        own = wiring.own_http(config)
        return Start(of_worker(config, number), number, self._workers, self._overrides, own)

    def _config_of_workers(self) -> Config:
        config = self._read_config
        return replace(config, server=replace(config.server, workers=self._workers))
