"""A boot that has ended: its fence, the lines of its journal by user, and the record of
the users that were adopted, by several backends at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from machines import Bucket, Life, Machine, flags_of, uids
from structlog.testing import capture_logs

from obox.errors import Corrupt
from obox.mailbox import Delta
from obox.objectstore import Codec
from obox.objectstore.keys import journal_key
from obox.store import NewMail
from obox.store.env import Env
from obox.store.log.fence import Ended, boots_of, fence, list_journals, record, replay
from obox.store.log.journal import DELETED, JournalObject, Line

USERS = ("anna", "ben", "cleo")


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110 - the store has no event for it
            await asyncio.sleep(0.001)


async def with_flag(life: Life, name: str) -> None:
    """Make a user with a mail. Only the journal knows that the mail was seen."""
    user = await life.user(name)
    await user.append("INBOX", [NewMail(b"a: b\r\n\r\n1")])
    box = await user.select("INBOX")
    await user.flush(everything=True)
    await box.store_flags(uids(1), "add", ["\\Seen"])
    await life.store.journal.sync()


async def died(machine: Machine, names: tuple[str, ...] = USERS) -> None:
    async with machine.run(kill=True) as life:
        for name in names:
            await with_flag(life, name)


@asynccontextmanager
async def beside(machine: Machine, path: Path, name: str) -> AsyncIterator[Env]:
    """Return the environment of another backend. Its store is not started, so it takes
    nothing over by itself."""
    async with machine.renamed(name, path / name).run(start=False) as life:
        yield life.store.env


async def dead(env: Env, backend: str = "first") -> list[Ended]:
    return [await fence(env, boot) for boot in boots_of(await list_journals(env)) if boot.backend == backend]


async def journal_of(bucket: Bucket, backend: str = "first") -> list[str]:
    return await bucket.keys(f"_journal/{backend}/")


async def test_a_fence_stands_however_often_it_is_made(machine: Machine, bucket: Bucket, tmp_path: Path) -> None:
    async with machine.run(kill=True) as life, beside(machine, tmp_path, "second") as env:
        await with_flag(life, "anna")
        before, boot = await journal_of(bucket), life.store.journal.boot
        (first,) = await dead(env)
        (again,) = await dead(env)
        assert (first.closed_before, first.clean, again.closed_before, again.clean) == (False, False, True, False)
        assert (first.seq, first.watermark) == (again.seq, again.watermark)
        assert len(await journal_of(bucket)) == len(before) + 1
        box = await life.users[0].select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Flagged"])
        await life.store.journal.sync()
        assert life.store.journal.boot != boot, "its owner goes on as another boot"


async def test_successors_share_a_boot(machine: Machine, bucket: Bucket, tmp_path: Path) -> None:
    """Each successor replays its own users and records them. The boot becomes clean
    when all users have been recorded, and not before."""
    await died(machine)
    async with beside(machine, tmp_path, "second") as second, beside(machine, tmp_path, "third") as third:
        (ours,), (theirs,) = await dead(second), await dead(third)
        mine = await replay(second, [ours], lambda sid: sid == "anna")
        others = await replay(third, [theirs], lambda sid: sid != "anna")
        assert (set(mine.pending), set(others.pending)) == ({"anna"}, {"ben", "cleo"})
        (named,) = mine.users.values()
        assert named == set(USERS) == others.users["first", theirs.boot.name]
        ours = await record(second, ours, named, {"anna"}, 0)
        assert (ours.clean, ours.adopted) == (False, {"anna"})
        assert set((await replay(third, await dead(third))).pending) == {"ben", "cleo"}
        # The other backend has taken this number of the journal meanwhile, so `record`
        # must take the next number.
        theirs = await record(third, theirs, named, {"ben"}, 0)
        assert (theirs.clean, theirs.adopted) == (False, {"anna", "ben"})
        theirs = await record(third, theirs, named, {"cleo"}, 0)
        assert theirs.clean
        count = len(await journal_of(bucket))
        assert (await record(second, ours, named, {"anna"}, 0)).adopted >= {"anna"}
        assert len(await journal_of(bucket)) == count, "what is noted already is not noted again"
        (now,) = await dead(second)
        assert now.clean


async def test_a_start_reads_only_who_is_left(machine: Machine, tmp_path: Path) -> None:
    await died(machine)
    async with beside(machine, tmp_path, "second") as env:
        (ended,) = await dead(env)
        (named,) = (await replay(env, [ended])).users.values()
        await record(env, ended, named, {"anna", "cleo"}, 0)
    async with machine.renamed("third", tmp_path / "third").run(kill=True) as life:
        assert set(life.store.takeover.pending) <= {"ben"}
        ben = await life.user("ben")
        assert (await ben.status("INBOX")).unseen == 0
        await until(lambda: not life.store.takeover.boots)
        (now,) = await dead(life.store.env)
        assert now.clean


async def test_a_poisoned_user_is_all_that_the_next_start_reads(
    machine: Machine, bucket: Bucket, tmp_path: Path
) -> None:
    async with machine.run(kill=True) as life:
        for name in USERS:
            await with_flag(life, name)
        life.store.journal.add("ben", life.users[1].entry("INBOX").guid, b"\xc1 no delta")
        await life.store.journal.sync()
    with capture_logs():
        async with machine.renamed("second", tmp_path / "second").run(kill=True) as life:
            takeover = life.store.takeover
            await until(lambda: bool(takeover.boots) and takeover.boots[0].adopted >= {"anna", "cleo"})
            count = len(await journal_of(bucket))
            await life.let_pass(60)
            assert len(await journal_of(bucket)) == count, "noted once"
        async with machine.renamed("third", tmp_path / "third").run(kill=True) as life:
            assert "ben" in life.store.takeover.pending or life.store.upkeep.jobs.failing
            assert not {"anna", "cleo"} & {
                sid for sid, boxes in life.store.takeover.pending.items() if any(len(b) > 1 for b in boxes.values())
            }


async def test_foreign_journal_objects_stop_no_start(machine: Machine, bucket: Bucket, tmp_path: Path) -> None:
    """They are at the end of a boot, are all that a boot has, or were copied to another
    place. What decodes is replayed."""
    await died(machine)
    store = bucket.open()
    keys = await journal_of(bucket)
    _, backend, boot, seq = keys[-1].split("/")
    copied = await store.get(keys[-1], kind="journal")
    put = {
        journal_key(backend, boot, int(seq, 16) + 1): b"",
        journal_key(backend, boot, int(seq, 16) + 2): copied,
        journal_key(backend, boot, 2**64 - 1): b"some text",
        journal_key(backend, "ffffffffffff0000", 2**64 - 1): copied,
        journal_key("evil", boot, int(seq, 16)): copied,
    }
    for key, data in put.items():
        await store.put(key, data, kind="journal")
    machine.lose_disk()
    for name in ("first", "second"):
        async with machine.renamed(name, tmp_path / name).run() as life:
            for user in USERS:
                box = await (await life.user(user)).select("INBOX")
                assert flags_of(box) == {1: ["\\Seen"]}
    for key, data in put.items():
        assert await store.get(key, kind="journal") == data, "left alone"
    await store.close()


async def test_one_backend_writes_one_object_behind_the_fence(machine: Machine, bucket: Bucket, tmp_path: Path) -> None:
    await died(machine)
    before = len(await journal_of(bucket))
    async with machine.renamed("second", tmp_path / "second").run(kill=True) as life:
        await until(lambda: not life.store.takeover.boots)
        assert len(await journal_of(bucket)) == before + 2, "the fence, and that all is in bundles"


async def test_what_was_said_before_a_deletion_stays_void_once_the_deletion_is_adopted(
    bucket: Bucket, machine: Machine, tmp_path: Path
) -> None:
    """An earlier boot has changes of a user, and a later boot has the deletion of this
    user. The deletion is recorded as adopted first."""
    early, late = "0" * 15 + "1", "0" * 15 + "2"
    async with beside(machine, tmp_path, "second") as env:
        for boot, box, delta in ((early, "ab" * 16, Delta(uidnext=2).encode()), (late, DELETED, b"")):
            said = JournalObject("first", boot, 0, 0, [Line("anna", [(box, delta)]), Line("ben", [])])
            await env.bucket.put(said.key, said.encode(env.codec, env.new_oid()), kind="journal")
            bucket.time.move(1.0)
        boots = await dead(env)
        assert (await replay(env, boots[:1])).pending == {"anna": {"ab" * 16: [Delta(uidnext=2).encode()]}}
        found = await replay(env, boots)
        assert found.pending == {}
        assert not (await record(env, boots[1], found.users["first", late], {"anna"}, 0)).clean
        assert (await replay(env, await dead(env))).pending == {}


@pytest.mark.parametrize("damaged", [1, 1000], ids=["the last", "all"])
async def test_a_damaged_last_object_stops_no_takeover(
    machine: Machine, bucket: Bucket, tmp_path: Path, damaged: int
) -> None:
    """A damaged object loses what only it has. The boot ends, other changes are taken
    over, and nobody reads the boot again."""
    await died(machine)
    open_bucket = bucket.open()
    for key in (await journal_of(bucket))[-damaged:]:
        await open_bucket.replace(key, b"damaged", kind="journal")
    await open_bucket.close()
    with capture_logs() as logs:
        async with machine.renamed("second", tmp_path / "second").run(kill=True) as life:
            unseen = [(await (await life.user(name)).status("INBOX")).unseen for name in USERS]
            assert unseen == ([0, 0, 1] if damaged == 1 else [1, 1, 1])
            await until(lambda: not life.store.takeover.boots)
            (now,) = await dead(life.store.env)
            assert (now.closed_before, now.clean) == (True, True)
    assert any(line["event"] == "journal object skipped" and "restore" in line["next_step"] for line in logs)


async def test_a_damaged_object_behind_a_fence_hides_no_record(
    machine: Machine, bucket: Bucket, tmp_path: Path
) -> None:
    await died(machine)
    async with beside(machine, tmp_path, "second") as env:
        (ended,) = await dead(env)
        (named,) = (await replay(env, [ended])).users.values()
        await env.bucket.put(journal_key("first", ended.boot.name, ended.seq), b"damaged", kind="journal")
        assert (await record(env, ended, named, named, 0)).clean
        (again,) = await dead(env)
        assert again.clean


async def test_an_object_under_another_key_stops_a_takeover(machine: Machine, bucket: Bucket, tmp_path: Path) -> None:
    """It can be read once the key is configured, and then nothing is lost."""
    await died(machine)
    async with beside(machine, tmp_path, "second") as env:
        boot = boots_of(await list_journals(env))[-1]
        said = JournalObject("first", boot.name, boot.last + 1, boot.first)
        other = Codec({"other": b"k" * 32}, "other")
        await env.bucket.put(said.key, said.encode(other, env.new_oid()), kind="journal")
        with pytest.raises(Corrupt, match="key"):
            await dead(env)
