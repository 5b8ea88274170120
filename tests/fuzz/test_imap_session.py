"""Random commands for a real server. The log has no traceback, each answer follows the
grammar, others are served, and the memory is given back.

Each round is a connection of its own. It sends commands, closes its side, and reads
until the server has closed too. The server has to answer all commands before the close.
The rounds are divided into scenarios. Each has a user of its own, whose quota is not
used up yet. After it all sessions end, the users are unloaded, and the memory must be
that after the first scenario.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from pathlib import Path

from obox.accounts import Quota
from obox.imap.settings import ImapSettings
from tests.fuzz.fuzzing import SCENARIO_S, SCENARIOS_MIN, Held, at_rest, no_traceback, seeded
from tests.fuzz.imap_commands import Commands
from tests.imap.grammar import Ungrammatical, parse
from tests.imap.harness import DEADLINE_S, Client, Compressed, Running, serving_real
from tests.turns import turns

MIB = 1 << 20
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


def check(lines: list[bytes], sent: bytes) -> Counter[str]:
    """Check that each line is a response. Return how many there are of each kind.
    Raises: Ungrammatical."""
    found: Counter[str] = Counter()
    utf8 = rev2 = False
    for line in lines:
        enabled = line.startswith(b"* ENABLED ")
        utf8 |= enabled and b"UTF8=ACCEPT" in line
        rev2 |= enabled and b"IMAP4rev2" in line
        if line.endswith(b" OK Unauthenticated"):
            utf8 = rev2 = False
        try:
            found[parse(line, utf8=utf8, rev2=rev2).name] += 1
        except Ungrammatical as error:
            raise Ungrammatical(f"{error}\nafter {sent[:2000]!r}") from None
    return found


async def one_round(running: Running, user: str, commands: Commands, answers: Counter[str]) -> None:
    chance = commands.chance
    client = first = await running.client(greet=False)
    client.strict = False
    login = chance.random() < 0.9
    sent = b"l LOGIN %b secret\r\ns SELECT INBOX\r\n" % user.encode() if login else b""
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
    coding.send = coding.writer.write
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


async def one_scenario(
    running: Running, user: str, commands: Commands, answers: Counter[str], end: float
) -> tuple[int, int]:
    """Run rounds until the end, beside a client that has to be served. Return how many
    rounds there were, and how often the client was served."""
    running.imap.context.authenticator.passwords = {user: "secret", "ben": "secret"}
    first = await running.client(login=user)
    for mail in MAILS[:4] + MAILS[5:]:
        await first.append("INBOX", mail)
    other = await running.client(login="ben")
    other.strict = False
    served, rounds = [0], 0
    waiting = asyncio.ensure_future(beside(other, served))
    try:
        while not rounds or time.monotonic() < end:
            await one_round(running, user, commands, answers)
            # New mails take the place of those that were expunged.
            if rounds % 20 == 0:
                for mail in MAILS[:4] + MAILS[5:]:
                    await first.cmd(b"APPEND INBOX {%d+}\r\n%b" % (len(mail), mail))
            rounds += 1
            assert not waiting.done(), waiting
    finally:
        waiting.cancel()
    await first.ok("NOOP")
    for client in (first, other):
        await client.close()
        running.clients.remove(client)
    return rounds, served[0]


async def test_random_commands(tmp_path: Path, fuzz_seconds: float) -> None:
    answers: Counter[str] = Counter()
    rounds = served = 0
    settings = ImapSettings(spool_dir=tmp_path / "spool", bad_commands_max=1_000)
    with seeded() as rng, no_traceback():
        commands = Commands(rng)
        async with serving_real(tmp_path, settings, bucket=f"file://{tmp_path}/bucket") as running:
            quota = Quota(messages=300, storage_bytes=8 * MIB)
            running.imap.context.authenticator.quota = quota
            gc.collect()
            gc.freeze()
            # On a busy machine a scenario has few rounds: the second loads code too.
            held = Held(first=2)
            end = time.monotonic() + fuzz_seconds
            try:
                with turns(mine=False) as found:
                    while (now := time.monotonic()) < end or len(held.bytes) < 3:
                        until = now + min(SCENARIO_S, fuzz_seconds / SCENARIOS_MIN)
                        some, times = await one_scenario(running, f"user{len(held.bytes)}", commands, answers, until)
                        rounds, served = rounds + some, served + times
                        await at_rest(running.store)
                        intake = running.imap.context.intake
                        assert intake.disk.used == intake.memory.used == 0
                        held.check()
            finally:
                gc.unfreeze()
            assert served > rounds / 10
    print(f"{rounds} rounds, {answers.total()} responses: {dict(answers)}")
    print(f"{served} answers beside, longest turn {found.longest_s:.3f} s, memory after each scenario: {held}")
    found.check()
