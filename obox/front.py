"""The process of a proxy: listeners, logins and the directory. It has no store and no
caches.

The start binds the addresses. The loop then accepts clients, and reads the directory
once a second. If the directory does not answer, the copy in `state_dir` is used. If
there is no copy, clients get `[UNAVAILABLE]`. The stop first ends the listeners. Then
it ends each splice after the last bytes of its backend.

A proxy accepts sections of the configuration that it does not use, so that it can share
a file with a backend. It names them once in the log.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import structlog

from . import __version__, rooms, wiring
from .auth import Authenticator, PasswdFile, Penalties
from .changes import changes
from .cluster import (
    Beat,
    Directory,
    KeptFile,
    Kind,
    Member,
    Router,
    View,
    encode,
    next_timestamp,
    open_directory,
)
from .config import Config, Listen, load
from .errors import ConfigError, Unavailable
from .forms import OF_PROXIES, reads
from .linking import forwarder_of, serve_socketmap
from .proxy import Nowhere, ViewRouter
from .server import (
    LaterHttp,
    LoopLag,
    MemoryReturn,
    Reloaded,
    raise_open_files_limit,
)
from .serving import LOGINS, Serving
from .statelock import ADMIN

if TYPE_CHECKING:
    from .server.http import HttpServer

log = structlog.get_logger()

BEAT_S: Final = 1.0
"""The interval of writes of the proxy's beat."""
KEPT: Final = "directory"
"""This file below state_dir has the last good answer of the directory."""
USED: Final = frozenset(
    {
        *LOGINS,
        "auth",
        "cluster",
        "http",
        "lmtp",
        "log",
        "metrics",
        "quota",
        "server",
        "socketmap",
        "state_dir",
        "tls",
    }
)
"""The sections that a proxy uses."""


