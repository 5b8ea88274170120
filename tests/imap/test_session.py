"""Sessions over sockets: order, limits, flow control, time, failures and TLS, as far as
a dialog (tests/dialogs) cannot test them."""

# ruff: noqa: ASYNC110 - the server is watched from outside: there is no event to wait for

import asyncio
import imaplib
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from harness import Client, Passwords, Running, serving, serving_real
from imapclient import IMAPClient
from patience import PATIENT_S

from obox import errors
from obox.auth import AuthFailed, Disabled
from obox.imap import ast, states
from obox.imap.connection import Connection
from obox.imap.replies import ERRORS, of_error
from obox.imap.server import ImapServer
from obox.imap.session import State
from obox.imap.settings import ImapSettings
from obox.store import NewMail
from obox.store.user.mailbox import Mailbox
from obox.types import StorageId

MAIL = b"Subject: a mail\r\n\r\nbody\r\n"


async def fill(running: Running, mails: Sequence[bytes], user: str = "anna", mailbox: str = "INBOX") -> None:
    opened = await running.store.open_user(user, StorageId(user))
    await opened.append(mailbox, [NewMail(mail) for mail in mails])
    await opened.release()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Running]:
    """Yield the real store, for tests that inspect it or replace a part of it."""
    async with serving_real(tmp_path) as running:
        yield running


# -- tables ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_failure_has_words() -> None:
    for kind in errors.KINDS:
        condition, code, text = ERRORS[kind]
        assert condition in ("NO", "BAD")
        assert code
        assert text
        assert of_error(kind()) == (text, code, condition)
        assert of_error(kind("said so")).text == "Said so"
    assert of_error(errors.NotFound(), target=True).code == "TRYCREATE"
    assert of_error(AuthFailed("x")).code == "AUTHENTICATIONFAILED"
    assert of_error(Disabled("x")).code == "AUTHORIZATIONFAILED"


def test_every_command_is_allowed_somewhere() -> None:
    commands = {
        kind for kind in vars(ast).values() if isinstance(kind, type) and issubclass(kind, ast.Command) and kind.NAME
    }
    allowed = {kind for state in State for kind in states.TABLE[state]}
    assert commands - allowed == set()
    for before, after in ((State.AUTHENTICATED, State.SELECTED),):
        assert set(states.TABLE[before]) <= set(states.TABLE[after])
    assert not states.TABLE[State.LOGOUT]


async def test_a_clients_address_chooses_its_settings(tmp_path: Path) -> None:
    """The address comes from the transport or, behind a proxy, from the PROXY header.
    It decides about limits, times, and logins without TLS."""
    usual = ImapSettings(user_sessions_max=1)
    webmail = ImapSettings(user_sessions_max=3, idle_timeout_s=7200.0)

    def settings_of(remote: str) -> ImapSettings:
        return webmail if remote in ("127.0.0.2", "192.0.2.7") else usual

    async with serving(tmp_path, usual, settings_of=settings_of) as running:
        await running.client(login="anna")
        refused = await running.client()
        assert (await refused.cmd("LOGIN anna secret"))[-1].startswith(b"NO [LIMIT]")
        for _ in range(2):
            await running.client(login="anna", address="127.0.0.2")
        refused = await running.client(address="127.0.0.2")
        assert (await refused.cmd("LOGIN anna secret"))[-1].startswith(b"NO [LIMIT]")
        reported = [member for member in running.imap.context.registry if isinstance(member, Connection)]
        times = {member.remote: member.settings.idle_timeout_s for member in reported}
        assert times == {"127.0.0.1": 1800.0, "127.0.0.2": 7200.0}
        behind = running.imap.connection_factory(remote="192.0.2.7")
        assert isinstance(behind, Connection)
        assert behind.settings is usual, "nothing is connected yet"
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: behind, "127.0.0.1", running.port)
        assert behind.settings is webmail
        transport.close()


# -- order and flow ----------------------------------------------------------------------------------------------------


