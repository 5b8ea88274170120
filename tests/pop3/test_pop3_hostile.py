"""Hostile and large input: bounded memory and turns, no traceback, no request."""

import asyncio
import poplib
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pop3_harness import DEADLINE_S, serving, serving_real
from turns import turns

from obox.accounts import storage_id
from obox.mailbox import Delta, Rows
from obox.pop3 import Pop3Settings
from obox.pop3.lines import LINE_BYTES_MAX
from obox.store.memory import MemoryMailbox
from obox.store.user.mailbox import Mailbox

MIB = 1 << 20
MANY = 100_000


async def test_a_line_beyond_the_limit() -> None:
    async with serving() as running:
        client = await running.client()
        client.send(b"x" * (4 * MIB) + b"\r\nUSER anna\r\n")
        assert (await client.line()).startswith(b"-ERR The line is too long")
        assert (await client.line()).startswith(b"+OK")
        (connection,) = running.pop3.hub.registry
        assert len(connection.input.buffered) <= LINE_BYTES_MAX


async def test_bad_commands_in_a_row_end_the_session() -> None:
    async with serving() as running:
        client = await running.client()
        client.send(b"\xff\x00\r\n" * 100)
        async with asyncio.timeout(DEADLINE_S):
            answer = await client.reader.read()
        assert answer == b"-ERR Unknown command\r\n" * 20


async def test_wrong_logins_end_the_session() -> None:
    async with serving() as running:
        client = await running.client()
        client.send(b"USER anna\r\nPASS wrong\r\n" * 100)
        async with asyncio.timeout(DEADLINE_S):
            answer = await client.reader.read()
        assert answer.count(b"-ERR [AUTH]") == 10


@pytest.mark.parametrize(
    "bomb", [b"AUTH PLAIN " + b"A" * 16_000, b"AUTH LOGIN\r\n" + b"A" * 16_000, b"AUTH PLAIN\r\n" + b"=" * 9_000]
)
async def test_sasl_that_is_too_long_or_wrong(bomb: bytes) -> None:
    async with serving() as running:
        client = await running.client()
        client.send(bomb + b"\r\nNOOP\r\n")
        lines = [await client.line()]
        while lines[-1] != b"-ERR NOOP is not allowed now":
            lines.append(await client.line())
        assert lines[-2].startswith(b"-ERR ")


async def test_a_flood_of_pipelined_commands_waits() -> None:
    """Nobody reads the answers: the server stops reading, and holds little."""
    async with serving(Pop3Settings(write_timeout_s=60.0)) as running:
        await running.deliver([b"A: b\r\n\r\n" + b"x" * 1000])
        client = await running.client(login="anna", limit=65_536)
        for _ in range(400):
            client.send(b"RETR 1\r\n" * 1000)
        (connection,) = running.pop3.hub.registry
        async with asyncio.timeout(DEADLINE_S):
            while not (connection.congested and not connection.reading):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        assert len(connection.input.buffered) < MIB
        assert connection.unsent_bytes < 2 * MIB
        client.writer.transport.abort()
        await running.idle()


async def test_a_large_mail_and_a_slow_reader(tmp_path: Path) -> None:
    """The memory of a session does not grow with the mail, other sessions go on, and no
    turn is long although each line gets another dot."""
    mail = b"A: b\r\n\r\n" + b".0123456789\n" * MIB
    async with serving_real(tmp_path) as running:
        await running.deliver([mail])
        client, other = await running.client(login="anna", limit=65_536), await running.client(login="ben")
        running.store.env.recent.clear()
        assert await client.cmd("STAT") == b"+OK 1 %d" % len(mail)
        tracemalloc.start()
        total, ended = 0, b""
        with turns(mine=False) as found:
            client.send(b"RETR 1\r\n")
            while not ended.endswith(b"\r\n.\r\n"):
                data = await client.reader.read(65_536)
                total, ended = total + len(data), (ended + data)[-5:]
                if total % 64 == 0:
                    await other.ok("NOOP")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        head = len(b"+OK %d octets\r\n.\r\n" % len(mail))
        assert total == head + len(mail) + 2 * mail.count(b"\n") - 4, "a CR and a dot for each line"
        assert peak < 8 * MIB
        found.check(held=False)


async def test_a_client_that_reads_nothing_is_cut() -> None:
    async with serving(Pop3Settings(write_timeout_s=0.2)) as running:
        await running.deliver([b"A: b\r\n\r\n" + b"x" * (16 * MIB)])
        client = await running.client(login="anna")
        client.writer.transport.pause_reading()
        client.send(b"DELE 1\r\nRSET\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n")
        await running.idle()
        assert len(await running.flags()) == 1


def many(count: int) -> Rows:
    """Return records of mails without the mails."""
    rows = Rows.empty()
    rows.uid = np.arange(1, count + 1, dtype=np.uint32)
    for name in ("size", "internaldate", "zone", "savedate", "modseq", "home", "home_uid"):
        setattr(rows, name, np.ones(count, dtype=getattr(rows, name).dtype))
    rows.home = np.full(count, -1, dtype=np.int32)
    rows.home_uid = rows.uid
    rows.place = np.zeros((count, 3), dtype=np.uint32)
    rows.oid = np.arange(count * 2, dtype=np.uint64).view(rows.oid.dtype).reshape(count, *rows.oid.shape[1:])
    return rows


