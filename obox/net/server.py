"""What the servers of all protocols have in common: clients connect to them, and their
connections are listed and ended, in the same way.

This module knows no protocol.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar, Final

from obox.net.connection import Connection
from obox.net.hub import Hub
from obox.net.registry import Who

KICKED: Final = "Disconnected by the administrator"


class Server(ABC):
    """All sessions of a protocol in a process."""

    STOP_REASON: ClassVar[str] = "Server is shutting down, please reconnect"
    """The reason that clients get at a stop."""

    hub: Hub

    @abstractmethod
    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> asyncio.Protocol:
        """Make the protocol of a new connection.

        tls: whether it already uses TLS, also if a proxy does the TLS. remote: the
        client's address, if a proxy reported it; None: the transport's address.
        """

    def who(self) -> list[Who]:
        """Return all connections, the oldest first."""
        return self.hub.who()

    def kick(self, user: str, reason: str = KICKED) -> int:
        """End a user's sessions, each after its command.

        Returns how many there are.
        """
        return self.hub.kick(user, reason)

    def kick_mail(self, owners: Collection[str], reason: str) -> None:
        """End the sessions that have the mail of these users open here, each after its
        command."""
        for member in self.hub.registry:
            if isinstance(member, Connection) and member.who().mail in owners:
                member.stop(reason)

    async def stop(self, reason: str = "", grace_s: float = 25.0) -> None:
        """End all sessions, each after its command or transaction, and cut those that
        are left after `grace_s`. Close the listeners first.

        reason: "" is STOP_REASON. Idempotent.
        """
        await self.hub.stop(reason or self.STOP_REASON, grace_s)
