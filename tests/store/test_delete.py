"""A user is deleted while the store has work for the user. Nothing of the user may come
back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from machines import SID, Life, Machine, uids, whole
from mails import simple

from obox.errors import NotFound
from obox.objectstore.keys import user_prefix
from obox.store import NewMail
from obox.store.backend.upkeep import Upkeep
from obox.store.operate import users as operate
from obox.store.user import flush
from obox.types import StorageId


async def fill(life: Life, *names: str) -> None:
    """Make users with some mails and flags in two mailboxes. No bundle has these
    changes."""
    for name in names:
        user = await life.user(name)
        await user.append("INBOX", [NewMail(simple(n)) for n in range(4)])
        inbox = await user.select("INBOX")
        await user.copy(inbox, uids(1, 2), "Archive")
        await inbox.store_flags(uids(3), "add", ["\\Flagged"])
    await life.quiet()


async def delete(life: Life, sid: StorageId = SID) -> None:
    async for _ in operate.delete(life.store, sid):
        pass


async def fill_and_delete(life: Life) -> None:
    """Make a user with mails, close the user's sessions, and delete the user."""
    await fill(life, "anna")
    user = life.users.pop()
    (await user.box(user.entry("INBOX").guid)).sessions = 0
    await user.release()
    await delete(life)


async def nothing_is_left(machine: Machine, life: Life) -> None:
    assert await machine.bucket.keys(user_prefix(SID)) == []
    assert SID not in life.store.users
    assert life.store.env.metacache.boxes(SID) == []


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("disk", ["kept", "lost"])
async def test_while_the_dead_are_taken_over(machine: Machine, disk: str, turns: int) -> None:
    """The deletion comes after a number of turns of the loop after a start. At that
    moment the takeover may work on this user or on another user."""
    async with machine.run(kill=True) as life:
        await fill(life, "aaron", "anna", "ben")
    if disk == "lost":
        machine.lose_disk()
    async with machine.run() as life:
        for _ in range(turns):
            await asyncio.sleep(0)
        await delete(life)
        # The takeover tries again after 5 s.
        await life.let_pass(20)
        await asyncio.sleep(0.05)
        await nothing_is_left(machine, life)
        for name in ("aaron", "ben"):
            assert (await (await life.user(name)).status("INBOX")).messages == 4
        await asyncio.sleep(0.05)
    assert await machine.bucket.keys(user_prefix(SID)) == []


Work = Callable[[Life], Awaitable[Any]]


async def carry(life: Life) -> None:
    await life.store.upkeep.carry(SID, "root")


async def flush_dirty(life: Life) -> None:
    await life.store.upkeep.flush_unflushed()


async def load(life: Life) -> None:
    await life.store.load_user("anna", SID)


@pytest.mark.parametrize("work", [carry, flush_dirty, load])
async def test_upkeep_makes_nobody(machine: Machine, work: Work) -> None:
    async with machine.run() as life:
        try:
            await work(life)
        except NotFound:
            pass
        await nothing_is_left(machine, life)


async def test_a_session_that_comes_while_upkeep_looks_is_let_in(machine: Machine) -> None:
    async with machine.run() as life:
        looking = asyncio.ensure_future(life.store.load_user("anna", SID))
        await asyncio.sleep(0)
        user = await life.user()
        assert (await user.status("INBOX")).messages == 0
        with pytest.raises(NotFound):
            await looking


async def test_who_holds_a_deleted_user_writes_nothing(machine: Machine) -> None:
    """A task has held the user since before the deletion. The test tries each way to
    write."""
    async with machine.run() as life:
        await fill(life, "anna")
        user = life.users.pop()
        inbox, archive = [await user.box(user.entry(name).guid) for name in ("INBOX", "Archive")]
        inbox.sessions = 0
        await user.release()
        await delete(life)
        for late in (
            user.flush,
            user.rootbox.flush,
            inbox.flush,
            partial(flush.carry, archive),
            partial(flush.sweep, archive),
        ):
            try:
                done = late()
                if done is not None:
                    await done
            except NotFound:
                pass
        with pytest.raises(NotFound):
            await user.box(user.entry("Drafts").guid)
        user.root.totals[inbox.guid] = inbox.totals()._replace(garbage=1)
        user.chores.sweep()
        assert user.chores.due
        for deletion in list(user.chores.due.values()):
            with pytest.raises(NotFound):
                await deletion()
        await life.quiet()
        await nothing_is_left(machine, life)


async def test_a_login_afterwards_makes_the_user_again(machine: Machine) -> None:
    async with machine.run() as life:
        await fill_and_delete(life)
        fresh = await life.user()
        assert (await fresh.status("INBOX")).messages == 0
        await fresh.append("INBOX", [NewMail(simple(1))])
        assert (await fresh.status("INBOX")).messages == 1


async def old(life: Life) -> None:
    """Make a user with a mailbox of their own."""
    await fill(life, "anna")
    user = life.users.pop()
    await user.create("Old")
    await user.copy(await user.box(user.entry("INBOX").guid), uids(1), "Old")
    for box in user.boxes.values():
        box.sessions = 0
    await user.release()


async def new(life: Life) -> None:
    """Make another user under the same storage id, with one mail."""
    fresh = await life.user()
    await fresh.append("INBOX", [NewMail(simple(50))])
    await (await fresh.select("INBOX")).store_flags(uids(1), "add", ["\\Seen"])
    await life.quiet()


async def only_the_new_one(life: Life) -> None:
    got = await whole(await life.user())
    assert {name: row[4] for name, row in got.items() if name != "subscriptions" and row[4]} == {"INBOX": 1}
    assert "Old" not in got
    assert got["INBOX"][-1][1][0] == ["\\Seen"]


@pytest.mark.parametrize("disk", ["kept", "lost"])
async def test_a_later_user_learns_nothing_of_the_user_before(machine: Machine, disk: str) -> None:
    """The changes of another user hold the watermark below the journal lines of the
    deleted user, so that these lines are read again."""
    async with machine.run(kill=True) as life:
        await fill(life, "ben")
        await old(life)
        await delete(life)
        await new(life)
    if disk == "lost":
        machine.lose_disk()
    async with machine.run() as life:
        await only_the_new_one(life)
        await life.let_pass(20)
        await only_the_new_one(life)


async def test_nor_of_what_an_older_boot_said(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user was deleted while the journal of an earlier boot was still needed.
    Another machine reads the journals of both boots once more."""
    async with machine.run(kill=True) as life:
        await fill(life, "ben")
        await old(life)

    async def never(self: Upkeep) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(Upkeep, "adopt", never)
        patch.setattr(Upkeep, "flush_unflushed", never)
        async with machine.run(kill=True) as life:
            await delete(life)
            life.time.move(5)
            # These writes would move the watermark past the deletion.
            for n in range(5):
                carl = await life.user("carl")
                await carl.append("INBOX", [NewMail(simple(n))])
                await life.quiet()
                await carl.flush(everything=True)
            life.time.move(5)
            await new(life)
    async with machine.renamed("second", tmp_path / "second").run() as life:
        await only_the_new_one(life)
    async with machine.renamed("third", tmp_path / "third").run() as life:
        await only_the_new_one(life)


async def test_the_grave_is_no_burden(machine: Machine) -> None:
    """An orderly stop after a deletion is clean, and the watermark of the journal
    advances."""
    async with machine.run() as life:
        await fill_and_delete(life)
        assert life.store.journal.watermark() == life.store.journal.position()[1]
    async with machine.run() as life:
        assert not life.store.unclean
