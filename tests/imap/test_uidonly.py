"""UIDONLY over a socket, RFC 9586: no sequence numbers in either direction."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Client, Running

NUMBERS = re.compile(rb"\* (?:[0-9]+ (?:FETCH|EXPUNGE)\b|OK \[UNSEEN )")
"""Responses with a sequence number."""


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


class Checked(Client):
    """A client that gets no sequence number."""

    async def line(self) -> bytes:
        found = await super().line()
        assert not NUMBERS.match(found), found
        return found


async def selected(running: Running, *options: str) -> Checked:
    """Return a client that has selected a mailbox with the UIDs 3 to 6."""
    plain = await running.client(login="anna")
    for number in range(1, 7):
        await plain.append("INBOX", b"Subject: %d\r\n\r\n%b" % (number, b"x" * number))
    await plain.ok("SELECT INBOX")
    await plain.ok("STORE 1:2 +FLAGS.SILENT (\\Deleted)")
    await plain.ok("EXPUNGE")
    await plain.ok("UNSELECT")
    client = Checked(plain.reader, plain.writer)
    client.number = 100
    assert await client.ok(f"ENABLE UIDONLY {' '.join(options)}".rstrip()) == [
        f"* ENABLED {' '.join(('UIDONLY', *options))}".encode(),
        b"OK Enabled",
    ]
    await client.ok("SELECT INBOX")
    return client


async def test_fetch(running: Running) -> None:
    client = await selected(running)
    found = (await client.ok("UID FETCH 1:4 (FLAGS)"))[:-1]
    assert [line.partition(b"(")[0] for line in found] == [b"* 3 UIDFETCH ", b"* 4 UIDFETCH "]
    lines = await client.ok("UID FETCH 3,* (UID RFC822.SIZE)")
    assert lines[:-1] == [b"* 3 UIDFETCH (UID 3 RFC822.SIZE 17)", b"* 6 UIDFETCH (UID 6 RFC822.SIZE 20)"]
    lines = await client.ok("UID FETCH 3 ENVELOPE")
    assert lines[0].startswith(b"* 3 UIDFETCH (ENVELOPE (")
    lines = await client.ok("UID FETCH 4:5 BODY[TEXT]")
    assert lines[0].startswith(b"* 4 UIDFETCH (FLAGS (\\Seen")
    assert lines[0].endswith(b"BODY[TEXT] {4}\r\nxxxx)")
    assert lines[1].startswith(b"* 5 UIDFETCH (")


async def test_large_mails(running: Running) -> None:
    client = await selected(running)
    await client.append("INBOX", b"Subject: large\r\n\r\n" + b"y" * 2_000_000)
    for items in ("BODY.PEEK[]", "(BODY.PEEK[1] BODY.PEEK[TEXT])"):
        lines = await client.ok(f"UID FETCH 7 {items}")
        assert lines[-2].startswith(b"* 7 UIDFETCH (BODY[")


@pytest.mark.parametrize("qresync", [False, True])
async def test_changes(running: Running, qresync: bool) -> None:
    client = await selected(running, *(["QRESYNC"] if qresync else []))
    lines = await client.ok("UID STORE 3:4 +FLAGS (\\Deleted)")
    assert [line.split(b" ", 3)[:3] for line in lines[:-1]] == [[b"*", b"3", b"UIDFETCH"], [b"*", b"4", b"UIDFETCH"]]
    assert b"UID 3" not in lines[0]
    other = await running.client(login="anna")
    await other.ok("SELECT INBOX")
    await other.ok("UID STORE 6 +FLAGS (\\Flagged)")
    await other.ok("EXPUNGE")
    lines = await client.ok("NOOP")
    assert lines[0] == b"* VANISHED 3:4"
    assert any(line.startswith(b"* 6 UIDFETCH (FLAGS (") for line in lines)
    assert b"* VANISHED 5" in await client.ok("UID MOVE 5 Sent")
    await client.ok("UID STORE 6 +FLAGS.SILENT (\\Deleted)")
    assert (await client.ok("UID EXPUNGE 6"))[0] == b"* VANISHED 6"


@pytest.mark.parametrize(
    "command",
    [
        *("FETCH 1 FLAGS", "STORE 1 FLAGS ()", "SEARCH ALL", "COPY 1 Sent", "MOVE 1 Sent", "SORT (DATE) UTF-8 ALL"),
        *("THREAD REFERENCES UTF-8 ALL", "REPLACE 1 INBOX {1+}\r\nx", "UID SEARCH 1", "UID SEARCH NOT 1:*"),
        *("UID SORT (DATE) UTF-8 OR 1 2", "UID THREAD REFERENCES UTF-8 *", "SEARCH RETURN (SAVE) ALL"),
    ],
)
async def test_numbers_are_refused(running: Running, command: str) -> None:
    client = await selected(running)
    lines = await client.cmd(command)
    assert lines[-1].startswith(b"BAD [UIDREQUIRED] "), lines
    assert (await client.ok("UID SEARCH ALL"))[0] == b"* SEARCH 3 4 5 6"


async def test_what_counts_in_uids_works(running: Running) -> None:
    client = await selected(running)
    await client.ok("UID SEARCH RETURN (SAVE) UID 4:5")
    assert (await client.ok("UID SEARCH $"))[0] == b"* SEARCH 4 5"
    assert (await client.ok("UID SORT (REVERSE SIZE) UTF-8 ALL"))[0] == b"* SORT 6 5 4 3"
    assert (await client.ok("UID COPY $ Sent"))[-1].startswith(b"OK [COPYUID ")
    assert (await client.cmd("UID REPLACE 3 INBOX {3+}\r\nabc"))[-1].startswith(b"OK ")
    await client.ok("EXPUNGE")


async def test_sequence_match_data_is_refused(running: Running) -> None:
    client = await selected(running, "QRESYNC")
    validity = (await client.ok("STATUS INBOX (UIDVALIDITY)"))[0].split()[-1].rstrip(b")").decode()
    lines = await client.cmd(f"SELECT INBOX (QRESYNC ({validity} 1 1:9 (1 1)))")
    assert lines[-1].startswith(b"BAD [UIDREQUIRED] ")
    lines = await client.ok(f"SELECT INBOX (QRESYNC ({validity} 1 1:9))")
    assert any(line.startswith(b"* VANISHED (EARLIER) 1:2") for line in lines)
    assert any(line.startswith(b"* 3 UIDFETCH (") for line in lines)


async def test_it_ends_with_the_login(running: Running) -> None:
    client = await selected(running)
    await client.ok("UNAUTHENTICATE")
    plain = Client(client.reader, client.writer)
    await plain.ok("LOGIN anna secret")
    await plain.ok("SELECT INBOX")
    assert (await plain.ok("FETCH 1 UID"))[0] == b"* 1 FETCH (UID 3)"