async def test_pipelined_commands_are_answered_in_order(running: Running) -> None:
    client = await running.client(login="anna")
    client.send(b"".join(b"p%d NOOP\r\n" % n for n in range(2000)))
    for n in range(2000):
        assert await client.line() == b"p%d OK Noop completed" % n


async def test_byte_by_byte(running: Running) -> None:
    client = await running.client()
    script = (
        b"a LOGIN {4+}\r\nanna secret\r\nb APPEND INBOX {25+}\r\n"
        + MAIL
        + b"\r\nc SELECT INBOX\r\nd FETCH 1 BODY[]\r\n"
    )
    for at in range(len(script)):
        client.send(script[at : at + 1])
        await client.writer.drain()
        if at % 7 == 0:
            await asyncio.sleep(0)
    lines = await client.until(b"d ")
    assert [line.split()[0] for line in lines if not line.startswith(b"*")] == [b"a", b"b", b"c", b"d"]
    assert lines[-1] == b"d OK Fetch completed"


async def test_a_pipelining_client_is_not_read_further(tmp_path: Path) -> None:
    """While a command waits, the server reads a few more lines. After that it stops
    reading."""
    async with serving(tmp_path, ImapSettings(pipelined_lines_max=4)) as running:
        client = await running.client(login="anna")
        gate = asyncio.Event()
        (connection,) = running.imap.context.registry
        assert isinstance(connection, Connection)
        user = connection.session.user
        assert user is not None

        async def slow(name: str) -> object:
            await gate.wait()
            raise errors.NotFound

        user.status = slow
        try:
            client.send(b"s STATUS INBOX (MESSAGES)\r\n")
            await asyncio.sleep(0.01)
            sent = 0
            for n in range(64):
                client.send(b"n%d NOOP %b\r\n" % (n, b" " * 60_000))
                sent += 60_000
            for _ in range(50):
                await asyncio.sleep(0.002)
            assert not connection.reading
            assert connection.parser.buffered < 1 << 20 < sent
        finally:
            gate.set()
            del user.status
        assert (await client.until(b"n63 "))[-1].startswith(b"n63 OK")


async def test_a_slow_client_bounds_memory_and_holds_nobody(tmp_path: Path) -> None:
    settings = ImapSettings(write_buffer_max=1 << 17)
    async with serving(tmp_path, settings) as running:
        mails = [b"Subject: %d\r\n\r\n" % n + b"x" * 200_000 for n in range(60)]
        await fill(running, mails)
        await fill(running, [b"Subject: big\r\n\r\n" + b"y" * 5_000_000])
        slow = await running.client(login="anna")
        (connection,) = running.imap.context.registry
        assert isinstance(connection, Connection)
        await slow.ok("SELECT INBOX")
        slow.writer.transport.pause_reading()
        slow.send(b"f FETCH 1:* BODY.PEEK[]\r\n")
        other = await running.client(login="anna")
        for _ in range(20):
            await other.ok("SELECT INBOX")
            await other.ok("STORE 1:* +FLAGS (\\Flagged)")
            await asyncio.sleep(0.005)
            assert connection.gathered_bytes <= 2 * 200_200
            assert connection.unsent_bytes - connection.gathered_bytes <= (1 << 17) + 2 * 200_200
        slow.writer.transport.resume_reading()
        lines = await slow.until(b"f ")
        assert lines[-1] == b"f OK Fetch completed"
        bodies = [line for line in lines if b"FETCH (BODY[]" in line]
        assert len(bodies) == 61
        assert bodies[59].endswith(mails[59] + b")")
        assert len(bodies[60]) > 5_000_000


async def test_a_client_that_never_reads_is_cut(tmp_path: Path) -> None:
    settings = ImapSettings(write_buffer_max=1 << 16, write_timeout_s=0.2)
    async with serving(tmp_path, settings) as running:
        await fill(running, [b"Subject: %d\r\n\r\n" % n + b"x" * 500_000 for n in range(40)])
        slow = await running.client(login="anna")
        await slow.ok("SELECT INBOX")
        slow.writer.transport.pause_reading()
        slow.send(b"f FETCH 1:* BODY.PEEK[]\r\n")
        async with asyncio.timeout(PATIENT_S):
            while running.imap.who():
                await asyncio.sleep(0.02)


