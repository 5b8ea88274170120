"""A deleted mailbox that was cleared leaves no objects, even if a delta for it arrives
later."""

from __future__ import annotations

import asyncio
from pathlib import Path

from machines import SID, Life, Machine, uids
from mails import simple

from metacache import Change
from obox.mailbox import Delta, Holders
from obox.objectstore.keys import bundles_prefix
from obox.store import NewMail, User
from obox.store.user.flush import carry, sweep
from obox.types import Guid


async def cleared(machine: Machine, life: Life) -> tuple[User, Guid, str]:
    """Make a mailbox, fill it, delete it, and wait until it is cleared. Return its
    user, its GUID, and the key of a bundle that it had."""
    user = await life.user()
    await user.create("Gone")
    await user.append("Gone", [NewMail(simple(1))])
    guid = Guid(user.entry("Gone").guid)
    await (await user.box(guid)).flush(everything=True)
    (bundle, *_) = await of_box(machine, guid)
    await user.delete("Gone")
    for _ in range(4):
        await life.let_pass(machine.settings.delete_delay_s + 60)
        await user.release()
        # The user leaves memory. The next open clears the mailbox.
        await life.let_pass(3600)
        user = life.users[-1] = await life.store.open_user("anna", SID)
        await asyncio.sleep(0.05)
    assert user.root.entries[guid].cleared
    assert await of_box(machine, guid) == []
    return user, guid, bundle


async def of_box(machine: Machine, guid: Guid) -> list[str]:
    return [key for key in await machine.bucket.keys(bundles_prefix(SID)) if f"/{guid}/" in key]


async def test_late_news_make_no_bundle(machine: Machine) -> None:
    """A journal line for the mailbox is replayed once more, as after a crash between
    the clearing and the change of the root."""
    async with machine.run() as life:
        user, guid, _ = await cleared(machine, life)
        box = await user.box(guid)
        box.apply(Delta(holders=Holders.of({(1, Guid("ab" * 16), 7): 0})), Change.IMPORTANT)
        await box.flush(everything=True)
        await sweep(box)
        await carry(box)
        assert box.change is Change.NONE
        assert await of_box(machine, guid) == []
        await life.quiet()
    assert await of_box(machine, guid) == []


async def test_a_bundle_of_a_writer_who_did_not_know_goes(machine: Machine, tmp_path: Path) -> None:
    async with machine.run() as life:
        user, guid, bundle = await cleared(machine, life)
        await user.append("INBOX", [NewMail(simple(2))])
        box = await user.box(Guid(user.entry("INBOX").guid))
        await box.flush(everything=True)
        (other, *_) = await of_box(machine, box.guid)
        await life.bucket.put(bundle, await life.bucket.get(other, kind="index"), kind="index")
    assert await of_box(machine, guid) == [bundle]
    machine.lose_disk()
    async with machine.run() as life:
        await life.user()
        for _ in range(100):
            if not await of_box(machine, guid):
                break
            await asyncio.sleep(0.02)
        assert await of_box(machine, guid) == []
        inbox = await (await life.user()).select("INBOX")
        assert inbox.state.uids.tolist() == uids(1).tolist()
