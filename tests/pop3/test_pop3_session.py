"""Sessions: commands, states, what is deleted and when."""

import asyncio
import re
from pathlib import Path

import pytest
from pop3_harness import Client, Running, serving, serving_real

from obox.accounts import storage_id
from obox.errors import KINDS, Unavailable
from obox.pop3 import Pop3Settings
from obox.pop3.replies import ERRORS, Reply
from obox.store.memory import MemoryMailbox
from tests.imap.harness import DEADLINE_S

MAIL = b"Subject: one\r\n\r\nfirst\r\n.\r\n..\r\nlast\r\n"
SHORT = b"A: b\r\n\r\nbody"


async def test_a_session_from_the_login_to_quit(tmp_path: Path) -> None:
    async with serving_real(tmp_path) as running:
        await running.deliver([MAIL, SHORT, b"\r\n"])
        client = await running.client(login="anna")
        total = len(MAIL) + len(SHORT) + 2
        assert await client.cmd("STAT") == b"+OK 3 %d" % total
        assert await client.many("LIST") == [b"1 %d" % len(MAIL), b"2 %d" % len(SHORT), b"3 2"]
        assert await client.cmd("LIST 2") == b"+OK 2 %d" % len(SHORT)
        assert await client.cmd("RETR 1") == b"+OK %d octets" % len(MAIL)
        assert b"\r\n".join([*await client.rest(), b""]) == MAIL
        assert await client.many("RETR 2") == [b"A: b", b"", b"body"]
        assert await client.many("TOP 1 0") == [b"Subject: one", b""]
        assert await client.many("TOP 1 2") == [b"Subject: one", b"", b"first", b"."]
        assert await client.many("TOP 1 99") == MAIL.split(b"\r\n")[:-1]
        await client.ok("DELE 2")
        assert await client.cmd("STAT") == b"+OK 2 %d" % (total - len(SHORT))
        assert await client.many("LIST") == [b"1 %d" % len(MAIL), b"3 2"]
        for command in ("RETR 2", "LIST 2", "DELE 2", "TOP 2 1", "UIDL 2"):
            assert (await client.cmd(command)).startswith(b"-ERR The mail is deleted")
        await client.ok("RSET")
        assert await client.cmd("STAT") == b"+OK 3 %d" % total
        await client.ok("DELE 3")
        await client.ok("RETR 1")
        await client.rest()
        assert set(await running.flags()) == {1, 2, 3}, "nothing happens before QUIT"
        assert await client.ok("QUIT") == b"+OK Logging out, 1 mails deleted"
        assert await client.ended()
        await running.idle()
        flags = await running.flags()
        assert set(flags) == {1, 2}
        assert ["\\Seen" in flags[uid] for uid in (1, 2)] == [True, False], "RSET forgets what RETR has read"


@pytest.mark.parametrize("how", ["close", "cut", "kick", "stop", "autologout"])
async def test_only_quit_deletes(how: str) -> None:
    settings = Pop3Settings(idle_timeout_s=0.2) if how == "autologout" else None
    async with serving(settings) as running:
        await running.deliver([MAIL, SHORT])
        client = await running.client(login="anna")
        await client.many("RETR 1")
        await client.ok("DELE 1")
        await client.ok("DELE 2")
        if how == "close":
            await client.close()
        elif how == "cut":
            client.writer.transport.abort()
        elif how == "kick":
            assert running.pop3.kick("anna") == 1
            assert (await client.line()).startswith(b"-ERR [SYS/TEMP] ")
        elif how == "stop":
            await running.pop3.stop(grace_s=5.0)
        else:
            assert await client.ended(), "RFC 1939 §3: no answer at a timeout"
        await running.idle()
        flags = await running.flags()
        assert set(flags) == {1, 2}
        assert "\\Seen" in flags[1], "it was read all the same"


async def test_a_failure_at_quit_is_no_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*args: object) -> None:
        raise Unavailable("the bucket does not answer")

    monkeypatch.setattr(MemoryMailbox, "expunge", fails)
    async with serving() as running:
        await running.deliver([MAIL])
        client = await running.client(login="anna")
        await client.ok("DELE 1")
        answer = await client.cmd("QUIT")
        assert answer == b"-ERR [SYS/TEMP] Some mails were not deleted: The bucket does not answer"
        assert await client.ended()


