"""One backend: every room wired to the others, started and stopped in order.

Order of the start: local state is locked and opened, addresses are bound (nothing is accepted), the loop accepts, and
only then is the bucket asked, so that an unreachable one stops nothing: logins and deliveries wait for the store, and
hear `[UNAVAILABLE]` or `451` when it has not come within 10 s.
Order of the stop: accept no more, finish IMAP commands and LMTP transactions, flush, write the journal's end.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, Protocol

import psutil
import structlog

from fscache import Fscache, Stats
from metacache import Cleaner, Metacache

from . import __version__, rooms, wiring
from .admin import Admin
from .admin.http import routes
from .auth import Authenticator, PasswdFile, Penalties
from .config import Config, Listen, by_client
from .errors import ConfigError, Unavailable
from .imap.server import ImapServer, starttls
from .lmtp import LmtpServer
from .lmtp.delivery import StoreDeliverer
from .lmtp.settings import Settings as LmtpSettings
from .net import Certificates, Listeners, TlsError, Via, inherited_sockets
from .objectstore import StoreError, needs_race, open_store, probe, require_one_winner
from .objectstore.keys import escape
from .objectstore.stats import BUCKETS_S
from .reload import Reload
from .server import (
    FileWatch,
    HttpServer,
    Lifecycle,
    LoopLag,
    Metrics,
    Notifier,
    application,
    raise_open_files_limit,
)
from .store import Env, MailStore
from .store.copies import Copies
from .types import StorageId

log = structlog.get_logger()

RETRY_S: Final = 1.0
"""Between attempts to reach the bucket at start."""

TELL_S: Final = 1.0
"""After which a start that waits for the bucket says why, for the first time."""

TOLD_EVERY_S: Final = 60.0
"""And then as often."""

RACE_RETRY_S: Final = 60.0
"""Between attempts to race for keys, while the bucket does not answer."""

RACED: Final = "raced"
"""In the local state: the bucket that has passed the race."""


def boottime() -> float:
    """Seconds that count while the machine sleeps: what the journal's lease is measured with."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Chance:
    """The system's randomness, fetched in larger pieces: each system call lets other threads in, twice a mail."""

    PIECE_BYTES: Final = 4096

    def __init__(self) -> None:
        self._piece = b""
        self._at = 0

    def __call__(self, count: int) -> bytes:
        if self._at + count > len(self._piece):
            self._piece, self._at = os.urandom(max(self.PIECE_BYTES, count)), 0
        self._at += count
        return self._piece[self._at - count : self._at]


class Named(Protocol):
    """A user as any of the rooms knows it."""

    @property
    def user(self) -> str: ...
    @property
    def storage_id(self) -> str | None: ...


def storage_id(entry: Named) -> StorageId:
    """A user's element in the bucket's keys: the one place where it is made."""
    return StorageId(escape(entry.storage_id or entry.user))


