"""The LMTP server. It makes a protocol for each connection, and knows all open
connections.

Invariants:
- Idle connections never prevent new connections. When there are `connections_max` of
  them, the connection that has been idle longest is closed with 421.
- `close` lets transactions under way complete, within a time that its caller sets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from obox.lmtp.connection import Connection
from obox.lmtp.context import Context
from obox.lmtp.deliverer import Deliverer
from obox.lmtp.forwarding import Forwarding
from obox.lmtp.settings import Settings
from obox.net import Hub
from obox.spool import ByteBudget

STOP_REASON = "Shutting down, try again later"


class LmtpServer:
    """The sessions of a process.

    `protocol` is the factory for `create_server` and `create_unix_server`.
    """

    def __init__(
        self,
        deliverer: Deliverer,
        settings: Settings,
        *,
        wall_clock: Callable[[], float] = time.time,
        observe: Callable[[str, float], None] | None = None,
    ) -> None:
        """observe: called with the result ("250", "451", …) and the seconds of each
        delivery, for metrics."""
        self.hub = Hub(now=wall_clock)
        self.budget = ByteBudget(settings.delivery_bytes_max)
        self.context = Context(
            hub=self.hub,
            deliverer=deliverer,
            settings=settings,
            budget=self.budget,
            wall_clock=wall_clock,
            observe=observe,
        )

    @property
    def deliverer(self) -> Deliverer:
        """The deliverer that all sessions use now."""
        return self.context.deliverer

    @property
    def settings(self) -> Settings:
        """The settings of connections that begin from now on."""
        return self.context.settings

    def use(self, deliverer: Deliverer, settings: Settings) -> None:
        """Use other settings for connections that begin from now on, and another
        deliverer for all.

        The memory limit of all deliveries together does not change.
        """
        self.context.use(deliverer, settings)

    def forwards(self, forwarding: Forwarding | None) -> None:
        """Take mails for users of this backend only, and forward those of others; None:
        all are ours."""
        self.context.forwarding = forwarding

    def protocol(self, remote: str | None = None, *, tls: bool = False) -> asyncio.Protocol:
        """Make the protocol of a new connection.

        remote: the client's address, if a PROXY header reported it; None: the
        transport's peer. Trust depends on this address. tls: whether a proxy does the
        TLS.
        """
        return Connection(self.context, remote, tls=tls)

    def trusts(self, remote: str) -> bool:
        """Return whether this TCP client may deliver to us."""
        return self.context.trusts(remote)

    @property
    def connections(self) -> list[Connection]:
        """Return the open connections."""
        return [member for member in self.hub.registry if isinstance(member, Connection)]

    @property
    def addresses(self) -> Mapping[str, int]:
        """Return the number of connections of each client address."""
        return self.hub.registry.addresses

    async def close(self, grace_s: float = 30.0) -> None:
        """End every session: idle sessions now, others after their transaction, and all
        of them after `grace_s`.

        Close the listeners first. A delivery that is cut off gets no reply, so its
        sender tries again.
        """
        await self.hub.stop(STOP_REASON, grace_s)
