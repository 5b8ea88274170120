"""The server of a protocol with a login. It makes a connection for each client, and
knows all open connections.

Diagnostics: a client beyond a limit is refused, which is logged. Nothing here is fatal.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Generic

import structlog

from obox import net
from obox.accounts import Accounts
from obox.login.context import Context, NoCounters, S, opener
from obox.net import Hub, Upgrade
from obox.store.api import Store

if TYPE_CHECKING:
    from obox.login.needs import Authenticator, Counters, Forwarding

TLS_HANDSHAKE_S = 10.0
"""Time limit of the handshake after STARTTLS, from the first byte to the last."""


class Server(net.Server, Generic[S]):
    """All sessions of a protocol in a process.

    Give `connection_factory` to the listeners, and call `stop` at the end. A protocol
    adds its name, the classes of its settings and of its context, and the factory.
    """

    listener: ClassVar[str]
    settings_type: type[S]
    context_type: Callable[..., Context[S]]
    context: Context[S]

    def __init__(
        self,
        store: Store | None,
        authenticator: Authenticator,
        settings: S | None = None,
        *,
        settings_of: Callable[[str], S] | None = None,
        upgrade: Upgrade | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
        ids: Iterator[int] | None = None,
    ) -> None:
        """store: None in a proxy, which forwards every user.

        settings_of: the settings for a client of an address; None: the same for all.
        upgrade: starts TLS on a transport; None: no STARTTLS. clock, ids: see `Hub`.
        """
        used = self.settings_type() if settings is None else settings
        counters = counters or NoCounters()
        self.hub = Hub(count=counters.session, clock=clock, ids=ids)
        self.context = self.context_type(
            listener=self.listener,
            hub=self.hub,
            settings=used,
            settings_of=settings_of or (lambda remote: used),
            authenticator=authenticator,
            open_user=opener(store),
            counters=counters,
            upgrade=upgrade,
            log=structlog.get_logger(f"obox.{self.listener}"),
        )

    def use(self, settings: S, settings_of: Callable[[str], S]) -> None:
        """Use other settings for connections that begin from now on."""
        self.context.settings, self.context.settings_of = settings, settings_of

    def share(self, accounts: Accounts, store: Store) -> None:
        """Let users share mailboxes with each other. All of them are served here. A
        protocol that knows no names of mailboxes has nothing to share."""

    def forwards(self, forwarding: Forwarding | None) -> None:
        """Serve only users of this backend, and forward users of others. None: this
        backend serves all users."""
        self.context.forwarding = forwarding


def starttls(context: Callable[[], ssl.SSLContext]) -> Upgrade:
    """Return a function that starts TLS with the certificates that `context()` has at
    that moment."""
    return net.starttls(context, TLS_HANDSHAKE_S)
