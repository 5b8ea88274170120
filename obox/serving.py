"""What a backend and a proxy have in common: the servers of the protocols, their
addresses and certificates, and what a stop and a reload do with them.

`LOGINS` lists the protocols in which clients log in. A protocol that is added there is
served, forwarded, stopped and reloaded by both.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from . import __version__, net, rooms
from .config import Config, Listen, by_client
from .lmtp import LmtpServer
from .login import starttls
from .net import Certificates, Listeners, TlsError, Via, inherited_sockets
from .server import FileWatch, Lifecycle, Metrics, Notifier

if TYPE_CHECKING:
    from . import login
    from .auth import Authenticator
    from .lmtp import Deliverer, Settings
    from .proxy import Forwarder
    from .proxy.lmtp import Users
    from .proxy.socketmap import SocketmapServer
    from .store.api import Store

log = structlog.get_logger()

Use = Callable[[], None]
"""Puts something that was prepared into use. It raises nothing."""


class LoginProtocol(NamedTuple):
    """server: imports the class of the server. settings: translates a configuration."""

    server: Callable[[], type[login.Server[Any]]]
    settings: Callable[[Config], Any]


def _imap() -> type[login.Server[Any]]:
    from .imap.server import ImapServer

    return ImapServer


def _pop3() -> type[login.Server[Any]]:
    from .pop3 import Pop3Server

    return Pop3Server


LOGINS: Final[Mapping[str, LoginProtocol]] = {
    "imap": LoginProtocol(_imap, rooms.imap_settings),
    "pop3": LoginProtocol(_pop3, rooms.pop3_settings),
}
"""The key is the name of the section in the configuration, which is also the name of
the listener and of the metrics. A server is imported if the configuration has its
section."""


class LoginCounters:
    """The counters of a protocol with a login as metrics."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._sessions, self._commands = metrics.sessions[name], metrics.commands[name]

    def session(self, change: int) -> None:
        self._sessions.inc(change)

    def idle(self, change: int) -> None:
        self._metrics.imap_idling.inc(change)

    def login(self, result: str) -> None:
        self._metrics.logins.labels(result).inc()

    def command(self, name: str, result: str) -> None:
        self._commands.labels(name, result).inc()


class Serving(ABC):
    """See the module's text. It binds nothing before `serve_logins` and the like."""

    def __init__(self, config: Config, environ: Mapping[str, str] | None) -> None:
        """Raises ConfigError for bad keys, certificates or paths."""
        rooms.refuse_absent(config)
        tls, server = config.tls, config.server
        self._environ = dict(os.environ if environ is None else environ)
        self.metrics = Metrics(__version__, LOGINS)
        self.notifier = Notifier(self._environ)
        self.lifecycle = Lifecycle(log=log, notifier=self.notifier, drain_timeout_s=server.shutdown_timeout)
        self.certificates = Certificates(tls.cert, tls.key) if tls.cert or tls.key else None
        self.certificate_watch = FileWatch([*tls.cert, *tls.key], self._renew_certificates, log=log)
        self.listeners = Listeners(
            log=log,
            tls=self.certificates.context if self.certificates else None,
            unix_mode=server.unix_mode,
            proxy_networks=server.haproxy_trusted_networks,
            proxy_timeout_s=server.haproxy_timeout,
            inherited=inherited_sockets(self._environ),
        )
        self.logins: dict[str, login.Server[Any]] = {}
        self.lmtp: LmtpServer | None = None
        self.socketmap: SocketmapServer | None = None

    @property
    @abstractmethod
    def used(self) -> Config:
        """Return the configuration in use."""

    # -- the servers -----------------------------------------------------------------------------------------------

    def serve_logins(self, store: Store | None, authenticator: Authenticator, forwarder: Forwarder | None) -> None:
        """Make the servers of the protocols with a login, and bind their addresses.

        store: None in a proxy. Raises ListenError.
        """
        config, certificates = self.used, self.certificates
        ids = itertools.count(1)
        for name, protocol in LOGINS.items():
            section = getattr(config, name)
            if section is None:
                continue
            server = protocol.server()(
                store,
                authenticator,
                protocol.settings(config),
                settings_of=by_client(config, protocol.settings),
                upgrade=starttls(lambda: certificates.context) if certificates else None,
                counters=LoginCounters(self.metrics, name),
                ids=ids,
            )
            server.forwards(forwarder)
            if store is not None and forwarder is None and config.imap is not None and config.imap.acl:
                server.share(authenticator, store)
            self.logins[name] = server
            self.bind(name, section.listen, server)

    def serve_lmtp(
        self, deliverer: Callable[[Settings], Deliverer], forwarder: Forwarder | None, users: Callable[[], Users]
    ) -> None:
        """Make the server of LMTP, if there is one, and bind its addresses. users: see
        `LmtpForwarder`. Raises ListenError."""
        config = self.used
        if config.lmtp is None:
            return
        settings, metrics = self.lmtp_settings(config), self.metrics
        count = metrics.sessions["lmtp"].inc
        self.lmtp = LmtpServer(deliverer(settings), settings, observe=metrics.delivered, count=count)
        if forwarder is not None:
            from .proxy import LmtpForwarder

            self.lmtp.forwards(LmtpForwarder(forwarder, users))
        self.bind("lmtp", config.lmtp.listen, self.lmtp)

    def warn_without_mail(self) -> None:
        if not self.logins and self.lmtp is None:
            log.warning("no mail is served, [imap], [lmtp] and [pop3] are not configured", next_step="add one of them")

    def ports(self, *more: str) -> dict[str, int]:
        """Return the ports that members and front ends connect to. more: listeners that
        are no protocols of mail."""
        from .membership import ports_of  # members and front ends alone ask

        return ports_of((*LOGINS, "lmtp", *more), self.listeners.addresses)

    def bind(self, name: str, entries: Sequence[Listen], server: net.Server) -> None:
        """Bind the addresses of a protocol. Raises ListenError."""

        def connect(entry: Listen, via: Via | None) -> asyncio.Protocol:
            remote = via.client[0] if via is not None and via.client is not None else None
            return server.connection_factory(tls=entry.tls or (via is not None and via.tls), remote=remote)

        self.listeners.bind(name, entries, connect)

    def lmtp_settings(self, config: Config) -> Settings:
        certificates = self.certificates
        (config.state_dir / "spool").mkdir(exist_ok=True)
        return rooms.lmtp_settings(config, (lambda: certificates.context) if certificates else None)

    # -- the stop --------------------------------------------------------------------------------------------------

    async def end_sessions(self, grace_s: float) -> None:
        """End the sessions of all protocols, within a time."""
        async with asyncio.TaskGroup() as tasks:
            for server in (*self.logins.values(), self.lmtp, self.socketmap):
                if server is not None:
                    tasks.create_task(server.stop(grace_s=grace_s))

    async def _renew_certificates(self) -> None:
        """Use the certificates on disk. If they cannot be used, the old certificates
        stay in use."""
        assert self.certificates is not None
        tls = self.used.tls
        try:
            loaded = await asyncio.to_thread(Certificates.prepare, tls.cert, tls.key)
        except TlsError as error:
            log.error("new certificates cannot be used, the old certificates stay", error=str(error))
        else:
            # Otherwise a reload has read newer certificates meanwhile.
            if tls is self.used.tls:
                self.certificates.use(loaded)
                log.info("certificates renewed")
