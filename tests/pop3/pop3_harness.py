"""A POP3 server over a store in memory, or over the real store on a bucket in memory,
and a client that sends and reads lines.

No test waits for a fixed time: a client reads until it has the answer, with a single
long deadline.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from obox.accounts import storage_id
from obox.pop3 import Pop3Server, Pop3Settings
from obox.store import MailStore
from obox.store.api import NewMail
from obox.store.memory import MemoryStore
from tests.imap.harness import Passwords, mail_store

DEADLINE_S = 20.0
S = TypeVar("S", MailStore, MemoryStore)


class Client:
    """A client that sends and reads lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes | str) -> None:
        self.writer.write(data if isinstance(data, bytes) else data.encode())

    async def line(self) -> bytes:
        """Read a line without its CRLF. Return b"" at the end of the connection."""
        async with asyncio.timeout(DEADLINE_S):
            line = await self.reader.readline()
        assert not line or line.endswith(b"\r\n"), line
        return line[:-2]

    async def cmd(self, command: str | bytes) -> bytes:
        """Send a command and return the first line of its answer."""
        self.send((command if isinstance(command, bytes) else command.encode()) + b"\r\n")
        return await self.line()

    async def ok(self, command: str | bytes) -> bytes:
        line = await self.cmd(command)
        assert line.startswith(b"+OK"), line
        return line

    async def rest(self) -> list[bytes]:
        """Read the lines behind the first, without the dots that were added."""
        out = []
        while (line := await self.line()) != b".":
            out.append(line.removeprefix(b"."))
        return out

    async def many(self, command: str | bytes) -> list[bytes]:
        await self.ok(command)
        return await self.rest()

    async def ended(self) -> bool:
        """Read to the end of the connection. Returns whether nothing more came."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return not await self.reader.read()
            except ConnectionError:
                return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@dataclass
class Running(Generic[S]):
    """A server that listens on loopback."""

    pop3: Pop3Server
    store: S
    port: int
    clients: list[Client] = field(default_factory=list)

    async def client(self, *, login: str = "", limit: int = 1 << 26) -> Client:
        """Connect a client. limit: bytes that it reads ahead."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        client = Client(reader, writer)
        self.clients.append(client)
        assert (await client.line()).startswith(b"+OK")
        if login:
            await client.ok(f"USER {login}")
            await client.ok("PASS secret")
        return client

    async def deliver(self, mails: Sequence[bytes], *, user: str = "anna", flags: tuple[str, ...] = ()) -> None:
        """Put mails into a user's INBOX."""
        opened = await self.store.open_user(user, storage_id(user))
        try:
            await opened.append("INBOX", [NewMail(mail, flags) for mail in mails])
        finally:
            await opened.release()

    async def flags(self, user: str = "anna") -> dict[int, set[str]]:
        """Return the flags of each mail of a user's INBOX by UID."""
        opened = await self.store.open_user(user, storage_id(user))
        mailbox = await opened.select("INBOX")
        try:
            state = mailbox.state
            names = {name: state.has_flag(name, slice(None)).tolist() for name in state.flags.names}
            return {
                uid: {name for name, values in names.items() if values[row]}
                for row, uid in enumerate(state.uids.tolist())
            }
        finally:
            await mailbox.release()
            await opened.release()

    async def expunge(self, uids: Sequence[int], user: str = "anna") -> None:
        """Expunge mails, as another session does."""
        opened = await self.store.open_user(user, storage_id(user))
        mailbox = await opened.select("INBOX")
        try:
            await mailbox.expunge(np.array(uids, dtype=np.uint32))
        finally:
            await mailbox.release()
            await opened.release()

    async def idle(self) -> None:
        """Return when no connection is left."""
        async with asyncio.timeout(DEADLINE_S):
            while self.pop3.who() or self.pop3.hub.tasks:  # noqa: ASYNC110 - the end of a task has no event
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(settings: Pop3Settings | None = None, **more: object) -> AsyncIterator[Running[MemoryStore]]:
    """Run a server over a store in memory."""
    async with _listening(MemoryStore(), settings, more) as running:
        yield running


@asynccontextmanager
async def serving_real(
    path: Path, settings: Pop3Settings | None = None, **more: object
) -> AsyncIterator[Running[MailStore]]:
    """Run a server over the real store."""
    async with mail_store(path) as store, _listening(store, settings, more) as running:
        yield running


@asynccontextmanager
async def _listening(store: S, settings: Pop3Settings | None, more: Mapping[str, object]) -> AsyncIterator[Running[S]]:
    pop3 = Pop3Server(store, Passwords(), settings or Pop3Settings(), **more)  # type: ignore[arg-type]  # the options of a test, by name
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(pop3.connection_factory, "127.0.0.1", 0)
    running = Running(pop3, store, listener.sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        listener.close()
        for client in running.clients:
            await client.close()
        await pop3.stop(grace_s=5.0)
