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
import os
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from fscache import Stats

from . import __version__, parts, rooms
from .config import Config, Listen, by_client, load
from .imap.server import ImapServer
from .lmtp import LmtpServer
from .lmtp.delivery import StoreDeliverer
from .login import starttls
from .net import Certificates, Listeners, TlsError, Via, inherited_sockets
from .objectstore import open_store
from .objectstore.stats import BUCKETS_S
from .server import (
    FileWatch,
    LaterHttp,
    Lifecycle,
    LoopLag,
    MemoryReturn,
    Metrics,
    Notifier,
    Reloaded,
    raise_open_files_limit,
)
from .statelock import ADMIN
from .types import StorageId

if TYPE_CHECKING:
    from .admin import Admin
    from .cluster import Router
    from .membership import Joining
    from .pop3 import Pop3Server
    from .proxy import Forwarder
    from .proxy.socketmap import SocketmapServer
    from .server.http import HttpServer

log = structlog.get_logger()

LEAVE_PART: Final = 3
"""The part of `shutdown_timeout` in which groups are given to other backends."""


class ImapCounters:
    """IMAP's counters as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def session(self, change: int) -> None:
        self._metrics.imap_sessions.inc(change)

    def idle(self, change: int) -> None:
        self._metrics.imap_idling.inc(change)

    def login(self, result: str) -> None:
        self._metrics.logins.labels(result).inc()

    def command(self, name: str, result: str) -> None:
        self._metrics.imap_commands.labels(name, result).inc()


class Pop3Counters:
    """POP3's counters as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def session(self, change: int) -> None:
        self._metrics.pop3_sessions.inc(change)

    def idle(self, change: int) -> None:
        pass

    def login(self, result: str) -> None:
        self._metrics.logins.labels(result).inc()

    def command(self, name: str, result: str) -> None:
        self._metrics.pop3_commands.labels(name, result).inc()


EVACUATIONS_S: Final = 2.0
"""How often a backend looks whether another one is evacuated."""


