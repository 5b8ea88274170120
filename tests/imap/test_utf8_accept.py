"""UTF8=ACCEPT over a socket, RFC 6855."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Client, Running

NAME = "Köln ☂"
UTF7 = b"K&APY-ln &JgI-"


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


async def enabled(running: Running) -> Client:
    client = await running.client(login="anna")
    assert await client.ok("ENABLE UTF8=ACCEPT") == [b"* ENABLED UTF8=ACCEPT", b"OK Enabled"]
    return client


async def test_names_are_utf8_for_one_client_and_utf7_for_the_other(running: Running) -> None:
    client, other = await enabled(running), await running.client(login="anna")
    shown = f'"{NAME}"'.encode()
    await client.ok(f'CREATE "{NAME}"')
    assert shown in (await client.ok('LIST "" "K*"'))[0]
    assert b'"%b"' % UTF7 in (await other.ok('LIST "" "K*"'))[0]
    await other.ok(b'SUBSCRIBE "%b"' % UTF7)
    assert shown in (await client.ok(f'LSUB "" "{NAME}"'))[0]
    assert (await client.ok(f'STATUS "{NAME}" (MESSAGES)'))[0] == b"* STATUS %b (MESSAGES 0)" % shown
    assert shown in (await client.ok(f'GETQUOTAROOT "{NAME}"'))[0]
    await client.ok(f'SELECT "{NAME}"')
    # What looks like modified UTF-7 is a name of its own.
    assert (await client.cmd(b'SELECT "%b"' % UTF7))[-1].startswith(b"NO ")
    await client.ok(f'DELETE "{NAME}"')


async def test_names_in_errors_are_readable(running: Running) -> None:
    client, other = await enabled(running), await running.client(login="anna")
    assert NAME.encode() in (await client.cmd(f'SELECT "{NAME}"'))[-1]
    assert UTF7 in (await other.cmd(b'SELECT "%b"' % UTF7))[-1]


async def test_a_mail_with_utf8_in_its_header(running: Running) -> None:
    client = await enabled(running)
    mail = f"Subject: {NAME}\r\n\r\n{NAME}\r\n".encode()
    assert b"APPENDUID" in (await client.ok(b"APPEND INBOX (\\Seen) UTF8 (~{%d+}\r\n%b)" % (len(mail), mail)))[-1]
    await client.ok(b"APPEND INBOX UTF8 ({%d+}\r\n%b) UTF8 (~{%d+}\r\n%b)" % (len(mail), mail, len(mail), mail))
    await client.ok(b"APPEND INBOX CATENATE (UTF8 (~{%d+}\r\n%b) TEXT {1+}\r\nx)" % (len(mail), mail))
    await client.ok("SELECT INBOX")
    assert (await client.ok(f'SEARCH SUBJECT "{NAME}"'))[0] == b"* SEARCH 1 2 3 4"
    lines = await client.ok("FETCH 1,4 BODY.PEEK[]")
    assert lines[0].endswith(b"\r\n" + mail + b")")
    assert lines[1].endswith(b"\r\n" + mail + b"x)")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (b"APPEND INBOX UTF8 ({1+}\r\nx {1+}\r\nx)", b"Too many literals of UTF8"),
        (b"APPEND INBOX UTF8 ()", b"Empty list of literals of UTF8"),
        (b"APPEND INBOX UTF8 x", b"Expected"),
        (b"SEARCH CHARSET UTF-8 ALL", b"CHARSET is not allowed with UTF8=ACCEPT"),
        (b'CREATE "\xff"', b""),
    ],
)
async def test_what_is_refused(running: Running, command: bytes, reason: bytes) -> None:
    client = await enabled(running)
    await client.ok("SELECT INBOX")
    answer = (await client.cmd(command))[-1]
    assert answer.startswith((b"BAD ", b"NO "))
    assert reason in answer
    assert (await client.ok("SEARCH ALL"))[0] == b"* SEARCH"


async def test_it_must_be_enabled_and_ends_with_the_login(running: Running) -> None:
    client = await enabled(running)
    await client.ok("UNAUTHENTICATE")
    await client.ok("LOGIN anna secret")
    answer = (await client.cmd(b"APPEND INBOX UTF8 (~{1+}\r\nx)"))[-1]
    assert b"UTF8 needs ENABLE UTF8=ACCEPT" in answer
    await client.ok(b'CREATE "%b"' % UTF7)
    assert b'"%b"' % UTF7 in (await client.ok('LIST "" "K*"'))[0]
