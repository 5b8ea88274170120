"""A client of LMTP on real sockets, and a deliverer that keeps mails in a dict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from patience import PATIENT_S

from obox import errors
from obox.lmtp import Deliverer, Envelope, LmtpServer, Recipient, Settings

MAIL = b"Received: from a by b with ESMTP id Q1; x\r\nMessage-ID: <1@x>\r\nSubject: s\r\n\r\nbody\r\n"


class Store:
    """Users by name. What happens to a mail depends on the name."""

    def __init__(self) -> None:
        self.mails: dict[str, list[bytes]] = {}
        self.envelopes: list[Envelope] = []
        self.sizes: list[int | None] = []
        self.running = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing: dict[str, Exception] = {
            "full": errors.OverQuota(),
            "down": errors.Unavailable("bucket does not answer"),
            "bug": KeyError("secret"),
            "slow": TimeoutError(),
        }

    async def recipient(self, address: str, user: str, detail: str, size: int | None) -> Recipient:
        self.sizes.append(size)
        if user.startswith("no"):
            raise errors.NotFound
        if user.startswith("off"):
            raise errors.NoPerm("User is disabled")
        if user.startswith("crash"):
            raise KeyError("secret")
        return Recipient(address, user, detail, context=len(self.sizes))

    async def deliver(self, recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            name = recipient.user.partition("@")[0]
            if name in self.failing:
                raise self.failing[name]
            assert recipient.context
            self.mails.setdefault(recipient.address, []).append(source)
            self.envelopes.append(envelope)
        finally:
            self.running -= 1


class Client:
    """A client that sends and reads raw lines, with a deadline of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> str:
        async with asyncio.timeout(PATIENT_S):
            while True:
                line = (await self.reader.readline()).decode()
                if line[3:4] != "-":
                    return line.rstrip("\r\n")

    async def replies(self, count: int) -> list[str]:
        return [await self.reply() for _ in range(count)]

    async def say(self, line: str) -> str:
        self.write(line.encode() + b"\r\n")
        return await self.reply()

    async def ended(self) -> bool:
        async with asyncio.timeout(PATIENT_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


class World:
    """A server, and its clients. Its deliverer is `store` unless there is another."""

    def __init__(self, settings: Settings, path: Path, deliverer: Deliverer | None = None) -> None:
        self.store = Store()
        self.server = LmtpServer(deliverer or self.store, settings, wall_clock=lambda: 0.0)
        self.path = str(path / "lmtp")
        self.port = 0
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        """Connect over TCP, and read the greeting."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        assert (await client.reply()).startswith("220 mx LMTP")
        assert (await client.say("LHLO client")).startswith("250 ")
        return client


@asynccontextmanager
async def serving(path: Path, deliverer: Deliverer | None = None, **changes: Any) -> AsyncIterator[World]:
    settings = replace(Settings(hostname="mx", spool_dir=path / "spool"), **changes)
    world = World(settings, path, deliverer)
    loop = asyncio.get_running_loop()
    tcp = await loop.create_server(world.server.connection_factory, "127.0.0.1", 0)
    unix = await loop.create_unix_server(world.server.connection_factory, world.path)
    world.port = tcp.sockets[0].getsockname()[1]
    try:
        yield world
    finally:
        tcp.close()
        unix.close()
        world.store.gate.set()
        await world.server.stop(grace_s=1)
        assert not world.server.connections
        for client in world.clients:
            client.writer.close()
