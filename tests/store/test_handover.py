"""Users come to a backend that runs, and leave it: what is uploaded, fenced, compared
with the bucket, and refused."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from machines import Bucket, Life, Machine, flags_of, uids
from owners import ANNA, BEN, MAIL, Rows, adopted, member, with_flag

from obox.admin.parts import Admin
from obox.admin.run import Outcome
from obox.auth import Authenticator, PasswdFile
from obox.errors import Corrupt, Elsewhere, InUse
from obox.mailbox import flag_delta
from obox.store import User
from obox.store.backend import handover, upload
from obox.store.jobs import Failure, Job
from obox.store.log.fence import Replayed
from obox.store.log.takeover import Survey
from obox.store.user import discover
from obox.store.user.boxes import Boxes
from obox.store.user.journaled import join_journaled
from obox.store.user.mailbox import Mailbox
from obox.types import StorageId


async def flags(life: Life, name: str) -> dict[int, list[str]]:
    return flags_of(await (await life.user(name)).select("INBOX"))


async def test_a_user_of_another_backend_is_not_opened(machine: Machine, rows: Rows) -> None:
    async with member(machine, rows) as one:
        await one.gain("anna")
        await one.life.user("anna")
        with pytest.raises(Elsewhere):
            await one.life.user("ben")


async def test_a_successor_has_what_the_dead_owner_journaled(machine: Machine, other: Machine, rows: Rows) -> None:
    async with member(other, rows) as two:
        async with member(machine, rows, kill=True) as one:
            await one.gain("anna", "ben")
            boot = one.life.store.journal.boot
            for name in ("anna", "ben"):
                await with_flag(one.life, name)
        await two.gain("anna", dead=(("first", boot),))
        assert await flags(two.life, "anna") == {1: ["\\Seen"]}
        with pytest.raises(Elsewhere):
            await two.life.user("ben")


async def test_each_successor_adopts_its_own_users(
    machine: Machine, other: Machine, rows: Rows, bucket: Bucket, tmp_path: Path
) -> None:
    """The boot stays unclean, and all its journal objects stay, until the last of its
    users has been adopted."""
    third = machine.renamed("third", tmp_path / "third")
    async with member(other, rows) as two, member(third, rows) as three:
        async with member(machine, rows, kill=True) as one:
            await one.gain("anna", "ben")
            boot = one.life.store.journal.boot
            for name in ("anna", "ben"):
                await with_flag(one.life, name)
        await two.gain("anna", dead=(("first", boot),))
        await adopted(two)
        assert [(one.boot.name, one.clean) for one in two.life.store.takeover.boots] == [(boot, False)]
        await three.gain("ben", dead=(("first", boot),))
        assert await flags(three.life, "ben") == {1: ["\\Seen"]}
        await adopted(three)
        await handover.sweep(two.life.store)
        assert not two.life.store.takeover.boots


async def test_a_fence_names_the_boot_that_was_seen_dying(machine: Machine, other: Machine, rows: Rows) -> None:
    async with member(other, rows) as two:
        async with member(machine, rows, kill=True) as one:
            await one.gain("anna")
            dead = one.life.store.journal.boot
            await with_flag(one.life, "anna")
        async with member(machine, rows) as again:
            boot = again.life.store.journal.boot
            await two.gain("anna", dead=(("first", dead),))
            await again.life.store.journal.announce()
            assert again.life.store.journal.boot == boot, "its present boot was not fenced"


async def test_a_fenced_owner_goes_on_with_the_users_that_are_still_its_own(
    machine: Machine, other: Machine, rows: Rows
) -> None:
    """The backend writes no bundle for these users and compares no copy. The new boot
    has the changes that were acknowledged before the fence."""
    names = [f"user{number}" for number in range(20)]
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna", *names)
        for name in ("anna", *names):
            await with_flag(one.life, name)
        store, boot = one.life.store, one.life.store.journal.boot
        await two.gain("anna", dead=(("first", boot),))
        with one.life.counting() as counted:
            await store.journal.announce()
            assert store.journal.boot != boot
            await handover.continue_after_fence(store, boot)
        assert counted.count("put", "index") == 0, "bundles"
        assert all(store.env.owned.owns(name) for name in names)
        assert not store.env.owned.owns("anna")
        with one.life.counting() as counted:
            assert await flags(one.life, names[0]) == {1: ["\\Seen"]}
        assert counted.count("list", "index") == 0, "its copy is trusted"
        lost = store.users[ANNA]
        box = await lost.select("INBOX")
        with pytest.raises(Elsewhere):
            await box.store_flags(uids(1), "add", ["\\Flagged"])


async def test_a_released_user_has_everything_in_bundles(machine: Machine, other: Machine, rows: Rows) -> None:
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna", "ben")
        for name in ("anna", "ben"):
            await with_flag(one.life, name)
        store = one.life.store

        async def hand(_units: frozenset[str]) -> frozenset[str]:
            rows.give("second", "anna")
            return frozenset(["anna"])

        assert await handover.release(store, ["anna"], one.kick, hand) == {"anna"}
        assert list(store.users) == ["ben"]
        assert {sid for sid, _ in store.journal.uncovered()} == {"ben"}
        with pytest.raises(Elsewhere):
            await one.life.user("anna")
        await two.gain("anna", orderly=True)
        with two.life.counting() as counted:
            assert await flags(two.life, "anna") == {1: ["\\Seen"]}
        assert counted.count("put", "mail") == 0


async def test_a_poisoned_user_delays_no_other_whose_groups_come_or_go(
    machine: Machine, other: Machine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mailbox of a user does not load after a fence, and is not uploaded after a
    loss. The mailboxes of the other users are."""
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna", "ben", "cleo")
        store, boot = one.life.store, one.life.store.journal.boot
        for name in ("anna", "ben", "cleo"):
            await with_flag(one.life, name)
        await two.gain("cleo", dead=(("first", boot),))
        load = store.load_user

        async def poisoned(name: str, sid: StorageId, *, make: bool = False) -> User:
            if sid == ANNA:
                raise Corrupt("poisoned")
            return await load(name, sid, make=make)

        monkeypatch.setattr(store, "load_user", poisoned)
        await store.journal.announce()
        await handover.continue_after_fence(store, boot)
        assert store.takeover.left == {"anna"}, "its lines of the old boot are not noted as adopted"
        assert {sid for sid, _ in store.journal.uncovered()} >= {"ben"}
        await two.gain("anna", "ben")
        assert await handover.lose(store, ["anna", "ben"], one.kick) == [BEN]


