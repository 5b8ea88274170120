"""Clients that try again: IMAP sessions and deliveries over LMTP, at any member of a
cluster.

Each answer goes to a `Witness`. A client that is refused, cut off or not answered waits
a little and tries another member, until it is served. So the time that this takes is
the time without service for its user.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from .servers import PASSWORD
from .witness import Place, Shown, Witness

AGAIN_S: Final = 0.2
"""The pause before the next attempt."""
FRONT_S: Final = 2.0
"""A member that does not greet within this time is not tried further."""
GIVE_UP_S: Final = 120.0
"""A user who is not served within this time after the load has ended is reported."""
BOXES: Final = ("INBOX", "Archive")
OPEN_MAX: Final = 100
"""Deliveries that have not been accepted yet; more are not begun."""
SLOTS: Final = 8
"""Each session changes only the keyword of its slot. No two sessions of a user change
the same keyword at the same time."""
TAIL: Final = 30
"""The number of mails that a session looks at."""
_LITERAL: Final = re.compile(rb"\{(\d+)\}\r\n$")
_UID: Final = re.compile(rb"UID (\d+)")
_FLAGS: Final = re.compile(rb"FLAGS \(([^)]*)\)")
_IDENT: Final = re.compile(rb"X-Bench: (\S+)")
_COPYUID: Final = re.compile(rb"\[COPYUID (\d+) (\d+) (\d+)\]")
_APPENDUID: Final = re.compile(rb"\[APPENDUID (\d+) (\d+)\]")


class Failed(Exception):
    """The member refused, closed, or did not answer."""


FAILURES: Final = (Failed, OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


@dataclass(frozen=True)
class Front:
    """A member that clients may connect to. patience_s: how long a client waits for an
    answer. The time is longer for a proxy, because a proxy waits for a takeover in
    place of its clients."""

    name: str
    imap: int
    lmtp: int
    patience_s: float


def mail(ident: str) -> bytes:
    return (
        f"From: sender@example.net\r\nTo: somebody@example.org\r\nSubject: mail {ident}\r\n"
        f"Message-ID: <{ident}@bench.example.org>\r\nX-Bench: {ident}\r\n\r\n" + "A line of text in a mail.\r\n" * 20
    ).encode()


class Client:
    """An IMAP connection that reads whole answers, with their literals."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience_s: float) -> None:
        self._reader, self._writer = reader, writer
        self._patience_s = patience_s
        self._count = 0

    @classmethod
    async def open(cls, port: int, user: str, patience_s: float) -> Client:
        """Log in. Raises what is in FAILURES."""
        async with asyncio.timeout(FRONT_S):
            client = cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22), patience_s)
            try:
                greeting = await client._answer_line()
            except BaseException:
                client.close()
                raise
        try:
            if not greeting.startswith(b"* OK"):
                raise Failed(f"greeting {greeting!r}")
            await client.command(f"LOGIN {user} {PASSWORD}")
        except BaseException:
            client.close()
            raise
        return client

    async def _answer_line(self) -> bytes:
        out = b""
        while True:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                raise Failed(f"closed after {out + line!r}")
            out += line
            if (match := _LITERAL.search(line)) is None:
                return out
            out += await self._reader.readexactly(int(match[1]))

    async def command(self, text: str, literal: bytes | None = None) -> list[bytes]:
        """Return all lines of an answer that is OK, the tagged line last. Raises what
        is in FAILURES."""
        self._count += 1
        tag = b"a%d" % self._count
        said = b"" if literal is None else b" {%d+}\r\n%b" % (len(literal), literal)
        self._writer.write(tag + b" " + text.encode() + said + b"\r\n")
        lines: list[bytes] = []
        async with asyncio.timeout(self._patience_s):
            while True:
                line = await self._answer_line()
                lines.append(line)
                if line.startswith(tag + b" "):
                    if not line.startswith(tag + b" OK"):
                        raise Failed(f"{text[:50]} -> {line!r}")
                    return lines
                if line.startswith(b"* BYE") and text != "LOGOUT":
                    raise Failed(f"{text[:50]} -> {line!r}")

    def close(self) -> None:
        self._writer.transport.abort()


