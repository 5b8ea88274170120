"""APPEND commands that a client sends without waiting for answers. Their mails share
PUTs, and have their UIDs in the order of the commands."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Client, Running, serving_real

from obox.errors import OverQuota
from obox.imap import together
from obox.store.user.user import User


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving_real(tmp_path) as running:
        yield running


def append(tag: bytes, mail: bytes, mailbox: bytes = b"INBOX") -> bytes:
    return b"%b APPEND %b {%d+}\r\n%b\r\n" % (tag, mailbox, len(mail), mail)


async def objects(running: Running) -> int:
    """Return how many objects of mails the bucket has. Each was a PUT."""
    return sum("/m/" in info.key for info in await running.store.env.listing("", kind="mail"))


async def tagged(client: Client, count: int) -> tuple[list[list[bytes]], list[bytes]]:
    """Read tagged lines. Return their words, and the other lines."""
    lines: list[list[bytes]] = []
    others: list[bytes] = []
    while len(lines) < count:
        line = await client.line()
        assert line, "the connection has ended"
        if line.startswith(b"*"):
            others.append(line)
        else:
            lines.append(line.split())
    return lines, others


async def test_they_share_a_put(real: Running) -> None:
    client = await real.client(login="anna")
    await client.ok("SELECT INBOX")
    client.send(b"".join(append(b"a%d" % n, b"Subject: %d\r\n\r\n" % n) for n in range(50)))
    lines, others = await tagged(client, 50)
    assert [line[:2] for line in lines] == [[b"a%d" % n, b"OK"] for n in range(50)]
    assert [line[4] for line in lines] == [b"%d]" % (n + 1) for n in range(50)]
    assert b"* 50 EXISTS" in others
    assert await objects(real) <= 3
    fetched = await client.ok("FETCH 1:* BODY.PEEK[]")
    assert [line.split(b"Subject: ")[1].split()[0] for line in fetched[:-1]] == [b"%d" % n for n in range(50)]


async def test_ten_thousand_mails_share_puts(real: Running) -> None:
    """How many share a PUT depends on how many arrive while the PUT before is under
    way. On a quiet machine 10,000 mails make fewer than 100 PUTs."""
    client = await real.client(login="anna")
    mails = 10_000
    for at in range(0, mails, 1000):
        client.send(b"".join(append(b"a%d" % n, b"Subject: %d\r\n\r\n" % n) for n in range(at, at + 1000)))
        await client.writer.drain()
    lines, _ = await tagged(client, mails)
    assert [line[0] for line in lines] == [b"a%d" % n for n in range(mails)]
    assert [int(line[4][:-1]) for line in lines] == [*range(1, mails + 1)]
    assert await objects(real) <= 1_000


async def test_other_commands_wait_for_them(real: Running) -> None:
    client = await real.client(login="anna")
    mail = b"Subject: x\r\n\r\n"
    client.send(
        append(b"a", mail)
        + append(b"b", mail)
        + b"c STATUS INBOX (MESSAGES)\r\nd APPEND INBOX (broken\r\n"
        + append(b"e", mail)
        + append(b"f", mail)
        + b"g LOGOUT\r\n"
    )
    lines, others = await tagged(client, 7)
    assert [line[:2] for line in lines] == [
        [b"a", b"OK"], [b"b", b"OK"], [b"c", b"OK"], [b"d", b"BAD"], [b"e", b"OK"], [b"f", b"OK"], [b"g", b"OK"]
    ]  # fmt: skip
    assert b"* STATUS INBOX (MESSAGES 2)" in others


async def test_one_that_fails_stops_no_other(real: Running) -> None:
    client = await real.client(login="anna")
    mail = b"Subject: x\r\n\r\n"
    client.send(append(b"a", mail) + append(b"b", mail, b"Nowhere") + append(b"c", mail) + b"d NOOP\r\n")
    lines, _ = await tagged(client, 4)
    assert [line[1] for line in lines] == [b"OK", b"NO", b"OK", b"OK"]
    assert lines[1][2] == b"[TRYCREATE]"


async def test_they_are_limited_by_number_and_octets(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "COMMANDS_MAX", 4)
    running, most = [0], [0]
    plain = User.append

    async def counting(self: User, name: str, mails: list[object], **more: int) -> object:
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            if not name:
                raise OverQuota("full")
            return await plain(self, name, mails, **more)
        finally:
            running[0] -= 1

    monkeypatch.setattr(User, "append", counting)
    client = await real.client(login="anna")
    mail = b"Subject: x\r\n\r\n"
    client.send(b"".join(append(b"a%d" % n, mail) for n in range(20)))
    await tagged(client, 20)
    assert 1 < most[0] <= 4
    monkeypatch.setattr(together, "COMMANDS_MAX", 256)
    monkeypatch.setattr(together, "BYTES_MAX", 3 * len(mail))
    most[0] = 0
    client.send(b"".join(append(b"a%d" % n, mail) for n in range(20)))
    await tagged(client, 20)
    assert 1 < most[0] <= 3


async def test_what_has_begun_is_completed_when_the_client_is_gone(real: Running) -> None:
    client = await real.client(login="anna")
    mail = b"Subject: x\r\n\r\n"
    client.send(b"".join(append(b"a%d" % n, mail) for n in range(5)))
    await tagged(client, 1)
    client.writer.transport.abort()
    again = await real.client(login="anna")
    (status, _) = await again.ok("STATUS INBOX (MESSAGES)")
    assert status == b"* STATUS INBOX (MESSAGES 5)"
