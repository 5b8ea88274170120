"""CATENATE over a socket, RFC 4469."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness import STORES, Client, Running

from obox.imap import intake
from obox.imap.commands import catenate
from obox.imap.settings import ImapSettings

HEAD = b"Subject: first\r\nFrom: a@b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
MAIL = HEAD + b"--b\r\nX: 1\r\n\r\none\r\n--b\r\nX: 2\r\n\r\n" + b"two " * 10 + b"\r\n--b--\r\n"
SETTINGS = ImapSettings(mail_bytes_max=3_000_000, multiappend_bytes_max=5_000_000)
LARGE = b"\r\n" + bytes(range(1, 255)) * 8_000


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path, SETTINGS) as running:
        yield running


@pytest.fixture
async def client(running: Running) -> Client:
    client = await running.client(login="anna")
    await client.append("INBOX", MAIL)
    await client.ok("CREATE caf&AOk-")
    await client.append("caf&AOk-", LARGE)
    return client


def text(data: bytes, sign: bytes = b"") -> bytes:
    return b"TEXT %b{%d+}\r\n%b" % (sign, len(data), data)


def url(name: bytes) -> bytes:
    return b'URL "%b"' % name


async def made(client: Client, *pieces: bytes) -> bytes:
    """Make a mail in Sent. Return it."""
    lines = await client.ok(b"APPEND Sent (\\Seen) CATENATE (%b)" % b" ".join(pieces))
    assert lines[-1].startswith(b"OK [APPENDUID ")
    uid = lines[-1].split()[3].rstrip(b"]")
    await client.ok("SELECT Sent")
    (line, *_) = await client.ok(b"UID FETCH %b (FLAGS BODY.PEEK[])" % uid)
    assert b"\\Seen" in line
    size, _, rest = line.partition(b"BODY[] {")[2].partition(b"}\r\n")
    await client.ok("UNSELECT")
    return rest[: int(size)]


async def test_literals_and_parts(client: Client) -> None:
    assert await made(client, text(b"X: y\r\n"), text(b""), text(b"\r\nz")) == b"X: y\r\n\r\nz"
    found = await made(
        client,
        url(b"/INBOX/;UID=1/;section=HEADER"),
        text(b"--b\r\n"),
        url(b"/inbox;UIDVALIDITY=%b/;UID=1/;Section=2.MIME" % await validity(client)),
        b"url /INBOX/;UID=1/;SECTION=2",
        text(b"\r\n--b--\r\n"),
    )
    assert found == HEAD + b"--b\r\nX: 2\r\n\r\n" + b"two " * 10 + b"\r\n--b--\r\n"


async def validity(client: Client) -> bytes:
    return (await client.ok("STATUS INBOX (UIDVALIDITY)"))[0].split()[-1].rstrip(b")")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (b"/INBOX/;UID=1", MAIL),
        (b"/INBOX;UID=1", MAIL),
        (b"/INBOX/;UID=1/;PARTIAL=5", MAIL[5:]),
        (b"/INBOX/;UID=1/;PARTIAL=5.7", MAIL[5:12]),
        (b"/INBOX/;UID=1/;SECTION=1/;PARTIAL=1.1", b"n"),
        (b"/INBOX/;UID=1/;SECTION=HEADER.FIELDS%20(Subject)", b"Subject: first\r\n\r\n"),
        (b"/INBOX/;UID=1/;SECTION=HEADER.FIELDS%20(Subject)/;PARTIAL=0.4", b"Subj"),
        (b"/%49NBOX/;uid=1/;SECTION=TEXT/;PARTIAL=0.3", b"--b"),
        (b"/caf%C3%A9/;UID=1", LARGE),
        (b"/caf%C3%A9/;UID=1/;PARTIAL=300000.600000", LARGE[300_000:900_000]),
    ],
)
async def test_urls(running: Running, client: Client, name: bytes, wanted: bytes) -> None:
    assert await made(client, url(name)) == wanted
    assert await made(client, text(b"A: b\r\n"), url(name)) == b"A: b\r\n" + wanted
    await client.ok("SELECT INBOX")
    assert (await client.ok("FETCH 1 FLAGS"))[0] == b"* 1 FETCH (FLAGS (\\Recent))", "it is not \\Seen"
    budgets = running.imap.context.intake
    assert budgets.memory.used == budgets.disk.used == 0


async def test_urls_of_the_selected_mailbox(client: Client) -> None:
    await client.ok("SELECT INBOX")
    for name in (b";UID=1", b"/;UID=1"):
        await client.ok(b"APPEND Sent CATENATE (%b)" % url(name))
    assert (await client.cmd(b"APPEND Sent CATENATE (%b)" % url(b";UID=2")))[-1].startswith(b"NO [BADURL ;UID=2] ")


@pytest.mark.parametrize(
    "name",
    [
        *(b"/INBOX/;UID=2", b"/INBOX/;UID=0", b"/INBOX/;UID=4294967297", b"/INBOX;UIDVALIDITY=1/;UID=1"),
        *(b"/Nowhere/;UID=1", b";UID=1", b"/INBOX", b"", b"/%FF/;UID=1", b"/INBOX/;UID=1/;SECTION=9"),
        *(b"/INBOX/;UID=1/;SECTION=NONE", b"/INBOX/;UID=1/;SECTION=1]<0.1", b"/INBOX/;UID=1?x", b"/INBOX/;UID=1;UID=1"),
        *(b"imap://server/INBOX/;UID=1", b"//server/INBOX/;UID=1", b"http://x/", b"/INBOX/;UID=1/;URLAUTH=anonymous"),
    ],
)
async def test_urls_that_name_nothing(running: Running, client: Client, name: bytes) -> None:
    lines = await client.cmd(b"APPEND Sent CATENATE (%b %b)" % (text(b"X: y\r\n\r\n"), url(name)))
    shown = b"NO [BADURL %b] " % name.replace(b"]", b"%5D")
    assert lines[-1].startswith(shown if name else b"NO There is no such mail"), lines
    assert b"* STATUS Sent (MESSAGES 0)" in await client.ok("STATUS Sent (MESSAGES)")
    assert running.imap.context.intake.memory.used == 0


async def test_a_missing_target_is_reported_before_urls(client: Client) -> None:
    got = await client.cmd(b"APPEND Missing CATENATE (%b)" % url(b"/INBOX/;UID=99"))
    assert got[-1].startswith(b"NO [TRYCREATE] ")


async def test_the_size_of_the_mail_is_limited(running: Running, client: Client) -> None:
    lines = await client.cmd(b"APPEND Sent CATENATE (%b)" % b" ".join([url(b"/caf%C3%A9/;UID=1")] * 2))
    assert lines[-1].startswith(b"NO [TOOBIG] ")
    lines = await client.cmd(b"APPEND Sent CATENATE (%b)" % text(b""))
    assert lines[-1].startswith(b"NO ")


async def test_the_size_of_all_mails_is_limited(running: Running, client: Client) -> None:
    """The limit is that of mails that a client sends. These mails count, too."""
    whole = b"CATENATE (%b)" % url(b"/caf%C3%A9/;UID=1")
    assert (await client.cmd(b"APPEND Sent " + b" ".join([whole] * 2)))[-1].startswith(b"OK ")
    sent = b"{%d+}\r\n%b" % (len(LARGE), LARGE)
    for three in ([whole] * 3, [sent, sent, whole], [whole, sent, whole]):
        assert (await client.cmd(b"APPEND Sent " + b" ".join(three)))[-1].startswith(b"NO [TOOBIG] ")
    assert (await client.ok("STATUS Sent (MESSAGES)"))[0] == b"* STATUS Sent (MESSAGES 2)"
    assert running.imap.context.intake.disk.used == 0


async def test_what_is_too_big_is_not_gathered(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields of a header, which are in memory, are not taken 500 times."""
    await client.append("INBOX", b"X: " + b"y" * 1_000_000 + b"\r\n\r\n")
    taken: list[int] = []
    plain = catenate.section

    def section(mail: bytes, *given: Any) -> Any:
        taken.append(len(mail))
        return plain(mail, *given)

    monkeypatch.setattr(catenate, "section", section)
    pieces = b" ".join([url(b"/INBOX/;UID=2/;SECTION=HEADER.FIELDS%20(X)")] * 500)
    lines = await client.cmd(b"APPEND Sent CATENATE (%b)" % pieces)
    assert lines[-1].startswith(b"NO [TOOBIG] ")
    assert len(taken) < 30


