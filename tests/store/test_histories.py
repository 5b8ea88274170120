"""Two backends have written to a mailbox: which of their copies, bundles and journals
are one history, and what is compared when another backend takes over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from machines import Machine, flags_of, uids
from owners import ANNA, MAIL, Member, Rows, member, with_flag

from obox.store.backend import handover
from obox.store.log.takeover import one_history
from obox.store.user import boxes, discover


async def writes_and_gives_up(one: Member) -> None:
    """Add a flag to the mail of a user whom another backend has by now."""
    mine = await one.life.store.users[ANNA].select("INBOX")
    await mine.store_flags(uids(1), "add", ["work"])
    await handover.lose(one.life.store, ["anna"], one.kick)


async def test_a_mailbox_is_not_loaded_by_an_earlier_list(machine: Machine, other: Machine, rows: Rows) -> None:
    """The owner LISTed when the user was opened, and has learned since that another
    backend wrote."""
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna")
        await two.gain("anna")
        await with_flag(one.life, "anna")
        user = await two.life.user("anna")
        await writes_and_gives_up(one)
        two.life.store.env.owned.doubt(["anna"])
        assert flags_of(await user.select("INBOX")) == {1: ["\\Seen", "work"]}


@pytest.mark.parametrize("what", ["user", "mailbox"])
async def test_what_is_being_loaded_as_another_backend_writes_is_compared(
    machine: Machine, other: Machine, rows: Rows, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    listed, on = asyncio.Event(), asyncio.Event()
    load, catch_up = discover.load, boxes.catch_up

    async def slow_load(self: Any, infos: Any, pending: Any) -> None:
        await load(self, infos, pending)
        listed.set()
        await on.wait()

    async def slow_catch_up(box: Any, worth: Any, infos: Any) -> Any:
        listed.set()
        await on.wait()
        return await catch_up(box, worth, infos)

    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna")
        await with_flag(one.life, "anna")
        await two.gain("anna")
        if what == "user":
            monkeypatch.setattr(boxes, "catch_up", slow_catch_up)
            opening: asyncio.Future[Any] = asyncio.ensure_future(two.life.user("anna"))
        else:
            monkeypatch.setattr(discover, "load", slow_load)
            opening = asyncio.ensure_future((await two.life.user("anna")).select("INBOX"))
        await listed.wait()
        await writes_and_gives_up(one)
        await handover.doubt(two.life.store, ["anna"])
        on.set()
        await opening
        box = await (await two.life.user("anna")).select("INBOX")
        async with asyncio.timeout(30):
            while flags_of(box) != {1: ["\\Seen", "work"]}:  # noqa: ASYNC110 - the store has no event for it
                await asyncio.sleep(0.01)


async def test_a_copy_that_an_owner_did_not_know_of_is_another_history(
    machine: Machine, other: Machine, rows: Rows
) -> None:
    """Two backends write to a mailbox at once. The survivor takes it over with
    its own copy, and reads the journal of the other. A client of the other has not seen
    the flag of this copy, and must read all flags again."""
    async with member(machine, rows) as one:
        await one.gain("anna")
        user = await one.life.user("anna")
        await user.append("INBOX", [MAIL])
        box = await user.select("INBOX")
        await user.flush(everything=True)
        async with member(other, rows, kill=True) as two:
            # The directory says that the former owner has released the user in order.
            await two.gain("anna", orderly=True)
            theirs = await (await two.life.user("anna")).select("INBOX")
            await box.store_flags(uids(1), "add", ["ours"])
            await user.flush(everything=True)
            await theirs.store_flags(uids(1), "add", ["others"])
            await two.life.store.journal.sync()
            shown, boot = theirs.state.highestmodseq, two.life.store.journal.boot
        await handover.lose(one.life.store, ["anna"], one.kick)
        await one.gain("anna", dead=(("second", boot),))
        box = await (await one.life.user("anna")).select("INBOX")
        assert flags_of(box) == {1: ["others", "ours"]}
        assert box.state.trusted(shown) == 0


@pytest.mark.parametrize("late", [False, True])
async def test_a_bundle_that_the_owner_of_a_journal_did_not_know_of_is_another_history(
    machine: Machine, other: Machine, rows: Rows, tmp_path: Path, late: bool
) -> None:
    """Two backends write to a mailbox at once, one to a bundle, the other to its
    journal. A third without a copy takes over. Whichever of them a client has used,
    it has not seen the flag of the other."""
    third = machine.renamed("third", tmp_path / "third")
    async with member(machine, rows) as one:
        await one.gain("anna")
        user = await one.life.user("anna")
        await user.append("INBOX", [MAIL])
        box = await user.select("INBOX")
        await user.flush(everything=True)
        async with member(other, rows, kill=True) as two:
            await two.gain("anna", orderly=True)  # so the directory says
            theirs = await (await two.life.user("anna")).select("INBOX")
            if late:
                await theirs.store_flags(uids(1), "add", ["others"])
            await box.store_flags(uids(1), "add", ["ours"])
            await user.flush(everything=True)
            if not late:
                await theirs.store_flags(uids(1), "add", ["others"])
            await two.life.store.journal.sync()
            shown, boot = {theirs.state.highestmodseq, box.state.highestmodseq}, two.life.store.journal.boot
        await handover.lose(one.life.store, ["anna"], one.kick)
        async with member(third, rows) as three:
            await three.gain("anna", dead=(("second", boot),))
            box = await (await three.life.user("anna")).select("INBOX")
            assert flags_of(box) == {1: ["others", "ours"]}
            assert {box.state.trusted(modseq) for modseq in shown} == {0}


async def test_a_journal_that_continues_the_bundles_of_its_own_boot_is_the_same_history(
    machine: Machine, other: Machine, rows: Rows
) -> None:
    """A client of a backend that died need not read all flags again at its heir."""
    async with member(machine, rows, kill=True) as one:
        await one.gain("anna")
        await with_flag(one.life, "anna")
        box = await one.life.users[0].select("INBOX")
        shown, boot = box.state.highestmodseq, one.life.store.journal.boot
    async with member(other, rows) as two:
        await two.gain("anna", dead=(("first", boot),))
        box = await (await two.life.user("anna")).select("INBOX")
        assert flags_of(box) == {1: ["\\Seen"]}
        assert box.state.trusted(shown) == shown


def test_a_backend_has_read_what_was_written_before_it_began() -> None:
    def boot(at: float) -> str:
        return f"{int(at * 1000):012x}0000"

    began = 1_700_000_000.0
    journal = [("a", boot(began))]
    assert one_history(journal, [])
    assert one_history(journal, [(boot(began), began + 5), (boot(5), began - 61)])
    assert not one_history(journal, [(boot(5), began - 59)]), "the clocks may differ by a minute"
    assert not one_history(journal, [(boot(5), began + 1)])
    assert one_history([*journal, ("a", boot(began + 9))], [(boot(began), began + 5)]), "a fence begins a new boot"
    assert not one_history([*journal, ("b", boot(began + 9))], []), "the second may not have known of the first"
