"""A mailbox with as many keywords as are allowed. A change with too many keywords is
refused as a whole, and a keyword that no mail has any more makes room."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from machines import Machine
from msgspec.structs import replace

from obox.errors import Limit, OboxError
from obox.mailbox import KEYWORDS_MAX, UidArray
from obox.mailbox.invariants import check
from obox.store import Mailbox, NewMail, User
from obox.store.user.flush import KEYWORD_FORGET_S

MAIL = b"Subject: a mail\r\n\r\nbody\r\n"


def uids(*numbers: int) -> UidArray:
    return np.array(numbers, dtype=np.uint32)


def flags_of(box: Mailbox) -> dict[int, set[str]]:
    bits = box.state.flag_bits(slice(0, len(box.state)))
    return {uid: set(box.state.flags.of_bits(one)) for uid, one in zip(box.state.uids.tolist(), bits, strict=True)}


async def filled(user: User, name: str, *, left: int) -> Mailbox:
    """Make a mailbox with a mail that has all keywords but `left`."""
    keywords = tuple(f"k{at:02}" for at in range(KEYWORDS_MAX - left))
    await user.append(name, [NewMail(MAIL, keywords)])
    return await user.box(user.entry(name).guid)


@pytest.mark.parametrize("part", [1, 1_000])
async def test_copy_and_move_of_too_many_keywords_do_nothing(
    machine: Machine, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """part: of how many mails a MOVE is made at a time."""
    monkeypatch.setattr("obox.store.user.copy.PART_MAILS", part)
    async with machine.run() as life:
        user = await life.user()
        target = await filled(user, "Sent", left=1)
        await user.append("INBOX", [NewMail(MAIL, ("a",)), NewMail(MAIL, ("b", "K01")), NewMail(MAIL, ("\\Seen",))])
        source = await user.box(user.entry("INBOX").guid)
        before = flags_of(target)
        for move in (False, True):
            with pytest.raises(Limit):
                await user.copy(source, uids(1, 2, 3), "Sent", move=move)
        assert flags_of(target) == before
        assert target.state.uidnext == 2, "no UID was given out"
        assert flags_of(source) == {1: {"a"}, 2: {"b", "K01"}, 3: {"\\Seen"}}
        await user.copy(source, uids(2, 3), "Sent", move=True)
        assert flags_of(target) == {**before, 2: {"b", "k01"}, 3: {"\\Seen"}}
        await user.copy(source, uids(1), "Drafts")


async def test_a_cleared_keyword_is_not_copied(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        target = await filled(user, "Sent", left=0)
        await user.append("INBOX", [NewMail(MAIL, ("a",))])
        source = await user.box(user.entry("INBOX").guid)
        await source.store_flags(uids(1), "remove", ["a"])
        await user.copy(source, uids(1), "Sent")
        assert flags_of(target)[2] == set()


async def test_multiappend_counts_the_keywords_of_all_its_mails(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        box = await filled(user, "INBOX", left=1)
        before = flags_of(box)
        with pytest.raises(Limit):
            await user.append("INBOX", [NewMail(MAIL, ("a",)), NewMail(MAIL, ("b",))])
        assert flags_of(box) == before
        await user.append("INBOX", [NewMail(MAIL, ("a",)), NewMail(MAIL, ("A",))])
        assert flags_of(box) == {**before, 2: {"a"}, 3: {"a"}}


async def test_parallel_writers_share_the_last_places(machine: Machine) -> None:
    """Each writer looks for room before its PUT. Two places are left, and exactly two
    writers get them, whatever command they use."""
    async with machine.run() as life:
        user = await life.user()
        box = await filled(user, "INBOX", left=2)
        other = await filled(user, "Sent", left=KEYWORDS_MAX)
        await user.append("Sent", [NewMail(MAIL, ("c0",)), NewMail(MAIL, ("c1",))])
        before = flags_of(box)[1]
        work = [user.append("INBOX", [NewMail(MAIL, (f"a{at}",))]) for at in range(3)]
        work += [user.copy(other, uids(at), "INBOX") for at in (2, 3)]
        work += [box.store_flags(uids(1), "add", ["s"])]
        done = await asyncio.gather(*work, return_exceptions=True)
        assert all(not isinstance(one, BaseException) or isinstance(one, Limit) for one in done)
        assert sum(isinstance(one, Limit) for one in done) == 4
        assert len(set().union(*flags_of(box).values())) == KEYWORDS_MAX
        assert before <= flags_of(box)[1]
        assert box.state.flags.coming == set()


async def test_a_write_that_was_cut_short_gives_its_places_back(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        box = await filled(user, "INBOX", left=1)
        task = asyncio.create_task(user.append("INBOX", [NewMail(MAIL, ("a",))]))
        await asyncio.sleep(0)
        assert box.state.flags.coming == {"a"}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await box.slots.all_resolved()
        await asyncio.sleep(0)
        assert box.state.flags.coming == set()
        # A write that fails before its PUT gives its place back as well.
        box.deleted = True
        with pytest.raises(OboxError):
            await user.append("INBOX", [NewMail(MAIL, ("k01",))])
        box.deleted = False
        assert box.state.flags.coming == set()


@pytest.mark.parametrize("days", [10, 40])
async def test_a_keyword_is_forgotten_long_after_its_last_use(machine: Machine, days: int) -> None:
    """A base forgets the keyword, because a base covers all earlier bundles. A diff
    never forgets it, because the base beside the diff would bring the keyword back."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(MAIL, ("kept", "gone")), NewMail(MAIL)])
        box = await user.box(user.entry("INBOX").guid)
        await box.flush(everything=True)
        await box.store_flags(uids(1), "remove", ["gone"])
        await box.flush(everything=True)
        life.time.move(days * 86400.0)
        await life.store.journal.sync()
        await box.store_flags(uids(1), "add", ["\\Seen"])
        await box.flush(everything=True)
        assert "gone" in box.state.flag_stamps
        box.stamp = replace(box.stamp, need_base=True)
        await box.store_flags(uids(2), "add", ["\\Seen"])
        await box.flush(everything=True)
        forgotten = days * 86400.0 > KEYWORD_FORGET_S
        assert ("gone" not in box.state.flag_stamps) == forgotten
        want = flags_of(box)
        assert want == {1: {"kept", "\\Seen"}, 2: {"\\Seen"}}
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        box = await user.box(user.entry("INBOX").guid)
        assert flags_of(box) == want
        assert ("gone" not in box.state.flag_stamps) == forgotten
        assert box.state.flags.keywords == ["kept"], "FLAGS names what mails have"
        check(box.state)