async def test_the_client_goes_away_in_the_middle(real: Running) -> None:
    await fill(real, [MAIL] * 3)
    client = await real.client(login="anna")
    client.send(b"a SELECT INBOX\r\nb FETCH 1:* BODY[]\r\nc STORE 1:* +FLAGS (\\Deleted)\r\nd EXP")
    await client.close()
    async with asyncio.timeout(PATIENT_S):
        while real.imap.who():
            await asyncio.sleep(0.01)
    (user,) = real.store.users.values()
    assert user.sessions == 0
    assert all(box.sessions == 0 and not box.watchers for box in user.boxes.values())


async def test_end_of_input_is_not_the_end_of_answers(running: Running) -> None:
    client = await running.client()
    client.send(b"a LOGIN anna secret\r\nb SELECT INBOX\r\nc STATUS Sent (MESSAGES)\r\n")
    client.writer.write_eof()
    assert (await client.until(b"c "))[-1] == b"c OK Status completed"
    assert await client.line() == b""


# -- idle --------------------------------------------------------------------------------------------------------------


async def test_an_idle_session_has_no_task_and_little_memory(running: Running) -> None:
    await fill(running, [MAIL] * 100)

    class Transport(asyncio.Transport):
        """A bare transport, so that the costs of sockets are not counted."""

        def __init__(self) -> None:
            super().__init__({"peername": ("127.0.0.1", 1)})
            self.tail = b""

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.tail = bytes(data[-60:])

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            pass

        def close(self) -> None:
            asyncio.get_running_loop().call_soon(protocol.connection_lost, None)

        def abort(self) -> None:
            self.close()

    async def idle() -> tuple[Connection, Transport]:
        transport = Transport()
        connection = running.imap.connection_factory(tls=True)
        assert isinstance(connection, Connection)
        connection.connection_made(transport)
        connection.data_received(b"a LOGIN anna secret\r\nb SELECT INBOX\r\nc IDLE\r\n")
        while not transport.tail.endswith(b"+ idling\r\n"):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return connection, transport

    protocol, _ = await idle()
    count = 40
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        held = [await idle() for _ in range(count)]
        each = (tracemalloc.get_traced_memory()[0] - start) / count
    finally:
        tracemalloc.stop()
    # The end of a task is noticed some turns of the loop later.
    for _ in range(100):
        await asyncio.sleep(0)
    assert not running.imap.hub.tasks
    assert each < 8192, each
    await fill(running, [MAIL])
    # In each round of the loop a single session of a user has its turn.
    async with asyncio.timeout(PATIENT_S):
        while not all(transport.tail.endswith(b"RECENT\r\n") for _, transport in held):
            await asyncio.sleep(0)
    for connection, _ in [*held, (protocol, None)]:
        connection.connection_lost(None)
    async with asyncio.timeout(PATIENT_S):
        while running.imap.who():
            await asyncio.sleep(0)


async def test_many_changes_at_once_are_reported_together(running: Running) -> None:
    watcher = await running.client(login="anna")
    await watcher.ok("SELECT INBOX")
    watcher.send(b"i IDLE\r\n")
    await watcher.line()
    await fill(running, [MAIL] * 50)
    lines = await watcher.until(b"* 50 RECENT")
    assert b"* 50 EXISTS" in lines
    assert len(lines) <= 50


# -- time --------------------------------------------------------------------------------------------------------------


async def test_login_timeout(tmp_path: Path) -> None:
    async with serving(tmp_path, ImapSettings(login_timeout_s=0.05)) as running:
        client = await running.client()
        assert await client.line() == b"* BYE Login timeout"
        assert await client.line() == b""


