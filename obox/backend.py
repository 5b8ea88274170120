"""A backend as a process: protocols and HTTP around the rooms that `obox.parts` opens.

A start first locks and opens the local state. Then it binds the addresses, without
accepting. Then it accepts connections, and only then it sends a request to the bucket.
So an unreachable bucket does not prevent a start. Logins and deliveries wait for the
store for 10 s, and then get `[UNAVAILABLE]` or `451`. A stop has an order too: give the
groups to other backends of the cluster, accept no more, finish IMAP commands and LMTP
transactions, flush, write the journal's end, and close the rooms.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from fscache import Stats

from . import parts, rooms
from .config import Config, Listen, load
from .lmtp.delivery import StoreDeliverer
from .objectstore import open_store
from .objectstore.stats import BUCKETS_S
from .server import (
    LaterHttp,
    LoopLag,
    MemoryReturn,
    Reloaded,
    raise_open_files_limit,
)
from .serving import Serving
from .statelock import ADMIN
from .types import StorageId

if TYPE_CHECKING:
    from .admin import Admin
    from .cluster import Router
    from .lmtp import Settings
    from .membership import Joining
    from .proxy import Forwarder
    from .server.http import HttpServer

log = structlog.get_logger()

LEAVE_PART: Final = 3
"""The part of `shutdown_timeout` in which groups are given to other backends."""
EVACUATIONS_S: Final = 2.0
"""How often a backend looks whether another one is evacuated."""


class Backend(Serving):
    """See the module's text. `run` is the process."""

    def __init__(
        self,
        config: Config,
        *,
        environ: Mapping[str, str] | None = None,
        router: Router | None = None,
        read: Callable[[], Config] | None = None,
        leaves: bool = True,
    ) -> None:
        """Raises ConfigError for bad keys, certificates or paths. It binds nothing yet.

        leaves: whether a stop gives the groups to other backends of the cluster.
        read: reads the configuration again; None: reads the file of `config`.
        router: says who serves whom; None: this backend serves all users.
        """
        super().__init__(config, environ)
        self._config = config
        self._read = read or self._read_file
        self.router = router
        self._leaves = leaves
        self.forwarder: Forwarder | None = None
        self._admin: Admin | None = None
        self._making = threading.Lock()
        self._starting: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        """Whether the bucket has answered and the store has started."""

    # -- parts -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Open the files that the configuration names, beyond the certificates, and the
        bucket, without a request: `obox config`. Raises ConfigError.
        """
        open_store(rooms.bucket_settings(self._config))
        rooms.codec(self._config)
        rooms.link_secrets(self._config)

    @property
    def used(self) -> Config:
        return self.parts.config

    def _deliverer(self, settings: Settings) -> StoreDeliverer:
        return StoreDeliverer(self.parts.store, self.parts.users, mail_bytes_max=settings.mail_bytes_max)

    def _sources(self) -> None:
        """Show numbers of the rooms as metrics."""
        opened, metrics = self.parts, self.metrics
        fs_path, meta_path = opened.config.fscache.path, opened.config.metacache.path
        metrics.objectstore(opened.bucket.stats.snapshot, BUCKETS_S)  # type: ignore[arg-type]  # its values are more exact than the declared type
        metrics.source("fscache", lambda: {**_of_fscache(opened.fscache.stats()), **parts.disk_room(fs_path)})

        def of_metacache() -> dict[str, float]:
            space, most = opened.metacache.space(), opened.config.metacache.max_space
            return {"space_bytes": space, "max_space_bytes": most, **parts.disk_room(meta_path)}

        def of_store() -> dict[str, float]:
            return {k: v for k, v in opened.store.metadata().items() if isinstance(v, int | float)}

        metrics.source("metacache", of_metacache)
        metrics.source("store", of_store)
        if self.certificates is not None:
            metrics.source("tls", self.certificates.figures)
        if opened.events is not None:
            metrics.source("events", opened.events.figures)
        if opened.news is not None:
            metrics.source("news", opened.news.figures)
        if opened.joining is not None:
            metrics.source("cluster", opened.joining.membership.member.figures)

    @property
    def admin(self) -> Admin:
        """Return what verbs use. A reload asks for it in a thread."""
        with self._making:
            if self._admin is None:
                from . import wiring  # no start needs the verbs

                server = wiring.Running(self.logins.values(), self.listeners, self.lifecycle)
                self._admin = wiring.of_parts(self.parts, server)
            return self._admin

    def _http(self) -> dict[str, HttpServer]:
        from .web import Web  # `LaterHttp` says why

        web = Web(
            parts=self.parts,
            admin=self.admin,
            metrics=self.metrics,
            lifecycle=self.lifecycle,
            forwarder=self.forwarder,
            here=self._here,
        )
        return web.servers()

    def _bind_http(self) -> LaterHttp:
        """Bind the addresses of [http], [metrics] and the admin socket."""
        config, later = self.parts.config, LaterHttp(("obox.web",), self._http)
        if config.http is not None:
            later.bind(self.listeners, "http", config.http.listen)
        if config.metrics is not None:
            later.bind(self.listeners, "metrics", config.metrics.listen)
        later.bind(self.listeners, "admin", (Listen(path=config.state_dir / ADMIN),), unix_mode=0o600)
        return later

    def _here(self) -> tuple[str, dict[str, int]]:
        """Return where front ends reach this backend."""
        return self.parts.config.cluster.address or "127.0.0.1", self.ports("http")

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self, *, signals: bool = True, started: Callable[[Backend], None] | None = None) -> int:
        """Serve until the process is stopped, and return the exit code. started: called
        when the addresses are bound.

        Raises ConfigError, ListenError.
        """
        raise_open_files_limit()
        self.parts = await parts.open(self._config)
        try:
            self._assemble()
        except BaseException:
            await self.parts.close()
            raise
        async with asyncio.TaskGroup() as tasks:
            await self.listeners.start(tasks)
            if started is not None:
                started(self)
            members = [] if self.parts.joining is None else [tasks.create_task(self._join(self.parts.joining))]
            if self.parts.joining is not None:
                members.append(tasks.create_task(self._arrivals(self.parts.joining)))
            self._starting = tasks.create_task(self._start())
            beside = [
                self._starting,
                *members,
                tasks.create_task(LoopLag(observe=self.metrics.loop_lag.observe, log=log).run()),
                tasks.create_task(MemoryReturn().run()),
                tasks.create_task(self._race()),
                tasks.create_task(self.parts.cleaner.run()),
                tasks.create_task(self.certificate_watch.run()),
            ]
            # A missing file is reported now, not at the first login.
            tasks.create_task(self.parts.users.refresh())
            try:
                code = await self.lifecycle.run(signals=signals)
            finally:
                for task in beside:
                    task.cancel()
        return code

    def _assemble(self) -> None:
        """Make the servers, bind their addresses, and register what a stop and a reload
        do.

        Raises ListenError.
        """
        self._sources()
        if self.parts.joining is not None:
            self.parts.joining.membership.kick = self._kick
            self.router = self.parts.joining.membership.member
        if self.router is not None:
            from .linking import forwarder_of  # a backend alone does without

            self.forwarder = forwarder_of(self, self.router, self.parts.authenticator)
        if self.parts.joining is not None and self.forwarder is not None:
            self.parts.joining.membership.member.view.listen(self.forwarder.changed)
        self.serve_logins(self.parts.store, self.parts.authenticator, self.forwarder)
        self.serve_lmtp(self._deliverer, self.forwarder, lambda: self.parts.users)
        if self.parts.config.socketmap is not None:
            from .linking import serve_socketmap

            serve_socketmap(self, lambda: self.parts.users, self.router, self._here)
        self.http = self._bind_http()
        self.warn_without_mail()
        self._on_stop()
        self.lifecycle.on_reload("configuration", self._prepare_reload)

    def _prepare_reload(self) -> Callable[[], Reloaded]:
        """See `Reload.prepare`."""
        from .reload import Reload  # most backends never reload

        reload = Reload(
            parts=self.parts,
            read=self._read,
            admin=self.admin,
            serving=self,
            forwarder=self.forwarder,
        )
        return reload.prepare()

    def _read_file(self) -> Config:
        """Raises ConfigError."""
        return load(str(self._config.file) if self._config.file else None, self._environ)

    async def _join(self, joining: Joining) -> None:
        """Be a member of the cluster. Raises ConfigError, which ends the process."""
        await joining.run(self.ports("http"))

    async def _arrivals(self, joining: Joining) -> None:
        """Fetch local copies from members that are evacuated."""
        view, me = joining.membership.member.view, self.parts.config.cluster.backend
        await joining.membership.ready()
        while not any(orders.evacuate for orders in view.orders.values()):  # noqa: ASYNC110 - a view has no event
            await asyncio.sleep(EVACUATIONS_S)
        if self.forwarder is None:
            return
        from .admin.arrivals import Arrivals  # most backends never see an evacuation
        from .proxy.pulls import Sources

        await Arrivals(self.admin, Sources(self.forwarder, view), view, me).run()

    async def _kick(self, users: Collection[StorageId]) -> None:
        """End the sessions of users who move to another backend."""
        for server in self.logins.values():
            server.kick_mail(users, "Your mail moves to another server, please log in again")

    async def _start(self) -> None:
        await self.parts.start()
        if self.parts.events is not None:
            self.parts.events.begin()
        if self.parts.news is not None:
            self.parts.news.begin()
        self.ready.set()
        await self.parts.drop_unused()

    async def _race(self) -> None:
        """Run the race while the backend serves. Raises ConfigError, which ends the
        process."""
        await self.ready.wait()
        await self.parts.race()

    def _on_stop(self) -> None:
        """Register what SIGTERM does, in order."""
        store = self.parts.store

        async def stop_accepting() -> None:
            """Stop accepting. The probes continue, and report that we drain."""
            self.listeners.stop(keep=self.http.names)
            # The start must end before the caches are closed below.
            if self._starting is not None:
                self._starting.cancel()
                await asyncio.wait([self._starting])
            # Clients that wait for the start are refused now, so that the stop need not
            # wait.
            store.beginning.decide()

        async def end_sessions() -> None:
            """Finish what clients have begun. They get half of the time, so that a slow
            client leaves the other half to the flush.
            """
            await self.end_sessions(self.parts.config.server.shutdown_timeout / 2)

        async def flush() -> None:
            upload = not self.lifecycle.returning
            await store.close(upload=upload)
            if self.parts.events is not None:
                await self.parts.events.close()
            if self.parts.joining is not None:
                await self.parts.joining.end(uploaded=upload)

        async def stop_probes() -> None:
            self.listeners.stop()

        async def close() -> None:
            await self.parts.close()

        self.lifecycle.on_stop("groups", self._leave)
        self.lifecycle.on_stop("listeners", stop_accepting)
        self.lifecycle.on_stop("sessions", end_sessions)
        self.lifecycle.on_stop("flush", flush)
        self.lifecycle.on_stop("probes", stop_probes)
        for name in self.http.names:
            self.lifecycle.on_stop(name, partial(self.http.close, name))
        self.lifecycle.on_stop("caches", close)

    async def _leave(self) -> None:
        """Serve until other backends have the groups. A stop for a restart keeps them,
        for the next start."""
        joining = self.parts.joining
        if joining is None or not self._leaves or self.lifecycle.returning or not self.parts.store.started:
            return
        try:
            async with asyncio.timeout(self.parts.config.server.shutdown_timeout / LEAVE_PART):
                await joining.membership.member.leave()
        except TimeoutError:
            left = len(joining.membership.held())
            log.warning("groups could not be given to other backends before the stop", groups=left)


_COUNTERS: Final = frozenset({"hits", "misses", "evictions", "errors", "skipped"})


def _of_fscache(stats: Stats) -> dict[str, float]:
    """Return the figures of the fscache under the names of metrics."""
    return {f"{name}_total" if name in _COUNTERS else name: value for name, value in stats._asdict().items()}