class LinkCounters:
    """Numbers of forwards and splices as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Alerts see the first event only if a 0 was shown before it.
        for listener in ("imap", "pop3", "lmtp", "admin"):
            for result in ("ok", "unavailable", "referred", "refused", "accepted", "forged"):
                metrics.forwards.labels(listener, result)

    def forward(self, listener: str, result: str) -> None:
        self._metrics.forwards.labels(listener, result).inc()

    def splices(self, change: int) -> None:
        self._metrics.splices.inc(change)

    def spliced(self, from_client: int, to_client: int) -> None:
        self._metrics.spliced_bytes.labels("from_client").inc(from_client)
        self._metrics.spliced_bytes.labels("to_client").inc(to_client)


class Backend:
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
        rooms.refuse_absent(config)
        self._config = config
        self._environ = dict(os.environ if environ is None else environ)
        self.metrics = Metrics(__version__)
        self.notifier = Notifier(self._environ)
        self.lifecycle = Lifecycle(log=log, notifier=self.notifier, drain_timeout_s=config.server.shutdown_timeout)
        self.certificates = Certificates(config.tls.cert, config.tls.key) if config.tls.cert or config.tls.key else None
        self.certificate_watch = FileWatch([*config.tls.cert, *config.tls.key], self._renew_certificates, log=log)
        self.listeners = Listeners(
            log=log,
            tls=self.certificates.context if self.certificates else None,
            unix_mode=config.server.unix_mode,
            proxy_networks=config.server.haproxy_trusted_networks,
            proxy_timeout_s=config.server.haproxy_timeout,
            inherited=inherited_sockets(self._environ),
        )
        self._read = read or self._read_file
        self.router = router
        self._leaves = leaves
        self.forwarder: Forwarder | None = None
        self.imap: ImapServer | None = None
        self.lmtp: LmtpServer | None = None
        self.pop3: Pop3Server | None = None
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

    def _imap(self) -> ImapServer:
        certificates, config = self.certificates, self.parts.config
        imap = ImapServer(
            self.parts.store,
            self.parts.authenticator,
            rooms.imap_settings(config),
            settings_of=by_client(config, rooms.imap_settings),
            upgrade=starttls(lambda: certificates.context) if certificates else None,
            counters=ImapCounters(self.metrics),
        )
        imap.forwards(self.forwarder)
        return imap

    def _pop3(self) -> Pop3Server:
        from .pop3 import Pop3Server  # many backends have no [pop3]

        certificates, config = self.certificates, self.parts.config
        pop3 = Pop3Server(
            self.parts.store,
            self.parts.authenticator,
            rooms.pop3_settings(config),
            settings_of=by_client(config, rooms.pop3_settings),
            upgrade=starttls(lambda: certificates.context) if certificates else None,
            counters=Pop3Counters(self.metrics),
            ids=self.imap.hub.ids if self.imap is not None else None,
        )
        pop3.forwards(self.forwarder)
        return pop3

    def _forwarder(self) -> Forwarder | None:
        if self.router is None:
            return None
        from .proxy import Forwarder  # a backend that serves all users does without

        config, certificates = self.parts.config, self.certificates
        return Forwarder(
            self.router,
            rooms.link_secrets(config),
            self.parts.authenticator,
            member=config.cluster.backend,
            certificate=lambda: certificates.digest if certificates else b"",
            counters=LinkCounters(self.metrics),
        )

    def _lmtp(self) -> LmtpServer:
        certificates, config = self.certificates, self.parts.config
        (config.state_dir / "spool").mkdir(exist_ok=True)
        settings = rooms.lmtp_settings(config, (lambda: certificates.context) if certificates else None)

        deliverer = StoreDeliverer(self.parts.store, self.parts.users, mail_bytes_max=settings.mail_bytes_max)
        lmtp = LmtpServer(deliverer, settings, observe=self.metrics.delivered)
        if self.forwarder is not None:
            from .proxy import LmtpForwarder

            lmtp.forwards(LmtpForwarder(self.forwarder, lambda: self.parts.users))
        return lmtp

    def _sources(self) -> None:
        """Show numbers of the rooms as metrics."""
        opened, metrics = self.parts, self.metrics
        fs_path, meta_path = opened.config.fscache.path, opened.config.metacache.path
        metrics.objectstore(opened.bucket.stats.snapshot, BUCKETS_S)  # type: ignore[arg-type]
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
        if opened.joining is not None:
            metrics.source("cluster", opened.joining.membership.member.figures)

    @cached_property
    def admin(self) -> Admin:
        """Return what verbs use."""
        from . import wiring  # no start needs the verbs

        server = wiring.Running([self.imap, self.pop3], self.listeners, self.lifecycle)
        return wiring.of_parts(self.parts, server)

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

    def _socketmap(self) -> SocketmapServer | None:
        """Return the server that answers Postfix."""
        config = self.parts.config
        if config.socketmap is None:
            return None
        from .proxy.socketmap import Lookups, SocketmapServer

        def delimiters() -> str:
            lmtp = self.parts.config.lmtp
            return lmtp.recipient_delimiter if lmtp is not None else "+"

        router = self.forwarder.router if self.forwarder is not None else None
        lookups = Lookups(lambda: self.parts.users, router, self._here, delimiters=delimiters)
        made = SocketmapServer(lookups, self.lmtp.trusts) if self.lmtp is not None else SocketmapServer(lookups)
        self.listeners.bind("socketmap", config.socketmap.listen, lambda entry, via: made.protocol(client(via)))
        return made

    def _here(self) -> tuple[str, dict[str, int]]:
        """Return where front ends reach this backend."""
        return self.parts.config.cluster.address or "127.0.0.1", self._ports()

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
        config = self.parts.config
        self._sources()
        if self.parts.joining is not None:
            self.parts.joining.membership.kick = self._kick
            self.router = self.parts.joining.membership.member
        self.forwarder = self._forwarder()
        if self.parts.joining is not None and self.forwarder is not None:
            self.parts.joining.membership.member.view.listen(self.forwarder.changed)
        if config.imap is not None:
            self.imap = self._imap()
            self.listeners.bind("imap", config.imap.listen, imap_factory(self.imap))
        if config.lmtp is not None:
            self.lmtp = self._lmtp()
            self.listeners.bind("lmtp", config.lmtp.listen, lmtp_factory(self.lmtp))
        if config.pop3 is not None:
            self.pop3 = self._pop3()
            self.listeners.bind("pop3", config.pop3.listen, pop3_factory(self.pop3))
        self.socketmap = self._socketmap()
        self.http = self._bind_http()
        if not any((config.imap, config.lmtp, config.pop3)):
            log.warning("no mail is served, [imap], [lmtp] and [pop3] are not configured", next_step="add one of them")
        self._on_stop()
        self.lifecycle.on_reload("configuration", self._prepare_reload)

    def _prepare_reload(self) -> Callable[[], Reloaded]:
        """See `Reload.prepare`."""
        from .reload import Reload  # most backends never reload

        reload = Reload(
            parts=self.parts,
            read=self._read,
            admin=self.admin,
            imap=self.imap,
            pop3=self.pop3,
            forwarder=self.forwarder,
            lmtp=self.lmtp,
            certificates=self.certificates,
            certificate_watch=self.certificate_watch,
            lifecycle=self.lifecycle,
            listeners=self.listeners,
        )
        return reload.prepare()

    def _read_file(self) -> Config:
        """Raises ConfigError."""
        return load(str(self._config.file) if self._config.file else None, self._environ)

    async def _join(self, joining: Joining) -> None:
        """Be a member of the cluster. Raises ConfigError, which ends the process."""
        await joining.run(self._ports())

    async def _arrivals(self, joining: Joining) -> None:
        """Fetch local copies from members that are evacuated."""
        admin, view, me = self.admin, joining.membership.member.view, self.parts.config.cluster.backend
        if admin is None or admin.sources is None:
            return
        await joining.membership.ready()
        while not any(orders.evacuate for orders in view.orders.values()):  # noqa: ASYNC110 - a view has no event
            await asyncio.sleep(EVACUATIONS_S)
        from .admin.arrivals import Arrivals  # most backends never see an evacuation

        await Arrivals(admin, admin.sources, view, me).run()

    def _ports(self) -> dict[str, int]:
        """Return the ports that members and front ends connect to."""
        from .membership import ports_of

        return ports_of(("imap", "pop3", "lmtp", "http"), self.listeners.addresses)

    async def _kick(self, users: Collection[StorageId]) -> None:
        """End the sessions of users who move to another backend."""
        for server in (self.imap, self.pop3):
            if server is not None:
                server.kick_mail(users, "Your mail moves to another server, please log in again")

    async def _start(self) -> None:
        await self.parts.start()
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
            grace_s = self.parts.config.server.shutdown_timeout / 2
            async with asyncio.TaskGroup() as tasks:
                if self.imap is not None:
                    tasks.create_task(self.imap.stop(grace_s=grace_s))
                if self.pop3 is not None:
                    tasks.create_task(self.pop3.stop(grace_s=grace_s))
                if self.lmtp is not None:
                    tasks.create_task(self.lmtp.close(grace_s))
                if self.socketmap is not None:
                    tasks.create_task(self.socketmap.close(grace_s))

        async def flush() -> None:
            upload = not self.lifecycle.returning
            await store.close(upload=upload)
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

    async def _renew_certificates(self) -> None:
        """Use the certificates on disk. If they cannot be used, the old certificates
        stay in use."""
        assert self.certificates is not None
        tls = self.parts.config.tls
        try:
            loaded = await asyncio.to_thread(Certificates.prepare, tls.cert, tls.key)
        except TlsError as error:
            log.error("new certificates cannot be used, the old certificates stay", error=str(error))
        else:
            # Otherwise a reload has read newer certificates meanwhile.
            if tls is self.parts.config.tls:
                self.certificates.use(loaded)
                log.info("certificates renewed")


def client(via: Via | None) -> str | None:
    """Return the client's address from a PROXY header."""
    return via.client[0] if via is not None and via.client is not None else None


def over_tls(via: Via | None) -> bool:
    """Return whether a PROXY header says that the client uses TLS."""
    return via is not None and via.tls


def imap_factory(imap: ImapServer) -> Callable[[Any, Via | None], asyncio.Protocol]:
    return lambda entry, via: imap.connection_factory(tls=entry.tls or over_tls(via), remote=client(via))


def pop3_factory(pop3: Pop3Server) -> Callable[[Any, Via | None], asyncio.Protocol]:
    return lambda entry, via: pop3.connection_factory(tls=entry.tls or over_tls(via), remote=client(via))


def lmtp_factory(lmtp: LmtpServer) -> Callable[[Any, Via | None], asyncio.Protocol]:
    return lambda entry, via: lmtp.protocol(client(via), tls=over_tls(via))


_COUNTERS: Final = frozenset({"hits", "misses", "evictions", "errors", "skipped"})


def _of_fscache(stats: Stats) -> dict[str, float]:
    """Return the figures of the fscache under the names of metrics."""
    return {f"{name}_total" if name in _COUNTERS else name: value for name, value in stats._asdict().items()}