async def test_autologout_and_keepalive(tmp_path: Path) -> None:
    async with serving(tmp_path, ImapSettings(idle_timeout_s=0.15, keepalive_s=0.03)) as running:
        idle = await running.client(login="anna")
        idle.send(b"i IDLE\r\n")
        assert await idle.line() == b"+ idling"
        quiet = await running.client(login="anna")
        for _ in range(10):
            assert await idle.line() == b"* OK Still here"
        assert (await quiet.line()).startswith(b"* BYE Autologout")
        idle.send(b"DONE\r\n")
        assert (await idle.until(b"i "))[-1] == b"i OK Idle completed"
        assert (await idle.line()).startswith(b"* BYE Autologout")


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_sessions_of_a_user(tmp_path: Path) -> None:
    async with serving(tmp_path, ImapSettings(user_sessions_max=2)) as running:
        first = await running.client(login="anna")
        await running.client(login="anna")
        third = await running.client()
        assert (await third.cmd("LOGIN anna secret"))[-1].startswith(b"NO [LIMIT]")
        assert (await third.cmd("LOGIN ben secret"))[-1].startswith(b"OK")
        await first.ok("LOGOUT")
        assert await first.line() == b""
        fourth = await running.client()
        async with asyncio.timeout(PATIENT_S):
            while not (await fourth.cmd("LOGIN anna secret"))[-1].startswith(b"OK"):
                await asyncio.sleep(0.01)


async def test_connections_from_an_address_and_plaintext_from_afar(tmp_path: Path) -> None:
    async with serving(tmp_path, ImapSettings(address_sessions_max=1)) as running:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: running.imap.connection_factory(remote="192.0.2.7"), "127.0.0.1", 0)
        try:
            port = listener.sockets[0].getsockname()[1]
            far = Client(*await asyncio.open_connection("127.0.0.1", port))
            running.clients.append(far)
            assert b"LOGINDISABLED" in await far.line()
            assert (await far.cmd("LOGIN anna secret"))[-1].startswith(b"NO [PRIVACYREQUIRED]")
            assert (await far.cmd("AUTHENTICATE PLAIN"))[-1].startswith(b"NO [PRIVACYREQUIRED]")
            second = Client(*await asyncio.open_connection("127.0.0.1", port))
            running.clients.append(second)
            assert await second.line() == b"* BYE [LIMIT] Too many connections from your address"
            assert [who.remote for who in running.imap.who()] == ["192.0.2.7"]
        finally:
            listener.close()


async def test_too_many_bad_commands(tmp_path: Path) -> None:
    async with serving(tmp_path, ImapSettings(bad_commands_max=3)) as running:
        client = await running.client()
        for _ in range(2):
            client.send(b"GET / HTTP/1.1\r\n")
        await client.ok("NOOP")
        for _ in range(3):
            client.send(b"GET / HTTP/1.1\r\n")
        assert (await client.until(b"* BYE"))[-1] == b"* BYE Too many bad commands"
        assert await client.line() == b""


async def test_too_many_failed_logins(tmp_path: Path) -> None:
    """In both commands, whatever comes in between."""
    async with serving(tmp_path, ImapSettings(bad_logins_max=3)) as running:
        client = await running.client()
        assert (await client.cmd("LOGIN anna wrong"))[-1].startswith(b"NO [AUTHENTICATIONFAILED]")
        await client.ok("NOOP")
        assert (await client.cmd("LOGIN gone secret"))[-1].startswith(b"NO [AUTHORIZATIONFAILED]")
        client.send(b"a AUTHENTICATE PLAIN AGFubmEAeA==\r\n")
        lines = await client.until(b"* BYE")
        assert lines[0].startswith(b"a NO [AUTHENTICATIONFAILED]")
        assert lines[-1] == b"* BYE Too many failed logins"
        assert await client.line() == b""