async def test_100_000_mails_need_no_request_and_short_turns(tmp_path: Path) -> None:
    async with serving_real(tmp_path) as running:
        user = await running.store.open_user("anna", storage_id("anna"))
        mailbox = await user.select("INBOX")
        mailbox.state.join(Delta(rows=many(MANY), uidnext=MANY + 1, highestmodseq=2))
        client = await running.client(login="anna")
        bucket = running.store.env.bucket
        before = requests(bucket)
        with turns(mine=False) as found:
            assert await client.cmd("STAT") == b"+OK %d %d" % (MANY, MANY)
            for command in ("LIST", "UIDL"):
                client.send(f"{command}\r\n")
                lines = (await client.reader.readuntil(b"\r\n.\r\n")).split(b"\r\n")
                assert len(lines) == MANY + 3
                assert lines[MANY].startswith(b"%d " % MANY)
            await client.ok("LIST 99999")
            await client.ok(f"UIDL {MANY}")
            client.send(b"".join(b"DELE %d\r\n" % n for n in range(1, 10_001)))
            marked = b"+OK Marked\r\n" * 10_000
            assert await client.reader.readexactly(len(marked)) == marked
            assert await client.cmd("STAT") == b"+OK %d %d" % (MANY - 10_000, MANY - 10_000)
        found.check(held=False)
        assert requests(bucket) == before
        await mailbox.release()
        await user.release()


def requests(bucket: object) -> int:
    return sum(one.requests for one in bucket.stats.snapshot().values())


async def test_quit_deletes_many_mails_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    expunge = MemoryMailbox.expunge

    async def counted(self: MemoryMailbox, uids: np.ndarray) -> np.ndarray:
        calls.append(len(uids))
        return await expunge(self, uids)

    monkeypatch.setattr(MemoryMailbox, "expunge", counted)
    async with serving() as running:
        await running.deliver([b"A: b\r\n\r\nbody\r\n"] * 2_000)
        client = await running.client(login="anna")
        client.send(b"".join(b"DELE %d\r\n" % n for n in range(1, 2_001)) + b"QUIT\r\n")
        async with asyncio.timeout(DEADLINE_S):
            answer = await client.reader.read()
        assert answer.endswith(b"+OK Logging out, 2000 mails deleted\r\n")
        assert calls == [2_000]
        assert await running.flags() == {}


async def test_mails_that_are_retrieved_in_order_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several are read together, each once. A client that asks for single mails makes
    no more requests than these mails need."""
    together = []
    plain = Mailbox.mails

    def mails(self: Mailbox, uids: list[int], *, autofix: bool | None = None) -> object:
        together.append(len(uids))
        return plain(self, uids, autofix=autofix)

    monkeypatch.setattr(Mailbox, "mails", mails)
    async with serving_real(tmp_path) as running:
        small = [b"A: b\r\n\r\n%d\r\n" % number for number in range(40)]
        await running.deliver([*small, b"x" * (2 * MIB), *small])
        env = running.store.env
        for numbers, most, batches in (((1, 5, 3, 40), 4, []), (range(1, 82), 81, [16, 16, 7, 16, 16, 8])):
            env.recent.clear()
            for key in [info.key for info in await env.bucket.list("", kind="mail")]:
                await env.fscache.drop(key)
            together.clear()
            before = gets(env.bucket)
            client = await running.client(login="anna")
            for number in numbers:
                assert await client.many(f"RETR {number}")
            assert together == batches
            assert gets(env.bucket) - before <= most + 2, "a large mail is read in parts"
            await client.ok("QUIT")


def gets(bucket: object) -> int:
    counters = bucket.stats.snapshot().items()
    return sum(one.requests for (op, kind), one in counters if (op, kind) == ("get", "mail"))


# -- real clients ------------------------------------------------------------------------------------------------------


async def test_poplib(tmp_path: Path) -> None:
    mails = [b"Subject: a\r\n\r\n.\r\n..dots\r\n.end\r\n", b"Subject: b\n\nbare\n.\n+OK not an answer\n"]

    def talk(port: int) -> None:
        client = poplib.POP3("127.0.0.1", port, timeout=DEADLINE_S)
        assert "UIDL" in client.capa()
        client.utf8()
        client.user("anna")
        client.pass_("secret")
        assert client.stat() == (2, sum(map(len, mails)))
        assert len(client.list()[1]) == len(client.uidl()[1]) == 2
        for number, mail in enumerate(mails, 1):
            assert client.retr(number)[1] == mail.splitlines()
        assert client.top(1, 1)[1] == [b"Subject: a", b"", b"."]
        client.dele(1)
        client.rset()
        client.dele(2)
        client.quit()

    async with serving_real(tmp_path) as running:
        await running.deliver(mails)
        await asyncio.to_thread(talk, running.port)
        assert set(await running.flags()) == {1}


@pytest.mark.needs("curl")
async def test_curl(tmp_path: Path) -> None:
    mail = b"Subject: a\r\n\r\n.\r\n..dots\r\n.end\r\n"

    def curl(*arguments: str) -> bytes:
        command = ["curl", "-s", "--max-time", "20", "--user", "anna:secret", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    async with serving_real(tmp_path) as running:
        await running.deliver([mail, mail])
        url = f"pop3://127.0.0.1:{running.port}/"
        assert await asyncio.to_thread(curl, url) == b"1 %d\r\n2 %d\r\n" % (len(mail), len(mail))
        assert await asyncio.to_thread(curl, f"{url}2") == mail
        await asyncio.to_thread(curl, "-X", "DELE", "-I", f"{url}1")
        assert set(await running.flags()) == {2}