@dataclass
class Patient:
    """The clients (see the text of the module). fronts: the members that clients try. A
    member may be in it several times: clients then try it more often."""

    fronts: Sequence[Front]
    users: Sequence[str]
    witness: Witness
    seed: int
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    failures: dict[str, int] = field(default_factory=dict)
    """How often an attempt failed, by what the member answered."""
    _number: int = 0
    _busy: set[tuple[str, int]] = field(default_factory=set)
    _deliveries: set[asyncio.Task[None]] = field(default_factory=set)

    def ident(self) -> str:
        self._number += 1
        return f"m{self._number}"

    def _failed(self, what: str, error: BaseException) -> None:
        text = re.sub(r"\d+", "#", f"{what}: {type(error).__name__} {error}")[:140]
        self.failures[text] = self.failures.get(text, 0) + 1

    async def _insist(self, user: str, since: float, work: Callable[[Front], Awaitable[None]], what: str) -> None:
        """Repeat work for a user until a member does it."""
        front = random.Random(f"{self.seed} {user} {since}").choice(self.fronts)
        while True:
            try:
                await work(front)
            except FAILURES as error:
                self._failed(what, error)
                if self.stopping.is_set() and self.witness.now() - since > GIVE_UP_S:
                    self.witness.complaints.append(f"{self.witness.stamp()} {what} of {user}: never; {error!r}")
                    self.witness.served(user, since, what)
                    return
                await asyncio.sleep(AGAIN_S)
                front = random.choice([one for one in self.fronts if one != front] or self.fronts)
            else:
                # `_delivery` itself says which users it has served.
                if what == "session":
                    self.witness.served(user, since, what)
                return

    # -- IMAP --------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Make the mailboxes of each user."""
        for user in self.users:

            async def make(front: Front, user: str = user) -> None:
                client = await Client.open(front.imap, user, front.patience_s)
                try:
                    # The mailbox may exist already.
                    with suppress(Failed):
                        await client.command("CREATE Archive")
                    await client.command("STATUS Archive (UIDVALIDITY)")
                finally:
                    client.close()

            await self._insist(user, self.witness.now(), make, "session")

    async def session(self, which: int) -> None:
        """Visit users until `stopping`. A visit that breaks off is begun again."""
        rng, slot = random.Random(f"{self.seed} session {which}"), which % SLOTS
        while not self.stopping.is_set():
            user = rng.choice(self.users)
            if (user, slot) in self._busy:
                await asyncio.sleep(0.01)
                continue
            self._busy.add((user, slot))
            try:
                await self._visit(user, slot, rng)
            finally:
                self._busy.discard((user, slot))

    async def _visit(self, user: str, slot: int, rng: random.Random) -> None:
        since = self.witness.now()
        while True:
            opened: list[_Session] = []

            async def begin(front: Front, opened: list[_Session] = opened) -> None:
                began = self.witness.now()
                client = await Client.open(front.imap, user, front.patience_s)
                session = _Session(client, user, f"k{slot}", self, rng)
                try:
                    await session.select(rng.choice(BOXES))
                except BaseException:
                    client.close()
                    raise
                self.witness.times["login and SELECT"].append(self.witness.now() - began)
                opened.append(session)

            await self._insist(user, since, begin, "session")
            if not opened:
                return
            try:
                for _ in range(rng.randrange(4, 12)):
                    if self.stopping.is_set():
                        break
                    since = self.witness.now()
                    name = await opened[0].something()
                    self.witness.times[name].append(self.witness.now() - since)
                    self.witness.served(user, since, "session")
                    await asyncio.sleep(rng.random() * 0.6)
                return
            except FAILURES as error:
                self._failed("session", error)
            finally:
                opened[0].client.close()

    # -- LMTP --------------------------------------------------------------------------

    async def deliver(self, per_second: float) -> None:
        """Deliver at a steady rate until `stopping`. Then wait for the deliveries that
        are open."""
        rng = random.Random(f"{self.seed} deliveries")
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self.stopping.is_set():
            due = max(due + 1 / per_second, loop.time() - 1.0)
            await asyncio.sleep(max(0.0, due - loop.time()))
            if len(self._deliveries) >= OPEN_MAX:
                continue  # the machine is too slow
            count = 1 if rng.random() < 0.8 else rng.randrange(2, 4)
            task = asyncio.ensure_future(self._delivery(rng.sample(list(self.users), min(count, len(self.users)))))
            self._deliveries.add(task)
            task.add_done_callback(self._deliveries.discard)
        await asyncio.gather(*self._deliveries)

    async def _delivery(self, users: list[str]) -> None:
        since = self.witness.now()
        waiting = set(users)

        async def once(front: Front) -> None:
            now = self.witness.now()
            answers = await self._transaction(front, sorted(waiting))
            for user, answer in answers.items():
                if answer.startswith("250"):
                    waiting.discard(user)
                    self.witness.served(user, since, "delivery")
            if waiting:
                raise Failed(next(text for text in answers.values() if not text.startswith("250")))
            self.witness.times["delivery"].append(self.witness.now() - now)

        await self._insist(users[0], since, once, "delivery")

    async def _transaction(self, front: Front, users: list[str]) -> dict[str, str]:
        """Send a mail. Return the reply for each recipient. Raises what is in
        FAILURES."""
        ident = self.ident()
        async with asyncio.timeout(FRONT_S):
            reader, writer = await self._connect(front)
        try:
            async with asyncio.timeout(front.patience_s):
                rcpt = "".join(f"RCPT TO:<{user}>\r\n" for user in users)
                writer.write(f"MAIL FROM:<sender@example.net>\r\n{rcpt}".encode())
                if not (answer := await _reply(reader)).startswith("250"):
                    raise Failed(f"MAIL -> {answer}")
                answers = {user: await _reply(reader) for user in users}
                accepted = [user for user in users if answers[user].startswith("250")]
                if accepted:
                    writer.write(b"DATA\r\n")
                    if not (answer := await _reply(reader)).startswith("354"):
                        raise Failed(f"DATA -> {answer}")
                    writer.write(mail(ident) + b".\r\n")
                    for user in accepted:
                        answers[user] = await _reply(reader)
                        if answers[user].startswith("250"):
                            self.witness.accepted(user, ident)
        finally:
            writer.transport.abort()
        return answers

    async def _connect(self, front: Front) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.lmtp)
        try:
            if not (answer := await _reply(reader)).startswith("220"):
                raise Failed(f"greeting {answer}")
            writer.write(b"LHLO bench\r\n")
            if not (answer := await _reply(reader)).startswith("250"):
                raise Failed(f"LHLO -> {answer}")
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer


