"""Random commands for a real server. The log has no traceback, each answer follows the
grammar, others are served, and the memory is given back.

Each round is a connection of its own. It sends commands, closes its side, and reads
until the server has closed too. The server has to answer all commands before the close.
The seed is printed; OBOX_FUZZ_SEED runs that round again.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from obox.accounts import Quota
from obox.imap.settings import ImapSettings
from tests.fuzz.imap_commands import Commands
from tests.imap.grammar import Ungrammatical, parse
from tests.imap.harness import DEADLINE_S, Client, Compressed, Running, serving_real
from tests.turns import turns

MIB = 1 << 20
BACK_BYTES_MAX = 10 * MIB
MAILS = (
    b"Subject: plain\r\nFrom: a@b\r\n\r\nhello\r\n",
    b'Subject: =?utf-8?q?caf=C3=A9?=\r\nTo: x: a@b, "c\\" d" <e@f>;\r\n'
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\n\r\none\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\ntwo\r\n--b--\r\n",
    b"\xff\xfe\0\x80: \0\r\n" * 50,
    b"X: " + b"y" * 20_000 + b"\r\n\r\n" + b"0123456789abcde\n" * 5_000,
    b"",
    b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--x\r\n\r\n" * 200,
    b"Date: Thu, 32 Foo 99999 99:99:99 +9999\r\nMessage-ID: <a\r\nReferences: " + b"<x> " * 500 + b"\r\n\r\n\r\n",
)


@contextmanager
def errors_logged() -> Iterator[list[Any]]:
    """Collect the log lines that are errors or have a traceback. Other lines are
    dropped."""
    found: list[Any] = []

    def keep(logger: Any, method: str, entry: Any) -> Any:
        if method in ("error", "critical", "exception") or entry.get("exc_info"):
            found.append(entry)
        raise structlog.DropEvent

    processors = structlog.get_config()["processors"]
    plain = processors.copy()
    # The list is changed in place, because existing loggers refer to it.
    processors[:] = [structlog.processors.add_log_level, keep]
    try:
        yield found
    finally:
        processors[:] = plain


def anonymous_bytes() -> int:
    """Return the memory of the process without files, after free memory has been given
    back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def check(lines: list[bytes], sent: bytes) -> Counter[str]:
    """Check that each line is a response. Return how many there are of each kind.
    Raises: Ungrammatical."""
    found: Counter[str] = Counter()
    for line in lines:
        try:
            found[parse(line).name] += 1
        except Ungrammatical as error:
            raise Ungrammatical(f"{error}\nafter {sent[:2000]!r}") from None
    return found


async def one_round(running: Running, commands: Commands, answers: Counter[str]) -> None:
    chance = commands.chance
    client = first = await running.client(greet=False)
    client.strict = False
    login = chance.random() < 0.9
    sent = b"l LOGIN anna secret\r\ns SELECT INBOX\r\n" if login else b""
    sent += b"".join(commands.make() for _ in range(chance.choice((1, 5, 30))))
    if login and chance.random() < 0.15:
        client, sent = await _compressed(client, sent, chance)
    reading = asyncio.ensure_future(_lines(client))
    try:
        at = 0
        while at < len(sent):
            size = chance.choice((1, 100, 65_536, 1 << 20))
            client.send(sent[at : at + size])
            at += size
            if chance.random() < 0.2:
                await client.writer.drain()
        if chance.random() < 0.9:
            client.writer.write_eof()
        else:
            client.writer.transport.abort()
    except (ConnectionError, OSError, RuntimeError):
        # The server closed the connection first.
        pass
    async with asyncio.timeout(DEADLINE_S * 3):
        lines = await reading
    answers.update(await asyncio.to_thread(check, lines, sent))
    await client.close()
    running.clients.remove(first)


