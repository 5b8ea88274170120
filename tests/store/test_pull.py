"""The local copies of a user are sent from a backend to another: what the next open
costs, which changes are joined, and that nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from machines import SID, Life, Machine, fill, flags_of, modseqs, uids, whole
from mails import simple
from pulling import leave, objects, pull, sent, some_mail, take, two, without_upload

from metacache import Change
from obox.objectstore import ObjectKind
from obox.objectstore.keys import ROOT
from obox.store import NewMail
from obox.store.backend import upload
from obox.store.log.takeover import take_over
from obox.store.operate import users as operate
from obox.store.operate.pull import BoxMeta, End, Head, Incoming, Outgoing
from obox.store.user import unload


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each backend know that the others are alive."""
    monkeypatch.setattr(
        "obox.store.backend.store.take_over", lambda env, last, live: take_over(env, last, lambda _: True)
    )


async def cold(machine: Machine, tmp_path: Path, name: str = "cold") -> dict[str, Any]:
    """Return what a backend with an empty disk finds in the bucket."""
    async with machine.renamed(name, tmp_path / name).run() as life:
        return await whole(await life.user())


# -- what it costs -----------------------------------------------------------------------------------------------------


async def test_an_open_after_a_pull_reads_no_bundle(machine: Machine, tmp_path: Path) -> None:
    async with two(machine, tmp_path) as (one, other):
        await fill(await one.user(), "INBOX", [simple(n) for n in range(10_000)])
        await leave(one)
        got = await pull(one, other)
        assert (got.mailboxes, got.kept) == (1, 0)
        await other.quiet()
        with other.counting() as requests:
            user = await other.user()
            box = await user.select("INBOX")
            fields = await box.fields(box.state.uids.tolist())
        assert requests.requests() == {("list", "index"): 1, ("list", "mail"): 1}
        assert len(box.state) == 10_000
        assert all(one is not None and one.envelope and one.header for one in fields)
        await box.release()


async def test_totals_stay_exact_where_the_source_uploaded_all(
    machine: Machine, tmp_path: Path, directory: None
) -> None:
    """STATUS of all mailboxes then costs a single LIST, as after an open from the
    bucket."""
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        expected = {name: await one.users[0].status(name) for name in ("INBOX", "Archive", "Sent", "Projects/obox")}
        await leave(one)
        await pull(one, other, everything=True)
        await other.quiet()
        with other.counting() as requests:
            user = await other.user()
            assert {name: await user.status(name) for name in expected} == expected
        assert requests.requests() == {("list", "index"): 1}


async def test_what_the_source_uploads_before(machine: Machine, tmp_path: Path) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await one.quiet()
        with one.counting() as requests:
            data = await sent(one)
        assert requests.count("get") == 0
        assert requests.count("list") == 1
        with one.counting() as requests:
            assert len(await sent(one)) == len(data)
        assert requests.requests() == {("list", "index"): 1}, "nothing has changed since"
        await take(other, data)


# -- it is the same mail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
async def test_the_same_mail(machine: Machine, tmp_path: Path, everything: bool) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        expected, before = await whole(one.users[0]), await modseqs(one.users[0])
        await leave(one)
        await pull(one, other, everything=everything)
        user = await other.user()
        assert await whole(user) == expected
        after = await modseqs(user)
        assert all(after[name] >= before[name] for name in before)
        await user.append("INBOX", [NewMail(simple(500))])
        box = await user.select("Archive")
        await box.store_flags(uids(1), "add", ["\\Flagged"])
        await box.release()
        expected = await whole(user)
    assert await cold(machine, tmp_path) == expected