async def test_a_poisoned_user_delays_no_other_who_is_released(
    machine: Machine, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with member(machine, rows) as one:
        await one.gain("anna", "ben")
        store = one.life.store
        for name in ("anna", "ben"):
            await with_flag(one.life, name)
        plain = Mailbox.flush

        async def poisoned(self: Mailbox, *, everything: bool = False) -> bool:
            if self.user.storage_id == ANNA:
                raise Corrupt("poisoned")
            return await plain(self, everything=everything)

        monkeypatch.setattr(Mailbox, "flush", poisoned)
        handed: list[frozenset[str]] = []

        async def hand(units: frozenset[str]) -> frozenset[str]:
            handed.append(units)
            return frozenset()

        assert await handover.release(store, ["anna", "ben"], one.kick, hand) == frozenset()
        assert handed == [{"ben"}], "the group of the poisoned user stays, and the others leave"
        with pytest.raises(Corrupt):
            await handover.release(store, ["anna"], one.kick, hand)
        assert await flags(one.life, "anna") == {1: ["\\Seen"]}, "she is served all the same"
        monkeypatch.undo()


@pytest.mark.parametrize("unloaded", [False, True])
async def test_a_release_leaves_no_trace(machine: Machine, other: Machine, rows: Rows, unloaded: bool) -> None:
    """Everything of other users stays. When the user comes back, this backend sees what
    the next backend changed."""
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna", "ben")
        store = one.life.store
        for name in ("anna", "ben"):
            user = await one.life.user(name)
            await user.append("INBOX", [MAIL, MAIL])
            box = await user.select("INBOX")
            await user.copy(box, uids(1), "Sent", move=True)
            await box.store_flags(uids(2), "add", ["\\Seen"])
            await box.release()
            await user.release()
        one.life.users.clear()
        store.upkeep.jobs.failing[Job("sweep", "anna")] = Failure(1, "as it may be", 0.0)
        if unloaded:
            await upload.unload(store, ANNA, upload=False)

        async def to(name: str) -> frozenset[str]:
            rows.give(name, "anna")
            return frozenset(["anna"])

        assert await handover.release(store, ["anna"], one.kick, lambda _: to("second"))
        assert (list(store.users), list(store.takeover.pending), store.takeover.left) == (["ben"], [], set())
        assert {sid for sid, _ in store.journal.overdue(-1.0)} == {"ben"}
        assert not store.upkeep.jobs.failing
        await two.gain("anna", orderly=True)
        theirs = await two.life.user("anna")
        box = await theirs.select("INBOX")
        assert flags_of(box) == {2: ["\\Seen"]}
        await box.store_flags(uids(2), "remove", ["\\Seen"])
        await theirs.append("Sent", [MAIL])
        assert await handover.release(two.life.store, ["anna"], two.kick, lambda _: to("first"))
        await one.gain("anna", orderly=True)
        assert await flags(one.life, "anna") == {2: []}
        assert (await one.life.users[-1].status("Sent")).messages == 2


async def test_a_user_who_comes_back_is_compared_by_lists_alone(machine: Machine, other: Machine, rows: Rows) -> None:
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna")
        await with_flag(one.life, "anna")

        async def to(name: str) -> frozenset[str]:
            rows.give(name, "anna")
            return frozenset(["anna"])

        assert await handover.release(one.life.store, ["anna"], one.kick, lambda _: to("second"))
        await two.gain("anna", orderly=True)
        box = await (await two.life.user("anna")).select("INBOX")
        await two.life.quiet()
        assert flags_of(box) == {1: ["\\Seen"]}
        assert await handover.release(two.life.store, ["anna"], two.kick, lambda _: to("first"))
        await one.gain("anna", orderly=True)
        with one.life.counting() as counted:
            assert await flags(one.life, "anna") == {1: ["\\Seen"]}
        assert counted.count("list", "index") + counted.count("list", "mail") <= 3
        assert counted.count("get", "mail") == 0
        with one.life.counting() as counted:
            assert await flags(one.life, "anna") == {1: ["\\Seen"]}
        assert counted.count() == 0, "an open on the owner makes no request"


async def test_a_release_that_nobody_takes_changes_nothing(machine: Machine, rows: Rows) -> None:
    async def nobody(_units: frozenset[str]) -> frozenset[str]:
        return frozenset()

    async with member(machine, rows) as one:
        await one.gain("anna")
        await with_flag(one.life, "anna")
        assert not await handover.release(one.life.store, ["anna"], one.kick, nobody)
        assert await flags(one.life, "anna") == {1: ["\\Seen"]}


async def test_units_that_may_have_been_given_are_not_served(machine: Machine, rows: Rows) -> None:
    """The other units of the batch stay."""

    async def some(_units: frozenset[str]) -> frozenset[str]:
        return frozenset(["anna"])

    async def nobody_knows(_units: frozenset[str]) -> frozenset[str]:
        raise asyncio.CancelledError

    async with member(machine, rows) as one:
        await one.gain("anna", "ben", "carl")
        for name in ("anna", "ben", "carl"):
            await with_flag(one.life, name)
        store = one.life.store
        assert await handover.release(store, ["anna", "ben"], one.kick, some) == {"anna"}
        with pytest.raises(Elsewhere):
            await one.life.user("anna")
        assert await flags(one.life, "ben") == {1: ["\\Seen"]}
        with pytest.raises(asyncio.CancelledError):
            await handover.release(store, ["carl"], one.kick, nobody_knows)
        with pytest.raises(Elsewhere):
            await one.life.user("carl")


async def test_sessions_that_do_not_end_stop_a_release(machine: Machine, rows: Rows) -> None:
    async def stubborn(users: Collection[StorageId]) -> None:
        pass

    async def hand(_units: frozenset[str]) -> frozenset[str]:
        raise AssertionError("the row is written only when everything is in bundles")

    async with member(machine, rows) as one:
        await one.gain("anna")
        await with_flag(one.life, "anna")
        with pytest.raises(InUse):
            await handover.release(one.life.store, ["anna"], stubborn, hand)
        assert await flags(one.life, "anna") == {1: ["\\Seen"]}


async def test_what_a_lost_user_had_is_uploaded_and_reaches_the_owner(
    machine: Machine, other: Machine, rows: Rows
) -> None:
    async with member(machine, rows) as one, member(other, rows) as two:
        await one.gain("anna")
        await with_flag(one.life, "anna")
        await two.gain("anna")
        box = await (await two.life.user("anna")).select("INBOX")
        user = one.life.store.users[ANNA]
        mine = await user.select("INBOX")
        await mine.store_flags(uids(1), "add", ["work"])
        assert await handover.lose(one.life.store, ["anna"], one.kick) == [ANNA]
        assert ANNA not in one.life.store.users
        await handover.doubt(two.life.store, ["anna"])
        await two.life.store.users[ANNA].recheck(every=True)
        assert flags_of(box) == {1: ["\\Seen", "work"]}


async def test_what_comes_while_users_are_adopted_is_adopted_too(machine: Machine, other: Machine, rows: Rows) -> None:
    """A user's changes that a journal shows while upkeep uploads what it showed before
    are not noted as adopted before they are in bundles."""
    async with member(machine, rows) as one:
        takeover = one.life.store.takeover
        takeover.left.add("anna")
        takeover.again.clear()
        takeover.add(_survey({"anna": {"root": [b""]}}))
        takeover.adopted({"anna", "ben"})
        assert (takeover.left, takeover.sources) == ({"anna"}, {"anna": {("dead", "boot")}})
        takeover.again.clear()
        takeover.pending.clear()
        takeover.adopted({"anna"})
        assert (takeover.left, takeover.sources) == (set(), {})


def _survey(pending: dict[str, dict[str, list[bytes]]]) -> Survey:
    replayed = Replayed(pending, {sid: {("dead", "boot")} for sid in pending})
    return Survey([], set(), set(), replayed, False, 0, 0, [], {})


async def test_a_directory_that_knows_less_than_the_journals_makes_every_copy_compare(
    machine: Machine, other: Machine, rows: Rows
) -> None:
    """The directory was restored from a backup, so both backends own the user by an old
    row. The first backend must compare its copy with the bucket before it shows the
    copy."""
    async with member(machine, rows) as one:
        await one.gain("anna")
        await with_flag(one.life, "anna")
    yesterday = dict(rows.owners), rows.highest
    async with member(other, rows) as two:
        await two.gain("anna")
        box = await (await two.life.user("anna")).select("INBOX")
        await box.store_flags(uids(1), "add", ["work"])
        await two.life.users[0].flush(everything=True)
        rows.owners, rows.highest = yesterday
        async with member(machine, rows) as one:
            assert one.life.store.env.owned.owns("anna")
            assert await flags(one.life, "anna") == {1: ["\\Seen", "work"]}


async def test_a_restart_keeps_its_copies_where_its_rows_are_unchanged(machine: Machine, rows: Rows) -> None:
    async with member(machine, rows) as one:
        await one.gain("anna")
        await with_flag(one.life, "anna")
    async with member(machine, rows) as one:
        with one.life.counting() as counted:
            assert await flags(one.life, "anna") == {1: ["\\Seen"]}
        assert counted.count() == 0
    # The user was at another backend meanwhile.
    rows.give("first", "anna")
    async with member(machine, rows) as one:
        with pytest.raises(Elsewhere):
            await one.life.user("anna")
        await one.gain("anna")
        with one.life.counting() as counted:
            await flags(one.life, "anna")
        assert counted.count("list", "index") > 0


async def test_changes_that_come_while_a_user_is_opened_and_a_mailbox_loaded_are_not_lost(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search of the journals finds them at that moment."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [MAIL])
        box = await user.select("INBOX")
        said = {}
        for flag in ("first", "then"):
            delta, _ = flag_delta(box.state, uids(1), "add", [flag], box.env.now_ms())
            assert delta is not None
            said[flag] = {box.guid: [delta.encode()]}
        await box.release()
    async with machine.run() as life:
        opened, load = Boxes.open, discover.load

        async def opening(user: Boxes, pending: dict[str, list[bytes]], **how: Any) -> None:
            await opened(user, pending, **how)
            life.store.takeover.pending["anna"] = said["first"]

        async def loading(box: Mailbox, infos: Any, pending: list[bytes]) -> None:
            await load(box, infos, pending)
            owner: Any = box.user
            await join_journaled(owner, said["then"])

        monkeypatch.setattr(Boxes, "open", opening)
        monkeypatch.setattr(discover, "load", loading)
        user = await life.user()
        box = await user.select("INBOX")
        assert set(flags_of(box)[1]) >= {"first", "then"}
        await box.release()


@pytest.mark.parametrize("everybody", [True, False], ids=["-A", "by name"])
async def test_a_command_for_all_users_touches_users_of_this_backend(
    machine: Machine, rows: Rows, tmp_path: Path, everybody: bool
) -> None:
    """The same holds for a command without a running backend. A user who is named and
    served elsewhere is refused."""
    (tmp_path / "users").write_text("anna:{PLAIN}x\nben:{PLAIN}x\n")
    users = PasswdFile(tmp_path / "users", "")
    async with member(machine, rows) as one:
        await one.gain("anna")
        await one.life.user("anna")
        admin = Admin(
            users=users,
            authenticator=lambda: Authenticator(users),
            parse_search=lambda _: None,
            find_store=one.life.store,
        )
        outcome = Outcome()
        await outcome.gather(admin, "mailboxList", {"allUsers": True} if everybody else {"users": ["anna", "ben"]})
        assert {row["username"] for row in outcome.rows} == {"anna"}
        assert [failure.user for failure in outcome.failures] == ([] if everybody else ["ben"])