async def test_what_another_session_does_meanwhile(tmp_path: Path) -> None:
    async with serving_real(tmp_path) as running:
        await running.deliver([MAIL, SHORT])
        client = await running.client(login="anna")
        await running.deliver([SHORT])
        await running.expunge([1])
        assert await client.cmd("STAT") == b"+OK 2 %d" % (len(MAIL) + len(SHORT)), "numbers and sizes stay"
        assert await client.many("RETR 1") == MAIL.replace(b"\r\n..", b"\r\n..").split(b"\r\n")[:-1]
        await client.ok("DELE 1")
        await client.ok("QUIT")
        assert set(await running.flags()) == {2, 3}


async def test_the_capabilities_of_each_state() -> None:
    async def upgrade(transport: asyncio.Transport, protocol: asyncio.Protocol) -> asyncio.Transport:
        raise OSError

    settings = Pop3Settings(version="1", login_delay_s=0.01, expire="30")
    async with serving(settings, upgrade=upgrade) as running:
        client = await running.client()
        common = {
            b"TOP", b"UIDL", b"RESP-CODES", b"AUTH-RESP-CODE", b"PIPELINING", b"UTF8 USER", b"EXPIRE 30",
            b"LOGIN-DELAY 1", b"USER", b"SASL PLAIN LOGIN", b"IMPLEMENTATION obox-1",
        }  # fmt: skip
        assert set(await client.many("CAPA")) == common | {b"STLS"}
        await client.ok("USER anna")
        await client.ok("PASS secret")
        assert set(await client.many("capa")) == common
    async with serving() as running:
        found = await (await running.client()).many("CAPA")
        assert b"EXPIRE NEVER" in found
        assert not {b"STLS", b"LOGIN-DELAY 0"} & set(found)


@pytest.mark.parametrize(
    "lines",
    [
        ["AUTH PLAIN AGFubmEAc2VjcmV0"],
        ["auth plain", "AGFubmEAc2VjcmV0"],
        ["AUTH LOGIN", "YW5uYQ==", "c2VjcmV0"],
        ["AUTH LOGIN YW5uYQ==", "c2VjcmV0"],
        ["USER anna", "PASS secret"],
    ],
)
async def test_ways_to_log_in(lines: list[str]) -> None:
    async with serving() as running:
        client = await running.client()
        answers = [await client.cmd(line) for line in lines]
        assert answers[-1] == b"+OK 0 mails of 0 octets"
        assert all(answer.startswith(b"+") for answer in answers)
        (who,) = running.pop3.who()
        assert (who.user, who.service, who.state, who.mailbox) == ("anna", "pop3", "transaction", "INBOX")


async def test_refused_logins() -> None:
    async with serving() as running:
        client = await running.client()
        assert (await client.cmd("PASS secret")).startswith(b"-ERR Send USER first")
        for user, password in (("anna", "wrong"), ("nobody", "secret"), ("anna", " secret"), ("gone", "secret")):
            await client.ok(f"USER {user}")
            assert (await client.cmd(f"PASS {password}")).startswith(b"-ERR [AUTH] ")
        assert (await client.cmd("PASS secret")).startswith(b"-ERR Send USER first"), "each PASS needs a USER"
        assert (await client.cmd("AUTH PLAIN")).startswith(b"+ ")
        assert (await client.cmd("*")).startswith(b"-ERR Authentication cancelled")
        assert await client.many("AUTH") == [b"PLAIN", b"LOGIN"]
        assert (await client.cmd("AUTH GSSAPI")).startswith(b"-ERR Unsupported")
        for command in ("STAT", "RETR 1", "UNKNOWN", "APOP a b"):
            assert (await client.cmd(command)).startswith(b"-ERR ")
        assert (await client.cmd("STLS")).startswith(b"-ERR TLS is not offered")
        await client.ok("QUIT")
        assert await client.ended()


async def test_passwords_need_tls_from_another_machine() -> None:
    async with serving() as running:
        factory = running.pop3.connection_factory
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: factory(remote="192.0.2.7"), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.sockets[0].getsockname()[1])
        client = Client(reader, writer)
        running.clients.append(client)
        await client.line()
        assert not {b"USER", b"SASL PLAIN LOGIN"} & set(await client.many("CAPA"))
        for command in ("USER anna", "PASS secret", "AUTH PLAIN AGFubmEAc2VjcmV0"):
            assert await client.cmd(command) == b"-ERR Passwords need TLS here"
        assert await client.many("AUTH") == []
        listener.close()


