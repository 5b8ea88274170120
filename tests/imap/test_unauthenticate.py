"""UNAUTHENTICATE over a socket, RFC 8437: nothing of the user is left."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Client, Running, serving
from structlog.testing import capture_logs

from obox.imap.connection import Connection
from obox.imap.settings import ImapSettings
from obox.store.memory import MemoryStore

MAIL = b"Subject: a mail\r\n\r\nhello\r\n"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running[MemoryStore]]:
    async with serving(tmp_path) as running:
        yield running


async def words(client: Client) -> list[bytes]:
    return (await client.ok("CAPABILITY"))[0].split()


def connection(running: Running[MemoryStore]) -> Connection:
    (found,) = running.imap.context.registry
    assert isinstance(found, Connection)
    return found


async def test_the_next_user_inherits_nothing(running: Running[MemoryStore]) -> None:
    client = await running.client()
    before = await words(client)
    assert b"UNAUTHENTICATE" not in before
    await client.ok("LOGIN anna secret")
    assert b"UNAUTHENTICATE" in await words(client)
    for _ in range(2):
        await client.append("INBOX", MAIL)
    await client.ok("ENABLE QRESYNC")
    await client.ok("SELECT INBOX")
    await client.ok("SEARCH RETURN (SAVE) ALL")
    assert await client.cmd("UNAUTHENTICATE") == [b"OK Unauthenticated"]
    assert await words(client) == before
    assert (await client.cmd("SELECT INBOX"))[-1].startswith(b"BAD ")
    assert (await client.cmd("UNAUTHENTICATE"))[-1].startswith(b"BAD ")
    (who,) = running.imap.who()
    assert (who.user, who.state, who.mailbox) == ("", "not authenticated", "")

    await client.ok("LOGIN ben secret")
    assert b"* STATUS INBOX (MESSAGES 0)" in await client.ok("STATUS INBOX (MESSAGES)")
    assert (await client.cmd("FETCH 1 FLAGS"))[-1].startswith(b"BAD ")
    await client.append("INBOX", MAIL)
    await client.ok("SELECT INBOX")
    assert (await client.ok("UID FETCH $ UID"))[:-1] == []
    assert (await client.ok("STORE 1 +FLAGS (\\Seen)"))[0].endswith(b"FETCH (FLAGS (\\Seen \\Recent))")
    assert (await client.cmd("UID FETCH 1 UID (CHANGEDSINCE 1 VANISHED)"))[-1].startswith(b"BAD ")


async def test_it_may_be_pipelined(running: Running[MemoryStore]) -> None:
    client = await running.client(login="anna")
    await client.append("INBOX", MAIL)
    client.send(
        b"a SELECT INBOX\r\nb UNAUTHENTICATE\r\nc APPEND INBOX {5}\r\n"
        b"d AUTHENTICATE PLAIN AGJlbgBzZWNyZXQ=\r\ne STATUS INBOX (MESSAGES)\r\nf UNAUTHENTICATE\r\n"
    )
    lines = await client.until(b"f ")
    tagged = {line[:1]: line[2:] for line in lines if line[1:2] == b" " and line[:1] not in b"*+"}
    assert tagged[b"c"] == b"BAD APPEND needs a login first"
    assert all(tagged[tag].startswith(b"OK ") for tag in (b"a", b"b", b"d", b"e", b"f"))
    assert b"* STATUS INBOX (MESSAGES 0)" in lines


async def test_the_limits_of_a_login_hold_again(tmp_path: Path) -> None:
    async with serving(tmp_path, ImapSettings(user_sessions_max=1)) as running:
        client = await running.client(login="anna")
        mine = connection(running)
        assert mine.parser.limits is mine.settings.limits
        await client.ok("UNAUTHENTICATE")
        assert mine.parser.limits is mine.settings.anonymous_limits
        assert mine.parser.intake is None
        assert mine.timer_due(100.0) is None
        assert mine.ended == "login timeout"
        await running.client(login="anna")


async def test_failed_logins_are_counted_over_all_users(tmp_path: Path) -> None:
    async with serving(tmp_path, ImapSettings(bad_logins_max=2)) as running:
        client = await running.client()
        await client.cmd("LOGIN anna wrong")
        await client.ok("LOGIN anna secret")
        await client.ok("UNAUTHENTICATE")
        await client.cmd("LOGIN anna wrong")
        assert (await client.line()).startswith(b"* BYE ")


async def test_a_member_that_speaks_for_a_client_cannot_give_it_up(running: Running[MemoryStore]) -> None:
    client = await running.client(login="anna")
    connection(running).speak_for("192.0.2.1", tls=True)
    assert b"UNAUTHENTICATE" not in await words(client)
    assert (await client.cmd("UNAUTHENTICATE"))[-1].startswith(b"BAD ")
    await client.ok("SELECT INBOX")


async def test_a_failure_ends_the_connection(running: Running[MemoryStore], monkeypatch: pytest.MonkeyPatch) -> None:
    client = await running.client(login="anna")
    user = connection(running).session.user

    async def release() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(user, "release", release)
    client.send(b"a UNAUTHENTICATE\r\nb LOGIN ben secret\r\n")
    assert (await client.line()).startswith(b"* BYE [UNAVAILABLE] ")
    assert await client.line() == b""


async def test_each_user_has_a_line_in_the_log(running: Running[MemoryStore]) -> None:
    with capture_logs() as logs:
        client = await running.client(login="anna")
        await client.ok("NOOP")
        await client.ok("UNAUTHENTICATE")
        await client.ok("LOGIN ben secret")
        await client.ok("LOGOUT")
        assert await client.line() == b""
        await running.imap.stop(grace_s=5.0)
    first, second = [line for line in logs if line["event"] == "imap logout"]
    assert (first["user"], first["reason"]) == ("anna", "unauthenticate")
    assert (second["user"], second["reason"]) == ("ben", "logout")
    assert first["bytes_in"] == len("t1 LOGIN anna secret\r\nt2 NOOP\r\nt3 UNAUTHENTICATE\r\n")
    assert second["bytes_in"] == len("t4 LOGIN ben secret\r\nt5 LOGOUT\r\n")
    assert (first["commands"], second["commands"]) == (3, 1 + 1)
