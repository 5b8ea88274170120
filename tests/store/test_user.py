"""The mailboxes and mails of a user: limits, changes that are made as a whole, copies,
and how long an object is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from machines import Bucket, Life, Machine, flags_of, uids
from mails import simple
from patience import PATIENT_S

from obox.errors import Exists, Invalid, Limit, NoPerm, NotFound, OboxError, OverQuota, TooBig, Unavailable
from obox.objectstore import Unreachable
from obox.store import NewMail, User

DAY = 86_400.0


async def mails_in(bucket: Bucket) -> int:
    """Return how many objects of mails the bucket has. Claims are counted as well."""
    return len([key for key in await bucket.keys() if "/m/" in key])


async def names(user: User) -> list[str]:
    return [info.name for info in user.mailboxes()]


# -- limits --------------------------------------------------------------------------------------------------------


async def test_quota_counts_octets_and_messages(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user(quota_bytes=10_000, quota_messages=5)
        await user.append("INBOX", [NewMail(b"x" * 4000)])
        await user.append("Sent", [NewMail(b"x" * 4000)])
        usage = user.usage()
        assert (usage.storage_bytes, usage.messages, usage.storage_bytes_max, usage.messages_max) == (
            8000,
            2,
            10_000,
            5,
        )
        with pytest.raises(OverQuota):
            await user.append("INBOX", [NewMail(b"x" * 2001)])
        await user.append("INBOX", [NewMail(b"x" * 100) for _ in range(3)])
        with pytest.raises(OverQuota):
            await user.append("INBOX", [NewMail(b"x")])
        inbox = await user.select("INBOX")
        with pytest.raises(OverQuota):
            await user.copy(inbox, inbox.state.uids, "Sent")
        moved = await user.copy(inbox, inbox.state.uids, "Sent", move=True)
        assert len(moved.target) == 4, "a move adds nothing"
        sent = await user.select("Sent")
        await sent.expunge(sent.state.uids)
        assert user.usage()[:2] == (0, 0)
        await user.append("INBOX", [NewMail(b"x" * 9000)])


@pytest.mark.parametrize("disk", ["kept", "lost"])
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_quota_is_exact_after_a_restart(machine: Machine, kill: bool, disk: str) -> None:
    async with machine.run(kill=kill) as life:
        user = await life.user(quota_bytes=10_000)
        await user.append("INBOX", [NewMail(b"x" * 4000)])
        await user.append("Archive", [NewMail(b"x" * 4000)])
    if disk == "lost":
        machine.lose_disk()
    async with machine.run() as life:
        user = await life.user(quota_bytes=10_000)
        async with asyncio.timeout(PATIENT_S):
            while user.usage().storage_bytes < 8000:  # noqa: ASYNC110 - counted beside the login
                await asyncio.sleep(0.01)
        assert user.usage()[:2] == (8000, 2)
        with pytest.raises(OverQuota):
            await user.append("INBOX", [NewMail(b"x" * 2001)])


async def test_a_mail_that_is_too_big_is_refused_alone(machine: Machine) -> None:
    machine.settings = type(machine.settings)(backend="first", max_mail_size=1000)
    async with machine.run() as life:
        user = await life.user()
        with pytest.raises(TooBig):
            await user.append("INBOX", [NewMail(b"x" * 1001)])
        with pytest.raises(TooBig):
            await user.append("INBOX", [NewMail(b"x"), NewMail(b"x" * 1001)])
        await user.append("INBOX", [NewMail(b"x" * 1000)])
        assert (await user.status("INBOX")).messages == 1


async def test_keywords_are_limited_by_number_and_kept_by_the_first_spelling(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1), ("$First", "$FIRST"))])
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["$first"])
        assert flags_of(box) == {1: ["$First"]}
        await box.store_flags(uids(1), "add", [f"k{number}" for number in range(58)])
        with pytest.raises(Limit):
            await box.store_flags(uids(1), "add", ["one-too-many"])
        await box.store_flags(uids(1), "replace", ["\\Seen", "K7"])
        assert flags_of(box) == {1: ["\\Seen", "k7"]}


async def test_append_with_too_many_keywords_stores_nothing(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        with pytest.raises(Limit):
            await user.append("INBOX", [NewMail(simple(1), tuple(f"k{number}" for number in range(70)))])
        assert (await user.status("INBOX")).messages == 0


async def test_mailboxes_of_a_new_user_have_canonical_names(bucket: Bucket, tmp_path: Path) -> None:
    machine = Machine(bucket, tmp_path / "disk", mailboxes=(("inbox/Lists", ""), ("\u0131nbox", "\\Sent")))
    async with machine.run() as life:
        user = await life.user()
        assert {info.name for info in user.mailboxes()} == {"INBOX", "INBOX/Lists", "\u0131nbox"}
        assert user.entry("Inbox/Lists").guid != user.entry("inbox").guid


@pytest.mark.parametrize("name", ["", "a//b", "/a", "x" * 1001, "a\0b", "a\nb"])
async def test_bad_names_are_refused(machine: Machine, name: str) -> None:
    async with machine.run() as life:
        user = await life.user()
        with pytest.raises(OboxError):
            await user.create(name)
        with pytest.raises(OboxError):
            await user.rename("Sent", name)


# -- appending -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["never", "landed"])
async def test_multiappend_shows_all_or_none(machine: Machine, answer: str) -> None:
    """A PUT of five has no answer. Whatever is tried again, no client ever sees only
    some of the five mails, also after a loss of the disk."""
    async with machine.run(kill=True) as life:
        user = await life.user()
        box = await user.select("INBOX")
        seen: set[int] = set()
        loop = asyncio.get_running_loop()
        box.watch(lambda: loop.call_soon(lambda: seen.add(len(box.state))))
        put = life.bucket.put

        async def broken(key: str, data: bytes, *, kind: str) -> None:
            if answer == "landed":
                await put(key, data, kind=kind)
            if key.endswith("00000003"):
                life.bucket.put = put
                raise Unreachable("no answer")
            if answer == "never":
                await put(key, data, kind=kind)

        life.bucket.put = broken
        try:
            first = await user.append("INBOX", [NewMail(simple(n)) for n in range(5)])
        except Unavailable:
            first = None
        await life.time.sleep(1)
        count = (await user.status("INBOX")).messages
        assert count in ((5,) if first is not None else (0, 5))
        appended = await user.append("INBOX", [NewMail(simple(n)) for n in range(2)])
        assert (await user.status("INBOX")).messages == count + 2
        assert min(appended.uids) > 5
        assert seen <= {0, count, count + 1, count + 2}
        bodies = [mail async for _, mail in box.mails(box.state.uids.tolist())]
        assert bodies == [simple(n) for n in (*range(count), 0, 1)]
        await life.quiet()
        before = box.state.uids.tolist()
    machine.lose_disk()
    async with machine.run() as life:
        assert (await (await life.user()).select("INBOX")).state.uids.tolist() == before


async def test_deliveries_at_once_get_neighbouring_uids(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        answers = await asyncio.gather(*(user.append("INBOX", [NewMail(simple(n))]) for n in range(50)))
        assert sorted(a.uids[0] for a in answers) == list(range(1, 51))
        box = await user.select("INBOX")
        for number, answer in enumerate(answers):
            assert await box.mail(answer.uids[0]) == simple(number)


async def test_a_watcher_gets_everything(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        woken = []
        end = box.watch(lambda: woken.append(1))
        await user.append("INBOX", [NewMail(simple(1))])
        assert len(woken) == 1
        await box.store_flags(uids(1), "add", ["\\Seen"])
        assert len(woken) == 2
        await user.copy(box, uids(1), "INBOX")
        await box.expunge(uids(1))
        assert len(woken) >= 4
        end()
        before = len(woken)
        await user.append("INBOX", [NewMail(simple(1))])
        assert len(woken) == before


# -- the list ------------------------------------------------------------------------------------------------------


async def test_rename_of_inbox_moves_its_mails(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.create("INBOX/child")
        await user.append("INBOX", [NewMail(simple(n), ("\\Flagged",)) for n in range(3)])
        before = await user.status("INBOX")
        await user.rename("INBOX", "Saved")
        after = await user.status("INBOX")
        assert (after.messages, after.uidvalidity, after.uidnext) == (0, before.uidvalidity, 4)
        saved = await user.select("Saved")
        assert [mail async for _, mail in saved.mails(saved.state.uids.tolist())] == [simple(n) for n in range(3)]
        assert flags_of(saved) == {n: ["\\Flagged"] for n in (1, 2, 3)}
        assert "INBOX/child" in await names(user)


async def test_rename_of_an_empty_inbox(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.rename("INBOX", "Saved")
        assert (await user.status("Saved")).messages == 0
        with pytest.raises(Exists):
            await user.rename("INBOX", "Saved")


async def test_rename_keeps_uids_and_takes_children_along(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.create("a/b")
        await user.create("a/b/c")
        await user.create("ab")
        await user.append("a/b/c", [NewMail(simple(1))])
        before = await user.status("a/b/c")
        box = await user.select("a/b/c")
        await user.rename("a", "z/a")
        assert await user.status("z/a/b/c") == before
        assert not box.deleted
        assert {"z/a/b", "z/a/b/c", "ab"} <= set(await names(user))
        assert "a" not in await names(user)
        for old, new, error in (
            ("z/a", "z/a/x", Invalid),
            ("z/a", "ab", None),
            ("nowhere", "x", NotFound),
            ("ab", "Sent", Exists),
            ("ab", "INBOX", Exists),
        ):
            if error is not None:
                with pytest.raises(error):
                    await user.rename(old, new)


async def test_delete_refuses_inbox_and_spares_children(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.create("a")
        await user.create("a/b")
        await user.delete("a")
        infos = {info.name: info for info in user.mailboxes()}
        assert infos["a"].guid is None
        assert infos["a/b"].guid is not None
        for name, error in (("INBOX", NoPerm), ("a", NotFound), ("nowhere", NotFound)):
            with pytest.raises(error):
                await user.delete(name)


async def test_a_deleted_mailbox_under_its_sessions(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.create("a")
        await user.append("a", [NewMail(simple(1))])
        box = await user.select("a")
        woken = []
        box.watch(lambda: woken.append(box.deleted))
        await user.delete("a")
        assert woken[-1]
        with pytest.raises(NotFound):
            await box.store_flags(uids(1), "add", ["\\Seen"])
        with pytest.raises(NotFound):
            await user.copy(box, uids(1), "INBOX")
        with pytest.raises(NotFound):
            await user.append("a", [NewMail(simple(1))])


async def test_inbox_is_inbox_in_any_case_at_the_store_too(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        for name in ("inbox", "Inbox"):
            with pytest.raises((Exists, Invalid)):
                await user.create(name)


# -- what keeps an object ------------------------------------------------------------------------------------------


async def flushed(life: Life) -> None:
    """Let all uploads and deletions happen that are due."""
    await life.let_pass(400)


async def after_the_delay(life: Life, user: User, *mailboxes: str) -> None:
    """Let the delay pass. The next upload of a mailbox deletes the objects."""
    await life.quiet()
    life.time.move(DAY + 60)
    for name in mailboxes:
        await user.append(name, [NewMail(b"a change")])
        box = await user.select(name)
        await box.store_flags(box.state.uids[-1:], "add", ["\\Seen"])
        await box.release()
    await life.quiet()
    await flushed(life)


@pytest.mark.usefixtures("single_mails")
async def test_an_object_goes_after_the_delay_and_no_other_does(bucket: Bucket, machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(4)])
        box = await user.select("INBOX")
        await box.expunge(uids(2, 3))
        await flushed(life)
        life.time.move(DAY / 2)
        await box.store_flags(uids(1), "add", ["\\Seen"])
        await life.quiet()
        await flushed(life)
        assert await mails_in(bucket) == 4, "nothing goes before the delay"
        await after_the_delay(life, user, "INBOX")
        assert await mails_in(bucket) == 3
        left = sorted(key for key in await bucket.keys() if "/m/" in key)
        assert [int(key[-8:], 16) for key in left] == [1, 4, 5]
        assert await box.mail(1) == simple(0)
        assert await box.mail(4) == simple(3)


@pytest.mark.usefixtures("single_mails")
@pytest.mark.parametrize("restart", [False, True], ids=["left", "restarted"])
async def test_objects_of_a_mailbox_that_nobody_changes_any_more_go_too(
    bucket: Bucket, machine: Machine, restart: bool
) -> None:
    """A Trash was emptied and never written again. The next session that opens it
    starts the deletion."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("Trash", [NewMail(simple(n)) for n in range(4)])
        trash = await user.select("Trash")
        await trash.expunge(trash.state.uids)
        await trash.release()
        await life.quiet()
        await flushed(life)
        assert await mails_in(bucket) == 4
        await life.let_pass(60)
        if not restart:
            await life.let_pass(DAY)
            await user.status("Trash")
            await (await user.select("Trash")).release()
            await life.let_pass(2 * 3600)
            # The sweep waits for its lease.
            while user.working:  # noqa: ASYNC110 - the store has no event for it
                await asyncio.sleep(0.0005)
            assert await mails_in(bucket) == 0
    if restart:
        bucket.time.move(DAY + 60)
        async with machine.run() as life:
            user = await life.user()
            await (await user.select("Trash")).release()
            await life.let_pass(2 * 3600)
            assert await mails_in(bucket) == 0


