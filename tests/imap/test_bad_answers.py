"""Answers that are larger than the client expects. The server sends them as fast as the
client reads, and holds a bounded number of bytes."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from obox.imap import rows
from obox.imap.commands import fetch
from obox.imap.connection import Connection
from obox.imap.rows import parts
from obox.mailbox import KEYWORD_BYTES_MAX
from obox.store.api import NewMail
from obox.types import StorageId
from tests.imap.harness import Client, Running, serving_real
from tests.imap.test_hostile import answer
from tests.turns import turns

MIB = 1 << 20
PARTS = (
    b"Subject: parts\r\nTo: a@b\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nfirst\r\n--x\r\n"
    b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nbody\r\n"
    b"--x\r\nContent-Type: text/html\r\n\r\n\r\n--x--\r\n"
)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving_real(tmp_path) as running:
        yield running


@contextmanager
def gathered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return how many bytes a connection had gathered at each moment when it handed
    them over."""
    found = [0]
    plain = Connection.write

    def write(self: Connection, data: bytes) -> None:
        plain(self, data)
        found.append(self._out_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "write", write)
        yield found


async def received(client: Client, command: bytes) -> int:
    """Return the number of bytes of a command's answer."""
    client.send(b"zz " + command + b"\r\n")
    size, tail = 0, b""
    while b"\r\nzz OK" not in tail or not tail.endswith(b"\r\n"):
        piece = await client.reader.read(MIB)
        assert piece, tail
        size += len(piece)
        tail = (tail + piece)[-200:]
    return size


