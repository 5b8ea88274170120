"""POP3 servers of the members of a cluster."""

from __future__ import annotations

import asyncio

from members import ADDRESS, Member

from obox.pop3 import Pop3Server, Pop3Settings
from tests.pop3.pop3_harness import Client


class Pop3:
    """The POP3 server of a member."""

    def __init__(self, member: Member, settings: Pop3Settings | None = None) -> None:
        forwarder = member.forwarder
        context = member.imap.context
        self.member = member
        self.server = Pop3Server(member.store, forwarder.authenticator, settings, upgrade=context.upgrade)
        self.server.forwards(forwarder)
        self.clients: list[Client] = []

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(self.server.connection_factory, ADDRESS, 0)
        self.port = self.listener.sockets[0].getsockname()[1]
        self.member.rows.places[self.member.name][1]["pop3"] = self.port

    async def client(self, user: str = "") -> tuple[Client, bytes]:
        """Connect, and log in. Return the answer to PASS, too."""
        client = Client(*await asyncio.open_connection(ADDRESS, self.port))
        self.clients.append(client)
        await client.line()
        await client.ok(f"USER {user}")
        return client, await client.cmd("PASS secret")

    async def stop(self) -> None:
        self.listener.close()
        for client in self.clients:
            await client.close()
        await self.server.stop(grace_s=5.0)