@pytest.mark.usefixtures("single_mails")
@pytest.mark.parametrize("restart", ["none", "stopped", "killed", "lost"])
async def test_the_object_stays_until_its_last_copy_is_expunged(bucket: Bucket, machine: Machine, restart: str) -> None:
    kill = restart in ("killed", "lost")
    async with machine.run(kill=kill) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1)), NewMail(simple(2))])
        inbox = await user.select("INBOX")
        await user.copy(inbox, uids(1), "Archive")
        archive = await user.select("Archive")
        await user.copy(archive, uids(1), "Trash")
        await archive.expunge(uids(1))
        await inbox.expunge(uids(1))
        await after_the_delay(life, user, "INBOX", "Archive", "Trash")
        assert await (await user.select("Trash")).mail(1) == simple(1)
        await life.quiet()
        if restart == "none":
            await gone_with_the_last(bucket, life, user)
    if restart == "none":
        return
    if restart == "lost":
        machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        assert await (await user.select("Trash")).mail(1) == simple(1)
        await gone_with_the_last(bucket, life, user)


async def gone_with_the_last(bucket: Bucket, life: Life, user: User) -> None:
    trash = await user.select("Trash")
    first = next(key for key in await bucket.keys() if f"/m/{user.root.names()['INBOX'].guid}/00000001" in key)
    await trash.expunge(uids(1))
    await life.quiet()
    await flushed(life)
    assert first in await bucket.keys()
    await after_the_delay(life, user, "INBOX", "Trash")
    assert first not in await bucket.keys()
    inbox = await user.select("INBOX")
    assert await inbox.mail(2) == simple(2)