async def test_several_mails_and_large_literals(running: Running, client: Client) -> None:
    large = b"z" * (intake.MAIL_MEMORY_BYTES + 9)
    command = b"APPEND Sent CATENATE (%b %b) {3+}\r\nabc (\\Draft) CATENATE (%b)" % (
        text(b"X: y\r\n\r\n"),
        text(large),
        url(b"/INBOX/;UID=1"),
    )
    assert (await client.cmd(command))[-1].startswith(b"OK ")
    await client.ok("SELECT Sent")
    lines = await client.ok("FETCH 1:3 RFC822.SIZE")
    assert [int(line.split()[-1].rstrip(b")")) for line in lines[:-1]] == [8 + len(large), 3, len(MAIL)]
    assert running.imap.context.intake.disk.used == 0


async def test_with_replace_and_literal8(client: Client) -> None:
    await client.ok("SELECT INBOX")
    lines = await client.cmd(b"UID REPLACE 1 INBOX (\\Draft) CATENATE (%b %b)" % (text(b"To: x\r\n"), url(b";UID=1")))
    assert b"* 1 EXPUNGE" in lines
    assert lines[-1].startswith(b"OK ")
    assert (await client.ok("FETCH 1 BODY.PEEK[]<0.13>"))[0].endswith(b"To: x\r\nSubjec)")
    binary = b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\n\r\n"
    lines = await client.cmd(b"APPEND INBOX CATENATE (%b %b)" % (text(binary), text(b"\0a", b"~")))
    assert lines[-1].startswith(b"OK ")
    assert (await client.ok("FETCH 2 BINARY.PEEK[1]"))[-2].endswith(b"~{2}\r\n\0a)")


@pytest.mark.parametrize(
    "rest",
    [
        *(b"CATENATE ()", b"CATENATE (NONE x)", b"CATENATE (URL)", b'CATENATE (TEXT "x")', b"CATENATE URL /x"),
        *(b"CATENATE (URL /INBOX/;UID=1", b"CATENATE"),
    ],
)
async def test_what_is_no_mail(client: Client, rest: bytes) -> None:
    assert (await client.cmd(b"APPEND Sent " + rest))[-1].startswith(b"BAD ")