async def _compressed(client: Client, sent: bytes, chance: random.Random) -> tuple[Client, bytes]:
    """Log in and start compression. Returns what is sent then, which may be
    damaged."""
    client.send(b"l LOGIN anna secret\r\nz COMPRESS DEFLATE\r\n")
    if not (await client.until(b"z "))[-1].startswith(b"z OK "):
        return client, sent
    coding = Compressed(client)
    coded = b"".join(coding.coded(line) for line in sent.splitlines(keepends=True))
    if chance.random() < 0.3:
        at = chance.randrange(len(coded))
        coded = coded[:at] + chance.randbytes(chance.randint(0, 9)) + coded[at + chance.randint(0, 9) :]
    coding.send = coding.writer.write  # type: ignore[method-assign]
    return coding, coded


async def _lines(client: Client) -> list[bytes]:
    lines = []
    try:
        while line := await client.reader.readline():
            while line.endswith(b"}\r\n") and (begin := line.rfind(b"{")) >= 0 and line[begin + 1 : -3].isdigit():
                line += await client.reader.readexactly(int(line[begin + 1 : -3]))
                line += await client.reader.readline()
            # Otherwise the connection was cut.
            if line.endswith(b"\r\n"):
                lines.append(line[:-2])
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    return lines


async def beside(other: Client, served: list[int]) -> None:
    """Run a client that has to be served all the time."""
    while True:
        await other.ok("NOOP")
        served[0] += 1
        await asyncio.sleep(0.001)


async def test_random_commands(tmp_path: Path, fuzz_seconds: float) -> None:
    seed = int(os.environ.get("OBOX_FUZZ_SEED", "0")) or random.randrange(1, 1 << 32)
    print(f"OBOX_FUZZ_SEED={seed}")
    commands = Commands(random.Random(seed))
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    settings = ImapSettings(spool_dir=tmp_path / "spool", bad_commands_max=1_000)
    with errors_logged() as bugs:
        async with serving_real(tmp_path, settings, bucket=f"file://{tmp_path}/bucket") as running:
            quota = Quota(messages=300, storage_bytes=8 * MIB)
            running.imap.context.authenticator.quota = quota  # type: ignore[attr-defined]
            first = await running.client(login="anna")
            for mail in MAILS[:4] + MAILS[5:]:
                await first.append("INBOX", mail)
            other = await running.client(login="ben")
            other.strict = False
            served = [0]
            waiting = asyncio.ensure_future(beside(other, served))
            # This cache has a bound, but fills slowly.
            running.store.env.recent.bytes_max = MIB
            gc.collect()
            gc.freeze()
            before = 0
            begin = time.monotonic()
            rounds = 0
            answers: Counter[str] = Counter()
            try:
                with turns(mine=False) as found:
                    while (spent := time.monotonic() - begin) < fuzz_seconds:
                        # Only the last half minute counts at most: what users keep,
                        # such as mailboxes, may grow before.
                        if not before and spent > max(fuzz_seconds / 2, fuzz_seconds - 30):
                            before = await asyncio.to_thread(anonymous_bytes)
                        await one_round(running, commands, answers)
                        # New mails take the place of those that were expunged.
                        if rounds % 20 == 0:
                            for mail in MAILS[:4] + MAILS[5:]:
                                await first.cmd(b"APPEND INBOX {%d+}\r\n%b" % (len(mail), mail))
                        rounds += 1
                        assert not waiting.done(), waiting
            finally:
                gc.unfreeze()
                waiting.cancel()
            assert served[0] > rounds / 10
            await first.ok("NOOP")
            assert running.imap.context.intake.disk.used == running.imap.context.intake.memory.used == 0
            after = await asyncio.to_thread(anonymous_bytes)
    assert not bugs, bugs[0]
    assert not failures, failures[0]
    print(f"{rounds} rounds, {answers.total()} responses: {dict(answers)}")
    print(f"{served[0]} answers beside, longest turn {found.longest_s:.3f} s, {after - before} bytes more")
    found.check()
    assert after - before < BACK_BYTES_MAX
