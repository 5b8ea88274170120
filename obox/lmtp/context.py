"""What all LMTP sessions of a server share. Everything that the server needs from
outside is passed in here."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from obox.addresses import parsed
from obox.lmtp.deliverer import Deliverer
from obox.lmtp.settings import Settings
from obox.net import Hub
from obox.spool import ByteBudget

if TYPE_CHECKING:
    from obox.lmtp.forwarding import Forwarding


@dataclass(slots=True, kw_only=True)
class Context:
    """deliverer: used by all sessions. settings: used by sessions that begin from now
    on. budget: memory for all large mails under delivery. wall_clock: unix seconds.
    observe: called with the result ("250", "451", …) and the seconds of each delivery.
    forwarding: None if this backend serves all users.
    """

    hub: Hub
    deliverer: Deliverer
    settings: Settings
    budget: ByteBudget
    wall_clock: Callable[[], float]
    observe: Callable[[str, float], None] | None
    forwarding: Forwarding | None = None
    trusted: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = field(init=False)

    def __post_init__(self) -> None:
        self.use(self.deliverer, self.settings)

    def use(self, deliverer: Deliverer, settings: Settings) -> None:
        """Change the settings and the deliverer."""
        self.deliverer, self.settings = deliverer, settings
        self.trusted = [ipaddress.ip_network(network) for network in settings.trusted_networks]

    def trusts(self, remote: str) -> bool:
        """Return whether this TCP client may deliver to us."""
        address = parsed(remote)
        return address is not None and any(address in network for network in self.trusted)
