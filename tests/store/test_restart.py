"""A backend is stopped or killed, keeps or loses its disk, and starts under the same or
another name. The same mail must be there.

These are invariants 1 to 3 of the design, in the process of the test. The end-to-end
tests show the same with real processes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from machines import Bucket, Life, Machine, modseqs, uids, whole
from mails import simple
from patience import PATIENT_S

from obox.errors import ConfigError, NotFound
from obox.store import Mailbox, NewMail
from obox.store.backend.upkeep import Upkeep
from obox.store.log.takeover import LocalCopies
from obox.store.user.user import User
from obox.types import Guid


async def live(life: Life) -> None:
    """Use a little of everything that a client can do."""
    user = await life.user()
    await user.append("INBOX", [NewMail(simple(n), ("\\Flagged",) if n % 3 == 0 else ()) for n in range(20)])
    await user.append("INBOX", [NewMail(simple(77), ("\\Seen", "$Work"), 1_600_000_000, 120)])
    await user.create("Projects/obox/äöü")
    await user.create("Old")
    await user.create("Gone")
    await user.subscribe("Projects/obox/äöü", on=True)
    await user.subscribe("not/there", on=True)
    await user.subscribe("Junk", on=False)
    inbox = await user.select("INBOX")
    await inbox.store_flags(uids(1, 2, 3, 4), "add", ["\\Seen", "$Work"])
    await inbox.store_flags(uids(2), "replace", ["\\Answered"])
    await inbox.store_flags(uids(3), "remove", ["\\Seen"])
    await user.copy(inbox, uids(1, 2, 5), "Projects/obox/äöü")
    await user.copy(inbox, uids(6, 7, 8), "Archive", move=True)
    await user.copy(inbox, uids(9), "Gone")
    await user.copy(inbox, uids(9), "INBOX")
    archive = await user.select("Archive")
    await user.copy(archive, uids(2), "Old")
    await archive.expunge(uids(2))
    await archive.store_flags(uids(3), "add", ["\\Deleted"])
    await user.rename("Projects", "Work")
    await user.rename("Old", "Older")
    await user.delete("Gone")
    await inbox.expunge(uids(1, 20))
    work = await user.select("Work/obox/äöü")
    await work.store_flags(uids(1), "add", ["$After"])
    await user.append("Drafts", [NewMail(simple(100)), NewMail(simple(101))])
    await user.append("INBOX", [NewMail(simple(200))])
    for box in (inbox, archive, work):
        await box.release()


@pytest.mark.parametrize("backend", ["first", "second"])
@pytest.mark.parametrize("disk", ["kept", "lost"])
@pytest.mark.parametrize("end", ["stopped", "restarted", "killed"])
async def test_everything_is_there_again(machine: Machine, tmp_path: Path, end: str, disk: str, backend: str) -> None:
    async with machine.run(kill=end == "killed", upload=end != "restarted") as life:
        await live(life)
        user = life.users[0]
        before, modseq = await whole(user), await modseqs(user)
        await life.quiet()
    if disk == "lost":
        machine.lose_disk()
    if backend != "first":
        machine = machine.renamed(backend, machine.path if disk == "kept" else tmp_path / "other")
    async with machine.run(kill=end == "killed") as life:
        user = await life.user()
        assert await whole(user) == before
        after = await modseqs(user)
        assert all(after[name] >= value for name, value in modseq.items())
        inbox = await user.select("INBOX")
        appended = await user.append("INBOX", [NewMail(simple(300))])
        assert appended.uids == [before["INBOX"][3]], "UIDNEXT goes on"
        await inbox.store_flags(uids(2), "add", ["\\Flagged"])
        changed, modseq = await whole(user), await modseqs(user)
        assert changed["INBOX"][7][2][0] == ["\\Answered", "\\Flagged"]
        await inbox.release()
        await life.quiet()
    machine.lose_disk()
    # The second restart must be the same.
    async with machine.run() as life:
        user = await life.user()
        assert await whole(user) == changed
        after = await modseqs(user)
        assert all(after[name] >= value for name, value in modseq.items())


async def test_a_restart_uploads_nothing_and_trusts_its_copies(machine: Machine) -> None:
    """The restart does not upload the indexes; they are uploaded after the next start.
    A box that no journal line is about opens without a request."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
        await user.append("Sent", [NewMail(simple(4))])
    async with machine.run(upload=False) as life:
        user = await life.user()
        box = await user.select("INBOX")
        await box.store_flags(uids(2), "add", ["\\Seen"])
        await box.release()
        await life.quiet()
        before = await whole(user)
        bundles = await machine.bucket.keys("")
        with life.counting() as end:
            for one in life.users:
                await one.release()
            life.users.clear()
            await life.store.close(upload=False)
        assert (end.count("put", "index"), end.count("put", "journal")) == (0, 1)
    assert [key for key in await machine.bucket.keys("") if "/x/" in key] == [key for key in bundles if "/x/" in key]
    async with machine.run() as life:
        assert life.store.takeover.trust is LocalCopies.KEEP
        # The lines of the journal are adopted while sessions run.
        async with asyncio.timeout(PATIENT_S):
            while life.store.takeover.boots:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        user = await life.user()
        with life.counting() as opened:
            sent = await user.select("Sent")
        assert opened.count() == 0
        await sent.release()
        assert await whole(user) == before
    assert len([key for key in await machine.bucket.keys("") if "/x/" in key]) > len([k for k in bundles if "/x/" in k])


