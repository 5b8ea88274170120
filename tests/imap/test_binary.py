"""BINARY over a socket, RFC 3516: FETCH of decoded parts, APPEND of literal8."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Client, Running

from obox.imap import intake
from obox.mime import decoded
from obox.store.content import Part

TOP = b"MIME-Version: 1.0\r\nSubject: x\r\n"
PLAIN = b"Content-Type: text/plain\r\nContent-Transfer-Encoding: %b\r\n\r\n%b\r\n"
DATA = b"\0\1\2\r\n\xff" * 10
BODY = b"--b\r\n%b--b\r\n%b--b\r\n%b--b\r\n%b--b\r\nContent-Type: message/rfc822\r\n\r\n%b\r\n--b--\r\n" % (
    PLAIN % (b"8bit", b"as \xc3\xa9 is"),
    PLAIN % (b"quoted-printable", b"caf=C3=A9=\r\n!"),
    PLAIN % (b"BASE64", base64.encodebytes(DATA).replace(b"\n", b"\r\n").rstrip()),
    PLAIN % (b"x-uuencode", b"M"),
    TOP + PLAIN % (b"base64", b"aW5uZXI="),
)
MAIL = TOP + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + BODY


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


@pytest.fixture
async def client(running: Running) -> Client:
    client = await running.client(login="anna")
    await client.append("INBOX", MAIL)
    await client.ok("SELECT INBOX")
    return client


async def value(client: Client, item: str) -> bytes:
    (line, _) = await client.ok(f"FETCH 1 {item}")
    return line.partition(b" FETCH (")[2][:-1]


async def test_decoded_parts(client: Client) -> None:
    assert await value(client, "BINARY.PEEK[1]") == b"BINARY[1] {8}\r\nas \xc3\xa9 is"
    assert await value(client, "binary.peek[2]") == b"BINARY[2] {6}\r\ncaf\xc3\xa9!"
    assert await value(client, "BINARY.PEEK[3]") == b"BINARY[3] ~{60}\r\n" + DATA
    assert await value(client, "BINARY.PEEK[5.1]") == b"BINARY[5.1] {5}\r\ninner"
    assert await value(client, "BINARY.PEEK[9]") == b"BINARY[9] NIL"
    inner = TOP + PLAIN % (b"base64", b"aW5uZXI=")
    assert await value(client, "BINARY.PEEK[5]") == b"BINARY[5] {%d}\r\n%b" % (len(inner), inner)
    assert await value(client, "BINARY.PEEK[]") == b"BINARY[] {%d}\r\n%b" % (len(MAIL), MAIL)


async def test_partials_are_of_what_is_decoded(client: Client) -> None:
    assert await value(client, "BINARY.PEEK[2]<3.2>") == b"BINARY[2]<3> {2}\r\n\xc3\xa9"
    assert await value(client, "BINARY.PEEK[3]<1.2>") == b"BINARY[3]<1> {2}\r\n\1\2"
    assert await value(client, "BINARY.PEEK[3]<5.99>") == b"BINARY[3]<5> ~{55}\r\n" + DATA[5:]
    assert await value(client, "BINARY.PEEK[3]<60.1>") == b'BINARY[3]<60> ""'
    assert await value(client, "BINARY.PEEK[]<0.4>") == b"BINARY[]<0> {4}\r\nMIME"


@pytest.mark.parametrize("item", ["BINARY.PEEK[2]<{}.1>", "BINARY.PEEK[3]<{}.2>"])
async def test_ranges_of_a_part_decode_it_once(client: Client, item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 ranges of a part of 20 MB used to take 17 s."""
    count = 0

    def decode(mail: bytes, part: Part) -> bytes:
        nonlocal count
        count += 1
        return decoded(mail, part)

    monkeypatch.setattr("obox.imap.cuts.decoded", decode)
    await client.append("INBOX", MAIL)
    for most in (3, 128):
        items = " ".join(item.format(number) for number in range(most - 1))
        size = item[: item.index("<")].replace("PEEK", "SIZE")
        lines = await client.ok(f"FETCH 1:2 ({items} {size})")
        assert len(lines) == 3
        assert lines[0][3:] == lines[1][3:]
        assert count == 2
        count = 0


async def test_sizes(client: Client) -> None:
    sizes = await value(client, "(BINARY.SIZE[1] BINARY.SIZE[2] BINARY.SIZE[3] BINARY.SIZE[7] BINARY.SIZE[])")
    assert sizes == b"BINARY.SIZE[1] 8 BINARY.SIZE[2] 6 BINARY.SIZE[3] 60 BINARY.SIZE[7] 0 BINARY.SIZE[] %d" % len(MAIL)
    both = await value(client, "(BODY.PEEK[1] BINARY.SIZE[1] UID)")
    assert both == b"UID 1 BINARY.SIZE[1] 8 BODY[1] {8}\r\nas \xc3\xa9 is"
    assert (await client.ok("FETCH 1 FLAGS"))[0] == b"* 1 FETCH (FLAGS (\\Recent))"


