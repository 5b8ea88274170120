"""What a session held is freed as soon as it ends, and what it may hold is bounded.

The tests count bytes and references. The collector is off, so reference counts alone
have to free everything. Bytes are those that Python has allocated (tracemalloc), so
that neither the allocator nor the bucket in memory count.
"""

import asyncio
import gc
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import ref

import pytest
from certificates import certificate

from obox.errors import Temporary
from obox.imap.connection import Connection
from obox.imap.intake import MAIL_MEMORY_BYTES, SESSION_MEMORY_BYTES, Intake
from obox.imap.settings import ImapSettings
from obox.login import starttls
from tests.imap.harness import DEADLINE_S, Client, Running, serving_real

MIB = 1 << 20
BACK_BYTES_MAX = 10 * MIB
LARGE = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * (50 * MIB // 16 - 4)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect(1)  # young objects: all objects of a large test process take a second
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving_real(tmp_path, ImapSettings(spool_dir=tmp_path / "spool")) as running:
        yield running


class Used:
    bytes = 0
    most = 0


@contextmanager
def traced() -> Iterator[Used]:
    """Measure how many bytes more are allocated at the end than at the start, and at
    the most."""
    found = Used()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield found
        now, most = tracemalloc.get_traced_memory()
        found.bytes, found.most = now - before, most - before
    finally:
        tracemalloc.stop()


def members(running: Running) -> list[Connection]:
    return [member for member in running.imap.context.registry if isinstance(member, Connection)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - nothing in the server says so
            await asyncio.sleep(0.005)


async def gone(running: Running) -> None:
    """Wait until the server has noticed that its clients have disconnected."""
    await until(lambda: not len(running.imap.context.registry) and not running.imap.hub.tasks)
    # The transport calls its callbacks in later turns.
    await asyncio.sleep(0.02)


async def send(client: Client, data: bytes, size: int = 1 << 40) -> None:
    for at in range(0, min(len(data), size), MIB):
        client.writer.write(data[at : at + MIB])
        await client.writer.drain()


# -- it comes back -----------------------------------------------------------------------------------------------------


async def test_an_append_that_is_cut_gives_its_memory_back(running: Running) -> None:
    """A mail of 50 MB arrives, and then half of another. The session holds little while
    they arrive, and nothing at the end."""
    with traced() as used:
        for _ in range(2):
            client = await running.client(login="anna")
            client.send(b"a APPEND INBOX {%d+}\r\n" % len(LARGE))
            await send(client, LARGE)
            client.send(b"\r\n")
            assert (await client.line()).startswith(b"a OK")
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            client.send(b"b APPEND INBOX {%d+}\r\n" % len(LARGE))
            await send(client, LARGE, len(LARGE) // 2)
            await client.close()
            running.clients.remove(client)
            await gone(running)
            assert tracemalloc.get_traced_memory()[1] - before < 8 * MIB
    assert used.bytes < BACK_BYTES_MAX
    context = running.imap.context
    assert (context.intake.memory.used, context.intake.disk.used) == (0, 0)


async def _end(way: str, running: Running, client: Client) -> None:
    if way == "logout":
        client.send(b"z LOGOUT\r\n")
        await client.until(b"z ")
    elif way == "kick":
        assert running.imap.kick("anna") == 1
        await client.line()
    elif way == "abort":
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    elif way == "server abort":
        members(running)[0].abort()
    elif way == "eof":
        client.writer.write_eof()
        while await client.line():
            pass
    elif way == "bad commands":
        client.send(b"x y\r\n" * 20)
        while await client.line():
            pass
    elif way == "literal beyond all limits":
        client.send(b"x SELECT {99999999999+}\r\n")
        while await client.line():
            pass


STATES = {
    "new": [],
    "logged in": [b"a LOGIN anna secret\r\n"],
    "selected": [b"a LOGIN anna secret\r\n", b"a SELECT INBOX\r\n"],
    "idle": [b"a LOGIN anna secret\r\n", b"a SELECT INBOX\r\n", b"b IDLE\r\n"],
    "sasl": [b"b AUTHENTICATE PLAIN\r\n"],
    "in a literal": [b"a LOGIN anna secret\r\n", b"b APPEND INBOX {900000}\r\n"],
    "in a spooled literal": [b"a LOGIN anna secret\r\n", b"b APPEND INBOX (\\Seen) {9000000}\r\n"],
}
WAYS = ["close", "logout", "kick", "abort", "server abort", "eof", "bad commands", "literal beyond all limits"]


CUT = ["close", "abort", "server abort", "eof"]
"""The ways to end a session in the middle of a command. The other ways are commands, or
need a user."""
CASES = [(state, way) for state in ("logged in", "selected") for way in WAYS]
CASES += [("new", way) for way in WAYS if way != "kick"]
CASES += [(state, way) for state in STATES if state not in ("new", "logged in", "selected") for way in CUT]
CASES.append(("idle", "kick"))


@pytest.mark.parametrize(("state", "way"), CASES)
async def test_reference_counts_free_a_session(running: Running, state: str, way: str) -> None:
    client = await running.client()
    for line in STATES[state]:
        client.send(line)
        await client.until(b"+ " if line.startswith(b"b ") else line[:2])
    if state.startswith("in a"):
        client.send(b"x" * 600_000)
    (connection,) = members(running)
    watched = [ref(connection), ref(connection.parser)]
    del connection
    await _end(way, running, client)
    await client.close()
    running.clients.remove(client)
    await gone(running)
    assert [one() for one in watched] == [None, None]


async def test_a_connection_that_is_refused_is_freed(tmp_path: Path) -> None:
    async with serving_real(tmp_path, ImapSettings(address_sessions_max=1)) as running:
        made: list[ref[object]] = []
        plain = running.imap.connection_factory
        listener = await asyncio.get_running_loop().create_server(
            lambda: made.append(ref(one := plain(remote="192.0.2.1"))) or one,
            "127.0.0.1",
            0,
        )
        port = listener.sockets[0].getsockname()[1]
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        lines = [await reader.readline() for reader, _ in streams]
        assert sum(b"BYE [LIMIT]" in line for line in lines) == 2
        for _, writer in streams:
            writer.close()
        await gone(running)
        listener.close()
        assert [one() for one in made] == [None] * 3


@pytest.mark.parametrize("way", ["close", "abort"])
async def test_a_session_under_tls_is_freed(tmp_path: Path, way: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    async with serving_real(
        tmp_path, ImapSettings(spool_dir=tmp_path / "spool"), upgrade=starttls(lambda: context)
    ) as running:
        client = await running.client()
        client.send(b"s STARTTLS\r\n")
        assert (await client.line()).startswith(b"s OK")
        await client.writer.start_tls(trusting)
        await client.ok("LOGIN anna secret")
        client.send(b"b APPEND INBOX {9000000}\r\n")
        await client.line()
        client.send(b"x" * 600_000)
        (connection,) = members(running)
        watched = [ref(connection), ref(connection.parser)]
        del connection
        await _end(way, running, client)
        await client.close()
        running.clients.remove(client)
        await gone(running)
        assert [one() for one in watched] == [None, None]
        assert running.imap.context.intake.disk.used == 0


async def test_a_command_that_fails_holds_nothing(running: Running) -> None:
    client = await running.client(login="anna")
    intake = running.imap.context.intake
    mail = b"x" * (2 * MIB)
    for command in (b"APPEND nowhere", b"APPEND INBOX (", b'APPEND INBOX "x"', b"APPEND INBOX (\\Nonsense)"):
        client.send(b"a %b {%d+}\r\n" % (command, len(mail)))
        await send(client, mail)
        client.send(b" {5+}\r\nhello\r\n")
        assert not (await client.until(b"a "))[-1].startswith(b"a OK")
        await client.ok("NOOP")
        assert (intake.memory.used, intake.disk.used) == (0, 0), command


@pytest.mark.parametrize("begun", [b"a APPEND INBOX {9000000}\r\n", b"a SELECT {900+}\r\nx", b"a SEL"])
async def test_a_command_that_does_not_end(tmp_path: Path, begun: bytes) -> None:
    """A client that stops in the middle of a command is disconnected long before the
    autologout. Its session then holds nothing."""
    async with serving_real(tmp_path, ImapSettings(read_timeout_s=0.2, spool_dir=tmp_path / "spool")) as running:
        quiet = await running.client(login="anna")
        await quiet.ok("SELECT INBOX")
        client = await running.client(login="anna")
        client.send(begun)
        if begun.endswith(b"0}\r\n"):
            await client.line()
            client.send(b"x" * 600_000)
        assert await client.line() == b"* BYE Timeout in the middle of a command"
        assert await client.line() == b""
        await client.close()
        await until(lambda: len(running.imap.context.registry) == 1)
        assert running.imap.context.intake.disk.used == 0
        await quiet.ok("NOOP")


# -- budgets -----------------------------------------------------------------------------------------------------------


async def test_mails_come_back_from_the_file_as_they_were(running: Running) -> None:
    """MULTIAPPEND sends small and large mails. The mails beyond the session's memory
    are read back from a file, one after the other."""
    client = await running.client(login="anna")
    mails = [bytes([65 + i]) * size for i, size in enumerate([10, MIB + 1, MIB, MIB, 3 * MIB, MIB, MIB, 700_000, 5])]
    assert sum(len(mail) for mail in mails if len(mail) <= MAIL_MEMORY_BYTES) > SESSION_MEMORY_BYTES
    client.send(b"a APPEND INBOX" + b"".join(b" {%d+}\r\n%b" % (len(mail), mail) for mail in mails) + b"\r\n")
    assert b"APPENDUID" in (await client.until(b"a "))[-1]
    await client.ok("SELECT INBOX")
    for seq, mail in enumerate(mails, 1):
        (line, _) = await client.ok(b"FETCH %d BODY.PEEK[]" % seq)
        assert line.endswith(b"{%d}\r\n%b)" % (len(mail), mail))
    intake = running.imap.context.intake
    assert (intake.memory.used, intake.disk.used) == (0, 0)


async def test_a_users_and_the_servers_share(tmp_path: Path) -> None:
    """The user's mails use memory, then files, and then are refused. Another user still
    has room."""
    settings = ImapSettings(append_memory_max=8 * MIB, append_spool_max=40 * MIB, spool_dir=tmp_path / "spool")
    async with serving_real(tmp_path, settings) as running:
        intake = running.imap.context.intake
        clients = [await running.client(login="anna") for _ in range(4)]
        for client in clients:
            client.send(b"a APPEND INBOX {1000000}\r\n")
            assert (await client.line()).startswith(b"+ ")
            client.send(b"x" * 999_999)
        await until(lambda: intake.disk.used == 2 * 999_999)
        assert intake.memory.used == 2_000_000
        late = await running.client(login="anna")
        assert (await late.cmd("APPEND INBOX {9500000}"))[-1].startswith(b"NO [LIMIT]")
        other = await running.client(login="ben")
        other.send(b"a APPEND INBOX {9500000}\r\n")
        assert (await other.line()).startswith(b"+ ")
        for client in clients:
            client.send(b"x\r\n")
            assert (await client.until(b"a "))[-1].startswith(b"a OK")


async def test_all_users_share_the_servers_budget(tmp_path: Path) -> None:
    """Each of four users has a quarter. A fifth user has nothing left, neither in
    memory nor in files, until one of the four has ended."""
    settings = ImapSettings(append_memory_max=4 * MIB, append_spool_max=4 * MIB, spool_dir=tmp_path / "spool")
    async with serving_real(tmp_path, settings) as running:
        intake = running.imap.context.intake
        held = []
        for user in ("a", "b", "c", "d"):
            for _ in range(2):
                # The first is in memory, the second in a file.
                held.append(intake.incoming(user))
                assert held[-1].admit(MIB)
                if held[-1].spooling:
                    held[-1].add(b"x" * MIB)
        assert (intake.memory.used, intake.disk.used) == (4 * MIB, 4 * MIB)
        client = await running.client(login="anna")
        assert (await client.cmd("APPEND INBOX {100000}"))[-1].startswith(b"NO [LIMIT]")
        held.pop().close()
        client.send(b"a APPEND INBOX {100000}\r\n")
        assert (await client.line()).startswith(b"+ ")


async def test_bytes_beyond_the_budget_are_dropped_and_reported(tmp_path: Path) -> None:
    """Two mails were admitted at the same time and do not fit together. The later mail
    is answered NO [LIMIT]."""
    settings = ImapSettings(append_spool_max=40 * MIB, spool_dir=tmp_path / "spool")
    async with serving_real(tmp_path, settings) as running:
        first, second = [await running.client(login="anna") for _ in range(2)]
        for client in (first, second):
            client.send(b"a APPEND INBOX {%d}\r\n" % (8 * MIB))
            assert (await client.line()).startswith(b"+ ")
        await send(first, b"x" * (8 * MIB - 1))
        await until(lambda: running.imap.context.intake.disk.used == 8 * MIB - 1)
        await send(second, b"x" * (8 * MIB))
        second.send(b"\r\n")
        assert (await second.until(b"a "))[-1].startswith(b"a NO [LIMIT]")
        await second.ok("NOOP")
        assert running.imap.context.intake.disk.used == 8 * MIB - 1
        first.send(b"x\r\n")
        assert (await first.until(b"a "))[-1].startswith(b"a OK")


async def test_a_disk_that_fails(running: Running, tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"no directory")
    client = await running.client(login="anna")
    client.send(b"a APPEND INBOX {%d+}\r\n%b\r\n" % (2 * MIB, b"x" * (2 * MIB)))
    assert (await client.until(b"a "))[-1].startswith(b"a NO [UNAVAILABLE]")
    await client.ok("NOOP")
    assert await client.append("INBOX", b"small")


async def test_a_mail_that_cannot_be_read_back_leaves_the_mailbox_whole(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail in the middle of a MULTIAPPEND cannot be read back. No mail of it is
    stored, and the next APPEND works."""
    from obox.imap.intake import Incoming

    plain = Incoming.read

    async def read(self: Incoming, start: int, size: int) -> bytes:
        if start:
            assert self._spool is not None
            self._spool.failed = True
            raise Temporary("the disk is gone")
        return await plain(self, start, size)

    client = await running.client(login="anna")
    monkeypatch.setattr(Incoming, "read", read)
    mail = b"x" * (2 * MIB)
    client.send(b"a APPEND INBOX {%d+}\r\n%b {%d+}\r\n%b\r\n" % (len(mail), mail, len(mail), mail))
    assert (await client.until(b"a "))[-1].startswith(b"a NO [UNAVAILABLE]")
    monkeypatch.undo()
    await client.append("INBOX", b"small")
    assert b"* 1 EXISTS" in await client.ok("SELECT INBOX")


async def test_large_mails_wait_for_each_other_and_a_user_has_half() -> None:
    intake = Intake(None, 100, 100)
    order: list[str] = []
    go = asyncio.Event()

    async def one(user: str) -> None:
        # The mail uses 40 octets with its copy.
        async with intake.reading(user, 20):
            order.append(user)
            await go.wait()

    tasks = [asyncio.ensure_future(one("anna")) for _ in range(3)]
    await asyncio.sleep(0)
    tasks.append(asyncio.ensure_future(one("ben")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == ["anna", "ben"]
    go.set()
    await asyncio.gather(*tasks)
    assert sorted(order) == ["anna", "anna", "anna", "ben"]


@pytest.mark.parametrize(("selects", "bytes_max"), [(False, 1_280), (True, 1_900)])
async def test_an_idle_session_is_small(tmp_path: Path, selects: bool, bytes_max: int) -> None:
    """The test counts allocations of obox's own code for a session in IDLE. It leaves
    out the transport and the timer, which are asyncio's."""
    count = 50
    async with serving_real(tmp_path, ImapSettings(user_sessions_max=0, address_sessions_max=0)) as running:

        async def idle() -> None:
            client = await running.client(login="anna")
            if selects:
                await client.ok("SELECT INBOX")
            client.send(b"x IDLE\r\n")
            assert await client.line() == b"+ idling"

        for _ in range(5):
            await idle()
        gc.collect()
        tracemalloc.start(1)
        try:
            for _ in range(count):
                await idle()
            gc.collect()
            filters = (tracemalloc.Filter(True, "*/obox/*.py"), tracemalloc.Filter(False, "*/tests/*"))
            taken = tracemalloc.take_snapshot().filter_traces(filters)
        finally:
            tracemalloc.stop()
        assert sum(trace.size for trace in taken.traces) / count <= bytes_max
