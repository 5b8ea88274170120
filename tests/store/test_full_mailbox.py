"""A mailbox with as many mails as are allowed. None of its operations holds the loop
for long.

The mails have no objects here, because the test measures the index of the mailbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from machines import Life, Machine, uids
from turns import TURN_S_MAX, Turns, turns

from metacache import Change
from obox.mailbox import Delta, Rows, UidArray, joined
from obox.mailbox.invariants import check, fingerprint
from obox.objectstore import ObjectKind
from obox.objectstore.keys import bundle_key
from obox.store.box.bundles import BundleMeta, Bundles
from obox.store.user import discover, flush
from obox.store.user.journaled import join_journaled
from obox.store.user.mailbox import Mailbox
from obox.store.user.unload import wait_idle

MAILS = 500_000
"""The default of quota.max_mailbox_mails."""
FLAGS = ("\\Seen", "\\Answered", "\\Flagged", "$Forwarded", "$Junk", "$NotJunk")
KEYWORDS = tuple(f"keyword-{number}" for number in range(50))
STEP = 50_000


def rows(first: int, modseq: int, flags: tuple[str, ...]) -> Rows:
    """Return the index records of STEP mails that all have these flags."""
    uid = np.arange(first, first + STEP, dtype="<u4")
    oid = np.zeros((STEP, 16), dtype=np.uint8)
    oid[:, :4] = uid.view(np.uint8).reshape(-1, 4)
    return Rows(
        uid=uid,
        size=np.full(STEP, 3000, dtype="<u4"),
        internaldate=np.full(STEP, modseq // 1000, dtype="<i8"),
        zone=np.zeros(STEP, dtype="<i2"),
        savedate=np.full(STEP, modseq, dtype="<i8"),
        modseq=np.full(STEP, modseq, dtype="<u8"),
        home=np.full(STEP, -1, dtype="<i4"),
        home_uid=uid.copy(),
        oid=oid,
        place=np.zeros((STEP, 3), dtype=np.uint32),
        stamps={flag: np.full(STEP, modseq * 2 + 1, dtype="<u8") for flag in flags},
    )


async def fill(box: Mailbox, flags: tuple[str, ...] = FLAGS) -> None:
    for first in range(1, MAILS, STEP):
        modseq = box.state.next_modseq(box.env.now_ms())
        delta = Delta(rows=rows(first, modseq, flags), uidnext=first + STEP, highestmodseq=modseq)
        box.apply(delta, Change.IMPORTANT, journal=False)
        await asyncio.sleep(0)


def held(found: Turns) -> None:
    """Check the bound of a turn. How much CPU time threads use meanwhile is not
    checked."""
    assert found.longest_s / found.slowdown <= TURN_S_MAX, found.report()


@asynccontextmanager
async def full(machine: Machine, **how: Any) -> AsyncIterator[tuple[Life, Mailbox]]:
    async with machine.run(**how) as life:
        user = await life.user()
        box = await user.select("INBOX")
        await fill(box)
        yield life, box
        await box.release()


async def test_a_flush_and_the_flags_that_change_meanwhile(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag is changed during the upload. The bundle does not have this change, and
    the mailbox still counts as changed."""
    put = Bundles.put
    meanwhile = asyncio.Event()

    async with full(machine) as (life, box):

        async def changing(self: Bundles, *given: Any, **more: Any) -> Any:
            if not meanwhile.is_set():
                meanwhile.set()
                await box.store_flags(uids(7, 300_000), "remove", ["\\Seen"])
            return await put(self, *given, **more)

        monkeypatch.setattr(Bundles, "put", changing)
        with turns() as found:
            await box.flush(everything=True)
        held(found)
        assert box.change is Change.IMPORTANT
        (payload,) = (await box.bundles.load(await box.bundles.listing())).payloads
        bundle = Delta.decode(payload)
        assert bundle.rows is not None
        assert len(bundle.rows) == MAILS
        assert bool((bundle.rows.stamps["\\Seen"] & np.uint64(1)).all()), "as it was when the upload began"
        with turns() as found:
            await box.flush(everything=True)
        held(found)
        assert box.change is Change.NONE
        await life.quiet()
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        with turns() as found:
            box = await user.select("INBOX")
        held(found)
        assert len(box.state) == MAILS
        assert box.state.unseen == 2
        check(box.state)
        await box.release()


async def test_a_start_from_the_local_copy(machine: Machine) -> None:
    async with full(machine) as (_, box):
        before = fingerprint(box.state)
        with turns() as found:
            box.save()
            await box.env.commit_staged()
        held(found)
    async with machine.run() as life:
        user = await life.user()
        with turns() as found:
            box = await user.select("INBOX")
        held(found)
        assert fingerprint(box.state) == before
        check(box.state)
        await box.release()


