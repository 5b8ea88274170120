"""METADATA over a socket, RFC 5464: what the dialogue does not have."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Running

from obox.imap import ast
from obox.imap.parser import Parser
from obox.store import annotations


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"~{3+}\r\na\0b", b"~{3}\r\na\0b"),
        (b"~{2+}\r\nab", b'"ab"'),
        (b"{3+}\r\na\r\n", b"{3}\r\na\r\n"),
        ('"gr\u00fcn"'.encode(), b"{5}\r\n" + "gr\u00fcn".encode()),
        (b'""', b'""'),
    ],
)
async def test_values_are_octets(running: Running, sent: bytes, shown: bytes) -> None:
    client = await running.client(login="anna")
    await client.ok(b"SETMETADATA INBOX (/private/x " + sent + b")")
    assert (await client.ok("GETMETADATA INBOX /private/x"))[0] == b"* METADATA INBOX (/private/x " + shown + b")"


async def test_nul_in_a_string_is_refused(running: Running) -> None:
    client = await running.client(login="anna")
    assert (await client.cmd(b"SETMETADATA INBOX (/private/x {1+}\r\n\0)"))[-1].startswith(b"BAD ")


async def test_names_are_utf8_for_a_client_that_knows_it(running: Running) -> None:
    client, other = await running.client(login="anna"), await running.client(login="anna")
    await client.ok("ENABLE IMAP4rev2")
    await client.ok('CREATE "\u00e9t\u00e9"')
    await client.ok('SETMETADATA "\u00e9t\u00e9" (/private/x "y")')
    shown = b' (/private/x "y")'
    line = (await client.ok('GETMETADATA "\u00e9t\u00e9" /private/x'))[0]
    assert line == '* METADATA "\u00e9t\u00e9"'.encode() + shown
    assert (await other.ok("GETMETADATA &AOk-t&AOk- /private/x"))[0] == b"* METADATA &AOk-t&AOk-" + shown


async def test_limits(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await running.client(login="anna")
    large = b"{16385+}\r\n" + b"x" * 16_385
    answer = (await client.cmd(b"SETMETADATA INBOX (/private/a 1 /private/x %b)" % large))[-1]
    assert answer.startswith(b"BAD "), "a value is no atom"
    answer = (await client.cmd(b'SETMETADATA INBOX (/private/a "1" /private/x %b)' % large))[-1]
    assert answer.startswith(b"NO [METADATA MAXSIZE 16384] ")
    assert len(await client.ok("GETMETADATA INBOX /private/a")) == 1, "all or nothing"
    monkeypatch.setattr(annotations, "ENTRIES_MAX", 1)
    await client.ok('SETMETADATA INBOX (/private/a "1")')
    assert (await client.cmd('SETMETADATA INBOX (/private/b "1")'))[-1].startswith(b"NO [METADATA TOOMANY] ")
    many = " ".join(f"/private/{number}" for number in range(65))
    assert (await client.cmd(f"GETMETADATA INBOX ({many})"))[-1].startswith((b"NO [LIMIT]", b"BAD Too many"))


def parsed(line: bytes) -> object:
    parser = Parser()
    parser.feed(line + b"\r\n")
    return parser.next()


def test_options_stand_before_or_behind_the_mailbox() -> None:
    want = ast.GetMetadata(b"a", "INBOX", ("/private/a",), 5, None)
    for line in (
        b"a GETMETADATA (MAXSIZE 5 DEPTH infinity) INBOX /private/a",
        b"a getmetadata INBOX ( MAXSIZE 5  DEPTH INFINITY ) (/Private/A)",
        b'a GETMETADATA (DEPTH infinity MAXSIZE 5) "inbox" ("/private/a" /PRIVATE/a)',
    ):
        assert parsed(line) == want, line
    assert parsed(b'a GETMETADATA "" /shared/a') == ast.GetMetadata(b"a", "", ("/shared/a",))
