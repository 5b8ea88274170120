"""The IMAP server. It makes a protocol for each connection, and knows all open
connections.

Diagnostics: a connection beyond a limit gets BYE [LIMIT] or [UNAVAILABLE], which is
logged. Nothing here is fatal.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable

import structlog

from obox import net
from obox.imap.connection import Connection
from obox.imap.context import Context, Counters, NoCounters
from obox.imap.intake import Intake
from obox.imap.machine import Machine
from obox.imap.settings import ImapSettings
from obox.imap.states import COMMANDS
from obox.login import Authenticator, Forwarding, opener
from obox.net import Hub, Registry, Server, Spawn, Upgrade
from obox.store.api import Store

TLS_HANDSHAKE_S = 10.0
"""Time limit of the handshake after STARTTLS, from the first byte to the last."""


class ImapServer(Server):
    """All IMAP sessions of a process.

    Give `connection_factory` to the listeners, and call `stop` at the end.
    """

    def __init__(
        self,
        store: Store | None,
        authenticator: Authenticator,
        settings: ImapSettings | None = None,
        *,
        settings_of: Callable[[str], ImapSettings] | None = None,
        upgrade: Upgrade | None = None,
        registry: Registry | None = None,
        counters: Counters | None = None,
        spawn: Spawn | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """store: None in a proxy, which forwards every user.

        settings_of: the settings for a client of an address; None: the same for all.
        upgrade: starts TLS on a transport; None: no STARTTLS. spawn: starts a task;
        None: the loop does.
        """
        settings = settings or ImapSettings()

        self._machine = Machine(COMMANDS)
        counters = counters or NoCounters()
        self.hub = Hub(registry=registry, spawn=spawn, count=counters.session, clock=clock, now=now)
        self.context = Context(
            hub=self.hub,
            settings=settings,
            settings_of=settings_of or (lambda remote: settings),
            authenticator=authenticator,
            open_user=opener(store),
            counters=counters,
            upgrade=upgrade,
            log=structlog.get_logger("obox.imap"),
            intake=Intake(settings.spool_dir, settings.append_memory_max, settings.append_spool_max),
        )

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> asyncio.Protocol:
        """Make the protocol of a new connection.

        tls: whether it already uses TLS, also if a proxy does the TLS. remote: the
        client's address, if a proxy reported it; None: the transport's address.
        """
        return Connection(self.context, self._machine, tls=tls, remote=remote)

    def use(self, settings: ImapSettings, settings_of: Callable[[str], ImapSettings]) -> None:
        """Use other settings for connections that begin from now on."""
        self.context.settings, self.context.settings_of = settings, settings_of

    def tls_offered(self, upgrade: Upgrade | None) -> None:
        """Offer STARTTLS with another certificate from now on, or stop offering it."""
        self.context.upgrade = upgrade

    def forwards(self, forwarding: Forwarding | None) -> None:
        """Serve only users of this backend, and forward users of others. None: this
        backend serves all users."""
        self.context.forwarding = forwarding


def starttls(context: Callable[[], ssl.SSLContext]) -> Upgrade:
    """Return a function that starts TLS with the certificates that `context()` has at
    that moment."""
    return net.starttls(context, TLS_HANDSHAKE_S)