class _Counters:
    """IMAP's counters as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def session(self, change: int) -> None:
        self._metrics.imap_sessions.inc(change)

    def idle(self, change: int) -> None:
        self._metrics.imap_idling.inc(change)

    def login(self, result: str) -> None:
        self._metrics.logins.labels(result).inc()

    def command(self, name: str, condition: str) -> None:
        self._metrics.imap_commands.labels(name, condition).inc()


class Backend:
    """See the module's text. `run` is the process."""

    def __init__(self, config: Config, *, environ: Mapping[str, str] | None = None) -> None:
        """Raises ConfigError: bad keys, certificates or paths. Binds nothing yet."""
        rooms.refuse_absent(config)
        self.config = config
        self.environ = dict(os.environ if environ is None else environ)
        self.metrics = Metrics(__version__)
        self.notifier = Notifier(self.environ)
        self.lifecycle = Lifecycle(log=log, notifier=self.notifier, drain_timeout_s=config.server.shutdown_timeout)
        self.certificates = Certificates(config.tls.cert, config.tls.key) if config.tls.cert or config.tls.key else None
        self.certificate_watch = FileWatch([*config.tls.cert, *config.tls.key], self._renew_certificates, log=log)
        self.listeners = Listeners(
            log=log,
            tls=self.certificates.context if self.certificates else None,
            unix_mode=config.server.unix_mode,
            proxy_networks=config.server.haproxy_trusted_networks,
            proxy_timeout_s=config.server.haproxy_timeout,
            inherited=inherited_sockets(self.environ),
        )
        self._lock: IO[str] | None = None
        self.imap: ImapServer | None = None
        self.lmtp: LmtpServer | None = None
        self._starting: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        """The bucket has answered and the store has started."""

    # -- parts -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Open the files that the configuration names, beyond the certificates: `obox config`. Raises ConfigError."""
        rooms.codec(self.config)

    def _lock_state(self) -> None:
        """One process per state directory."""
        path = self.config.state_dir
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f'state_dir = "{path}": another backend uses it; allowed: one process each') from None
        except OSError as exc:
            raise ConfigError(f'state_dir = "{path}": {exc.strerror}; allowed: a directory we can write') from exc

    def _store(self) -> MailStore:
        config = self.config
        self.bucket = open_store(rooms.bucket_settings(config), log=log)
        self.metacache = Metacache(
            config.metacache.path,
            max_space=config.metacache.max_space,
            max_grace=config.metacache.max_grace.of(config.metacache.max_space),
            clock=time.time,
            sync=config.metacache.sync,
        )
        self.fscache = Fscache(config.fscache.path, max_size=config.fscache.max_size, clock=time.time)
        return MailStore(
            Env(
                bucket=self.bucket,
                codec=rooms.codec(config),
                metacache=self.metacache,
                fscache=self.fscache,
                settings=rooms.store_settings(config),
                now=time.time,
                clock=boottime,
                sleep=asyncio.sleep,
                random_bytes=Chance(),
            )
        )

    def _imap(self) -> ImapServer:
        certificates = self.certificates
        return ImapServer(
            self.store,
            self.authenticator,
            rooms.imap_settings(self.config),
            settings_of=by_client(self.config, rooms.imap_settings),
            storage_id=storage_id,
            upgrade=starttls(lambda: certificates.context) if certificates else None,
            counters=_Counters(self.metrics),
        )

    def _lmtp(self) -> LmtpServer:
        (self.config.state_dir / "spool").mkdir(exist_ok=True)

        def observe(result: str, seconds: float) -> None:
            kind = {"2": "ok", "4": "temporary"}.get(result[:1], "permanent")
            self.metrics.lmtp_deliveries.labels(kind).inc()

        return LmtpServer(*self.lmtp_parts(self.config, self.users), observe=observe)

    def lmtp_parts(self, config: Config, users: PasswdFile) -> tuple[StoreDeliverer, LmtpSettings]:
        """What the LMTP server is made of, at the start and at a reload."""
        certificates = self.certificates
        settings = rooms.lmtp_settings(config, (lambda: certificates.context) if certificates else None)
        size = settings.mail_bytes_max
        return StoreDeliverer(self.store, users, storage_id=storage_id, mail_bytes_max=size), settings

    def _sources(self, store: MailStore) -> None:
        """Numbers of the rooms as metrics."""
        self.metrics.objectstore(self.bucket.stats.snapshot, BUCKETS_S)  # type: ignore[arg-type]
        paths = self.config.fscache.path, self.config.metacache.path
        self.metrics.source("fscache", lambda: {**_of_fscache(self.fscache.stats()), **_disk(paths[0])})
        self.metrics.source(
            "metacache",
            lambda: {"space_bytes": self.metacache.space(), "max_space_bytes": self._max_space(), **_disk(paths[1])},
        )
        self.metrics.source("store", lambda: {k: v for k, v in store.metadata().items() if isinstance(v, int | float)})

    def _max_space(self) -> int:
        return self.config.metacache.max_space

    def _http(self, admin: Admin) -> dict[str, HttpServer]:
        """The servers of [http], [metrics] and the admin socket: with [metrics] there, it alone has /metrics and the
        probes. The admin API is on the socket and, with a key or a unix socket there, in [http]."""
        config = self.config
        key = config.http.api_key.reveal() if config.http is not None else ""
        api = routes(admin, key=key, version=__version__)
        draining = lambda: self.lifecycle.draining  # noqa: E731
        out = {"admin": HttpServer(application(routes=api))}
        if config.http is not None and config.metrics is not None:
            out["http"] = HttpServer(application(routes=api))
        elif config.http is not None:
            out["http"] = HttpServer(application(metrics=self.metrics.exposition, draining=draining, routes=api))
        if config.metrics is not None:
            out["metrics"] = HttpServer(application(metrics=self.metrics.exposition, draining=draining))
        return out

    def _bind_http(self, servers: dict[str, HttpServer]) -> None:
        config = self.config
        listens = {"http": config.http, "metrics": config.metrics}
        for name, server in servers.items():
            section = listens.get(name)
            if section is not None:
                self.listeners.bind(name, section.listen, server.factory)
        socket_path = wiring.socket_path(config.state_dir)
        self.listeners.bind("admin", [Listen(path=socket_path)], servers["admin"].factory, unix_mode=0o600)

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self, *, signals: bool = True, started: Callable[[Backend], None] | None = None) -> int:
        """Serve until told to stop; returns the exit code. started: called when addresses are bound.

        Raises ConfigError, ListenError.
        """
        config = self.config
        raise_open_files_limit()
        store = self.open_parts()
        self.users = PasswdFile(config.auth.passwd_file, config.auth.default_domain)
        self.authenticator = Authenticator(
            self.users, cache_ttl_s=config.auth.cache_ttl, penalties=Penalties(rooms.login_delays(config))
        )
        self._sources(store)
        if config.imap is not None:
            self.imap = self._imap()
            self.listeners.bind("imap", config.imap.listen, _imap_factory(self.imap))
        if config.lmtp is not None:
            self.lmtp = self._lmtp()
            self.listeners.bind("lmtp", config.lmtp.listen, _lmtp_factory(self.lmtp))
        self.admin = wiring.of_backend(self, self.users, lambda: self.authenticator, running=True)
        https = self._http(self.admin)
        self._bind_http(https)
        if config.imap is None and config.lmtp is None:
            log.warning("neither [imap] nor [lmtp] is there: nothing serves mail", next_step="give one a `listen`")
        self._register(store, https)
        async with asyncio.TaskGroup() as tasks:
            await self.listeners.start(tasks)
            if started is not None:
                started(self)
            lag = tasks.create_task(LoopLag(observe=self.metrics.loop_lag.observe, log=log).run())
            self._starting = starting = tasks.create_task(self.start_store(store))
            racing = tasks.create_task(self.race_bucket(store))
            tasks.create_task(self.users.refresh())  # a file that is not there is told now, not at the first login
            cleaning = tasks.create_task(self.cleaner.run())
            watching = tasks.create_task(self.certificate_watch.run())
            try:
                code = await self.lifecycle.run(signals=signals)
            finally:
                watching.cancel()
                starting.cancel()
                racing.cancel()
                cleaning.cancel()
                lag.cancel()
        return code

    def open_parts(self) -> MailStore:
        """Lock the state directory and open what lies in it; asks the bucket nothing. Raises ConfigError."""
        self._lock_state()
        self.store = self._store()
        self.warn_of_small_disks(self.config)
        if self.config.storage.url == "memory://":
            self.store.begin_anew()
        self.copies = Copies(self.store, close_delay_s=self.config.metacache.close_delay)
        self.cleaner = Cleaner(self.metacache, self.copies, weights=rooms.weights(self.config), clock=time.time)
        return self.store

    def warn_of_small_disks(self, config: Config) -> None:
        """A cache that may grow larger than its disk works, but not as long as its limit promises."""
        for key, path, most in (
            ("fscache.max_size", config.fscache.path, config.fscache.max_size),
            ("metacache.max_space", config.metacache.path, config.metacache.max_space),
        ):
            total = _disk(path).get("disk_total_bytes", most)
            if most > total:
                log.warning("the disk is smaller than the cache may grow", setting=key, limit=most, disk=int(total))

    async def close_parts(self) -> None:
        """Close the caches and the bucket, unlock the state directory."""
        await self.fscache.close()
        await self.metacache.close()
        await self.bucket.close()
        if self._lock is not None:
            self._lock.close()

    async def start_store(self, store: MailStore, *, patient: bool = True) -> None:
        """Ask the bucket until it answers. A bucket that cannot do what we need ends the process (ConfigError).

        patient: False raises Unavailable, with the store's words, when it answers that it refuses.
        """
        told: float | None = None

        def tell(error: str) -> None:
            nonlocal told
            if told is None or boottime() - told >= TOLD_EVERY_S:
                told = boottime()
                log.warning("the bucket does not serve us; serving [UNAVAILABLE] until it does", error=error)

        while True:
            probing = asyncio.ensure_future(probe(self.bucket))
            try:
                while not (await asyncio.wait([probing], timeout=TELL_S))[0]:
                    if self.bucket.last_failure:
                        tell(self.bucket.last_failure)
                await probing
                break
            except StoreError as exc:
                if exc.permanent and not patient:
                    raise Unavailable(f"the storage refuses: {exc}") from exc
                tell(str(exc))
                await asyncio.sleep(RETRY_S)
            finally:
                probing.cancel()
        await store.start()
        self.ready.set()
        if unused_s := self.config.metacache.drop_at_start_older_than:
            await self.cleaner.clean(unused_s=unused_s)

    async def race_bucket(self, store: MailStore) -> None:
        """Once for each bucket, beside serving: see that of several PUTs of one key one succeeds.

        Raises ConfigError, which ends the process, for a store that lets several succeed.
        """
        await self.ready.wait()
        settings, metacache = self.bucket.settings, store.env.metacache
        mark = f"{settings.url} {settings.endpoint_url}".encode()
        if not needs_race(self.bucket) or metacache.get_state(RACED) == mark:
            return
        while True:
            try:
                await require_one_winner(self.bucket, now=time.time())
                break
            except StoreError as exc:
                log.warning("whether the bucket lets one of several PUTs succeed is not known yet", error=str(exc))
                await asyncio.sleep(RACE_RETRY_S)
        metacache.put_state(RACED, mark)
        await store.env.settle()

    def _register(self, store: MailStore, https: dict[str, HttpServer]) -> None:
        """What happens at SIGTERM, in order, and at SIGHUP."""

        async def stop_accepting() -> None:
            """The probes go on: they say that we drain."""
            self.listeners.stop(keep=https)
            if self._starting is not None:  # a start must not go on over caches that are closed below
                self._starting.cancel()
                await asyncio.wait([self._starting])
            store.beginning.decide()  # who waits for the start is refused now, not when the stop has waited for it

        async def end_sessions() -> None:
            """Finish what clients have begun; one that stalls must leave the flush its half of the time."""
            grace_s = self.config.server.shutdown_timeout / 2
            async with asyncio.TaskGroup() as tasks:
                if self.imap is not None:
                    tasks.create_task(self.imap.stop(grace_s=grace_s))
                if self.lmtp is not None:
                    tasks.create_task(self.lmtp.close(grace_s))

        async def flush() -> None:
            await store.close(upload=not self.lifecycle.returning)

        async def close() -> None:
            await self.close_parts()
            self.authenticator.close()

        self.lifecycle.on_stop("listeners", stop_accepting)
        self.lifecycle.on_stop("sessions", end_sessions)
        self.lifecycle.on_stop("flush", flush)

        async def stop_probes() -> None:
            self.listeners.stop()

        self.lifecycle.on_stop("probes", stop_probes)
        for name, server in https.items():
            self.lifecycle.on_stop(name, server.close)
        self.lifecycle.on_stop("caches", close)
        self.lifecycle.on_reload("configuration", Reload(self).prepare)

    async def _renew_certificates(self) -> None:
        """Use what is on disk now; what cannot be used leaves the old ones in use."""
        assert self.certificates is not None
        tls = self.config.tls
        try:
            loaded = await asyncio.to_thread(Certificates.prepare, tls.cert, tls.key)
        except TlsError as error:
            log.error("the certificates on disk cannot be used, the old ones stay", error=str(error))
        else:
            if tls is self.config.tls:  # else a reload has read newer ones meanwhile
                self.certificates.use(loaded)
                log.info("certificates renewed")


def _disk(path: Path) -> dict[str, float]:
    """Room on the file system that holds a directory, made or not, in bytes; nothing while it cannot be told."""
    try:
        usage = psutil.disk_usage(str(next(place for place in (path, *path.parents) if place.exists())))
    except OSError:
        return {}
    return {"disk_free_bytes": usage.free, "disk_total_bytes": usage.total}


def _client(via: Via | None) -> str | None:
    """The client's address out of a PROXY header."""
    return via.client[0] if via is not None and via.client is not None else None


def _imap_factory(imap: ImapServer) -> Callable[[Any, Via | None], asyncio.Protocol]:
    return lambda entry, via: imap.connection_factory(tls=entry.tls, remote=_client(via))


def _lmtp_factory(lmtp: LmtpServer) -> Callable[[Any, Via | None], asyncio.Protocol]:
    return lambda entry, via: lmtp.protocol(_client(via))


_COUNTERS: Final = frozenset({"hits", "misses", "evictions", "errors", "skipped"})


def _of_fscache(stats: Stats) -> dict[str, float]:
    """Its figures under the names of metrics."""
    return {f"{name}_total" if name in _COUNTERS else name: value for name, value in stats._asdict().items()}
