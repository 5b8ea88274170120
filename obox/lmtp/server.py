"""The LMTP server. It makes a protocol for each connection, and knows all open
connections.

Invariants:
- Idle connections never prevent new connections. When there are `connections_max` of
  them, the connection that has been idle longest is closed with 421.
- `stop` lets transactions under way complete, within a time that its caller sets. A
  delivery that is cut off gets no reply, so its sender tries again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from obox.lmtp.connection import Connection
from obox.lmtp.context import Context
from obox.lmtp.deliverer import Deliverer
from obox.lmtp.settings import Settings
from obox.net import Hub, Server, uncounted
from obox.spool import ByteBudget

if TYPE_CHECKING:
    from obox.lmtp.forwarding import Forwarding


class LmtpServer(Server):
    """All LMTP sessions of a process."""

    STOP_REASON = "Shutting down, try again later"

    def __init__(
        self,
        deliverer: Deliverer,
        settings: Settings,
        *,
        wall_clock: Callable[[], float] = time.time,
        observe: Callable[[str, float], None] | None = None,
        count: Callable[[int], None] = uncounted,
    ) -> None:
        """observe: called with the result ("250", "451", …) and the seconds of each
        delivery, for metrics. count: see `Hub`."""
        self.hub = Hub(count=count, now=wall_clock)
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
        """Return the deliverer that all sessions use now."""
        return self.context.deliverer

    @property
    def settings(self) -> Settings:
        """Return the settings of connections that begin from now on."""
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

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> asyncio.Protocol:
        """See `Server`. Trust depends on the client's address."""
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
