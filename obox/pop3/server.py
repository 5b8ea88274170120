"""The POP3 server. It makes a protocol for each connection, and knows all open
connections.

Diagnostics: a connection beyond a limit gets -ERR [SYS/TEMP], which is logged. Nothing
here is fatal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import structlog

from obox.login import Authenticator, Forwarding, opener
from obox.net import Hub, Server, Upgrade
from obox.pop3.commands import TABLE
from obox.pop3.connection import Connection
from obox.pop3.context import Context, Counters, NoCounters
from obox.pop3.machine import Machine
from obox.pop3.settings import Pop3Settings
from obox.store.api import Store


class Pop3Server(Server):
    """All POP3 sessions of a process.

    Give `connection_factory` to the listeners, and call `stop` at the end.
    """

    def __init__(
        self,
        store: Store | None,
        authenticator: Authenticator,
        settings: Pop3Settings | None = None,
        *,
        settings_of: Callable[[str], Pop3Settings] | None = None,
        upgrade: Upgrade | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        ids: Iterator[int] | None = None,
    ) -> None:
        """The parameters are those of `ImapServer`; ids: see `Hub`."""
        settings = settings or Pop3Settings()
        counters = counters or NoCounters()
        self._machine = Machine(TABLE)
        self.hub = Hub(count=counters.session, clock=clock, now=now, ids=ids)
        self.context = Context(
            hub=self.hub,
            settings=settings,
            settings_of=settings_of or (lambda remote: settings),
            authenticator=authenticator,
            open_user=opener(store),
            counters=counters,
            upgrade=upgrade,
            log=structlog.get_logger("obox.pop3"),
        )

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> asyncio.Protocol:
        """Make the protocol of a new connection.

        tls: whether it already uses TLS, also if a proxy does the TLS. remote: the
        client's address, if a proxy reported it; None: the transport's address.
        """
        return Connection(self.context, self._machine, tls=tls, remote=remote)

    def use(self, settings: Pop3Settings, settings_of: Callable[[str], Pop3Settings]) -> None:
        """Use other settings for connections that begin from now on."""
        self.context.settings, self.context.settings_of = settings, settings_of

    def forwards(self, forwarding: Forwarding | None) -> None:
        """Serve only users of this backend, and forward users of others. None: this
        backend serves all users."""
        self.context.forwarding = forwarding
