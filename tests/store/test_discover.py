"""What a LIST finds beside our own UIDs in flight."""

from __future__ import annotations

import asyncio

import pytest
from machines import SID, Life, Machine, fill
from mails import simple

from obox.objectstore.keys import mail_key
from obox.store.box.slots import Fate, Slot
from obox.store.user.discover import discover
from obox.types import Guid, Uid


@pytest.mark.parametrize("fate", ["landed", "void", "orphan"])
@pytest.mark.parametrize("batches", [True, False])
async def test_our_uids_below_uidnext_make_no_free_uids(machine: Machine, fate: Fate, batches: bool) -> None:
    """The bundle of another writer has passed our UIDs in flight. The UIDs above them
    were taken for free, and could not be burnt, for ever."""
    machine.batches = batches
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(5)])
        box = await user.select("INBOX")
        ours = Slot(2, 1, asyncio.get_running_loop().create_future())
        ours.fate = fate
        await life.store.env.bucket.put(mail_key(SID, box.guid, Uid(6)), b"", kind="mail")
        with life.counting() as requests:
            async with asyncio.timeout(20):
                deltas, uidnext, _ = await discover(box, [ours])
        assert ([delta.claims for delta in deltas], uidnext) == ([{6: 1}], 7)
        assert requests.requests() == {("list", "mail"): 1}
        await box.release()


async def test_our_range_that_begins_below_uidnext_covers_nothing(machine: Machine) -> None:
    """Another writer's range covers the first UID of our range, so ours is void. The
    UIDs above were taken for ours: we acknowledged a mail above them, and the other
    writer took them, and ours, afterwards."""
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(5)])
        box = await user.select("INBOX")
        first, second = (
            Slot(uid, count, asyncio.get_running_loop().create_future()) for uid, count in ((4, 6), (11, 1))
        )
        first.fate = second.fate = "landed"
        assert (await discover(box, [first]))[:2] == ([], 6)
        deltas, uidnext, _ = await discover(box, [first, second])
        assert ([delta.claims for delta in deltas], uidnext) == ([{uid: 1} for uid in range(6, 11)], 12)
        assert [uid for uid in range(6, 11) if not await is_burnt(life, box.guid, uid)] == []
        await box.release()


async def is_burnt(life: Life, guid: Guid, uid: int) -> bool:
    return await life.store.env.get(mail_key(SID, guid, Uid(uid)), kind="mail") == b""
