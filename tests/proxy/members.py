"""The backends of a cluster in a single process, with a store for each, real sockets,
and a router that the test controls."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from certificates import certificate

from obox.auth import Authenticator, PasswdFile, Penalties
from obox.cluster import Assigned, Here, There
from obox.errors import Unavailable
from obox.imap.server import ImapServer
from obox.imap.settings import ImapSettings
from obox.lmtp import LmtpServer
from obox.lmtp import Settings as LmtpSettings
from obox.lmtp.delivery import StoreDeliverer
from obox.login import starttls
from obox.net import Hub
from obox.proxy import Forwarder, LmtpForwarder, Nowhere
from obox.store import MailStore
from obox.types import StorageId
from tests.imap.harness import Client, mail_store

SECRET = b"the secret of this test's cluster"
USERS = ("anna", "ben", "carl")
ADDRESS = "127.0.0.1"
ATTEMPTS = 18
"""A client makes 18 attempts at a backend that refuses connections. Then it has waited
for long enough."""
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""The folders of programs. Debian installs servers in a folder sbin."""


class Rows:
    """The rows of a directory: which backend owns each user. The test writes them."""

    def __init__(self) -> None:
        self.owners: dict[str, Assigned] = {}
        self.places: dict[str, tuple[str, dict[str, int]]] = {}
        """Address and ports of each backend that runs."""

    def own(self, user: str, backend: str) -> None:
        before = self.owners.get(user)
        self.owners[user] = Assigned(backend, before.number + 1 if before else 1, hash((user, backend)) & 0xFFFF)


class FakeRouter:
    """A member's view of the rows. The member keeps a row that it has read until it
    reads the row again."""

    def __init__(self, rows: Rows, me: str) -> None:
        self.rows, self.me = rows, me
        self.read: dict[str, Assigned] = {}
        self.rereads: list[tuple[str, Assigned]] = []
        self.down = False

    async def route(self, sid: StorageId) -> Here | There:
        if self.down:
            raise Unavailable("the directory does not answer")
        self.read.setdefault(sid, self.rows.owners[sid])
        return self.answer_of(sid)

    def known(self, sid: StorageId) -> Here | There | None:
        return self.answer_of(sid) if sid in self.read else None

    async def reread(self, sid: StorageId, seen: Assigned) -> Here | There:
        self.rereads.append((sid, seen))
        read = self.read.get(sid)
        if read is None or (read.number, read.token) < (seen.number, seen.token):
            self.read[sid] = self.rows.owners[sid]
        return self.answer_of(sid)

    def answer_of(self, sid: str) -> Here | There:
        assigned = self.read[sid]
        if assigned.backend == self.me:
            return Here(assigned)
        address, ports = self.rows.places.get(assigned.backend, (ADDRESS, {"imap": 1, "lmtp": 1}))
        return There(assigned.backend, address, dict(ports), assigned)


class Pauses:
    """Time that passes in pauses between attempts alone, and fast."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def clock(self) -> float:
        return self.slept_s

    async def sleep(self, delay_s: float) -> None:
        self.slept_s += delay_s
        await asyncio.sleep(delay_s / 50)


class Counts:
    """`obox.proxy.Counters`."""

    def __init__(self) -> None:
        self.results: list[tuple[str, str]] = []
        self.open = 0
        self.bytes = (0, 0)

    def forward(self, listener: str, result: str) -> None:
        self.results.append((listener, result))

    def splices(self, change: int) -> None:
        self.open += change

    def spliced(self, from_client: int, to_client: int) -> None:
        self.bytes = (self.bytes[0] + from_client, self.bytes[1] + to_client)


@dataclass
class Member:
    """A backend, or a proxy. A proxy has no store."""

    name: str
    rows: Rows
    router: FakeRouter
    forwarder: Forwarder
    counts: Counts
    penalties: Penalties
    imap: ImapServer
    lmtp: LmtpServer
    store: MailStore | None
    tls_port: int = 0
    port: int = 0
    lmtp_port: int = 0
    servers: list[asyncio.Server] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def client(
        self, *, login: str = "", tls: bool = False, address: str = "127.0.0.1", strict: bool = True
    ) -> Client:
        context = None
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(
            ADDRESS, self.tls_port if tls else self.port, limit=1 << 26, local_addr=(address, 0), ssl=context
        )
        client = Client(reader, writer)
        client.strict = strict
        self.clients.append(client)
        await client.line()
        if login:
            await client.ok(f"LOGIN {login} secret")
        return client

    @property
    def hub(self) -> Hub:
        return self.imap.hub

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        imap = await loop.create_server(self.imap.connection_factory, ADDRESS, self.port)
        lmtp = await loop.create_server(self.lmtp.connection_factory, ADDRESS, self.lmtp_port)
        self.servers = [imap, lmtp]
        self.port, self.lmtp_port = (server.sockets[0].getsockname()[1] for server in self.servers)
        self.rows.places[self.name] = (ADDRESS, {"imap": self.port, "lmtp": self.lmtp_port})

    def silent(self) -> None:
        """Close the ports of this member, so that it does not answer."""
        for server in self.servers:
            server.close()

    async def deliver(self, mail: bytes, *recipients: str, lines: bytes = b"") -> list[str]:
        """Send a mail over LMTP. Return the replies to RCPT other than 250, and then
        the replies to the mail."""
        reader, writer = await asyncio.open_connection(ADDRESS, self.lmtp_port)
        got = []
        async with asyncio.timeout(30):
            rcpt = b"".join(b"RCPT TO:<%b>\r\n" % one.encode() for one in recipients)
            writer.write(b"LHLO mta.example\r\n" + lines + b"MAIL FROM:<from@example.org>\r\n" + rcpt)
            while not (await reader.readline()).startswith(b"250 "):
                pass
            # This is the reply to MAIL.
            await reader.readline()
            replies = [await reader.readline() for _ in recipients]
            got += [reply.decode() for reply in replies if not reply.startswith(b"250")]
            accepted = len(recipients) - len(got)
            if accepted:
                writer.write(b"BDAT %d LAST\r\n" % len(mail) + mail)
                got += [(await reader.readline()).decode() for _ in range(accepted)]
        writer.close()
        return got

    async def mails(self, user: str) -> list[bytes]:
        """Return the mails in a user's INBOX at this member."""
        assert self.store is not None
        opened = await self.store.open_user(user, StorageId(user))
        client = await self.client(strict=False)
        await client.ok(f"LOGIN {user} secret")
        await client.ok("SELECT INBOX")
        lines = await client.cmd("FETCH 1:* BODY.PEEK[]")
        await opened.release()
        return [line for line in lines if line.startswith(b"* ")]


