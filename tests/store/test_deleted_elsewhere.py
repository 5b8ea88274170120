"""A user is deleted at a backend while an earlier owner still has changes of that
user."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import SID, Bucket, Life, Machine, uids
from mails import simple
from owners import Member, Rows, member

from obox.objectstore.keys import user_prefix
from obox.store import NewMail
from obox.store.backend import handover
from obox.store.operate import users as operate


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def other(machine: Machine, tmp_path: Path) -> Machine:
    return machine.renamed("second", tmp_path / "second")


async def old(life: Life) -> None:
    """Make a user with a mailbox, a mail and a flag that no bundle has."""
    user = await life.user()
    await user.append("INBOX", [NewMail(simple(1))])
    await user.flush(everything=True)
    await user.create("Old")
    await (await user.select("INBOX")).store_flags(uids(1), "add", ["\\Flagged"])
    await life.store.journal.sync()


async def delete(one: Member) -> None:
    await one.kick(list(one.life.store.users))
    async for _ in operate.delete(one.life.store, SID):
        pass


async def hand_over(one: Member, two: Member, unit: str = "anna") -> None:
    async def hand(_units: frozenset[str]) -> frozenset[str]:
        one.rows.give(two.name, unit)
        return frozenset([unit])

    assert await handover.release(one.life.store, [unit], one.kick, hand)
    await handover.gain(two.life.store, two.units(), orderly=True)


async def names(one: Member) -> set[str]:
    return {info.name for info in (await one.life.user()).mailboxes()}


async def test_a_new_user_does_not_get_the_lines_of_the_user_before(
    machine: Machine, other: Machine, rows: Rows, tmp_path: Path
) -> None:
    """The lines of the deleted user are in the journal of an earlier owner, which dies
    later. A third backend takes over from that owner."""
    third = machine.renamed("third", tmp_path / "third")
    async with member(other, rows) as two, member(third, rows) as three:
        async with member(machine, rows, kill=True) as one:
            await one.gain("anna", "ben")
            boot = one.life.store.journal.boot
            ben = await one.life.user("ben")
            await ben.append("INBOX", [NewMail(simple(1))])
            # Only the journal has this change.
            await ben.create("Something")
            await one.life.store.journal.sync()
            await old(one.life)
            await hand_over(one, two)
            await delete(two)
            assert "Old" not in await names(two)
            await (await two.life.user()).create("New")
        await three.gain("ben", dead=(("first", boot),))
        await two.kick(list(two.life.store.users))
        await handover.sweep(two.life.store)
        await two.life.let_pass(20)
        assert {"New"} <= await names(two)
        assert "Old" not in await names(two)


@pytest.mark.parametrize("again", [True, False], ids=["made again", "gone"])
async def test_a_local_copy_of_an_earlier_owner_brings_nobody_back(
    machine: Machine, other: Machine, rows: Rows, bucket: Bucket, again: bool
) -> None:
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna")
        await old(one.life)
        await hand_over(one, two)
        await delete(two)
        if again:
            await two.life.let_pass(3600)
            await (await two.life.user()).create("New")
            await (await two.life.user()).append("INBOX", [NewMail(simple(2)), NewMail(simple(3))])
        await hand_over(two, one)
        await one.life.store.upkeep.flush_unflushed()
        if not again:
            assert await bucket.keys(user_prefix(SID)) == []
        found = await names(one)
        assert "Old" not in found
        assert ("New" in found) is again
        assert (await (await one.life.user()).status("INBOX")).messages == (2 if again else 0)


async def test_what_was_staged_for_a_deleted_user_is_not_uploaded(
    machine: Machine, other: Machine, rows: Rows, bucket: Bucket
) -> None:
    """The backend did not reach the directory while others took its groups over. One of
    them deleted a user meanwhile."""
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna")
        await old(one.life)
        rows.give("second", "anna")
        await handover.gain(two.life.store, two.units(), [("first", one.life.store.journal.boot)])
        await two.life.let_pass(20)
        await delete(two)
        assert await handover.lose(one.life.store, ["anna"], one.kick) == []
        await one.life.let_pass(20)
        assert await bucket.keys(user_prefix(SID)) == []
        assert "Old" not in await names(two)