async def test_what_the_bucket_lacks_is_marked_and_uploaded_by_the_destination(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source could not upload its changes, and its machine is lost after the pull.
    The destination must upload the changes."""
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        user = one.users[0]
        await user.flush(everything=True)
        inbox = await user.select("INBOX")
        await inbox.store_flags(uids(9), "add", ["\\Flagged"])
        await inbox.expunge(uids(10))
        await user.append("INBOX", [NewMail(simple(77))])
        expected = await whole(user)

        with without_upload(monkeypatch):
            data = await sent(one)
        marks = {meta.box: meta.change for meta in metas(one, data)}
        assert marks[user.entry("INBOX").guid] == Change.IMPORTANT
        await take(other, data)
        copy = other.store.env.metacache.peek(SID, user.entry("INBOX").guid)
        assert copy is not None
        assert copy.change is Change.IMPORTANT
        assert SID in await upload.changed_users(other.store, important_only=True)
        await upload.flush(await other.store.load_user("anna", SID), important_only=True)
        one.store.env.metacache.drop_all()
        one.store.users.clear()
        one.users.clear()
        one.store.journal.forget(SID)
    assert await cold(machine, tmp_path) == expected


def metas(life: Life, data: bytes) -> list[BoxMeta]:
    found = [one for one in objects(life, data) if one.kind == ObjectKind.BASE]
    return [msgspec.msgpack.decode(one.meta, type=BoxMeta) for one in found]


async def test_the_stream_is_as_the_manual_says(machine: Machine, tmp_path: Path) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        data = await sent(one)
        found = objects(one, data)
        head = msgspec.msgpack.decode(found[0].meta, type=Head)
        assert (head.major, head.sid, head.backend, head.boot) == (1, SID, "first", one.store.journal.boot)
        assert head.bucket == other.store.bucket_id()
        boxes = [meta.box for meta in metas(one, data)]
        assert boxes[0] == ROOT
        assert head.boxes == len(boxes) == 5
        assert msgspec.msgpack.decode(found[-1].meta, type=End) == End(len(found) - 1)


# -- the table ---------------------------------------------------------------------------------------------------------


async def test_a_copy_that_is_as_new_is_kept(machine: Machine, tmp_path: Path, directory: None) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await leave(one)
        await pull(one, other, everything=True)
        user = await other.user()
        await user.append("INBOX", [NewMail(simple(500))])
        expected = await whole(user)
        await user.flush(everything=True)
        await leave(other)
        got = await pull(one, other)
        assert (got.mailboxes, got.kept) == (0, 4)
        assert await whole(await other.user()) == expected


async def test_a_rerun_changes_nothing(machine: Machine, tmp_path: Path, directory: None) -> None:
    """The destination keeps its copy as it is, and also the change mark of a few new
    mails that are not worth a bundle yet."""
    async with two(machine, tmp_path) as (one, other):
        user = await one.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
        data = await sent(one)
        await take(other, data)
        guid = user.entry("INBOX").guid
        first = other.store.env.metacache.load(SID, guid)
        assert first is not None
        assert first.change is Change.UNIMPORTANT
        got = await take(other, data)
        assert (got.mailboxes, got.kept) == (0, 1)
        assert other.store.env.metacache.load(SID, guid) == first
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3, 5)])
        await take(other, await sent(one))
        after = other.store.env.metacache.peek(SID, guid)
        assert after is not None
        assert after.change is Change.UNIMPORTANT, "a later state of the one history"
        box = await (await other.user()).select("INBOX")
        assert len(box.state) == 5
        assert not box.state.gaps
        await box.release()


async def test_an_older_copy_without_changes_is_replaced(machine: Machine, tmp_path: Path, directory: None) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await pull(one, other, everything=True)
        user = await other.user()
        await whole(user)
        await user.flush(everything=True)
        await leave(other)
        inbox = await one.users[0].select("INBOX")
        await inbox.store_flags(uids(12), "add", ["\\Flagged"])
        expected = await whole(one.users[0])
        got = await pull(one, other)
        assert got.mailboxes == 1
        await other.quiet()
        with other.counting() as requests:
            assert await whole(await other.user()) == expected
        assert requests.count("get", "index") == 0


@pytest.mark.parametrize("open_there", [False, True], ids=["closed", "open"])
async def test_changes_on_both_sides_are_joined(
    machine: Machine, tmp_path: Path, open_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither backend could upload its changes. The MODSEQ values of clients of both
    backends are not trusted, so these clients get everything again."""
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await one.users[0].flush(everything=True)
        user = await other.user()
        for life, uid in ((one, 20), (other, 21)):
            box = await life.users[0].select("INBOX")
            await box.store_flags(uids(uid), "add", ["\\Flagged"])
            await box.expunge(uids(uid + 5))
            await box.release()
            await life.quiet()
        theirs = one.users[0].boxes[user.entry("INBOX").guid].state.highestmodseq
        if not open_there:
            unload.leave(user)
            await leave(other)
            other.store.users.clear()

        with without_upload(monkeypatch):
            await pull(one, other)
        if open_there:
            # A mailbox that was open during the pull did not take the copy.
            await upload.flush(one.users[0], important_only=True)
            await operate.refresh(user)
        user = await other.user()
        box = await user.select("INBOX")
        flags = flags_of(box)
        assert "\\Flagged" in flags[20]
        assert "\\Flagged" in flags[21]
        assert not {25, 26} & set(flags)
        assert box.state.trusted(theirs) == 0
        await box.release()
        await user.flush(everything=True)
        expected = await whole(user)
    assert await cold(machine, tmp_path) == expected


async def test_lists_of_mailboxes_are_joined(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await one.users[0].flush(everything=True)
        user = await other.user()
        await user.create("There")
        await one.users[0].create("Here")
        unload.leave(user)
        await leave(other)
        other.store.users.clear()

        with without_upload(monkeypatch):
            await pull(one, other)
        names = {info.name for info in (await other.user()).mailboxes()}
        assert {"Here", "There"} <= names


async def test_holders_noted_before_stay(machine: Machine, tmp_path: Path) -> None:
    """The destination knows nothing of a mailbox but a holder: a copy in another
    mailbox needs an object of it."""
    from obox.mailbox import Delta, Holders

    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        guid = one.users[0].entry("INBOX").guid
        held = Delta(holders=Holders.of({(3, one.users[0].entry("Sent").guid, 9): 0}))
        other.store.env.metacache.append(SID, guid, held.encode(), Change.IMPORTANT)
        await pull(one, other)
        box = await (await other.user()).select("INBOX")
        assert 3 in box.state.holders.needed()
        assert box.change is Change.IMPORTANT
        await box.release()


async def test_sessions_here_see_what_happened_there(machine: Machine, tmp_path: Path) -> None:
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        await one.users[0].flush(everything=True)
        user = await other.user()
        box = await user.select("INBOX")
        woken: list[int] = []
        end = box.watch(lambda: woken.append(1))
        source = await one.users[0].select("INBOX")
        await source.store_flags(uids(15), "add", ["\\Flagged"])
        await one.users[0].append("INBOX", [NewMail(simple(600))])
        got = await pull(one, other)
        assert got.kept >= 1
        assert "\\Flagged" in flags_of(box)[15]
        assert len(box.state) == len(source.state)
        assert woken
        end()
        await source.release()
        await box.release()


async def test_a_source_that_goes_on_writing(machine: Machine, tmp_path: Path) -> None:
    """The source goes on writing after the pull, as any other writer. No change of
    either backend is lost."""
    async with two(machine, tmp_path) as (one, other):
        await some_mail(one)
        source = one.users[0]
        inbox = await source.select("INBOX")
        with one.store.pulling(SID), other.store.pulling(SID):
            outgoing = Outgoing(one.store, SID)
            await outgoing.prepare("anna", everything=False)
            incoming = Incoming(other.store, SID)
            await incoming.begin()
            turn = 0
            async for piece in outgoing.stream():
                await incoming.feed(piece)
                turn += 1
                await inbox.store_flags(uids(turn % 5 + 11), "add", [f"word{turn}"])
                await source.append("Archive", [NewMail(simple(700 + turn))])
            await incoming.end()
        user = await other.user()
        await user.append("Archive", [NewMail(simple(900))])
        await inbox.release()
        archive = await source.select("Archive")
        expected = len(archive.state)
        await archive.release()
    states = await cold(machine, tmp_path)
    assert states["Archive"][4] == expected + 1
    for uid, row in states["INBOX"][-1].items():
        words = {flag for flag in row[0] if flag.startswith("word")}
        assert words == {f"word{n}" for n in range(1, turn + 1) if n % 5 + 11 == uid}


# -- accidents ---------------------------------------------------------------------------------------------------------


# -- who and what ------------------------------------------------------------------------------------------------------
