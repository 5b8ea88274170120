"""A crowd at a backend: IMAP sessions that connect, work and leave, and senders at a
steady rate, in a single event loop.

The crowd checks each answer. An answer other than OK or 250 is a complaint. A single
refusal is allowed: a metacache that is full of users in use refuses further users with
a temporary error. These clients come again, and must be served then. If the machine was
so busy that the crowd itself stood still, the server may also say that the bucket did
not answer in time. The crowd remembers the mails that were acknowledged, so that a test
can look for them afterwards.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

ANSWER_S = 30.0
TRIES_MAX = 30
AGAIN_S = 1.0
REFUSED = re.compile(r"NO \[UNAVAILABLE\] No room for another user's index|451 4\.3\.0 ")
"""LMTP says to senders only that the storage is not available."""
LATE = re.compile(r"NO \[UNAVAILABLE\]")
STILL_S = 1.0
"""The server waits 10 s for the bucket. If this process does not run for so long, the
bucket's process may not run for 10 s."""
LOOK_S = 0.1
BUSY_S = 30.0
_LITERAL = re.compile(rb"\{(\d+)\}\r\n$")


class Gone(Exception):
    """The server closed the connection. The argument is the last line that it sent."""


class Imap:
    """A minimal IMAP client. It reads whole answers, with their literals."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._count = 0

    @classmethod
    async def connect(cls, port: int) -> Imap:
        client = cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))
        greeting = await client._line()
        if not greeting.startswith(b"* OK"):
            raise Gone(greeting.decode(errors="replace"))
        return client

    async def _line(self) -> bytes:
        out = b""
        async with asyncio.timeout(ANSWER_S):
            while True:
                line = await self._reader.readline()
                if not line:
                    raise Gone(out.decode(errors="replace"))
                out += line
                if (match := _LITERAL.search(line)) is None:
                    return out
                out += await self._reader.readexactly(int(match[1]))

    async def command(self, text: str, literal: bytes | None = None) -> tuple[str, list[bytes]]:
        """Send a command. Return the tagged answer without its tag, and the untagged
        lines. Raises Gone."""
        self._count += 1
        tag = b"a%d" % self._count
        self._writer.write(tag + b" " + text.encode())
        if literal is not None:
            self._writer.write(b" {%d+}\r\n" % len(literal) + literal)
        self._writer.write(b"\r\n")
        lines: list[bytes] = []
        while True:
            line = await self._line()
            if line.startswith(tag + b" "):
                return line[len(tag) + 1 :].decode(errors="replace").strip(), lines
            if line.startswith(b"* BYE") and not text.startswith("LOGOUT"):
                raise Gone(line.decode(errors="replace"))
            lines.append(line)

    async def idle(self, seconds: float) -> None:
        self._count += 1
        tag = b"a%d" % self._count
        self._writer.write(tag + b" IDLE\r\n")
        await asyncio.sleep(seconds)
        self._writer.write(b"DONE\r\n")
        while not (line := await self._line()).startswith(tag):
            if line.startswith(b"* BYE"):
                raise Gone(line.decode(errors="replace"))

    def close(self) -> None:
        self._writer.close()


@dataclass
class Crowd:
    """The crowd (see the text of the module).

    users: the users from whom sessions and senders choose;
    make: makes the mail of a number.
    """

    imap_port: int
    lmtp_port: int
    users: list[str]
    password: str
    make: Callable[[int], bytes]
    seed: int = 1
    complaints: list[str] = field(default_factory=list)
    delivered: dict[str, set[int]] = field(default_factory=dict)
    """Numbers of the mails that were answered with 250, by user."""
    appended: dict[str, int] = field(default_factory=dict)
    commands: int = 0
    refused: int = 0
    """How often there was no room for another user."""
    stopping: bool = False
    _number: int = 0
    _busy_until: float = float("-inf")

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def complain(self, user: str, text: str) -> None:
        self.complaints.append(f"{user}: {text}")

    async def watch(self) -> None:
        """Notice that the machine is too busy for a bucket to answer in time."""
        loop = asyncio.get_running_loop()
        while not self.stopping:
            began = loop.time()
            await asyncio.sleep(LOOK_S)
            if loop.time() - began > LOOK_S + STILL_S:
                self._busy_until = loop.time() + BUSY_S

    def _comes_again(self, answer: str) -> bool:
        busy = asyncio.get_running_loop().time() < self._busy_until
        return bool(REFUSED.match(answer) or (busy and LATE.match(answer)))

    # -- readers ---------------------------------------------------------------------------------------------------

    async def session(self, which: int, pause_s: float) -> None:
        """Log in as random users, one after another, and send a dozen commands as each
        of them."""
        rng = random.Random(f"{self.seed} session {which}")
        while not self.stopping:
            user = rng.choice(self.users)
            client = None
            try:
                client = await Imap.connect(self.imap_port)
                await self._work(client, rng, user, pause_s)
            except Gone as gone:
                self.complain(user, f"closed: {gone}")
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                self.complain(user, f"{type(error).__name__} {error}")
            finally:
                if client is not None:
                    client.close()

    async def _work(  # noqa: C901, PLR0912 - one branch for each thing that a client does
        self, client: Imap, rng: random.Random, user: str, pause_s: float
    ) -> None:
        async def say(text: str, literal: bytes | None = None) -> list[bytes]:
            for _ in range(TRIES_MAX):
                answer, lines = await client.command(text, literal)
                self.commands += 1
                if not self._comes_again(answer):
                    break
                self.refused += 1
                await asyncio.sleep(AGAIN_S)
            if not answer.startswith("OK"):
                self.complain(user, f"{text[:60]} -> {answer}")
            return lines

        await say(f"LOGIN {user} {self.password}")
        exists = 0
        for line in await say("SELECT INBOX"):
            if match := re.match(rb"\* (\d+) EXISTS", line):
                exists = int(match[1])
        for _ in range(rng.randrange(6, 14)):
            if self.stopping:
                break
            one = rng.randrange(1, exists + 1) if exists else 0
            choice = rng.randrange(12)
            if choice == 0:
                await client.idle(pause_s * 3)
            elif choice == 1:
                await say("APPEND Drafts", self.make(0))
                self.appended[user] = self.appended.get(user, 0) + 1
            elif choice == 2:
                await say("STATUS Archive (MESSAGES UNSEEN UIDNEXT)")
            elif choice == 3:
                await say('LIST "" "*" RETURN (STATUS (MESSAGES))')
            elif not one:
                await say("NOOP")
            elif choice == 4:
                await say("FETCH 1:* (FLAGS UID)")
            elif choice == 5:
                await say(f"FETCH {max(1, exists - 20)}:{exists} (ENVELOPE BODYSTRUCTURE)")
            elif choice == 6:
                await say(f"FETCH {one} (BODY[])")
            elif choice == 7:
                await say(f"STORE {one} +FLAGS (\\Flagged $Label{rng.randrange(5)})")
            elif choice == 8:
                await say(f"COPY {one} Archive")
            elif choice == 9:
                await say("SEARCH UNSEEN SUBJECT mail")
            elif choice == 10:
                await say(f"SEARCH {one} BODY nowhere")
            else:
                await say("SELECT Archive")
                await say("SELECT INBOX")
            await asyncio.sleep(rng.random() * 2 * pause_s)
        await say("LOGOUT")

    # -- senders ---------------------------------------------------------------------------------------------------

    async def sender(self, which: int, per_second: float) -> None:
        """Deliver mails at a steady rate. Each LMTP connection sends up to a hundred
        mails."""
        rng = random.Random(f"{self.seed} sender {which}")
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self.stopping:
            writer = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.lmtp_port)
                await self._expect(reader, "greeting")
                writer.write(b"LHLO crowd\r\n")
                await self._expect(reader, "LHLO")
                for _ in range(100):
                    if self.stopping:
                        break
                    due = max(due + 1 / per_second, loop.time() - 1.0)
                    await asyncio.sleep(max(0.0, due - loop.time()))
                    await self._deliver(reader, writer, rng.choice(self.users))
            except (OSError, TimeoutError, asyncio.IncompleteReadError, Gone) as error:
                self.complain("lmtp", f"{type(error).__name__} {error}")
            finally:
                if writer is not None:
                    writer.close()

    async def _deliver(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str) -> None:
        number = self.next_number()
        mail = re.sub(rb"(?m)^\.", b"..", self.make(number))
        for _ in range(TRIES_MAX):
            writer.write(b"MAIL FROM:<crowd@example.net>\r\nRCPT TO:<%b>\r\nDATA\r\n" % user.encode())
            for step in ("MAIL", f"RCPT {user}"):
                await self._expect(reader, step)
            await self._expect(reader, "DATA", "354")
            writer.write(mail + b".\r\n")
            reply = await self._reply(reader, "DATA")
            if not REFUSED.match(reply):
                break
            self.refused += 1
            await asyncio.sleep(AGAIN_S)
        if reply.startswith("2"):
            self.delivered.setdefault(user, set()).add(number)
        else:
            self.complain("lmtp", f"the mail for {user} -> {reply}")

    async def _reply(self, reader: asyncio.StreamReader, step: str) -> str:
        async with asyncio.timeout(ANSWER_S):
            while True:
                line = (await reader.readline()).decode(errors="replace")
                if not line:
                    raise Gone(f"LMTP closed at {step}")
                if line[3:4] != "-":
                    return line.strip()

    async def _expect(self, reader: asyncio.StreamReader, step: str, code: str = "2") -> None:
        line = await self._reply(reader, step)
        if not line.startswith(code):
            self.complain("lmtp", f"{step} -> {line}")
            if code == "354":
                raise Gone(line)

    # -- all -------------------------------------------------------------------------------------------------------

    async def stop(self, tasks: list[asyncio.Task[None]]) -> None:
        """End all sessions and senders after their current command or mail."""
        self.stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.gather(*tasks)
