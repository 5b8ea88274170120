"""STORE commands that a client sends without waiting for answers share a commit. Each
is answered after the commit, in order, and before any command behind it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Client, Running, serving_real

from obox import errors
from obox.imap.machine import SHARED_COMMIT_MAX
from obox.store.user.user import User

MAILS = 12


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving_real(tmp_path) as running:
        yield running


async def selected(running: Running) -> Client:
    client = await running.client(login="anna")
    for number in range(MAILS):
        await client.append("INBOX", b"Subject: %d\r\n\r\n" % number)
    await client.ok("SELECT INBOX")
    return client


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the commits of users, in the first element."""
    count, commit = [0], User.commit

    async def counting(self: User) -> None:
        count[0] += 1
        await commit(self)

    monkeypatch.setattr(User, "commit", counting)
    return count


async def answers(client: Client, last: bytes) -> list[bytes]:
    lines = []
    while not lines or not lines[-1].startswith(last):
        lines.append(await client.line())
    return lines


async def test_they_share_a_commit(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await selected(real)
    commits = counted(monkeypatch)
    client.send(b"".join(b"s%d STORE %d +FLAGS (\\Flagged)\r\n" % (n, n) for n in range(1, MAILS + 1)))
    lines = await answers(client, b"s%d " % MAILS)
    assert commits == [1]
    tagged = [line.split()[0] for line in lines if not line.startswith(b"*")]
    assert tagged == [b"s%d" % n for n in range(1, MAILS + 1)]
    fetched = [line for line in lines if line.startswith(b"*")]
    assert [line.split()[1] for line in fetched] == [b"%d" % n for n in range(1, MAILS + 1)]
    assert all(b"\\Flagged" in line for line in fetched)


async def test_another_command_waits_for_the_commit(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await selected(real)
    commits = counted(monkeypatch)
    client.send(b"a STORE 1 +FLAGS (one)\r\nb STORE 2 +FLAGS.SILENT (two)\r\nc NOOP\r\nd STORE 3 +FLAGS (three)\r\n")
    lines = await answers(client, b"d ")
    assert commits == [2]
    tagged = [line.split()[0] for line in lines if not line.startswith(b"*")]
    assert tagged == [b"a", b"b", b"c", b"d"]


async def test_a_failed_commit_is_answered_no_to_all(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await selected(real)

    async def refuse(self: User) -> None:
        raise errors.Unavailable("the storage does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(User, "commit", refuse)
        client.send(b"a STORE 1 +FLAGS (x)\r\nb STORE 99 +FLAGS (x)\r\nc STORE 2 +FLAGS (x)\r\nd NOOP\r\n")
        lines = await answers(client, b"d ")
    tagged = [line for line in lines if not line.startswith(b"*")]
    assert [line.split()[1] for line in tagged] == [b"NO", b"BAD", b"NO", b"OK"]
    assert tagged[0] == b"a NO [UNAVAILABLE] The storage does not answer"


@pytest.mark.parametrize("silent", [b"", b".SILENT"])
async def test_after_a_failed_commit_the_client_knows_the_flags(
    real: Running, silent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory has them. A client that takes NO for "nothing has changed" would be
    wrong."""
    client = await selected(real)

    async def refuse(self: User) -> None:
        raise errors.Unavailable("the storage does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(User, "commit", refuse)
        client.send(b"a STORE 1:2 +FLAGS%b (\\Flagged)\r\nb STORE 3 +FLAGS%b (\\Seen)\r\n" % (silent, silent))
        lines = await answers(client, b"b ")
    last = {line.split()[1]: line for line in lines if line.startswith(b"*")}
    assert b"\\Flagged" in last[b"1"]
    assert b"\\Flagged" in last[b"2"]
    assert b"\\Seen" in last[b"3"]
    assert [line.split()[1] for line in lines if not line.startswith(b"*")] == [b"NO", b"NO"]


async def test_a_store_that_changes_nothing_commits_nothing(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await selected(real)
    await client.ok("STORE 1:* +FLAGS.SILENT (\\Seen)")
    commits = counted(monkeypatch)
    client.send(b"a STORE 1 +FLAGS (\\Seen)\r\nb STORE 2 +FLAGS (\\Seen)\r\n")
    lines = await answers(client, b"b ")
    assert [line.split()[0] for line in lines if not line.startswith(b"*")] == [b"a", b"b"]
    assert commits == [0]


async def test_no_more_than_a_bounded_number_share_a_commit(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await selected(real)
    commits = counted(monkeypatch)
    count = SHARED_COMMIT_MAX + 10
    client.send(b"".join(b"s%d STORE 1 %cFLAGS.SILENT (\\Seen)\r\n" % (n, b"-+"[n % 2]) for n in range(1, count + 1)))
    await answers(client, b"s%d " % count)
    assert commits[0] >= 2