async def test_a_restart_that_another_backend_came_between(machine: Machine, tmp_path: Path) -> None:
    """Another backend took the journal over, uploaded its changes, and wrote more. The
    local copies are then compared with the bucket."""
    async with machine.run(upload=False) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
        await life.quiet()
    async with machine.renamed("second", tmp_path / "other").run() as life:
        box = await (await life.user()).select("INBOX")
        await box.store_flags(uids(2), "add", ["\\Flagged"])
        await box.release()
        before = await whole(life.users[0])
    async with machine.run() as life:
        assert life.store.takeover.trust is LocalCopies.COMPARE
        assert await whole(await life.user()) == before


async def test_flags_survive_a_second_after_they_were_set_with_the_disk_lost(machine: Machine) -> None:
    async with machine.run(kill=True) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1))])
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Seen"])
        await life.let_pass(1.3)
    machine.lose_disk()
    async with machine.run() as life:
        assert (await (await life.user()).status("INBOX")).unseen == 0


async def test_bucket_durability_needs_no_second(machine: Machine) -> None:
    machine.settings = type(machine.settings)(backend="first", durability="bucket", journal_interval_s=5.0)
    async with machine.run(kill=True) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1)), NewMail(simple(2))])
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Seen"])
        await box.expunge(uids(2))
    machine.lose_disk()
    async with machine.run() as life:
        status = await (await life.user()).status("INBOX")
        assert (status.messages, status.unseen, status.uidnext) == (1, 0, 3)


async def test_local_durability_survives_a_kill_with_the_disk_kept(machine: Machine) -> None:
    """The interval of the journal has not passed, so only the synced local commit has
    the change."""
    async with machine.run(kill=True) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1)), NewMail(simple(2))])
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Seen"])
        await box.expunge(uids(2))
    async with machine.run() as life:
        status = await (await life.user()).status("INBOX")
        assert (status.messages, status.unseen, status.uidnext) == (1, 0, 3)


