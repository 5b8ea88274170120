"""An IMAP server over a store in memory, or over the real store on a bucket in memory,
and a client that sends and reads lines.

`serving` is for tests of the protocol. `serving_real` is for tests of the bucket, the
caches or the real store. A conformance suite shows that both stores keep the contract
(tests/store/test_contract.py).

No test waits for a fixed time: a client reads until it has the answer, with a single
long deadline.
"""

import asyncio
import os
import re
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from fscache import Fscache
from metacache import Metacache
from obox.accounts import Account, Quota, storage_id
from obox.auth import AuthFailed, Disabled, normalise
from obox.imap.server import ImapServer
from obox.imap.settings import ImapSettings
from obox.objectstore import Codec, Settings, open_store
from obox.store import Env, MailStore, StoreSettings
from obox.store.memory import MemoryStore
from tests.imap.grammar import parse

DEADLINE_S = 20.0
_FETCH = re.compile(rb"\* [0-9]+ (?:UID)?FETCH \(")
_FETCHED_FLAGS = re.compile(rb"[( ]FLAGS \(([^)]*)\)")
PASSWORDS = {"anna": "secret", "ben": "secret", "gone": "secret"}


class Passwords:
    """An authenticator of a few users with simple passwords."""

    def __init__(self, passwords: Mapping[str, str] = PASSWORDS) -> None:
        self.passwords = passwords
        self.quota = Quota()

    async def verify(self, user: str, password: str, *, remote: str) -> Account:
        if self.passwords.get(user) != password:
            raise AuthFailed("Authentication failed")
        if user == "gone":
            raise Disabled("Your account is closed")
        return Account(user, storage_id(user), self.quota)

    def normalise(self, user: str) -> str:
        return normalise(user)

    async def account(self, user: str) -> Account | None:
        name = normalise(user)
        return Account(name, storage_id(name), self.quota) if name in self.passwords and name != "gone" else None


@asynccontextmanager
async def mail_store(path: Path, bucket: str = "memory://") -> AsyncIterator[MailStore]:
    """Yield the real store. Its bucket is in memory or at the URL `bucket`, and its
    caches are below `path`."""
    metacache = Metacache(path / "metacache", max_space=256 << 20, max_grace=32 << 20, clock=time.monotonic, sync=False)
    fscache = Fscache(path / "fscache", max_size=64 << 20, clock=time.monotonic)
    env = Env(
        bucket=open_store(Settings(url=bucket)),
        codec=Codec({}, None),
        metacache=metacache,
        fscache=fscache,
        settings=StoreSettings(backend="test"),
        now=time.time,
        clock=time.monotonic,
        sleep=asyncio.sleep,
        random_bytes=os.urandom,
    )
    store = MailStore(env)
    await store.start()
    try:
        yield store
    finally:
        await store.close()
        await fscache.close()
        await metacache.close()


S = TypeVar("S", MailStore, MemoryStore)


