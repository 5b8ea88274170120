"""POP3 on a socket: commands in any order, any bytes, pipelining, cuts, clients that
leave; a store that fails in every way. A user whose clients never send QUIT keeps every
mail."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

from fuzzing import REST_S, Wire, drive, seeded, strange_text

from obox import errors
from obox.accounts import storage_id
from obox.pop3 import Pop3Server, Pop3Settings
from obox.store.api import NewMail
from obox.store.memory import MemoryMailbox, MemoryStore
from tests.imap.harness import Passwords

FIRST = re.compile(rb"(?:\+OK|-ERR|\+)(?: [^\x00-\x1f\x7f-\xff]*)?\r\n")
LIMITS = Pop3Settings(user_sessions_max=3, reuse_xuidl=True, uidl_format="%v.%u", enable_last=True, login_timeout_s=5.0)
MAILS = [
    b"",
    b"\r\n",
    b".",
    b"X-UIDL: own\r\n\r\n.\r\n..\r\n.\n.\r.\r\n",
    b"X-UIDL: own\nSubject: \xff\x00\n\n.\n+OK forged\n",
    b"a: b\r\n\r\n" + b".\n" * 300_000,
    b"x" * 700_000,
]
WORDS = (
    "STAT", "LIST", "UIDL", "RETR", "RETR", "TOP", "DELE", "RSET", "LAST", "NOOP", "CAPA", "STLS", "UTF8", "APOP",
    "AUTH", "USER", "PASS", "stat",
)  # fmt: skip
KEPT = "anna"


class Failing(MemoryMailbox):
    """A mailbox that fails when its random generator says so."""

    rng = random.Random(0)

    def _fail(self) -> None:
        if self.rng.random() < 0.1:
            raise self.rng.choice(errors.KINDS)("said \u202e\r\n+OK" if self.rng.random() < 0.5 else "")

    async def part(self, uid: int, start: int, end: int, *, autofix: bool | None = None) -> bytes:
        await asyncio.sleep(0)
        self._fail()
        return await super().part(uid, start, end, autofix=autofix)

    async def expunge(self, uids: object) -> object:
        self._fail()
        return await super().expunge(uids)


def session(rng: random.Random) -> bytes:
    """Send commands that are mostly in order, with anything between them."""
    user = rng.choice((KEPT, "ben"))
    out = [rng.choice((f"USER {user}\r\nPASS secret\r\n", "CAPA\r\nAUTH\r\n"))] if rng.random() < 0.9 else []
    for _ in range(rng.randint(1, 30)):
        word = rng.choice(WORDS)
        number = rng.choice(("", " 1", " 3", " 5 0", " 6 100000", " 7 2", " 0", " 8", " -1", " x", f" {10**30}"))
        out.append(f"{word}{number}{rng.choice(('', '', ' ', strange_text(rng)))}{rng.choice(chr(13) + chr(10))}\r\n")
    data = [line.encode("utf-8", "surrogatepass") for line in out]
    if rng.random() < 0.3:
        data.insert(rng.randint(0, len(data)), rng.randbytes(rng.choice((1, 20, 700, 40_000))))
    made = re.sub(rb"(?i)quit", b"", b"".join(data))
    made += b"QUIT\r\n" if user != KEPT and rng.random() < 0.5 else b""
    return made[: rng.randint(0, len(made))] if rng.random() < 0.2 else made


async def test_pop3(tmp_path: Path, fuzz_seconds: float) -> None:
    with seeded() as rng:
        Failing.rng = rng
        store = MemoryStore()
        for user in (KEPT, "ben"):
            opened = await store.open_user(user, storage_id(user))
            await opened.append("INBOX", [NewMail(mail) for mail in MAILS])
            mailbox = await opened.select("INBOX")
            mailbox.__class__ = Failing
            if user == KEPT:
                kept = mailbox
        server = Pop3Server(store, Passwords(), LIMITS)
        loop, path = asyncio.get_running_loop(), tmp_path / "s"
        listening = await loop.create_unix_server(server.connection_factory, path)

        async def one() -> None:
            wire = Wire(rng, *await asyncio.open_unix_connection(path))
            # The collection must not run in a turn that is measured.
            await wire.send(await asyncio.to_thread(session, rng))
            answers = await wire.end()
            assert not answers or FIRST.match(answers), answers[:200]
            for line in answers.split(b"\r\n"):
                assert b"\n" not in line, "each line ends with CRLF"
                assert not line.startswith((b"+OK", b"-ERR")) or FIRST.fullmatch(line + b"\r\n"), line

        async def rest() -> None:
            """Wait until the server has noticed that its clients have left."""
            async with asyncio.timeout(REST_S):
                while server.who() or server.hub.tasks:  # noqa: ASYNC110 - nothing says so
                    await asyncio.sleep(0.01)

        try:
            count = await drive(fuzz_seconds, one, rest=rest)
        finally:
            listening.close()
            await server.stop(grace_s=5)
        assert not server.who()
        assert len(kept.state) == len(MAILS), "only QUIT deletes"
        assert not kept.state.retained.wanted, "no session holds expunged mails"
        print(f"{count} sessions")
