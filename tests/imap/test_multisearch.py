"""ESEARCH in several mailboxes, UIDBATCHES: what the dialogues do not have."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import STORES, Running, serving

from obox.imap.ast import Filter
from obox.imap.commands import multisearch
from obox.imap.commands.uidbatches import ranges_of
from obox.imap.filters import Chosen
from obox.store.memory import MemoryMailbox


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


async def test_too_many_mailboxes_are_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multisearch, "MAILBOXES_MAX", 6)
    client = await running.client(login="anna")
    assert (await client.cmd("ESEARCH IN (personal) ALL"))[-1] == b"OK Esearch completed"
    await client.ok("CREATE more")
    assert (await client.cmd("ESEARCH IN (personal) ALL"))[-1].startswith(b"NO [LIMIT] Too many mailboxes: 7;")


async def test_a_search_ends_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as running:
        client = await running.client(login="anna")
        await client.append("INBOX", b"Subject: x\r\n\r\nx")

        async def search(self: MemoryMailbox, *given: Any, **more: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(MemoryMailbox, "search", search)
        monkeypatch.setattr(multisearch, "SEARCH_S", 0.01)
        assert (await client.cmd("ESEARCH IN (personal) ALL"))[-1].startswith(b"NO [LIMIT] ")
        await client.ok("NOOP")


async def test_empty_mailboxes_are_not_opened(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await running.client(login="anna")
    await client.append("Sent", b"Subject: x\r\n\r\nx")
    (user,) = running.store.users.values()
    opened = []
    kind = type(user)
    select = kind.select

    async def noted(self: Any, name: str) -> Any:
        opened.append(name)
        return await select(self, name)

    monkeypatch.setattr(kind, "select", noted)
    assert b"MAILBOX Sent" in (await client.ok("ESEARCH IN (personal) ALL"))[0]
    assert opened == ["Sent"]


async def test_each_mail_is_in_one_batch(running: Running) -> None:
    client = await running.client(login="anna")
    mails = b"".join(b" {1+}\r\nx" for _ in range(900))
    await client.ok(b"APPEND INBOX" + mails)
    await client.ok(b"APPEND INBOX" + mails)
    await client.ok("SELECT INBOX")
    await client.ok("UID STORE 100:400,1800 +FLAGS (\\Deleted)")
    await client.ok("EXPUNGE")
    line = (await client.ok("UIDBATCHES 500"))[0]
    ranges = line.rpartition(b" ")[2].decode().split(",")
    assert ranges == ["1799:1300", "1299:800", "799:1"]
    counts = [len((await client.ok(f"UID FETCH {one} UID"))[:-1]) for one in ranges]
    assert counts == [500, 500, 498]
    assert (await client.ok("UIDBATCHES 500 2:2"))[0].endswith(b" 1299:800")


@pytest.mark.parametrize(
    ("uids", "size", "batches", "found"),
    [
        ([], 2, None, []),
        ([7], 2, None, [(7, 1)]),
        ([3, 7], 2, None, [(7, 1)]),
        ([3, 7, 9], 2, None, [(9, 7), (6, 1)]),
        ([3, 7, 9, 12], 2, None, [(12, 9), (8, 1)]),
        ([3, 7, 9, 12], 1, (2, 3), [(11, 9), (8, 7)]),
        ([3, 7, 9, 12], 1, (4, 9), [(6, 1)]),
        ([3, 7, 9, 12], 1, (5, 9), []),
    ],
)
def test_ranges(uids: list[int], size: int, batches: tuple[int, int] | None, found: list[tuple[int, int]]) -> None:
    assert ranges_of(np.array(uids, dtype=np.uint32), size, batches) == found


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ([Filter("INBOXES")], ["INBOX", "a", "a/b", "a/b/c", "ab", "b"]),
        ([Filter("PERSONAL")], ["INBOX", "a", "a/b", "a/b/c", "ab", "b"]),
        ([Filter("SUBSCRIBED")], ["b"]),
        ([Filter("SUBTREE", ("a",))], ["a", "a/b", "a/b/c"]),
        ([Filter("SUBTREE-ONE", ("a",))], ["a", "a/b"]),
        ([Filter("MAILBOXES", ("a/b", "none")), Filter("SUBSCRIBED")], ["a/b", "b"]),
        ([Filter("SELECTED")], []),
        ([Filter("SUBTREE", ("",))], []),
    ],
)
def test_filters(filters: list[Filter], names: list[str]) -> None:
    chosen = Chosen(filters)
    every = ["INBOX", "a", "a/b", "a/b/c", "ab", "b"]
    assert [name for name in every if chosen.has(name, subscribed=name == "b")] == names