async def test_literals_beyond_all_limits(tmp_path: Path) -> None:
    async with serving(tmp_path, ImapSettings(mail_bytes_max=1000)) as running:
        client = await running.client(login="anna")
        client.send(b"a APPEND INBOX {1001}\r\n")
        assert (await client.line()).startswith(b"a NO [TOOBIG]")
        client.send(b"b APPEND INBOX {1001+}\r\n" + b"x" * 1001 + b"\r\n")
        assert (await client.line()).startswith(b"b NO [TOOBIG]")
        client.send(b"c APPEND INBOX {99999999999+}\r\n")
        assert (await client.line()).startswith(b"* BYE")
        assert await client.line() == b""


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_bug_is_no_end(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(states.TABLE[State.AUTHENTICATED], ast.Namespace, broken)
    client = await running.client(login="anna")
    assert (await client.cmd("NAMESPACE"))[-1].startswith(b"NO [SERVERBUG]")
    await client.ok("NOOP")


async def test_a_damaged_mail_does_not_hide_the_others(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(real, [b"Subject: %d\r\n\r\n%d" % (n, n) for n in range(1, 6)])
    client = await real.client(login="anna")
    await client.ok("SELECT INBOX")
    whole = Mailbox.mails

    async def lossy(self: Mailbox, uids: Sequence[int], **more: bool) -> AsyncIterator[tuple[int, object]]:
        wrong = {2: errors.NotFound("lost"), 4: errors.Corrupt("damaged")}
        async for uid, mail in whole(self, uids, **more):
            yield uid, wrong.get(uid, mail)

    monkeypatch.setattr(Mailbox, "mails", lossy)
    lines = await client.cmd("FETCH 1:* BODY.PEEK[TEXT]")
    assert [line.split()[1] for line in lines[:-1]] == [b"1", b"3", b"5"]
    assert lines[-1] == b"NO [CORRUPTION] Mails of UID 2,4 are damaged or lost"


async def test_mail_can_be_read_while_nothing_can_be_changed(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(real, [MAIL])
    client = await real.client(login="anna")
    await client.ok("SELECT INBOX")

    async def refuse(*_: object, **__: object) -> None:
        raise errors.Unavailable("the storage does not answer")

    monkeypatch.setattr(Mailbox, "store_flags", refuse)
    assert await client.cmd("FETCH 1 BODY[TEXT]") == [b"* 1 FETCH (BODY[TEXT] {6}\r\nbody\r\n)", b"OK Fetch completed"]
    assert (await client.cmd("STORE 1 +FLAGS (\\Seen)"))[-1] == b"NO [UNAVAILABLE] The storage does not answer"


@pytest.mark.parametrize("size", [1, 65_536, 1_048_576, 5_000_001])
async def test_byte_for_byte(running: Running, size: int) -> None:
    """The mails have NUL, 8-bit characters, bare CR and bare LF, and one mail is
    streamed."""
    odd = bytes(range(256)) + b"\r\r\n\n"
    mail = (odd * (size // len(odd) + 1))[:size]
    client = await running.client(login="anna")
    await client.append("INBOX", mail)
    await client.ok("SELECT INBOX")
    (line, _) = await client.ok("FETCH 1 (UID BODY.PEEK[] RFC822.SIZE)")
    assert line == b"* 1 FETCH (UID 1 RFC822.SIZE %d BODY[] {%d}\r\n%b)" % (size, size, mail)
    lines = await client.ok("FETCH 1 (BODY[]<10.70000>)")
    part = mail[10:70_010]
    value = b"{%d}\r\n%b" % (len(part), part) if part else b'""'
    assert lines[0] == b"* 1 FETCH (FLAGS (\\Seen \\Recent) BODY[]<10> " + value + b")"


# -- the server --------------------------------------------------------------------------------------------------------


async def test_who_kick_stop(running: Running) -> None:
    anna = await running.client(login="anna")
    ben = await running.client(login="ben")
    await ben.ok("SELECT INBOX")
    ben.send(b"i IDLE\r\n")
    await ben.line()
    who = running.imap.who()
    assert [(one.user, one.state, one.mailbox, one.idle) for one in who] == [
        ("anna", "authenticated", "", False),
        ("ben", "selected", "INBOX", True),
    ]
    assert running.imap.kick("anna") == 1
    assert (await anna.line()).startswith(b"* BYE Disconnected")
    assert await anna.line() == b""
    await running.imap.stop()
    assert (await ben.line()).startswith(b"* BYE Server is shutting down")
    assert await ben.line() == b""
    late = await running.client()
    assert await late.line() == b""
    assert running.imap.who() == []


async def test_stop_while_the_answer_is_handed_over(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await running.client(login="anna")
    plain = Connection.flush

    async def flush(connection: Connection) -> None:
        await plain(connection)
        connection.stop("Server is shutting down")

    monkeypatch.setattr(Connection, "flush", flush)
    client.send(b"a NOOP\r\n")
    assert await client.line() == b"a OK Noop completed"
    assert (await client.line()).startswith(b"* BYE Server is shutting down")
    assert await client.line() == b""


async def test_stop_waits_for_the_command_in_progress(running: Running) -> None:
    client = await running.client(login="anna")
    client.send(b"a APPEND INBOX {25+}\r\n" + MAIL + b"\r\nb NOOP\r\n")
    (connection,) = running.imap.context.registry
    assert isinstance(connection, Connection)
    while connection.session.commands < 2:
        await asyncio.sleep(0)
    await running.imap.stop()
    assert (await client.line()).startswith(b"a OK [APPENDUID")
    assert (await client.until(b"* BYE"))[-1].startswith(b"* BYE")


# -- real clients ------------------------------------------------------------------------------------------------------


async def test_imaplib(running: Running) -> None:
    def talk() -> None:
        with imaplib.IMAP4("127.0.0.1", running.port, timeout=PATIENT_S) as imap:
            assert imap.login("anna", "secret")[0] == "OK"
            assert imap.append("INBOX", "(\\Seen)", imaplib.Time2Internaldate(0), MAIL)[0] == "OK"
            assert imap.select("INBOX") == ("OK", [b"1"])
            assert imap.search(None, "SEEN") == ("OK", [b"1"])
            status, found = imap.fetch("1", "(BODY[])")
            assert status == "OK"
            assert found[0] == (b"1 (BODY[] {%d}" % len(MAIL), MAIL)
            assert imap.store("1", "+FLAGS", "(\\Deleted)")[0] == "OK"
            assert imap.expunge() == ("OK", [b"1"])

    await asyncio.to_thread(talk)


async def test_imapclient(running: Running) -> None:
    def talk() -> None:
        with IMAPClient("127.0.0.1", running.port, ssl=False, timeout=PATIENT_S) as imap:
            imap.login("ben", "secret")
            assert "obox" in str(imap.id_({"name": "test"}))
            assert imap.namespace().personal == (("", "/"),)
            imap.create_folder("Café & Ko")
            assert "Café & Ko" in [name for _, _, name in imap.list_folders()]
            imap.append("Café & Ko", MAIL, flags=["\\Flagged"])
            assert imap.select_folder("Café & Ko")[b"EXISTS"] == 1
            (uid,) = imap.search(["SUBJECT", "mail"])
            found = imap.fetch([uid], ["ENVELOPE", "FLAGS", "INTERNALDATE", "BODYSTRUCTURE"])[uid]
            assert found[b"ENVELOPE"].subject == b"a mail"
            assert b"\\Flagged" in found[b"FLAGS"]
            imap.idle()
            assert imap.idle_check(timeout=0.01) == []
            imap.idle_done()
            imap.move([uid], "Trash")
            assert imap.folder_status("Trash", ["MESSAGES"])[b"MESSAGES"] == 1
            imap.close_folder()
            imap.delete_folder("Café & Ko")

    await asyncio.to_thread(talk)


async def test_quota_and_users_come_from_the_account(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        server = running.imap
        assert isinstance(server, ImapServer)
        authenticator = server.context.authenticator
        assert isinstance(authenticator, Passwords)
        from obox.accounts import Quota

        authenticator.quota = Quota(storage_bytes=100, messages=None)
        client = await running.client(login="anna")
        await client.append("INBOX", MAIL)
        lines = await client.cmd(b"APPEND INBOX {200+}\r\n" + b"x" * 200)
        assert lines[-1].startswith(b"NO [OVERQUOTA]")