@pytest.mark.usefixtures("single_mails")
async def test_a_deleted_mailbox_keeps_what_copies_need_and_then_goes_whole(bucket: Bucket, machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.create("Old")
        guid = next(info.guid for info in user.mailboxes() if info.name == "Old")
        await user.append("Old", [NewMail(simple(n)) for n in range(3)])
        old = await user.select("Old")
        await user.copy(old, uids(2), "Archive")
        await old.release()
        await user.delete("Old")
        await life.quiet()
        await flushed(life)
    bucket.time.move(DAY + 3600)
    # A login after the delay deletes the objects that are no longer needed.
    async with machine.run() as life:
        user = await life.user()
        await asyncio.sleep(0.05)
        await life.quiet()
        archive = await user.select("Archive")
        assert await archive.mail(1) == simple(1)
        assert [int(key[-8:], 16) for key in await bucket.keys() if f"/m/{guid}/" in key] == [2]
        await archive.expunge(uids(1))
        await archive.release()
        await life.quiet()
    bucket.time.move(DAY + 3600)
    machine.lose_disk()
    # The first login deletes the object. The index goes with the same login or the
    # next.
    for _ in range(2):
        async with machine.run() as life:
            user = await life.user()
            await asyncio.sleep(0.1)
            await life.quiet()
        bucket.time.move(DAY + 3600)
    assert [key for key in await bucket.keys() if str(guid) in key] == []


async def test_superseded_bundles_and_journal_objects_go(bucket: Bucket, machine: Machine) -> None:
    """A week of changes leaves a handful of objects in the bucket, instead of all
    objects of the week."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(10)])
        box = await user.select("INBOX")
        for number in range(60):
            await box.store_flags(uids(1 + number % 10), "add" if number % 20 < 10 else "remove", ["\\Seen"])
            await life.let_pass(1000)
            life.time.move(9000)
        await life.let_pass(1000)
        keys = await bucket.keys()
        day = 24 * 3600 / 10_000
        assert len([key for key in keys if "/x/" in key]) <= 2 * day + 8
        assert len([key for key in keys if key.startswith("_journal/")]) <= 2 * day + 8
        await box.release()
    for _ in range(3):
        bucket.time.move(DAY + 3600)
        async with machine.run() as life:
            user = await life.user()
            await life.let_pass(10)
    keys = await bucket.keys()
    assert len([key for key in keys if key.startswith("_journal/")]) <= 6, keys


async def test_two_days_old_local_state_and_nothing_new(machine: Machine, bucket: Bucket, tmp_path: Path) -> None:
    """A backend was away for two days. Another backend served the user and deleted old
    objects. The first backend comes back with its old disk."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
    second = machine.renamed("second", tmp_path / "second")
    async with second.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(3))])
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Seen"])
        await box.expunge(uids(2))
        await box.release()
        await user.create("New")
    bucket.time.move(2 * DAY)
    async with machine.run() as life:
        user = await life.user()
        status = await user.status("INBOX")
        assert (status.messages, status.unseen, status.uidnext) == (3, 2, 5)
        assert "New" in await names(user)