async def test_seen(client: Client) -> None:
    lines = await client.ok("FETCH 1 (BINARY[2] BINARY.PEEK[2])")
    assert lines[0] == b"* 1 FETCH (FLAGS (\\Seen \\Recent) BINARY[2] {6}\r\ncaf\xc3\xa9!)"


async def test_unknown_encodings(client: Client) -> None:
    await client.append("INBOX", b"\r\nplain")
    for item in ("BINARY.PEEK[4]", "BINARY.SIZE[4]", "(UID BINARY.SIZE[1] BINARY.PEEK[4])"):
        lines = await client.cmd(f"FETCH 1 {item}")
        assert lines[-1].startswith(b"NO [UNKNOWN-CTE] ")
        assert not [line for line in lines if b"FETCH" in line]
    lines = await client.cmd("FETCH 1:2 BINARY[4]")
    assert lines[0] == b"* 1 FETCH (FLAGS (\\Seen \\Recent))", "the flag is set"
    assert lines[1] == b"* 2 FETCH (FLAGS (\\Seen \\Recent) BINARY[4] NIL)"
    assert lines[-1].startswith(b"NO [UNKNOWN-CTE] ")


@pytest.mark.parametrize(
    "item",
    [
        *(
            "BINARY",
            "BINARY.SIZE",
            "BINARY[HEADER]",
            "BINARY[1.TEXT]",
            "BINARY[1.]",
            "BINARY[0]",
            "BINARY.SIZE[1]<0.1>",
        ),
        *("BINARY[1]<0>", "BINARY.NONE[1]", "BINARY[1"),
    ],
)
async def test_what_is_no_item(client: Client, item: str) -> None:
    assert (await client.cmd(f"FETCH 1 ({item})"))[-1].startswith(b"BAD ")


async def test_a_large_part_is_sent_in_pieces(client: Client) -> None:
    data = bytes(range(256)) * 8_000
    coded = base64.encodebytes(data).replace(b"\n", b"\r\n")
    await client.append("INBOX", TOP + PLAIN % (b"base64", coded))
    assert (await client.ok("FETCH 2 (BINARY.PEEK[1] BINARY.SIZE[1] FLAGS)"))[-2] == (
        b"* 2 FETCH (FLAGS (\\Recent) BINARY.SIZE[1] 2048000 BINARY[1] ~{2048000}\r\n" + data + b")"
    )


async def append(client: Client, *mails: bytes) -> bytes:
    """APPEND the mails as literal8."""
    return (await client.cmd(b"APPEND INBOX" + b"".join(b" ~{%d+}\r\n%b" % (len(mail), mail) for mail in mails)))[-1]


NUL = TOP + b"Content-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n\r\n"


async def test_literal8(client: Client) -> None:
    assert (await append(client, b"\r\nwithout", NUL + DATA)).startswith(b"OK [APPENDUID ")
    lines = await client.ok("FETCH 2:3 (BODY.PEEK[TEXT] BODYSTRUCTURE BINARY.PEEK[1])")
    assert b"BODY[TEXT] {7}\r\nwithout" in lines[-3]
    assert b'"image" "png" NIL NIL NIL "base64"' in lines[-2]
    assert lines[-2].endswith(b"BINARY[1] ~{60}\r\n" + DATA + b")")


async def test_nul_that_cannot_be_encoded(running: Running, client: Client) -> None:
    for mails in ((TOP + b"\r\n\0",), (b"\r\nwithout", b"X: \0\r\n\r\n")):
        assert (await append(client, *mails)).startswith(b"NO [UNKNOWN-CTE] ")
    assert b"* STATUS INBOX (MESSAGES 1)" in await client.ok("STATUS INBOX (MESSAGES)")
    assert running.imap.context.intake.memory.used == 0


async def test_large_mails_go_through_the_file(running: Running, client: Client) -> None:
    large = NUL + bytes(intake.MAIL_MEMORY_BYTES + 5)
    assert (await append(client, large, b"\r\nsmall", large)).startswith(b"OK ")
    lines = await client.ok("FETCH 2,4 (BINARY.SIZE[1])")
    assert [line.split()[-1] for line in lines if b"FETCH" in line] == [b"%d)" % (intake.MAIL_MEMORY_BYTES + 5)] * 2
    assert (await append(client, TOP + b"\r\n" + bytes(intake.MAIL_MEMORY_BYTES + 5))).startswith(b"NO [UNKNOWN-CTE] ")
    budgets = running.imap.context.intake
    assert budgets.memory.used == budgets.disk.used == 0
