"""NOTIFY over a socket, RFC 5465: what the dialogue does not have."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE_S, STORES, Client, Running, serving

from obox.errors import Unavailable
from obox.imap import notify
from obox.imap.connection import Connection
from obox.imap.later import Later
from obox.imap.states import TABLE
from obox.store.memory import MemoryUser

OVER = b"* OK [NOTIFICATIONOVERFLOW] "


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


def test_each_handler_of_later_exists() -> None:
    later = {handler for row in TABLE.values() for handler in row.values() if isinstance(handler, Later)}
    assert len(later) > 10
    assert all(callable(handler.load()) for handler in later)


async def test_too_many_mailboxes_are_refused_and_the_groups_stay(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = await running.client(login="anna"), await running.client(login="anna")
    await client.ok("NOTIFY SET (mailboxes Sent (MessageNew MessageExpunge))")
    monkeypatch.setattr(notify, "WATCHED_MAX", 3)
    answer = (await client.cmd("NOTIFY SET (personal (MessageNew MessageExpunge))"))[-1]
    assert answer.startswith(b"NO [NOTIFICATIONOVERFLOW] Too many mailboxes: 6;")
    await other.append("Sent", b"x")
    assert (await client.line()).startswith(b"* STATUS Sent (MESSAGES 1 ")


async def test_new_mailboxes_beyond_the_limit_end_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, other = await running.client(login="anna"), await running.client(login="anna")
    monkeypatch.setattr(notify, "WATCHED_MAX", 6)
    await client.ok("NOTIFY SET (personal (MailboxName))")
    await other.ok("CREATE seventh")
    assert (await client.line()).startswith(OVER)
    await other.ok("CREATE eighth")
    assert await client.ok("NOOP") == [b"OK Noop completed"]


async def test_a_client_that_reads_nothing_holds_few_notes(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """More mailboxes change than may be noted while the client does not read."""
    client, other = await running.client(login="anna"), await running.client(login="anna")
    monkeypatch.setattr(notify, "CHANGED_MAX", 2)
    await client.ok("NOTIFY SET (personal (MessageNew MessageExpunge))")
    (connection,) = [
        one for one in running.imap.context.registry if isinstance(one, Connection) and one.session.notify is not None
    ]
    monkeypatch.setattr(type(connection), "wake", lambda self: None)
    for name in ("INBOX", "Sent", "Trash", "Drafts"):
        await other.append(name, b"x")
    found = connection.session.notify
    assert found is not None
    assert len(found.changed_boxes) == 2
    lines = await client.ok("NOOP")
    assert [line[: len(OVER)] for line in lines[:-1]] == [OVER]
    assert connection.session.notify is None


async def test_a_mailbox_that_cannot_be_read_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as running:
        client, other = await running.client(login="anna"), await running.client(login="anna")
        await client.ok("NOTIFY SET (personal (MessageNew MessageExpunge))")

        async def fails(self: MemoryUser, name: str) -> Any:
            raise Unavailable("the bucket does not answer")

        monkeypatch.setattr(MemoryUser, "status", fails)
        await other.append("Sent", b"x")
        assert (await client.line()).startswith(OVER)
        await client.ok("NOOP")


async def _until_unwatched(running: Running) -> None:
    (user,) = running.store.users.values()
    async with asyncio.timeout(DEADLINE_S):
        while user.changes.listeners:  # noqa: ASYNC110 - nothing in the server says so
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("way", ["UNAUTHENTICATE", "LOGOUT", "abort"])
async def test_nothing_watches_at_the_end(running: Running, way: str) -> None:
    client = await running.client(login="anna")
    (user,) = running.store.users.values()
    for _ in range(2):
        await client.ok("NOTIFY SET (inboxes (MessageNew MessageExpunge))")
    assert len(user.changes.listeners) == 1
    if way == "abort":
        client.writer.transport.abort()
    else:
        await client.cmd(way)
    await _until_unwatched(running)
    assert not getattr(getattr(running.store, "log", None), "watchers", {})


async def test_changes_by_many_deliveries_need_few_lines(running: Running) -> None:
    """A client that reads late gets the last state."""
    client, other = await running.client(login="anna"), await running.client(login="anna")
    await client.ok("NOTIFY SET (personal (MessageNew MessageExpunge))")
    for _ in range(30):
        await other.append("Sent", b"x")
    lines = await client.ok("NOOP")
    while not lines or b"MESSAGES 30 " not in b"".join(lines):
        lines.append(await client.line())
    assert all(line.startswith((b"* STATUS Sent ", b"OK ")) for line in lines)
    await _quiet(client)


async def test_fetching_a_new_mail_does_not_make_it_seen(running: Running) -> None:
    client, other = await running.client(login="anna"), await running.client(login="anna")
    await client.ok("SELECT INBOX")
    items = "RFC822 RFC822.TEXT RFC822.HEADER BODY[] BINARY[1] UID"
    await client.ok(f"NOTIFY SET (selected (MessageNew ({items}) MessageExpunge))")
    await other.append("INBOX", b"Subject: x\r\n\r\nbody")
    line = (await client.until(b"* 1 FETCH"))[-1]
    for item in (b"UID 1 ", b"RFC822 {18}\r\n", b"RFC822.TEXT {4}\r\n", b"RFC822.HEADER {14}\r\n", b"BODY[] {18}\r\n"):
        assert item in line
    assert (await client.ok("SEARCH SEEN"))[-2] == b"* SEARCH"


async def test_a_user_hears_nothing_of_another(running: Running) -> None:
    client, other = await running.client(login="anna"), await running.client(login="ben")
    await client.ok("NOTIFY SET (personal (MessageNew MessageExpunge MailboxName))")
    await other.append("INBOX", b"x")
    await other.ok("CREATE more")
    await _quiet(client)


async def _quiet(client: Client) -> None:
    assert await client.ok("NOOP") == [b"OK Noop completed"]
