"""Commands that concern all mails of a large mailbox let other sessions run. They work
in parts or on columns."""

import gc
import random
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest

from obox.errors import Unavailable
from obox.imap import known
from obox.imap.commands import thread
from obox.mailbox import UidArray
from obox.mime.readback import Envelope
from obox.store import User
from obox.store.api import NewMail
from obox.types import StorageId
from tests.imap.harness import Client, Running, serving_real
from tests.turns import turns

MAILS = 61_440
MIB = 1 << 20
COPY = "obox.store.user.copy"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving_real(tmp_path) as running:
        yield running


async def filled(running: Running) -> User:
    """Store 60 mails, and copy them within the mailbox until there are MAILS."""
    user = await running.store.open_user("anna", StorageId("anna"))
    for _ in range(3):
        await user.append("INBOX", [NewMail(b"Subject: x\r\n\r\nhello")] * 20)
    box = await user.select("INBOX")
    while len(box.state) < MAILS:
        await user.copy(box, box.state.uids[: MAILS - len(box.state)], "INBOX")
    await box.release()
    return user


async def done(client: Client, command: str, condition: bytes = b"OK") -> bytes:
    """Send a command and read its answer without parsing it. Return the tagged line."""
    client.send(f"zz {command}\r\n")
    answer, line = bytearray(), b""
    while not line.startswith(b"zz "):
        piece = await client.reader.read(MIB)
        assert piece, answer[-300:]
        answer += piece
        if answer.endswith(b"\r\n"):
            line = bytes(answer[answer.rfind(b"\n", 0, -1) + 1 :])
    assert line.startswith(b"zz " + condition), line
    return line


async def test_commands_on_all_mails_let_others_run(running: Running) -> None:
    user = await filled(running)
    writer, reader = await running.client(login="anna"), await running.client(login="anna")
    quick, there = await running.client(login="anna"), await running.client(login="anna")
    await quick.ok("ENABLE QRESYNC")
    for client in (writer, reader, quick):
        await client.ok("SELECT INBOX")
    await there.ok("CREATE there")
    await there.ok("SELECT there")
    with turns(mine=False) as found:
        await done(writer, "COPY 1:* there")
        await done(there, "NOOP")
        await done(writer, "STORE 1:* +FLAGS (\\Deleted a b)")
        await done(reader, "NOOP")
        await done(quick, "NOOP")
        await done(there, "MOVE 1:* Archive")
        await done(there, "SELECT Archive")
        await done(there, "MOVE 1:* there")
        await done(reader, "UID SEARCH RETURN (SAVE) OR DELETED KEYWORD a")
        await done(quick, "UID SEARCH RETURN (ALL) MODSEQ 1")
        await done(writer, "EXPUNGE")
        await done(reader, "NOOP")
        await done(quick, "NOOP")
        await user.flush(everything=True)
        await done(there, "SELECT there")
        await done(there, "MOVE 1:* INBOX")
        await done(writer, "RENAME INBOX all")
        await done(writer, "DELETE all")
        await user.flush(everything=True)
        found.check()
    await user.release()


