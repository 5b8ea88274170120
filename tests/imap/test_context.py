"""Searches that are kept up to date, RFC 5267: what the dialogue does not have."""

import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness import STORES, Client, Running, serving

from obox.errors import Unavailable
from obox.imap import contexts
from obox.store.memory import MemoryMailbox
from tests.imap.grammar import parse


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


async def selected(running: Running) -> Client:
    client = await running.client(login="anna")
    await client.ok("SELECT INBOX")
    return client


async def test_a_session_has_few_contexts(running: Running) -> None:
    client = await selected(running)
    for _ in range(contexts.CONTEXTS_MAX):
        assert len(await client.ok("SEARCH RETURN (UPDATE) ALL")) == 2
    lines = await client.ok("SEARCH RETURN (UPDATE) ALL")
    assert lines[0].startswith(b'* NO [NOUPDATE "t%d"] Too many searches' % client.number)
    assert lines[1].startswith(b"* ESEARCH")
    await client.ok('CANCELUPDATE "t3"')
    assert len(await client.ok("SEARCH RETURN (UPDATE) ALL")) == 2


@pytest.mark.parametrize(("name", "command"), [("RESULTS_MAX", "SEARCH"), ("SORTED_MAX", "SORT")])
async def test_results_are_bounded(running: Running, monkeypatch: pytest.MonkeyPatch, name: str, command: str) -> None:
    monkeypatch.setattr(contexts, name, 2)
    client, other = await selected(running), await running.client(login="anna")
    keys = "(SIZE) UTF-8 ALL" if command == "SORT" else "ALL"
    for _ in range(2):
        await other.append("INBOX", b"Subject: x\r\n\r\n")
    await client.ok("NOOP")
    assert len(await client.ok(f"{command} RETURN (UPDATE COUNT) {keys}")) == 2
    said = b'* NO [NOUPDATE "t%d"] The search has too many results to be kept up to date'
    first = said % client.number
    await other.append("INBOX", b"Subject: x\r\n\r\n")
    assert first in await client.ok("NOOP")
    lines = await client.ok(f"{command} RETURN (UPDATE COUNT) {keys}")
    assert lines[0] == said % client.number


async def test_a_search_that_fails_is_not_kept_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as running:
        client, other = await selected(running), await running.client(login="anna")
        await client.ok("SEARCH RETURN (UPDATE) BODY x")
        said = b'* NO [NOUPDATE "t%d"] the bucket does not answer' % client.number
        await other.append("INBOX", b"Subject: x\r\n\r\nx")

        async def fails(self: MemoryMailbox, *given: Any, **more: Any) -> None:
            raise Unavailable("the bucket does not answer")

        monkeypatch.setattr(MemoryMailbox, "search", fails)
        assert said in await client.ok("NOOP")
        assert (await client.ok("NOOP")) == [b"OK Noop completed"]


async def test_sequence_numbers_and_the_saved_result_keep_their_meaning(running: Running) -> None:
    client = await selected(running)
    for _ in range(3):
        await client.append("INBOX", b"Subject: x\r\n\r\nx")
    await client.ok("NOOP")
    await client.ok("SEARCH RETURN (SAVE) 3")
    await client.ok("UID SEARCH RETURN (UPDATE) 2:3 SEEN")
    await client.ok("UID SEARCH RETURN (UPDATE) $ SEEN")
    await client.ok("UID SEARCH RETURN (UPDATE) UID 1:* SEEN")
    await client.ok("SEARCH RETURN (SAVE) 1")
    await client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
    await client.ok("EXPUNGE")
    await client.append("INBOX", b"Subject: x\r\n\r\nx")
    lines = await client.ok("NOOP")
    lines = await client.ok("STORE 1:* +FLAGS.SILENT (\\Seen)")
    tags = [client.number - 8, client.number - 7, client.number - 6]
    said = [re.sub(rb'\(TAG "t([0-9]+)"\)', rb"\1", line) for line in lines if b"ESEARCH" in line]
    assert sorted(line.split(b"ADDTO ")[1] for line in said) == [b"(0 2:3)", b"(0 2:4)", b"(0 3)"], tags


SEARCHES = {
    "UID SEARCH": "UID SEARCH RETURN (%s) SEEN SUBJECT a",
    "SEARCH": "SEARCH RETURN (%s) NOT FLAGGED",
    "UID SORT": "UID SORT RETURN (%s) (REVERSE SUBJECT SIZE) UTF-8 NOT DELETED",
    "SORT": "SORT RETURN (%s) (SUBJECT) UTF-8 SEEN",
}


class Follower:
    """A client that applies what it hears to the results of its searches."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.known: dict[bytes, list[int]] = {}
        self.tags: dict[str, bytes] = {}

    async def begin(self) -> None:
        for name, command in SEARCHES.items():
            await self.client.ok(command % "UPDATE ALL")
            self.tags[name] = b"t%d" % self.client.number
            self.known[self.tags[name]] = []

    async def cmd(self, command: str | bytes) -> None:
        for line in (await self.client.ok(command))[:-1]:
            found = parse(line)
            if found.name == "EXPUNGE":
                self.expunge(found.value)
            elif found.name == "ESEARCH":
                tag, _, values = found.value
                for word in (b"REMOVEFROM", b"ADDTO"):
                    for at, ranges in values.get(word, ()):
                        for number in (n for low, high in ranges for n in range(low, high + 1)):
                            self.apply(self.known[tag], at, number, add=word == b"ADDTO")

    def expunge(self, seq: int) -> None:
        for name in ("SEARCH", "SORT"):
            numbers = self.known[self.tags[name]]
            assert seq not in numbers, "it was not removed before"
            numbers[:] = [number - (number > seq) for number in numbers]

    def apply(self, numbers: list[int], at: int, number: int, *, add: bool) -> None:
        if add:
            numbers.insert(at - 1 if at else len(numbers), number)
        else:
            assert not at or numbers[at - 1] == number
            numbers.remove(number)

    async def check(self) -> None:
        for name, command in SEARCHES.items():
            _, _, values = parse((await self.client.ok(command % "ALL"))[0]).value
            now = [n for low, high in values.get(b"ALL", ()) for n in range(low, high + 1)]
            mine = self.known[self.tags[name]]
            assert (mine if "SORT" in name else sorted(mine)) == now, name


async def test_a_client_that_follows_has_the_results_of_a_new_search(running: Running) -> None:
    """Random changes of two sessions. The client applies ADDTO and REMOVEFROM to its
    results, by UIDs and by numbers, sorted and not."""
    rng = random.Random(5267)
    client, other = await selected(running), await selected(running)
    follower = Follower(client)
    await follower.begin()
    for _ in range(80):
        cmd = rng.choice((follower.cmd, other.ok))
        kind = rng.randrange(4)
        if kind == 0:
            mail = b"Subject: %c%d\r\n\r\n" % (rng.choice(b"abc"), rng.randrange(99))
            await cmd(b"APPEND INBOX {%d+}\r\n%b" % (len(mail), mail))
        elif kind < 3:
            flag = rng.choice(("\\Seen", "\\Flagged", "\\Deleted"))
            uids = f"{rng.randint(1, 40)}:{rng.randint(1, 40)}"
            await cmd(f"UID STORE {uids} {rng.choice('+-')}FLAGS.SILENT ({flag})")
        else:
            await cmd("EXPUNGE")
        await follower.cmd("NOOP")
        await follower.check()
    assert all(follower.known.values())