@pytest.mark.parametrize("lives", [0, 1, 2])
@pytest.mark.parametrize("backend", ["the same", "another"])
async def test_modseqs_that_were_lost_are_not_trusted_however_late_the_user_comes(
    machine: Machine, tmp_path: Path, lives: int, backend: str
) -> None:
    """A client saw a flag that was then lost with its backend. In the next lives, which
    end cleanly, nobody opens the user."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
    async with machine.run(kill=True) as life:
        await life.user("ben")
        await life.quiet()
        inbox = await (await life.user()).select("INBOX")
        before = inbox.state.highestmodseq
        await inbox.store_flags(uids(2), "add", ["\\Flagged"])
        shown = inbox.state.highestmodseq
    machine.lose_disk()
    if backend == "another":
        machine = machine.renamed("second", tmp_path / "second")
    for _ in range(lives):
        async with machine.run() as life:
            await life.quiet()
        await asyncio.sleep(0)
    async with machine.run() as life:
        inbox = await (await life.user()).select("INBOX")
        assert inbox.state.flags.of_bits(int(inbox.state.bits[1])) == []
        assert inbox.state.trusted(shown) == 0
        assert inbox.state.trusted(before) == before
        assert inbox.state.highestmodseq > shown
    # The next restart must not add a second gap.
    async with machine.run() as life:
        inbox = await (await life.user()).select("INBOX")
        reported = inbox.state.highestmodseq
    machine.lose_disk()
    async with machine.run() as life:
        inbox = await (await life.user()).select("INBOX")
        assert inbox.state.highestmodseq == reported
        await life.let_pass(120)
        user = await life.user("carl")
        assert user.root.modseq_floor == 0, "a user made since then has no gap"


async def test_what_belongs_together_is_reported_together_after_a_crash(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail was moved and expunged, and its holder in the home mailbox was released.
    Only local copies have both changes. The next life opens one of the two mailboxes
    and loses its disk. If a mail is there again, its object must be there as well."""

    async def nothing(upkeep: Upkeep) -> None:
        pass

    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1))])
        await user.copy(await user.select("INBOX"), uids(1), "Archive", move=True)
        await user.flush(everything=True)
        await life.quiet()
    async with machine.run(kill=True) as life:
        await (await (await life.user()).select("Archive")).expunge(uids(1))
        await life.store.env.metacache.commit()
    monkeypatch.setattr(Upkeep, "flush_unflushed", nothing)
    async with machine.run(kill=True) as life:
        await (await life.user()).append("INBOX", [NewMail(simple(2))])
        await life.quiet()
    monkeypatch.undo()
    machine.lose_disk()
    for _ in range(3):
        async with machine.run() as life:
            user = await life.user()
            await user.select("INBOX")
            await life.let_pass(machine.settings.delete_delay_s + 60)
    async with machine.run() as life:
        archive = await (await life.user()).select("Archive")
        assert [mail async for _, mail in archive.mails(archive.state.uids.tolist())] in ([], [simple(1)])
        assert archive.state.uids.tolist() == [], "what the local copy had was journaled by the second life"


async def test_copies_of_a_life_in_which_another_wrote_are_compared(machine: Machine, tmp_path: Path) -> None:
    """A fenced backend goes on as a new boot and is still alive when this backend ends.
    None of its bundles is newer than this end. Only its journal has a change that none
    of its bundles has: the expunge of the first of two copies."""
    other = machine.renamed("second", tmp_path / "second")
    async with other.run(kill=True) as theirs:
        user = await theirs.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
        await theirs.quiet()
        async with machine.run() as ours:
            mine = await ours.user()
            await mine.append("INBOX", [NewMail(simple(3))])
            await mine.flush(everything=True)
            inbox = await user.select("INBOX")
            await inbox.store_flags(uids(3), "add", ["\\Seen"])
            # At this write the backend finds the fence.
            await theirs.quiet()
            copied = await user.copy(inbox, uids(1, 2), "INBOX")
            await inbox.flush(everything=True)
            await theirs.quiet()
            await inbox.expunge(copied.target[:1])
            await theirs.quiet()
    async with machine.run() as ours:
        mine = await ours.user()
        added = await mine.append("INBOX", [NewMail(simple(9))])
        inbox = await mine.select("INBOX")
        assert added.uids[0] > int(copied.target[-1])
        assert [mail async for _, mail in inbox.mails(copied.target[1:].tolist())] == [simple(1)]