async def test_sort_and_thread_of_all_mails_let_others_run(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mail has a subject of its own."""
    chance = random.Random(1)
    monkeypatch.setattr(known, "read_envelope", lambda _: Envelope(None, b"%x" % chance.getrandbits(90)))
    user = await filled(running)
    client = await running.client(login="anna")
    await client.ok("SELECT INBOX")
    with turns(mine=False) as found:
        await done(client, "UID SORT (SUBJECT REVERSE DATE FROM) UTF-8 ALL")
        await done(client, "SORT RETURN (ALL) (REVERSE SUBJECT SIZE) UTF-8 ALL")
        await done(client, "THREAD REFERENCES UTF-8 ALL")
        await done(client, "UID THREAD ORDEREDSUBJECT UTF-8 ALL")
        found.check()
    await user.release()


@pytest.mark.parametrize("algorithm", ["REFERENCES", "ORDEREDSUBJECT"])
async def test_many_mails_are_put_into_threads_by_a_thread(
    running: Running, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some steps take time for each mail: 0.3 s for 500,000."""
    used: list[int] = []
    plain = thread.lists_of
    monkeypatch.setattr(thread, "lists_of", lambda *given: _noting(plain(*given), used))
    user = await running.store.open_user("anna", StorageId("anna"))
    await user.append("INBOX", [NewMail(b"Subject: x\r\n\r\nhello")] * 20)
    await user.release()
    client = await running.client(login="anna")
    await client.ok("SELECT INBOX")
    few = await client.ok(f"THREAD {algorithm} UTF-8 ALL")
    assert set(used) == {threading.get_ident()}
    used.clear()
    monkeypatch.setattr(thread, "INLINE_ROWS", 19)
    assert await client.ok(f"THREAD {algorithm} UTF-8 ALL") == few
    assert used
    assert threading.get_ident() not in used


def _noting(steps: Generator[None, None, bytes], used: list[int]) -> Generator[None, None, bytes]:
    """Note the threads in which the steps run."""
    used.append(threading.get_ident())
    result = yield from steps
    used.append(threading.get_ident())
    return result


async def test_every_second_mail_is_no_more_work(running: Running) -> None:
    """Sets of neighbouring UIDs have a shorter way through the code. This set does
    not."""
    user = await filled(running)
    writer, reader = await running.client(login="anna"), await running.client(login="anna")
    quick = await running.client(login="anna")
    await quick.ok("ENABLE QRESYNC")
    box = await user.select("INBOX")
    await box.store_flags(box.state.uids[::2], "add", ["\\Flagged"])
    await box.store_flags(box.state.uids[::3], "add", ["\\Deleted"])
    for client in (writer, reader, quick):
        await client.ok("SELECT INBOX")
    modseq = box.state.highestmodseq
    with turns(mine=False) as found:
        await done(writer, "UID SEARCH RETURN (SAVE) FLAGGED")
        await done(writer, "UID COPY $ Archive")
        await done(writer, "STORE $ +FLAGS (a b)")
        await done(reader, "NOOP")
        await done(writer, "MOVE $ Archive")
        await done(reader, "NOOP")
        await done(quick, "NOOP")
        await done(writer, "EXPUNGE")
        await done(reader, "NOOP")
        await done(quick, f"SELECT INBOX (QRESYNC ({box.uidvalidity} {modseq} 1:200000))")
        await done(quick, f"SELECT INBOX (QRESYNC ({box.uidvalidity} 1))")
        await done(quick, f"UID FETCH 1:* (FLAGS) (CHANGEDSINCE {modseq} VANISHED)")
        await user.flush(everything=True)
        found.check()
    await box.release()
    await user.release()


async def moved(running: Running) -> tuple[Client, User, UidArray]:
    """Return a client that has selected a mailbox of 50 mails, for a MOVE that happens
    in parts."""
    user = await running.store.open_user("anna", StorageId("anna"))
    await user.append("INBOX", [NewMail(b"Subject: %d\r\n\r\n" % number) for number in range(50)])
    box = await user.select("INBOX")
    uids = box.state.uids
    await box.release()
    client = await running.client(login="anna")
    await client.ok("SELECT INBOX")
    return client, user, uids


async def test_a_move_in_parts_is_answered_as_one(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, user, _ = await moved(running)
    monkeypatch.setattr(COPY + ".PART_MAILS", 7)
    lines = await client.ok("MOVE 2:50 Archive")
    (copied,) = [line for line in lines if b"COPYUID" in line]
    assert b" 2:50 1:49] " in copied
    assert lines.index(copied) == 0
    assert sum(line.endswith(b" EXPUNGE") for line in lines) == 49
    archive = await user.select("Archive")
    subjects = [await archive.mail(uid) for uid in (1, 49)]
    assert [subject.split(b"\r\n")[0] for subject in subjects] == [b"Subject: 1", b"Subject: 49"]
    await archive.release()
    await user.release()


async def test_a_move_that_stops_says_what_has_moved(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, user, _ = await moved(running)
    monkeypatch.setattr(COPY + ".PART_MAILS", 7)
    plain, parts = sys.modules[COPY].write_claim, 0

    async def write_claim(*args: object) -> object:
        nonlocal parts
        parts += 1
        if parts == 3:
            raise Unavailable("the storage does not answer")
        return await plain(*args)

    monkeypatch.setattr(COPY + ".write_claim", write_claim)
    lines = await client.cmd("MOVE 1:50 Archive")
    assert b"[COPYUID " in lines[0]
    assert b" 1:14 1:14] " in lines[0]
    assert lines[-1].startswith(b"NO [UNAVAILABLE] ")
    assert sum(line.endswith(b" EXPUNGE") for line in lines) == 14
    assert (await user.status("INBOX")).messages == 36
    await user.release()


async def test_an_expunge_in_parts_is_whole(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, user, uids = await moved(running)
    monkeypatch.setattr("obox.store.user.mailbox.PART_MAILS", 7)
    box = await user.select("INBOX")
    assert (await box.expunge(uids[1:40])).tolist() == uids[1:40].tolist()
    lines = await client.ok("NOOP")
    assert sum(line.endswith(b" EXPUNGE") for line in lines) == 39
    await box.release()
    await user.release()


async def test_what_is_gone_is_reported_in_pieces(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obox.imap.updates.EXPUNGED_AT_ONCE", 7)
    client, user, uids = await moved(running)
    other = await running.client(login="anna")
    await other.ok("ENABLE QRESYNC")
    await other.ok("SELECT INBOX")
    box = await user.select("INBOX")
    await box.expunge(uids[::2])
    lines = await client.ok("NOOP")
    assert [int(line.split()[1]) for line in lines if line.endswith(b" EXPUNGE")] == list(range(49, 0, -2))
    vanished = [line.split()[2] for line in await other.ok("NOOP") if line.startswith(b"* VANISHED ")]
    assert len(vanished) == 4
    assert b",".join(vanished) == b",".join(b"%d" % uid for uid in uids[::2].tolist())
    await box.release()
    await user.release()


async def test_a_copied_mail_costs_little_memory(running: Running) -> None:
    """The memory is that of its record, of the holder of its object, and of the changes
    that wait for the journal and the local copy."""
    user = await filled(running)
    box, count = await user.select("INBOX"), 50_000
    await user.create("there")
    await user.flush()
    gc.collect()
    tracemalloc.start()
    try:
        await user.copy(box, box.state.uids[:count], "there")
        await user.journal.sync()
        await running.store.env.commit_staged()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 150 * count
    finally:
        tracemalloc.stop()
    assert (await user.status("there")).messages == count
    await box.release()
    await user.release()


async def test_a_copy_of_too_many_is_refused_whole(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, user, _ = await moved(running)
    monkeypatch.setattr(COPY + ".COPY_MAX", 20)
    assert (await client.cmd("COPY 1:21 Archive"))[-1] == b"NO [LIMIT] A COPY of 21 mails; allowed: 20"
    await client.ok("COPY 1:20 Archive")
    assert (await user.status("Archive")).messages == 20
    await user.release()


async def test_a_full_mailbox_is_answered_limit(running: Running) -> None:
    client, user, _ = await moved(running)
    await client.ok("COPY 1:10 Archive")
    running.store.use(running.store.env.settings.__class__(backend="test", mailbox_mails_max=50))
    for command in ("COPY 1 INBOX", "COPY 1:41 Archive", "MOVE 1:41 Archive"):
        lines = await client.cmd(command)
        assert lines[-1].startswith(b"NO [LIMIT] The mailbox has "), lines
        assert lines[-1].endswith(b"allowed: 50"), lines
        assert len(lines) == 1
    client.send(b"zz APPEND INBOX {3+}\r\nx\r\n\r\n")
    assert (await client.until(b"zz "))[-1].startswith(b"zz NO [LIMIT] ")
    await client.ok("MOVE 1:40 Archive")
    await client.ok("RENAME INBOX old")
    running.store.use(running.store.env.settings.__class__(backend="test", mailbox_mails_max=9))
    await client.ok("SELECT Archive")
    await client.ok("MOVE 1:9 INBOX")
    running.store.use(running.store.env.settings.__class__(backend="test", mailbox_mails_max=8))
    assert (await client.cmd("RENAME INBOX older"))[-1].startswith(b"NO [LIMIT] ")
    assert len(await client.ok('LIST "" older')) == 1
    await user.release()
