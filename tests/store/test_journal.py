"""The writer of the journal alone, on a virtual clock that moves when all tasks
wait."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from objectstore.virtual import VirtualTime

from obox.errors import Unavailable
from obox.objectstore import Codec, OpenStore, Settings, Unreachable, open_store
from obox.objectstore.keys import journal_key, journal_prefix
from obox.store.log import journal as journal_module
from obox.store.log.journal import LEASE_S, RENEW_S, Journal, JournalObject
from obox.types import Oid

CODEC = Codec({}, None)


@dataclass
class Desk:
    """A journal, its bucket, and the calls that the journal made to its owner."""

    time: VirtualTime
    bucket: OpenStore
    journal: Journal
    remembered: list[tuple[str, int]] = field(default_factory=list)
    boots: list[str] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    async def objects(self, boot: str = "boot1") -> list[JournalObject]:
        infos = await self.bucket.list(journal_prefix("first", boot), kind="journal")
        bodies = [await self.bucket.get(info.key, kind="journal") for info in infos]
        return [JournalObject.decode(CODEC, body, info.key) for info, body in zip(infos, bodies, strict=True)]

    def puts(self) -> int:
        return self.bucket.stats.count("put", "journal")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    time = VirtualTime()
    oids = itertools.count(1)
    bucket = open_store(Settings("memory://"), clock=time.clock, sleep=time.sleep)

    async def remember(boot: str, seq: int) -> None:
        desk.remembered.append((boot, seq))

    async def fenced() -> str:
        desk.boots.append(f"boot{len(desk.boots) + 2}")
        return desk.boots[-1]

    journal = Journal(
        bucket,
        CODEC,
        "first",
        "boot1",
        interval_s=1.0,
        clock=time.clock,
        sleep=time.sleep,
        new_oid=lambda: Oid(next(oids).to_bytes(16, "big")),
        before_put=remember,
        fenced=fenced,
    )
    desk = Desk(time, bucket, journal)
    desk.task = asyncio.create_task(journal.run())
    yield desk
    desk.task.cancel()
    await asyncio.gather(desk.task, return_exceptions=True)
    await bucket.close()


def break_puts(desk: Desk, *, land: bool = False) -> None:
    """Make each PUT fail, or take effect without an answer, until `mend` is called."""
    put = desk.bucket.put

    async def broken(key: str, data: bytes, *, kind: str) -> None:
        if land:
            await put(key, data, kind=kind)
        raise Unreachable("no answer")

    desk.bucket.put = broken


def mend(desk: Desk) -> None:
    del desk.bucket.put


async def test_one_object_an_interval_for_all_users(desk: Desk) -> None:
    for number in range(100):
        desk.journal.add(f"user{number % 3}", f"box{number % 2}", b"%d" % number)
    await desk.time.advance(0.9)
    assert desk.puts() == 0
    await desk.time.advance(0.2)
    assert desk.puts() == 1
    (written,) = await desk.objects()
    assert {line.sid for line in written.lines} == {"user0", "user1", "user2"}
    for line in written.lines:
        numbers = [int(delta) for _, delta in line.changes]
        assert numbers == sorted(numbers), "in the order of the changes"
        assert len(numbers) in (33, 34)
    await desk.time.advance(100)
    assert desk.puts() == 1, "nothing changed, nothing is written"


async def test_a_change_in_every_tenth_of_a_second_is_one_object_a_second(desk: Desk) -> None:
    for number in range(100):
        desk.journal.add("user", "box", b"%d" % number)
        await desk.time.advance(0.1)
    assert 9 <= desk.puts() <= 10
    await desk.time.advance(1)
    written = await desk.objects()
    assert [int(delta) for one in written for line in one.lines for _, delta in line.changes] == list(range(100))
    assert [one.seq for one in written] == list(range(len(written)))
    assert desk.remembered == [("boot1", one.seq) for one in written], "our disk knows of each before the bucket"


async def test_sync_does_not_wait_for_the_interval(desk: Desk) -> None:
    await desk.time.run(desk.journal.sync())
    assert desk.puts() == 0
    desk.journal.add("user", "box", b"1")
    begun = desk.time.now
    await desk.time.run(desk.journal.sync())
    assert (desk.puts(), desk.time.now) == (1, begun)


async def test_syncs_at_once_share_an_object(desk: Desk) -> None:
    async def one(number: int) -> None:
        desk.journal.add("user", "box", b"%d" % number)
        await desk.journal.sync()

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(50)))

    await desk.time.run(all_of_them())
    assert desk.puts() <= 2


async def test_the_lease_is_renewed_when_it_is_old(desk: Desk) -> None:
    assert desk.journal.stale()
    await desk.time.run(desk.journal.lease())
    assert desk.puts() == 1
    await desk.time.run(desk.journal.lease())
    await desk.time.advance(RENEW_S - 1)
    await desk.time.run(desk.journal.lease())
    assert desk.puts() == 1
    await desk.time.advance(2)
    await desk.time.run(desk.journal.lease())
    assert desk.puts() == 2
    assert RENEW_S < LEASE_S


@pytest.mark.parametrize("land", [False, True], ids=["never lands", "answer lost"])
async def test_what_has_no_answer_is_written_again_the_same(desk: Desk, land: bool) -> None:
    break_puts(desk, land=land)
    desk.journal.add("user", "box", b"1")
    await desk.time.advance(5)
    desk.journal.add("user", "box", b"2")
    mend(desk)
    await desk.time.advance(5)
    written = await desk.objects()
    assert [[delta for line in one.lines for _, delta in line.changes] for one in written] == [[b"1"], [b"2"]]
    assert [one.seq for one in written] == [0, 1]
    assert desk.boots == []


async def test_late_changes_are_refused_and_nothing_is_lost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert journal_module.LATE_S == 10
    # The waiters use the clock of the loop.
    monkeypatch.setattr(journal_module, "LATE_S", 0.1)
    break_puts(desk)
    desk.journal.add("user", "box", b"1")
    await desk.time.advance(0.05)
    desk.journal.check()
    with pytest.raises(Unavailable):
        await desk.time.run(desk.journal.sync())
    with pytest.raises(Unavailable):
        desk.journal.check()
    with pytest.raises(Unavailable):
        await desk.time.run(desk.journal.lease())
    await desk.time.advance(60)
    assert desk.journal.late() > 60
    mend(desk)
    await desk.time.run(desk.journal.sync())
    desk.journal.check()
    assert desk.journal.late() == 0
    written = await desk.objects()
    assert [delta for one in written for line in one.lines for _, delta in line.changes] == [b"1"]


async def test_a_fence_starts_a_new_boot_that_says_all_again(desk: Desk) -> None:
    """Another backend has fenced the journal. The changes that were not acknowledged go
    into a journal of a new boot. The other backend replays the rest."""
    desk.journal.add("user", "box", b"1")
    await desk.time.run(desk.journal.sync())
    fence = JournalObject("first", "boot1", 1, 0, closed=True)
    oid = Oid(b"\xff" * 16)
    await desk.bucket.put(journal_key("first", "boot1", 1), fence.encode(CODEC, oid), kind="journal")
    desk.journal.add("user", "box", b"2")
    await desk.time.run(desk.journal.sync())
    assert desk.boots == ["boot2"]
    assert [one.closed for one in await desk.objects()] == [False, True]
    (again,) = await desk.objects("boot2")
    assert (again.seq, [line.changes for line in again.lines]) == (0, [[("box", b"2")]])
    desk.journal.add("user", "box", b"3")
    await desk.time.run(desk.journal.sync())
    assert [one.seq for one in await desk.objects("boot2")] == [0, 1]
    assert desk.journal.boot == "boot2"


async def test_the_watermark_is_the_first_object_that_no_bundle_covers(desk: Desk) -> None:
    journal = desk.journal

    async def write(box: str) -> None:
        journal.add("user", box, b"x")
        await desk.time.run(journal.sync())

    await write("a")
    await write("b")
    position = journal.position()
    await write("a")
    assert (await desk.objects())[-1].watermark == 0
    journal.flushed("user", "a", position, more=True)
    await write("c")
    assert (await desk.objects())[-1].watermark == 1, "b is in no bundle"
    journal.flushed("user", "b", journal.position(), more=False)
    await write("c")
    assert (await desk.objects())[-1].watermark == 2, "the second change of a"
    for box in "abc":
        journal.flushed("user", box, journal.position(), more=False)
    await write("d")
    assert (await desk.objects())[-1].watermark == 5


@pytest.mark.parametrize("covered", [True, False])
async def test_the_end_says_whether_bundles_cover_all(desk: Desk, covered: bool) -> None:
    journal = desk.journal
    journal.add("user", "box", b"1")
    journal.stop()
    assert desk.task is not None
    await desk.time.run(asyncio.wait_for(asyncio.shield(desk.task), None))
    if covered:
        journal.flushed("user", "box", journal.position(), more=False)
    await desk.time.run(journal.close())
    first, last = await desk.objects()
    assert (first.closed, last.closed, last.clean) == (False, True, covered)