async def test_many_items_of_one_mail(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await running.client(login="anna")
    # A single item is larger than what may be gathered.
    text = b"0123456789abcde\n" * (3 * MIB // 16)
    await client.append("INBOX", b"Subject: x\r\n\r\n" + text)
    await client.ok("SELECT INBOX")
    items = b" ".join(b"BODY.PEEK[TEXT]<0.%d>" % (len(text) + i) for i in range(30))
    with gathered(monkeypatch) as found:
        assert await received(client, b"FETCH 1 (%b)" % items) > 30 * len(text)
    assert max(found) <= MIB + (256 << 10)


async def test_the_same_item_is_answered_once(running: Running) -> None:
    client = await running.client(login="anna")
    await client.append("INBOX", b"Subject: x\r\n\r\nhello")
    await client.ok("SELECT INBOX")
    lines = await client.ok(b"FETCH 1 (%b)" % b" ".join([b"BODY.PEEK[TEXT]<0.9>", b"UID"] * 50))
    assert lines[0] == b"* 1 FETCH (UID 1 BODY[TEXT]<0> {5}\r\nhello)"


async def test_many_long_keywords(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await running.client(login="anna")
    user = await running.store.open_user("anna", StorageId("anna"))
    words = tuple(f"{i:0{KEYWORD_BYTES_MAX}d}" for i in range(59))
    for _ in range(4):
        await user.append("INBOX", [NewMail(b"a: b\r\n\r\nc", words if i % 2 else ()) for i in range(128)])
    await user.release()
    await client.ok("SELECT INBOX")
    other = await running.client(login="anna")
    await other.ok("SELECT INBOX")
    line = 59 * KEYWORD_BYTES_MAX
    with gathered(monkeypatch) as found:
        assert await received(client, b"FETCH 1:* FLAGS") > 256 * line
        assert await received(client, b"FETCH 1:* (UID FLAGS BODY.PEEK[HEADER])") > 256 * line
        assert await received(client, b"STORE 1:* +FLAGS (\\Flagged)") > 256 * line
        assert await received(other, b"NOOP") > 256 * line
    assert max(found) <= MIB + (64 << 10)


async def test_long_names_of_sections(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await running.client(login="anna")
    user = await running.store.open_user("anna", StorageId("anna"))
    await user.append("INBOX", [NewMail(b"a: b\r\n\r\nc")] * 200)
    await user.release()
    await client.ok("SELECT INBOX")
    names = b" ".join(b"%0200d" % i for i in range(250))
    with gathered(monkeypatch) as found:
        assert await received(client, b"FETCH 1:* (BODY.PEEK[HEADER.FIELDS (%b)])" % names) > 200 * len(names)
    assert max(found) <= MIB + (64 << 10)


async def test_headers_that_are_too_long_to_be_kept(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    r"""The server reads such headers one mail at a time, in their order, and sends
    \Seen where it is new."""
    client = await running.client(login="anna")
    long = b"Subject: long\r\nX: " + b"y" * 400_000 + b"\r\n\r\n"
    headers = [long if i in (0, 3, 4, 8) else b"Subject: %d\r\n\r\n" % i for i in range(9)]
    for header in headers:
        await client.append("INBOX", header + b"body")
    await client.ok("SELECT INBOX")
    with gathered(monkeypatch) as found:
        lines = await client.ok("FETCH 1:* (UID BODY[HEADER])")
    assert lines[:-1] == [
        b"* %d FETCH (UID %d FLAGS (\\Seen \\Recent) BODY[HEADER] {%d}\r\n%b)" % (i, i, len(header), header)
        for i, header in enumerate(headers, 1)
    ]
    assert max(found) <= len(long) + (64 << 10)


async def test_piece_by_piece_is_the_same_answer(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await running.client(login="anna")
    for _ in range(3):
        await client.append("INBOX", PARTS)
    await client.ok("SELECT INBOX")
    sections = b"BODY[] BODY[]<3.20> BODY[1] BODY[2.HEADER] BODY[2.TEXT]<1.2> BODY[3] BODY[4] BODY[1.MIME] BODY[HEADER]"
    command = (
        b"(FLAGS %b BODY[TEXT]<900.5> BODY[HEADER.FIELDS (To)] BODY[2.HEADER.FIELDS.NOT (To)] RFC822.SIZE)" % sections
    )
    whole = await client.ok(b"FETCH 1 %b" % command)
    monkeypatch.setattr(fetch, "ANSWER_BYTES", 0)
    monkeypatch.setattr(fetch, "PIECE_BYTES", 3)
    pieces = await client.ok(b"FETCH 2 %b" % command)
    assert [line.replace(b"* 1 ", b"* 2 ", 1) for line in whole] == pieces
    assert b"BODY[4] NIL" in pieces[0]
    await client.ok(b"STORE 2 -FLAGS \\Seen")
    (reported, _) = await client.ok("FETCH 2 (BODY[] BODY[TEXT])")
    assert reported.startswith(b"* 2 FETCH (FLAGS (\\Seen \\Recent) BODY[] {%d}\r\n" % len(PARTS))


async def test_a_large_answer_lets_others_run(running: Running) -> None:
    client, other = await running.client(login="anna"), await running.client(login="ben")
    user = await running.store.open_user("anna", StorageId("anna"))
    for _ in range(10):
        await user.append("INBOX", [NewMail(PARTS)] * 200)
    await user.release()
    await client.ok("SELECT INBOX")
    with turns(mine=False) as found:
        for command in (b"FETCH 1:* ALL", b"FETCH 1:* (BODY.PEEK[] BODYSTRUCTURE)", b"STORE 1:* +FLAGS (a b c)"):
            client.send(b"zz " + command + b"\r\n")
            await other.ok("NOOP")
            await answer(client, b"zz")
        found.check()


def test_lines_are_cut_into_runs_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(parts([b"UID %d"], [list(range(1000))], 1000)) == [slice(0, 1000)]
    monkeypatch.setattr(rows, "ANSWER_BYTES", 1_000)
    values = [b"x" * int(size) for size in np.random.default_rng(1).integers(0, 2_000, 50)]
    cut = list(parts([b"ENVELOPE %b"], [values], 50))
    assert [i for part in cut for i in range(part.start, part.stop)] == list(range(50))
    assert all(sum(map(len, values[part])) <= 1_000 or part.stop - part.start == 1 for part in cut)