@dataclass
class Running(Generic[S]):
    """A server that listens on loopback."""

    imap: ImapServer
    store: S
    port: int
    clients: list["Client"] = field(default_factory=list)

    async def client(self, *, greet: bool = True, login: str = "", address: str = "127.0.0.1") -> "Client":
        """Connect a client. address: the client's address, in 127.0.0.0/8."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26, local_addr=(address, 0))
        client = Client(reader, writer)
        self.clients.append(client)
        if greet:
            await client.line()
        if login:
            await client.ok(f"LOGIN {login} secret")
        return client


class Client:
    """A client that sends and reads lines. It adds literals to the line that they end.

    The client knows the flags of the FLAGS lines that it has read, and refuses a FETCH
    with another flag. strict: each line must be a response by tests/imap/grammar.py.
    """

    strict = True
    utf8 = False
    """Whether strings may be UTF-8, because UTF8=ACCEPT is enabled."""
    rev2 = False
    """Whether IMAP4rev2 is enabled."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.flags: set[bytes] = set()
        self.fetched: list[bytes] = []
        """The flag lists of all FETCH lines, in order."""
        self.number = 0

    def send(self, data: bytes | str) -> None:
        self.writer.write(data if isinstance(data, bytes) else data.encode())

    async def line(self) -> bytes:
        """Read a response line with its literals, without the CRLF. Return b"" at the
        end of the connection."""
        async with asyncio.timeout(DEADLINE_S):
            out = b""
            while True:
                part = await self.reader.readline()
                if not part.endswith(b"\r\n"):
                    return b""
                self._check_flags(part, first=not out)
                out += part
                if not part.endswith(b"}\r\n"):
                    if self.strict:
                        parse(out[:-2], utf8=self.utf8, rev2=self.rev2)
                    self._note_enabled(out)
                    return out[:-2]
                size = int(part[part.rindex(b"{") + 1 : -3])
                out += await self.reader.readexactly(size)

    def _note_enabled(self, line: bytes) -> None:
        if line.startswith(b"* ENABLED "):
            self.rev2 |= b" IMAP4rev2" in line
            self.utf8 |= self.rev2 or b" UTF8=ACCEPT" in line
        elif line.endswith(b" OK Unauthenticated\r\n"):
            self.rev2 = self.utf8 = False

    def _check_flags(self, part: bytes, *, first: bool) -> None:
        """Check the flags in a part of a line. RFC 3501 §7.2.6: FLAGS lists the flags
        that apply to the mailbox."""
        if first and part.startswith(b"* FLAGS ("):
            self.flags = set(part[9:].rstrip(b")\r\n").split())
        if (found := _FETCHED_FLAGS.search(part)) and (not first or _FETCH.match(part)):
            self.fetched.append(found[1])
            assert set(found[1].split()) - {b"\\Recent"} <= self.flags, (part, self.flags)

    async def until(self, start: bytes) -> list[bytes]:
        """Read lines up to the first line that begins with `start`."""
        out = []
        while True:
            line = await self.line()
            out.append(line)
            if line.startswith(start) or not line:
                return out

    async def cmd(self, command: str | bytes) -> list[bytes]:
        """Send a command. Return all lines up to its tagged line."""
        self.number += 1
        tag = b"t%d" % self.number
        self.send(tag + b" " + (command.encode() if isinstance(command, str) else command) + b"\r\n")
        lines = await self.until(tag + b" ")
        return [*lines[:-1], lines[-1].removeprefix(tag + b" ")]

    async def ok(self, command: str | bytes) -> list[bytes]:
        lines = await self.cmd(command)
        assert lines[-1].startswith(b"OK"), lines
        return lines

    async def append(self, mailbox: str, mail: bytes, flags: str = "") -> bytes:
        return (await self.ok(b"APPEND %b %b{%d+}\r\n%b" % (mailbox.encode(), flags.encode(), len(mail), mail)))[-1]

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


class Compressed(Client):
    """A client that has sent COMPRESS."""

    def __init__(self, client: Client) -> None:
        super().__init__(client.reader, client.writer)
        self._deflate = zlib.compressobj(wbits=-15)
        self._inflate = zlib.decompressobj(-15)
        self._coded, self.reader = client.reader, asyncio.StreamReader(limit=1 << 26)
        self._pump = asyncio.ensure_future(self._inflated())

    def coded(self, data: bytes) -> bytes:
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def send(self, data: bytes | str) -> None:
        self.writer.write(self.coded(data if isinstance(data, bytes) else data.encode()))

    async def _inflated(self) -> None:
        try:
            while data := await self._coded.read(65_536):
                self.reader.feed_data(self._inflate.decompress(data))
        except ConnectionError:
            pass
        finally:
            self.reader.feed_eof()

    async def close(self) -> None:
        await super().close()
        self._pump.cancel()


@asynccontextmanager
async def serving(
    path: Path, settings: ImapSettings | None = None, **more: object
) -> AsyncIterator[Running[MemoryStore]]:
    """Run a server and its store during a test."""
    mailboxes = (("INBOX", ""), *StoreSettings(backend="test").mailboxes)
    async with _listening(MemoryStore(mailboxes=mailboxes), settings, more) as running:
        yield running


@asynccontextmanager
async def serving_real(
    path: Path, settings: ImapSettings | None = None, *, bucket: str = "memory://", **more: object
) -> AsyncIterator[Running[MailStore]]:
    """Run a server over the real store; see `mail_store`."""
    async with mail_store(path, bucket) as store, _listening(store, settings, more) as running:
        yield running


STORES = {"memory": serving, "real": serving_real}
"""The tests that hold for both stores use this table."""


@asynccontextmanager
async def _listening(store: S, settings: ImapSettings | None, more: Mapping[str, Any]) -> AsyncIterator[Running[S]]:
    users = Passwords(dict(PASSWORDS))
    imap = ImapServer(store, users, settings or ImapSettings(), **more)
    imap.share(users, store)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(imap.connection_factory, "127.0.0.1", 0)
    running = Running(imap, store, listener.sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        listener.close()
        for client in running.clients:
            await client.close()
        await imap.stop(grace_s=5.0)