@dataclass
class Cluster:
    rows: Rows
    path: Path
    stack: AsyncExitStack
    users: PasswdFile
    certs: tuple[Path, Path]

    async def member(
        self,
        name: str,
        *,
        proxy: bool = False,
        secrets: tuple[bytes, ...] = (SECRET,),
        settings: ImapSettings | None = None,
        lmtp_settings: LmtpSettings | None = None,
        tls: bool = False,
    ) -> Member:
        """Start a backend or a proxy."""
        store = None if proxy else await self.stack.enter_async_context(mail_store(self.path / name))
        penalties = Penalties((0.0, 0.0))
        authenticator = Authenticator(self.users, penalties=penalties, check=lambda secret, given: given in secret)
        self.stack.callback(authenticator.close)
        router, counts = FakeRouter(self.rows, name), Counts()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certs)
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certs[0].read_text())).digest()
        pauses = Pauses()
        forwarder = Forwarder(
            router,
            secrets,
            authenticator,
            member=name,
            certificate=lambda: digest,
            counters=counts,
            sleep=pauses.sleep,
            clock=pauses.clock,
        )
        imap = ImapServer(store, authenticator, settings or ImapSettings(), upgrade=starttls(lambda: context))
        imap.forwards(forwarder)
        deliverer = Nowhere() if store is None else StoreDeliverer(store, self.users, mail_bytes_max=64 << 20)
        lmtp = LmtpServer(deliverer, lmtp_settings or LmtpSettings(tls=lambda: context))
        lmtp.forwards(LmtpForwarder(forwarder, lambda: self.users))
        member = Member(name, self.rows, router, forwarder, counts, penalties, imap, lmtp, store)
        await member.listen()
        if tls:
            server = await asyncio.get_running_loop().create_server(
                lambda: imap.connection_factory(tls=True), ADDRESS, 0, ssl=context
            )
            member.tls_port = server.sockets[0].getsockname()[1]
            self.stack.callback(server.close)
        self.stack.push_async_callback(_stop, member)
        return member


async def _stop(member: Member) -> None:
    member.silent()
    for client in member.clients:
        await client.close()
    await member.imap.stop(grace_s=5.0)
    await member.lmtp.stop(grace_s=5.0)
    assert member.counts.open == 0
    assert not member.forwarder.moves, "nothing is watched that has ended"
    assert member.forwarder.waiting.count == 0


@asynccontextmanager
async def cluster(path: Path) -> AsyncIterator[Cluster]:
    """Yield a user database, certificates and rows that all members share."""
    users = path / "users"
    users.write_text("".join(f"{user}:{{PLAIN}}secret::::::\n" for user in USERS))
    async with AsyncExitStack() as stack:
        yield Cluster(Rows(), path, stack, PasswdFile(users, ""), certificate(path / "tls"))


async def until(met: object, within_s: float = 20.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + within_s
    while not met():  # type: ignore[operator]  # a condition is a function without arguments
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)
