"""IMAP4rev2 over a socket: what the dialogue tests/dialogs/rev2.txt does not have."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Running

from tests.imap.grammar import Ungrammatical, parse

INNER = b"Subject: =?utf-8?q?caf=C3=A9?=\r\nFrom: a@b\r\n\r\ninner\r\n"
GLOBAL = (
    b"Subject: outer\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\n\r\none\r\n--b\r\nContent-Type: message/global\r\n\r\n" + INNER + b"--b--\r\n"
)


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


async def test_a_message_global_is_a_message_for_this_client_alone(running: Running) -> None:
    old, client = await running.client(login="anna"), await running.client(login="anna")
    await old.append("INBOX", GLOBAL)
    await old.append("INBOX", b"Subject: plain\r\n\r\nx")
    await client.ok("ENABLE IMAP4rev2")
    for one in (old, client):
        await one.ok("SELECT INBOX")
    (first, second, _) = await client.ok("FETCH 1:2 BODYSTRUCTURE")
    _, found = parse(first, rev2=True).value
    _, parts = found[b"BODYSTRUCTURE"]
    kind, subtype, *_, inner = parts[1]
    assert (kind, subtype) == (b"message", b"global")
    envelope, body = inner
    assert envelope[1] == b"=?utf-8?q?caf=C3=A9?="
    assert body[:2] == (b"text", b"plain")
    assert b"global" not in second
    with pytest.raises(Ungrammatical):
        parse(first)
    (before, *_) = await old.ok("FETCH 1 BODYSTRUCTURE")
    assert b'"message" "global" NIL NIL NIL "7bit" %d NIL NIL NIL NIL)' % (len(INNER) - 2) in before
    assert b'"message" "global"' in (await client.ok("FETCH 1 (BODY UID)"))[0]
    assert b"inner" in (await client.ok("FETCH 1 BODY.PEEK[2.TEXT]"))[0]


async def test_what_this_client_has_seen_is_recent_for_another(running: Running) -> None:
    client, other = await running.client(login="anna"), await running.client(login="anna")
    await client.ok("ENABLE IMAP4rev2")
    await client.ok("SELECT INBOX")
    await other.append("INBOX", b"Subject: x\r\n\r\n")
    assert b"* 1 EXISTS" in await client.ok("NOOP")
    assert b"* 1 RECENT" in await other.ok("SELECT INBOX")


async def test_updates_in_idle_have_uids(running: Running) -> None:
    client, other = await running.client(login="anna"), await running.client(login="anna")
    await other.append("INBOX", b"Subject: x\r\n\r\n")
    await client.ok("ENABLE IMAP4rev2")
    await client.ok("SELECT INBOX")
    client.send("x IDLE\r\n")
    assert await client.line() == b"+ idling"
    await other.ok("SELECT INBOX")
    await other.ok("STORE 1 +FLAGS (\\Answered)")
    assert await client.line() == b"* 1 FETCH (UID 1 FLAGS (\\Answered))"
    client.send("DONE\r\n")
    await client.until(b"x OK")


async def test_both_revisions_of_utf8(running: Running) -> None:
    """A client that has also enabled UTF8=ACCEPT may name a charset in a search."""
    client = await running.client(login="anna")
    assert (await client.ok("ENABLE UTF8=ACCEPT IMAP4rev2"))[0] == b"* ENABLED UTF8=ACCEPT IMAP4rev2"
    await client.ok("SELECT INBOX")
    assert (await client.ok("SEARCH CHARSET UTF-8 ALL"))[0].startswith(b"* ESEARCH")


@pytest.mark.parametrize(
    "line",
    [
        b"* SEARCH 1",
        b"* 1 RECENT",
        b"* 1 FETCH (FLAGS (\\Recent))",
        b"* OK [UNSEEN 1] First unseen",
    ],
)
def test_what_the_strict_reader_refuses_in_this_revision(line: bytes) -> None:
    parse(line)
    with pytest.raises(Ungrammatical):
        parse(line, rev2=True)