class Front(Serving):
    """See the module's text. `run` serves until a stop."""

    def __init__(
        self, config: Config, *, environ: Mapping[str, str] | None = None, directory: Directory | None = None
    ) -> None:
        """directory: None opens the directory of the configuration. Raises
        ConfigError."""
        super().__init__(config, environ)
        self.config = config
        self._directory = directory
        self.users = PasswdFile(config.auth.passwd_file, config.auth.default_domain)
        self.authenticator = Authenticator(
            self.users, cache_ttl_s=config.auth.cache_ttl, penalties=Penalties(rooms.login_delays(config))
        )
        self.http = LaterHttp(("obox.server.http", "obox.admin.http", "obox.relay"), self.servers)
        self._started = time.time()

    @property
    def used(self) -> Config:
        return self.config

    async def run(self, *, signals: bool = True, started: Callable[[Front], None] | None = None) -> int:
        """Serve until a stop, and return the exit code. started: called when the
        addresses are bound.

        Raises ConfigError, ListenError.
        """
        raise_open_files_limit()
        config = self.config
        if unused := self.unused():
            log.warning("sections ignored, a proxy does not use them", sections=unused)
        with _locked(config.state_dir):
            directory = self._directory or await open_directory(
                config.cluster.directory, config.state_dir, password_file=config.cluster.password_file
            )
            try:
                self.view = View(
                    directory,
                    clock=time.monotonic,
                    now=time.time,
                    sleep=asyncio.sleep,
                    keeper=KeptFile(config.state_dir / KEPT),
                    forms=OF_PROXIES,
                )
                self.view.restore()
                self._assemble(directory)
                return await self._serve(directory, signals, started)
            finally:
                self.authenticator.close()
                await directory.close()

    async def _serve(self, directory: Directory, signals: bool, started: Callable[[Front], None] | None) -> int:
        async with asyncio.TaskGroup() as tasks:
            self._opening = tasks.create_task(self._open(tasks, started))
            beside = [
                self._opening,
                tasks.create_task(self.view.run()),
                tasks.create_task(self._beat(directory)),
                tasks.create_task(LoopLag(observe=self.metrics.loop_lag.observe, log=log).run()),
                tasks.create_task(MemoryReturn().run()),
                tasks.create_task(self.certificate_watch.run()),
            ]
            tasks.create_task(self.users.refresh())
            try:
                return await self.lifecycle.run(signals=signals)
            finally:
                for task in beside:
                    task.cancel()

    async def _open(self, tasks: asyncio.TaskGroup, started: Callable[[Front], None] | None) -> None:
        await self.before(tasks)
        await self.listeners.start(tasks)
        if started is not None:
            started(self)

    # -- what a supervisor of workers overrides --------------------------------------------------------------------

    def unused(self) -> list[str]:
        """Return the sections that this process does not use."""
        return unused_sections(self.config)

    def read(self) -> Config:
        """Read the configuration again. It blocks on files. Raises ConfigError."""
        return load(str(self.config.file) if self.config.file else None, self._environ, proxy=True)

    def routed(self, router: ViewRouter, directory: Directory) -> Router:
        """Return the router of this process. router: answers from the view of the
        directory."""
        return router

    def places(self) -> tuple[Router | None, Callable[[], tuple[str, Mapping[str, int]]]]:
        """Return what front ends need: a router, and a function that returns the
        address of this process for its own users."""
        return self.forwarder.router, lambda: ("", {})

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt at a backend that does not answer."""
        await asyncio.sleep(seconds)

    async def before(self, tasks: asyncio.TaskGroup) -> None:
        """Return when clients may be accepted. The addresses are bound already.

        Raises ConfigError.
        """

    # -- parts -----------------------------------------------------------------------------------------------------

    def _assemble(self, directory: Directory) -> None:
        """Make the parts and bind the addresses. Raises ConfigError, ListenError."""
        self.directory = directory
        router = ViewRouter(self.view, directory)
        self._owner = router.owner
        self.forwarder = forwarder_of(self, self.routed(router, directory), self.authenticator, sleep=self.pause)
        self.view.listen(self.forwarder.changed)
        if not self.forwarder.secrets:
            raise ConfigError('cluster.secret_file = "": a proxy needs one; allowed: the file of the backends')
        self.serve_logins(None, self.authenticator, self.forwarder)
        self.serve_lmtp(_nowhere, self.forwarder, lambda: self.users)
        self.warn_without_mail()
        if self.config.socketmap is not None:
            serve_socketmap(self, lambda: self.users, *self.places())
        self.metrics.source("directory", self._age, "Of the cluster's directory.")
        if self.certificates is not None:
            self.metrics.source("tls", self.certificates.figures)
        self._bind_http()
        self._on_stop()
        self.lifecycle.on_reload("configuration", self._prepare)

    def _bind_http(self) -> None:
        """Bind the addresses of [http], [metrics] and the admin socket."""
        self._administer()
        self.http.bind(self.listeners, "admin", (Listen(path=self.config.state_dir / ADMIN),), unix_mode=0o600)
        for name in ("http", "metrics"):
            section = getattr(self.config, name)
            if section is not None:
                self.http.bind(self.listeners, name, section.listen)

    def _administer(self) -> None:
        """Make what verbs use."""
        self.admin = wiring.of_config(self.config, self.users)
        self.admin.authenticator = lambda: self.authenticator
        self.admin.server = wiring.Running(self.logins.values(), self.listeners, self.lifecycle)
        self.admin.find_cluster = wiring.find_cluster(self.config, directory=self.directory)

    def servers(self) -> dict[str, HttpServer]:
        """Make the servers of the probes, the metrics and the answers for nginx, and of
        the admin socket, which has the verbs of cluster, sessions and process. The
        first client of HTTP lets `LaterHttp` call it."""
        from .admin.http import routes
        from .relay import Relay
        from .server.exposition import Exposition
        from .server.http import HttpServer, application

        relay = Relay(self.admin, self.forwarder, self.view, self._owner, serves=False)
        api = routes(self.admin, key="", version=__version__, run=relay.run)
        draining = lambda: self.lifecycle.draining  # noqa: E731 - a name for a short line
        text = Exposition(self.metrics).text
        shown = HttpServer(application(metrics=text, draining=draining, routes=self.nginx()))
        return {"admin": HttpServer(application(routes=api)), "http": shown, "metrics": shown}

    def nginx(self) -> list[Any]:
        """Return the routes that answer nginx as a front end."""
        from .proxy.nginx import NginxAuth

        router, here = self.places()
        return NginxAuth(self.forwarder, self._api_key, here, all_here=router is None).routes()

    def _api_key(self) -> str:
        return self.config.http.api_key.reveal() if self.config.http is not None else ""

    def _age(self) -> dict[str, float]:
        age = self.view.age()
        return {} if age is None else {"age_seconds": age}

    def _on_stop(self) -> None:
        async def stop_accepting() -> None:
            self._opening.cancel()
            self.listeners.stop(keep=self.http.names)

        async def end_sessions() -> None:
            await self.end_sessions(self.config.server.shutdown_timeout)

        async def stop_probes() -> None:
            self.listeners.stop()

        self.lifecycle.on_stop("listeners", stop_accepting)
        self.lifecycle.on_stop("sessions", end_sessions)
        self.lifecycle.on_stop("probes", stop_probes)
        for name in self.http.names:
            self.lifecycle.on_stop(name, partial(self.http.close, name))

    # -- the directory ---------------------------------------------------------------------------------------------

    async def _beat(self, directory: Directory) -> None:
        """Register this proxy, and write its beat once a second."""
        cluster, registered, counter = self.config.cluster, False, 0
        name = cluster.backend
        while True:
            try:
                if not registered:
                    row = await directory.get(Kind.MEMBERS, name)
                    ours = Member(
                        "proxy",
                        cluster.site,
                        cluster.address or name,
                        self.ports("http"),
                        reads(OF_PROXIES),
                        __version__,
                    )
                    await directory.put(Kind.MEMBERS, name, encode(ours), next_timestamp(time.time, row))
                    registered = True
                counter += 1
                sessions = sum(len(server.hub.registry) for server in self.logins.values())
                beat = Beat(counter, site=cluster.site, started=self._started, load={"sessions": float(sessions)})
                stamp = next_timestamp(time.time, await directory.get(Kind.BEATS, name))
                await directory.put(Kind.BEATS, name, encode(beat), stamp)
            except Unavailable:
                pass  # the view logs it
            await asyncio.sleep(BEAT_S)

    # -- a reload --------------------------------------------------------------------------------------------------

    def _prepare(self) -> Callable[[], Reloaded]:
        """Read the new configuration, and return what uses it. It blocks on files.
        Raises ConfigError."""
        from . import renewal  # most proxies never reload

        changed = changes(self.config, self.read())
        config = changed.config
        secrets = rooms.link_secrets(config)
        if not secrets:
            raise ConfigError('cluster.secret_file = "": a proxy needs one; allowed: the file of the backends')
        users = PasswdFile(config.auth.passwd_file, config.auth.default_domain)
        uses = [renewal.prepare_protocols(self, config, _nowhere)]
        if self.certificates is not None:
            uses.append(renewal.prepare_certificates(self, config.tls, config.tls))

        def use() -> Reloaded:
            self.config, self.forwarder.secrets, self.users = config, secrets, users
            self.admin.users = users
            self.admin.forget_names()
            self.authenticator.use(users, cache_ttl_s=config.auth.cache_ttl, delays_s=rooms.login_delays(config))
            for one in uses:
                one()
            renewal.use_process(self, changed)
            return Reloaded(changed.applied, changed.waiting)

        return use


def _nowhere(_: object) -> Nowhere:
    return Nowhere()


def unused_sections(config: Config) -> list[str]:
    """Return the sections of a configuration that a proxy does not use."""
    given = {key.partition(".")[0] for key, origin in config.origins.items() if origin != "default"}
    return sorted(section for section in given - USED if not section.startswith("remote"))


def _locked(path: Path) -> IO[str]:
    """Lock the state directory for this process. Raises ConfigError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("w")
    except OSError as error:
        raise ConfigError(f'state_dir = "{path}": {error.strerror}; allowed: a writable directory') from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f'state_dir = "{path}": another process uses it; allowed: a directory for each process'
        ) from error
    return lock