async def test_a_mailbox_is_deleted_while_mail_is_copied_into_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an object from one home mailbox is read, a mail of another home mailbox
    arrives."""
    async with machine.run() as life:
        user = await life.user()
        for name in ("Gone", "Home"):
            await user.create(name)
            await user.append(name, [NewMail(simple(1))])
        await user.append("INBOX", [NewMail(simple(2))])
        await user.copy(await user.select("Home"), uids(1), "Gone")
        load, go_on, home = User.box, asyncio.Event(), user.entry("Home").guid

        async def slow(self: User, guid: Guid) -> Mailbox:
            if guid == home:
                await go_on.wait()
            return await load(self, guid)

        monkeypatch.setattr(User, "box", slow)
        deleting = asyncio.create_task(user.delete("Gone"))
        await asyncio.sleep(0.01)
        await user.copy(await user.select("INBOX"), uids(1), "Gone")
        go_on.set()
        await deleting
        assert "Gone" not in [info.name for info in user.mailboxes()]
        assert (await user.status("INBOX")).messages == 1


async def test_uids_of_expunged_mails_are_not_used_again(machine: Machine) -> None:
    async with machine.run(kill=True) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(5)])
        box = await user.select("INBOX")
        await box.expunge(box.state.uids)
        await life.quiet()
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        assert (await user.status("INBOX")).uidnext == 6
        assert (await user.append("INBOX", [NewMail(simple(9))])).uids == [6]


async def test_a_mailbox_of_the_same_name_is_another(machine: Machine) -> None:
    async with machine.run(kill=True) as life:
        user = await life.user()
        await user.create("A")
        first = (await user.status("A")).uidvalidity
        await user.append("A", [NewMail(simple(1))])
        await user.delete("A")
        with pytest.raises(NotFound):
            await user.status("A")
        await user.create("A")
        second = await user.status("A")
        assert (second.uidvalidity > first, second.messages, second.uidnext) == (True, 0, 1)
    machine.lose_disk()
    async with machine.run() as life:
        again = await (await life.user()).status("A")
        assert (again.uidvalidity, again.messages) == (second.uidvalidity, 0)


async def test_users_do_not_see_each_other(machine: Machine) -> None:
    async with machine.run(kill=True) as life:
        anna, ben = await life.user("anna"), await life.user("ben")
        await anna.append("INBOX", [NewMail(simple(1))])
        await ben.create("Ben's")
        assert (await ben.status("INBOX")).messages == 0
    machine.lose_disk()
    async with machine.run() as life:
        anna, ben = await life.user("anna"), await life.user("ben")
        assert (await ben.status("INBOX")).messages == 0
        assert "Ben's" not in {info.name for info in anna.mailboxes()}


async def test_many_lives(machine: Machine) -> None:
    """The backend is killed ten times, and loses its disk every other time. Each life
    adds a mail and a flag."""
    for number in range(10):
        async with machine.run(kill=True) as life:
            user = await life.user()
            box = await user.select("INBOX")
            assert box.state.uids.tolist() == list(range(1, number + 1))
            assert (await user.status("INBOX")).unseen == 0
            await user.append("INBOX", [NewMail(simple(number))])
            await box.store_flags(uids(number + 1), "add", ["\\Seen", f"$k{number % 3}"])
            await life.quiet()
        if number % 2:
            machine.lose_disk()


@pytest.mark.parametrize("used", [False, True], ids=["empty", "used"])
async def test_another_bucket_behind_the_same_disk(machine: Machine, tmp_path: Path, used: bool) -> None:
    """The local copies of a bucket must not be used for another bucket. An empty bucket
    in place of the known bucket is refused."""
    async with machine.run() as life:
        await live(life)
        before = await whole(life.users[0])
    other = Machine(Bucket("memory://", machine.bucket.codec), tmp_path / "elsewhere")
    if used:
        async with other.run() as life:
            user = await life.user()
            await user.append("INBOX", [NewMail(simple(1))])
            theirs = await whole(user)
    mixed = Machine(other.bucket, machine.path)
    if used:
        async with mixed.run() as life:
            assert await whole(await life.user()) == theirs
    else:
        with pytest.raises(ConfigError, match="not mounted"):
            async with mixed.run():
                pass
    async with machine.run() as life:
        assert await whole(await life.user()) == before
