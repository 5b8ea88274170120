"""What the servers of all protocols with a login have in common: their connections are
listed and ended in the same way.

This module knows no protocol.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from obox.net.connection import Connection
from obox.net.hub import Hub
from obox.net.registry import Who

STOP_REASON: Final = "Server is shutting down, please reconnect"
KICKED: Final = "Disconnected by the administrator"


class Server:
    """All sessions of a protocol in a process. A protocol adds its factory of
    connections."""

    hub: Hub

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

    async def stop(self, reason: str = STOP_REASON, grace_s: float = 25.0) -> None:
        """End all sessions, each after its command, and cut those that are left after
        `grace_s`.

        Idempotent.
        """
        await self.hub.stop(reason, grace_s)
