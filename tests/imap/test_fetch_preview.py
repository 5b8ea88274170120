"""PREVIEW over a socket, RFC 8970."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Client


@pytest.fixture(params=STORES)
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with STORES[request.param](tmp_path) as running:
        client = await running.client(login="anna")
        await client.append("INBOX", b'Subject: 1\r\n\r\nHello "you"\r\nthere\r\n')
        await client.append("INBOX", "Subject: 2\r\n\r\nGr\u00fc\u00dfe".encode())
        await client.append("INBOX", b"Subject: 3\r\nContent-Type: image/png\r\n\r\nx")
        await client.append("INBOX", b"Subject: 4\r\n\r\n" + b"word " * 400_000)
        await client.ok("SELECT INBOX")
        yield client


async def test_previews(client: Client) -> None:
    assert (await client.ok("FETCH 1:4 (PREVIEW UID)"))[:-1] == [
        b'* 1 FETCH (UID 1 PREVIEW "Hello \\"you\\" there")',
        b"* 2 FETCH (UID 2 PREVIEW {7}\r\n" + "Gr\u00fc\u00dfe".encode() + b")",
        b'* 3 FETCH (UID 3 PREVIEW "")',
        b'* 4 FETCH (UID 4 PREVIEW "%b")' % (b"word " * 40).rstrip(),
    ]
    assert (await client.ok("FETCH 1:4 FLAGS"))[0] == b"* 1 FETCH (FLAGS (\\Recent))", "it is not read"


async def test_lazy_does_not_read_a_mail(client: Client) -> None:
    assert (await client.ok("FETCH 1 (FLAGS PREVIEW (LAZY) RFC822.SIZE)"))[0].endswith(b"RFC822.SIZE 34 PREVIEW NIL)")
    assert (await client.ok("FETCH 1 PREVIEW (LAZY)"))[0] == b"* 1 FETCH (PREVIEW NIL)"
    lines = await client.ok("FETCH 1 PREVIEW  ( LAZY LAZY ) (CHANGEDSINCE 0)")
    assert lines[-2].startswith(b"* 1 FETCH (MODSEQ (")
    assert lines[-2].endswith(b" PREVIEW NIL)")


async def test_lazy_has_the_text_of_a_mail_that_is_read(client: Client) -> None:
    text = b'PREVIEW "Hello \\"you\\" there"'
    lines = await client.ok("FETCH 1 (PREVIEW (LAZY) BODY.PEEK[TEXT] ENVELOPE)")
    assert text in lines[0]
    assert b"BODY[TEXT] {20}" in lines[0]
    assert (await client.ok("FETCH 1 (PREVIEW (LAZY) PREVIEW)"))[0] == b"* 1 FETCH (%b)" % text
    lines = await client.ok("FETCH 4 (BODY.PEEK[] PREVIEW BODY.PEEK[1]<0.4>)")
    assert lines[0].count(b"word ") > 400_000
    assert b"BODY[1]<0> {4}\r\nword" in lines[0]


@pytest.mark.parametrize("items", ["PREVIEW (NONE)", "(PREVIEW (NONE))", "(PREVIEW ())", "PREVIEW[]", "PREVIEW (LAZY"])
async def test_what_is_no_preview(client: Client, items: str) -> None:
    assert (await client.cmd(f"FETCH 1 {items}"))[-1].startswith(b"BAD ")