async def test_unique_ids() -> None:
    async with serving() as running:
        await running.deliver([MAIL, SHORT, MAIL])
        client = await running.client(login="anna")
        found = await client.many("UIDL")
        assert [re.fullmatch(rb"%d %08X[0-9A-F]{8}" % (n, n), line) is not None for n, line in enumerate(found, 1)] == [
            True,
            True,
            True,
        ]
        assert await client.cmd("UIDL 2") == b"+OK " + found[1]
        await client.ok("DELE 2")
        assert await client.many("UIDL") == [found[0], found[2]]
        await client.ok("QUIT")
        again = await running.client(login="anna")
        assert [line.split()[1] for line in await again.many("UIDL")] == [found[0][2:], found[2][2:]]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("%v.%u", r"\d+\.1"), ("UID%u-%v", r"UID1-\d+"), ("%08xu", "00000001"), ("%g", "[0-9a-f]{32}")],
)
async def test_formats_of_unique_ids(pattern: str, expected: str) -> None:
    async with serving(Pop3Settings(uidl_format=pattern)) as running:
        await running.deliver([MAIL])
        client = await running.client(login="anna")
        assert re.fullmatch(f"1 {expected}", (await client.many("UIDL"))[0].decode())


async def test_unique_ids_of_the_mails_themselves() -> None:
    """A mail has the id of its X-UIDL, unless the id is not valid. No two mails have
    the same."""
    own = b"X-UIDL: %b\r\n\r\n"
    async with serving(Pop3Settings(reuse_xuidl=True, uidl_format="%u")) as running:
        await running.deliver(
            [own % b"same", MAIL, own % b"same", own % b"two words", own % (b"x" * 71), own % b"last"]
        )
        client = await running.client(login="anna")
        expected = [b"1 same", b"2 2", b"3 same-2", b"4 4", b"5 5", b"6 last"]
        assert await client.many("UIDL") == expected
        assert await client.cmd("UIDL 3") == b"+OK 3 same-2"
        await client.ok("DELE 1")
        assert await client.many("UIDL") == expected[1:], "a mark does not change the ids of a session"


async def test_copies_share_the_id_of_the_mail_and_get_numbers() -> None:
    async with serving(Pop3Settings(uidl_format="%g")) as running:
        await running.deliver([MAIL])
        user = await running.store.open_user("anna", storage_id("anna"))
        mailbox = await user.select("INBOX")
        await user.copy(mailbox, mailbox.state.uids, "INBOX")
        client = await running.client(login="anna")
        first, second = [line.split()[1] for line in await client.many("UIDL")]
        assert second == first + b"-2"


async def test_the_lock_of_a_maildrop() -> None:
    async with serving(Pop3Settings(lock_session=True)) as running:
        first = await running.client(login="anna")
        await running.client(login="ben")
        second = await running.client()
        await second.ok("USER anna")
        assert (await second.cmd("PASS secret")).startswith(b"-ERR [IN-USE] ")
        await first.ok("QUIT")
        assert await first.ended()
        async with asyncio.timeout(DEADLINE_S):
            while len(running.pop3.context.locked) > 1:  # noqa: ASYNC110 - a lock has no event of its own
                await asyncio.sleep(0.01)
        await second.ok("USER anna")
        await second.ok("PASS secret")


async def test_the_delay_between_logins() -> None:
    now = 100.0
    async with serving(Pop3Settings(login_delay_s=60), clock=lambda: now) as running:
        await (await running.client(login="anna")).ok("QUIT")
        await running.client(login="ben")
        client = await running.client()
        now += 59.5
        await client.ok("USER anna")
        assert await client.cmd("PASS secret") == b"-ERR [LOGIN-DELAY] The next login is possible in 1 seconds"
        now += 0.6
        await client.ok("USER anna")
        await client.ok("PASS secret")


async def test_sessions_of_a_user_are_limited() -> None:
    async with serving(Pop3Settings(user_sessions_max=1)) as running:
        await running.client(login="anna")
        client = await running.client()
        await client.ok("USER anna")
        assert (await client.cmd("PASS secret")).startswith(b"-ERR [SYS/TEMP] Too many sessions")