async def test_a_copy_that_is_staged_has_the_changes_that_follow(machine: Machine) -> None:
    """The thread of the writer encodes the base of the local copy later. The base does
    not have the later changes; the copy has them as deltas."""
    async with full(machine) as (_, box):
        box.save()
        await box.store_flags(uids(3), "remove", ["$Junk"])
        box.state.join(Delta(rows=rows(MAILS + 1, box.env.now_ms(), ())))
        copy = await box.env.metacache.large.load(box.sid, box.box)
        assert copy is not None
        assert copy.base is not None
        base = Delta.decode(copy.base)
        assert base.rows is not None
        assert len(base.rows) == MAILS
        assert int(base.rows.stamps["$Junk"][2]) & 1
        assert [flag for flag, _, _ in Delta.decode(copy.deltas[-1]).flags] == ["$Junk"]
        assert copy == box.env.metacache.load(box.sid, box.box)


async def test_a_mailbox_of_many_keywords(machine: Machine) -> None:
    """All mails have 56 flags: an index of 250 MiB."""
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        await fill(box, FLAGS + KEYWORDS)
        with turns() as found:
            parts = box.whole()
            await box.upload("base", parts)
        held(found)
        await box.release()


@pytest.mark.parametrize("source", ["a bundle", "a journal"])
async def test_what_another_backend_wrote_of_all_mails_is_joined_while_a_session_is_there(
    machine: Machine, source: str
) -> None:
    """It has seen and flagged all of them, and has others that we have not."""
    async with full(machine) as (_, box):
        await box.flush(everything=True)
        other = Delta.decode(joined(box.state.extract().parts()))
        assert other.rows is not None
        stamp = np.uint64(box.state.next_modseq(box.env.now_ms()) * 2)
        other.rows.stamps["\\Seen"] = np.full(MAILS, stamp, dtype="<u8")
        other.rows.stamps["new"] = np.full(MAILS, stamp + np.uint64(1), dtype="<u8")
        more = Delta(rows=rows(MAILS + 1, int(stamp) // 2, FLAGS), uidnext=MAILS + STEP + 1)
        payloads = [other.encode(), more.encode()]
        # A mailbox never has more than MAILS, so this growth is not measured.
        box.state.reserve(MAILS + STEP)
        seen: list[int] = []
        box.watch(lambda: seen.append(len(box.state)))
        highest = box.state.highestmodseq
        with turns() as found:
            if source == "a bundle":
                for writer, payload in zip(("second", "third"), payloads, strict=True):
                    key = bundle_key(box.sid, box.guid, 100, writer, "base")
                    meta = msgspec.msgpack.encode(BundleMeta([], False, ""))
                    await box.env.put_new(key, ObjectKind.BASE, meta, payload)
                await asyncio.create_task(discover.recheck(box, await box.bundles.listing(), box.assignment))
            else:
                user: Any = box.user
                await asyncio.create_task(join_journaled(user, {box.guid: payloads}))
        held(found)
        assert seen[-1] == len(box.state) == MAILS + STEP
        assert box.state.unseen == MAILS
        assert bool(box.state.has_flag("new", slice(0, MAILS)).all())
        assert bool((box.state.modseqs > np.uint64(highest)).all()), "sessions report all of it"
        check(box.state)


async def test_many_mails_of_another_writer_become_visible_in_turns(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mails of this backend are among them. No session may see a UID before a lower
    UID."""
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        now, oid = box.env.now_ms(), bytes(range(16))
        ours = await box.slots.take(1, [1] * 3000)
        about: dict[str, Any] = {"size": 1, "internaldate": 0, "zone": 0, "savedate": now, "modseq": now, "oid": oid}

        def delta(uid: int) -> Delta:
            return Delta(rows=Rows.one(uid, **about), uidnext=uid + 1)

        async def discover_all(*_: Any) -> tuple[list[Delta], int, int]:
            return [delta(uid) for uid in range(2, 3000, 2)] + [delta(uid) for uid in range(3001, 4001)], 4001, 4000

        seen: list[int] = []
        box.watch(lambda: seen.extend(box.state.uids[len(seen) :].tolist()))
        monkeypatch.setattr(discover, "discover", discover_all)
        with turns() as found:
            for slot in ours:
                box.slots.resolve(
                    slot, "landed" if slot.uid % 2 else "taken", delta(slot.uid) if slot.uid % 2 else None
                )
                if slot.uid % 100 == 0:
                    await asyncio.sleep(0)
            await wait_idle(user)
        held(found)
        assert seen == [uid for uid in range(1, 4001) if uid != 3000]
        assert [await slot.done for slot in ours] == [bool(slot.uid % 2) for slot in ours]
        await box.release()


async def test_objects_of_an_expunge_of_all_are_deleted(machine: Machine) -> None:
    async with full(machine) as (life, box):
        await box.flush(everything=True)
        everything: UidArray = box.state.uids.copy()
        await box.expunge(everything)
        life.time.move(2 * life.settings.delete_delay_s)
        await life.quiet()
        with turns() as found:
            await box.flush(everything=True)
            await flush.sweep(box)
        held(found)
        assert bool(box.state.gone_purged.all())
