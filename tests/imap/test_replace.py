"""REPLACE over a socket, RFC 8508."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import STORES, Client, Passwords, Running

from obox.accounts import Quota
from obox.errors import Unavailable
from obox.imap import intake

OLD = b"Subject: old\r\n\r\n" + b"x" * 100
NEW = b"Subject: new\r\n\r\n" + b"y" * 80


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


async def selected(running: Running, mails: int = 3) -> Client:
    client = await running.client(login="anna")
    for _ in range(mails):
        await client.append("INBOX", OLD)
    await client.ok("SELECT INBOX")
    return client


async def replace(
    client: Client, which: str, target: str = "INBOX", mail: bytes = NEW, *, uid: bool = False
) -> list[bytes]:
    head = f"{'UID ' if uid else ''}REPLACE {which} {target}".encode()
    return await client.cmd(b"%b {%d+}\r\n%b" % (head, len(mail), mail))


async def test_by_number(running: Running) -> None:
    client = await selected(running)
    lines = await replace(client, "2", "INBOX (\\Draft \\Seen)")
    assert lines[0].startswith(b"* OK [APPENDUID ")
    assert lines[0].endswith(b" 4] Replacement is stored")
    reported = [line for line in lines if line.endswith((b" EXPUNGE", b" EXISTS"))]
    assert reported == [b"* 2 EXPUNGE", b"* 3 EXISTS"]
    assert lines[-1] == b"OK Replace completed"
    found = await client.ok("FETCH 1:* (UID FLAGS RFC822.SIZE)")
    assert [line.split()[4] for line in found[:-1]] == [b"1", b"3", b"4"]
    assert b"\\Draft" in found[2]
    assert b"RFC822.SIZE %d" % len(NEW) in found[2]


async def test_by_uid_and_into_another_mailbox(running: Running) -> None:
    client = await selected(running)
    await client.ok("ENABLE QRESYNC")
    lines = await replace(client, "3", "Sent", uid=True)
    assert lines[0].startswith(b"* OK [APPENDUID ")
    assert lines[1] == b"* VANISHED 3"
    assert lines[-1].startswith(b"OK [HIGHESTMODSEQ ")
    assert not [line for line in lines if b"Deleted" in line]
    assert b"* STATUS Sent (MESSAGES 1)" in await client.ok("STATUS Sent (MESSAGES)")
    assert b"* STATUS INBOX (MESSAGES 2)" in await client.ok("STATUS INBOX (MESSAGES)")


async def test_the_last_mail(running: Running) -> None:
    client = await selected(running)
    assert b"* 3 EXPUNGE" in await replace(client, "*")


async def test_other_deleted_mails_stay(running: Running) -> None:
    client = await selected(running)
    await client.ok("STORE 1:2 +FLAGS.SILENT (\\Deleted)")
    await replace(client, "2")
    found = await client.ok("UID SEARCH ALL")
    assert found[0] == b"* SEARCH 1 3 4"


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (b"REPLACE 4 INBOX {3+}\r\nabc", b"BAD "),
        (b"REPLACE 1:2 INBOX {3+}\r\nabc", b"BAD "),
        (b"UID REPLACE $ INBOX {3+}\r\nabc", b"BAD "),
        (b"REPLACE 0 INBOX {3+}\r\nabc", b"BAD "),
        (b"REPLACE 1 INBOX {3+}\r\nabc {3+}\r\nabc", b"BAD "),
        (b"REPLACE 1 INBOX", b"BAD "),
        (b"REPLACE {1+}\r\n1 INBOX {3+}\r\nabc", b"BAD "),
        (b"UID REPLACE 9 INBOX {3+}\r\nabc", b"NO [NONEXISTENT] "),
        (b"REPLACE 1 Nowhere {3+}\r\nabc", b"NO [TRYCREATE] "),
        (b"UID REPLACE 1 INBOX {99999999}", b"NO [TOOBIG] "),
        (b"UID REPLACE 1 INBOX ~{3+}\r\n\0bc", b"NO [UNKNOWN-CTE] "),
        (b"REPLACE 1 INBOX {0+}\r\n", b"NO "),
    ],
)
async def test_what_fails_changes_nothing(running: Running, command: bytes, reply: bytes) -> None:
    client = await selected(running)
    lines = await client.cmd(command)
    assert lines[-1].startswith(reply), lines
    assert (await client.ok("UID SEARCH ALL"))[0] == b"* SEARCH 1 2 3"
    assert running.imap.context.intake.memory.used == 0


async def test_names_in_literals(running: Running) -> None:
    client = await selected(running)
    for command in (b"UID REPLACE 1 {5+}\r\nINBOX {3+}\r\nabc", b"REPLACE 1 {4+}\r\nSent (\\Seen) {3+}\r\nabc"):
        assert (await client.cmd(command))[-1].startswith(b"OK ")
    large = bytes(b"a" * (intake.MAIL_MEMORY_BYTES + 1))
    assert (await replace(client, "1", '"Sent"', large))[-1].startswith(b"OK ")
    assert running.imap.context.intake.disk.used == 0


async def test_states(running: Running) -> None:
    client = await running.client(login="anna")
    await client.append("INBOX", OLD)
    assert (await replace(client, "1"))[-1].startswith(b"BAD ")
    await client.ok("EXAMINE INBOX")
    assert (await replace(client, "1"))[-1].startswith(b"NO [READ-ONLY] ")
    assert running.imap.context.intake.memory.used == 0


async def test_only_what_is_more_counts_for_the_quota(running: Running) -> None:
    client = await running.client(login="anna")
    await client.append("INBOX", OLD)
    await client.ok("LOGOUT")
    authenticator = running.imap.context.authenticator
    assert isinstance(authenticator, Passwords)
    authenticator.quota = Quota(len(OLD) + 10, 1)
    client = await running.client(login="anna")
    await client.ok("SELECT INBOX")
    assert (await replace(client, "1", mail=OLD + b"y" * 10))[-1].startswith(b"OK ")
    assert (await replace(client, "1", mail=OLD + b"y" * 11))[-1].startswith(b"NO [OVERQUOTA] ")
    assert (await replace(client, "1", mail=NEW))[-1].startswith(b"OK ")
    assert (await client.ok("UID SEARCH ALL"))[0] == b"* SEARCH 3"


async def test_a_mail_that_cannot_be_expunged_is_not_doubled(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await selected(running, 1)
    from obox.imap.commands import replace as module

    plain = module.store

    async def store(session, *given, **more):
        done = await plain(session, *given, **more)
        mailbox = session.need_mailbox()[0]
        box = type(mailbox)
        expunge = box.expunge

        async def fail(self, uids):
            monkeypatch.setattr(box, "expunge", expunge)
            raise Unavailable("the store is away")

        monkeypatch.setattr(box, "expunge", fail)
        return done

    monkeypatch.setattr(module, "store", store)
    lines = await replace(client, "1")
    assert lines[-1].startswith(b"NO [UNAVAILABLE] ")
    assert not [line for line in lines if b"APPENDUID" in line]
    assert (await client.ok("UID SEARCH ALL"))[0] == b"* SEARCH 1"