async def _reply(reader: asyncio.StreamReader) -> str:
    while True:
        line = (await reader.readline()).decode(errors="replace")
        if not line.endswith("\n"):
            raise Failed("LMTP closed")
        if line[3:4] != "-":
            return line.strip()


class _Session:
    """A session with a mailbox selected. keyword: only this session changes it."""

    def __init__(self, client: Client, user: str, keyword: str, all_: Patient, rng: random.Random) -> None:
        self.client = client
        self._user, self._keyword, self._all, self._rng = user, keyword, all_, rng
        self._witness = all_.witness
        self._box = ""
        self._mails: dict[int, str] = {}
        """What this session saw last of each mail, by UID."""

    async def select(self, box: str) -> None:
        """Select a mailbox and look at it: at all UIDs, and at the last mails."""
        had_to = self._witness.known(self._user, box)
        lines = await self.client.command(f"SELECT {box}")
        self._box, self._mails = box, {}
        for line in lines:
            if match := re.search(rb"\[UIDVALIDITY (\d+)\]", line):
                self._witness.validity(self._user, box, int(match[1]))
        found = await self.client.command("UID SEARCH ALL")
        uids = [int(uid) for line in found if line.startswith(b"* SEARCH") for uid in line.split()[2:]]
        self._witness.shown(self._user, box, had_to, uids)
        if uids:
            await self._look(f"{sorted(uids)[-TAIL:][0]}:*")

    async def _look(self, uids: str) -> None:
        for uid, (ident, _) in (await fetch(self.client, uids)).items():
            self._mails[uid] = ident
            self._witness.seen(Place(self._user, self._box, uid), ident)

    async def something(self) -> str:
        """Do something that a client does, and return its name."""
        choice = self._rng.choice(("STORE",) * 5 + ("COPY", "MOVE", "EXPUNGE", "APPEND", "FETCH", "look", "SELECT"))
        if choice == "APPEND":
            await self._append()
        elif choice == "SELECT":
            await self.select(self._rng.choice(BOXES))
        elif choice == "look" or not self._mails:
            await self.client.command("NOOP")
            await self._look("*" if not self._mails else f"{max(self._mails)}:*")
            choice = "look"
        else:
            uid = self._rng.choice(list(self._mails))
            await getattr(self, f"_{choice.lower()}")(uid, Place(self._user, self._box, uid))
        return choice

    async def _append(self) -> None:
        ident = self._all.ident()
        box = self._rng.choice(BOXES)
        lines = await self.client.command(f"APPEND {box}", mail(ident))
        self._witness.accepted(self._user, ident)
        if match := _APPENDUID.search(lines[-1]):
            self._witness.validity(self._user, box, int(match[1]))
            self._witness.seen(Place(self._user, box, int(match[2])), ident)

    async def _fetch(self, uid: int, place: Place) -> None:
        for one, (ident, _) in (await fetch(self.client, str(uid), "BODY.PEEK[]")).items():
            self._witness.seen(place._replace(uid=one), ident)

    async def _store(self, uid: int, place: Place) -> None:
        is_set = self._rng.random() < 0.7
        self._witness.flagging(place, self._keyword)
        lines = await self.client.command(f"UID STORE {uid} {'+' if is_set else '-'}FLAGS ({self._keyword})")
        # The answer to FETCH leaves out a mail that is gone.
        for line in lines:
            match, shown = _UID.search(line), _FLAGS.search(line)
            if match and shown and int(match[1]) == uid and (self._keyword.encode() in shown[1].split()) is is_set:
                self._witness.flagged(place, self._keyword, is_set=is_set)

    async def _copy(self, uid: int, place: Place) -> None:
        self._arrived(place, await self.client.command(f"UID COPY {uid} Archive"))

    async def _move(self, uid: int, place: Place) -> None:
        self._witness.leaves(place, expunged=False)
        lines = await self.client.command(f"UID MOVE {uid} Archive")
        if self._arrived(place, lines):
            self._witness.has_left(place)
        self._mails.pop(uid, None)

    async def _expunge(self, uid: int, place: Place) -> None:
        self._witness.leaves(place, expunged=True)
        await self.client.command(f"UID STORE {uid} +FLAGS.SILENT (\\Deleted)")
        await self.client.command(f"UID EXPUNGE {uid}")
        self._witness.has_left(place)
        self._mails.pop(uid, None)

    def _arrived(self, place: Place, lines: list[bytes]) -> bool:
        for line in lines:
            if (match := _COPYUID.search(line)) and int(match[2]) == place.uid:
                self._witness.validity(place.user, "Archive", int(match[1]))
                self._witness.seen(Place(place.user, "Archive", int(match[3])), self._witness.places[place])
                return True
        return False


async def fetch(
    client: Client, uids: str, what: str = "BODY.PEEK[HEADER.FIELDS (X-BENCH)]"
) -> dict[int, tuple[str, frozenset[str]]]:
    """Return the id and the flags by UID. Raises what is in FAILURES."""
    found = {}
    for line in await client.command(f"UID FETCH {uids} (UID FLAGS {what})"):
        uid, flags, ident = _UID.search(line), _FLAGS.search(line), _IDENT.search(line)
        if uid and flags and ident:
            found[int(uid[1])] = ident[1].decode(), frozenset(flags[1].decode().split())
    return found


async def everything(client: Client) -> dict[str, Shown]:
    """Fetch all mails of a user. Raises what is in FAILURES."""
    out = {}
    for box in BOXES:
        lines = await client.command(f"SELECT {box}")
        (validity,) = (int(match[1]) for line in lines if (match := re.search(rb"\[UIDVALIDITY (\d+)\]", line)))
        out[box] = Shown(validity, await fetch(client, "1:*"))
    return out