async def test_mails_get_a_keyword_instead_of_being_expunged() -> None:
    settings = Pop3Settings(deleted_flag="$POP3Deleted", mark_seen=False)
    async with serving(settings) as running:
        await running.deliver([MAIL, SHORT])
        client = await running.client(login="anna")
        await client.many("RETR 1")
        await client.ok("DELE 1")
        await client.ok("QUIT")
        assert (await running.flags())[1] == {"$POP3Deleted"}
        again = await running.client(login="anna")
        assert await again.many("LIST") == [b"1 %d" % len(SHORT)]
        assert await again.many("RETR 1") == SHORT.split(b"\r\n")
        await again.ok("DELE 1")
        await again.ok("QUIT")
        assert (await running.flags())[2] == {"$POP3Deleted"}


async def test_last() -> None:
    async with serving(Pop3Settings(enable_last=True)) as running:
        await running.deliver([MAIL], flags=("\\Seen",))
        await running.deliver([MAIL, MAIL])
        client = await running.client(login="anna")
        assert await client.cmd("LAST") == b"+OK 1"
        await client.many("RETR 3")
        await client.ok("DELE 2")
        assert await client.cmd("LAST") == b"+OK 3"
        await client.ok("RSET")
        assert await client.cmd("LAST") == b"+OK 1"
    async with serving() as running:
        assert (await (await running.client(login="anna")).cmd("LAST")).startswith(b"-ERR")


async def test_pipelined_commands_are_answered_in_order() -> None:
    async with serving() as running:
        await running.deliver([SHORT])
        client = await running.client()
        client.send("USER anna\r\nPASS secret\r\nSTAT\r\nRETR 1\r\nDELE 1\r\nBAD\r\nQUIT\r\n")
        async with asyncio.timeout(DEADLINE_S):
            lines = (await client.reader.read()).split(b"\r\n")
        assert [line.split(b" ")[0] for line in lines] == [
            b"+OK", b"+OK", b"+OK", b"+OK", b"A:", b"", b"body", b".", b"+OK", b"-ERR", b"+OK", b"",
        ]  # fmt: skip
        assert await running.flags() == {}


async def test_numbers_of_mails() -> None:
    async with serving() as running:
        await running.deliver([SHORT])
        client = await running.client(login="anna")
        for bad in ("RETR", "RETR 0", "RETR 2", "RETR -1", "RETR x", "RETR 1 1", f"RETR {'9' * 5000}", "RETR ²"):
            assert (await client.cmd(bad)).startswith(b"-ERR "), bad
        for bad in ("TOP 1", "TOP 1 -1", "TOP 1 x", "TOP x 1", "TOP"):
            assert (await client.cmd(bad)).startswith(b"-ERR "), bad
        assert len(await client.many(f"TOP 1 {'9' * 100}")) == 3


async def test_a_mail_that_cannot_be_read(tmp_path: Path) -> None:
    async with serving_real(tmp_path) as running:
        await running.deliver([SHORT, MAIL])
        client = await running.client(login="anna")
        await _lose(running, 1)
        assert (await client.cmd("RETR 1")).startswith(b"-ERR [SYS/PERM] ")
        assert (await client.cmd("TOP 1 0")).startswith(b"-ERR [SYS/PERM] ")
        await client.many("RETR 2")
        await client.ok("QUIT")


async def _lose(running: Running, uid: int) -> None:
    """Delete a mail's object, and what is kept of it."""
    env = running.store.env
    keys = [info.key for info in await env.bucket.list("", kind="mail") if info.key.endswith(f"{uid:08x}")]
    await env.bucket.delete(keys, kind="mail")
    for key in keys:
        await env.fscache.drop(key)
    env.recent.clear()


def test_every_failure_has_an_answer() -> None:
    assert set(KINDS) <= set(ERRORS)


def test_an_answer_is_one_short_line() -> None:
    wire = Reply("a\r\nb\x00" + "ü" * 2000, "SYS/TEMP", ok=False).wire()
    assert wire.startswith(b"-ERR [SYS/TEMP] a b ??")
    assert wire.count(b"\r\n") == 1
    assert len(wire) <= 512
