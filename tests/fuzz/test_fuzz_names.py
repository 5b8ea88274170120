"""Names of users and mailboxes over IMAP, LMTP and the admin API. All three agree on
which names are the same, or refuse a name."""

from __future__ import annotations

import asyncio
import base64
import glob
import random
import re
import unicodedata
from pathlib import Path

from adminservice import Service, running, write_config
from fuzzing import Wire, at_rest, drive, seeded, strange_text

ANSWER = re.compile(rb"(?:\* |\+ |[a-z][0-9]+ (?:OK|NO|BAD) )[^\r\n]*\r\n")
"""A line of an answer, whose literals were checked before. RFC 9051 §9."""
LITERAL = re.compile(rb"\{([0-9]+)\}\r\n")


def astring(rng: random.Random, text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.5 and not re.search(rb'[\r\n\0"\\]', data):
        return b'"' + data + b'"'
    return b"{%d+}\r\n%s" % (len(data), data)


def imap(rng: random.Random, user: str, mailbox: str, other: str) -> bytes:
    lines = []
    if rng.random() < 0.5:
        login = base64.b64encode(f"\0{user}\0secret".encode("utf-8", "surrogatepass"))
        lines.append(b"AUTHENTICATE PLAIN " + login if rng.random() < 0.5 else b"LOGIN " + astring(rng, user) + b" x")
    lines.append(b'LOGIN "anna@example.org" "secret"')
    lines += [b"ENABLE IMAP4rev2"] if rng.random() < 0.5 else []
    first, second = astring(rng, mailbox), astring(rng, other)
    commands = [
        b"CREATE " + first,
        b"SELECT " + first,
        b"EXAMINE " + second,
        b"STATUS " + first + b" (MESSAGES)",
        b"RENAME " + first + b" " + second,
        b"SUBSCRIBE " + first,
        b"UNSUBSCRIBE " + second,
        b"DELETE " + first,
        b"DELETE " + second,
        b"LIST " + second + b" " + first,
        b'LIST "" "*"',
        b"APPEND " + first + b" {4+}\r\nab\r\n",
        b"LSUB " + first + b" %",
    ]
    lines += rng.sample(commands, rng.randint(1, len(commands)))
    lines.append(b"LOGOUT")
    return b"".join(b"a%d %s\r\n" % (number, line) for number, line in enumerate(lines))


def lmtp(users: list[str]) -> bytes:
    rcpts = b"".join(b"RCPT TO:<%s>\r\n" % user.encode("utf-8", "surrogatepass") for user in users)
    return b"LHLO x\r\nMAIL FROM:<> SMTPUTF8\r\n" + rcpts + b"RSET\r\nQUIT\r\n"


def well_formed(got: bytes) -> None:
    whole = got[: got.rfind(b"\r\n") + 2]
    while (literal := LITERAL.search(whole)) is not None:
        whole = whole[: literal.start()] + whole[literal.end() + int(literal[1]) :]
    for line in whole.split(b"\r\n")[:-1]:
        assert ANSWER.fullmatch(line + b"\r\n"), line[:300]


async def admin(service: Service, rng: random.Random, user: str, mailbox: str, other: str) -> None:
    """Send one or two calls. Each answer must be valid."""
    calls = [
        ["mailboxCreate", {"user": "anna@example.org", "mailbox": [mailbox]}, "t"],
        ["mailboxStatus", {"user": "anna@example.org", "field": ["messages"], "mailboxMask": [mailbox, other]}, "t"],
        ["mailboxRename", {"user": "anna@example.org", "mailbox": mailbox, "newName": other}, "t"],
        ["mailboxDelete", {"user": "anna@example.org", "mailbox": [mailbox]}, "t"],
        ["mailboxList", {"user": user}, "t"],
        ["userList", {"userMask": [user]}, "t"],
        ["search", {"user": "anna@example.org", "query": ["MAILBOX", mailbox, "ALL"]}, "t"],
        ["kick", {"user": [user]}, "t"],
        ["authTest", {"user": user, "password": "x"}, "t"],
        ["quotaGet", {"user": user}, "t"],
    ]
    chosen = rng.sample(calls, 2)
    # Half a surrogate pair is not valid JSON, so the whole request is refused.
    got = await service.client.post("/doveadm/v1", json=chosen)
    assert got.status_code in (200, 400)
    if got.status_code == 200:
        assert [kind for kind, _, _ in got.json() if kind not in ("doveadmResponse", "error")] == []


async def test_names(tmp_path: Path, fuzz_seconds: float) -> None:
    with seeded() as rng:
        config = write_config(tmp_path, more='[auth]\nfailure_delay = "0"\n')
        async with running(config) as service:
            imap_at, lmtp_at = (
                service.backend.listeners.addresses(name)[0].rpartition(":") for name in ("imap", "lmtp")
            )

            async def talk(at: tuple[str, str, str], data: bytes) -> bytes:
                wire = Wire(rng, *await asyncio.open_connection(at[0], int(at[2])))
                await wire.send(data)
                return await wire.end()

            async def one() -> None:
                user, mailbox, other = (strange_text(rng) for _ in range(3))
                if rng.random() < 0.3:
                    other = mailbox + "/" + other
                well_formed(await talk(imap_at, imap(rng, user, mailbox, other)))
                got = await talk(lmtp_at, lmtp([user, "anna@example.org", mailbox]))
                for line in got[: got.rfind(b"\n") + 1].split(b"\r\n")[:-1]:
                    assert re.match(rb"[245][0-9]{2}[ -]", line), line
                    line.decode()
                await admin(service, rng, user, mailbox, other)

            print(await drive(fuzz_seconds, one, rest=lambda: at_rest(service.backend.parts.store)), "rounds")
            names = [row["mailbox"] for row in await service.call("mailboxList", user="anna@example.org")]
            assert len(names) == len(set(names))
            assert "INBOX" in names
            for name in names:
                assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in name), repr(name)
                rows = await service.call(
                    "mailboxStatus", user="anna@example.org", field=["messages"], mailboxMask=[glob.escape(name)]
                )
                assert rows
