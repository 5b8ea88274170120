"""The store over its two caches when they are small: reads in parts, room for users,
and uploads before a local copy is dropped."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from machines import Life, Machine, fill, uids, whole
from mails import simple

from metacache import Change, Cleaner, Weights
from obox.errors import Unavailable
from obox.store import Mailbox, NewMail
from obox.store.api import Fields
from obox.store.backend.copies import Copies
from obox.store.backend.nightly import Nightly
from obox.store.box.root import RootBox
from obox.store.user.unload import leave, unload_idle


async def test_a_huge_mail_read_in_parts_is_loaded_once(machine: Machine) -> None:
    """A client reads the mail in parts of 64 KiB. The store requests each frame from
    the bucket once, although several readers ask for it several times."""
    mail = b"Subject: huge\r\n\r\n" + os.urandom(3 << 20).hex().encode()
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [mail])
    shutil.rmtree(machine.path / "fscache")
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        with life.counting() as requests:
            for low in range(0, len(mail), 64 << 10):
                assert await box.part(1, low, low + (64 << 10)) == mail[low : low + (64 << 10)]
            for low in (5, 1 << 20, len(mail) - 10):
                assert await box.part(1, low, low + 100) == mail[low : low + 100]
        pieces = -(-len(mail) // (256 << 10)) + 1
        assert 2 <= requests.count("get") <= pieces
        await box.release()


@pytest.mark.parametrize("cached", [(), (2, 4, 6, 8, 10, 12), (7, 8, 9, 10, 11, 12), (1, 2, 3, 4, 5, 12)])
async def test_ready_fields_that_are_not_cached_count_as_bytes_too(machine: Machine, cached: tuple[int, ...]) -> None:
    """Some mails became visible without ready fields, because the machine was busy. An
    answer has no more bytes than if all were cached."""
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(12)])
        box = await user.select("INBOX")
        asked = box.state.uids.tolist()
        whole = [one.packed for one in await box.fields(asked) if isinstance(one, Fields)]
        assert len(whole) == 12
        for most in (0, 3 * max(map(len, whole)), sum(map(len, whole))):
            dropped = [uid for uid in asked if uid not in cached]
            life.store.env.metacache.drop_fields("anna", box.guid, dropped)
            found: list[bytes] = []
            while len(found) < 12:
                some = [one.packed for one in await box.fields([*asked[len(found) :], 999], bytes_max=most) if one]
                assert some
                assert sum(map(len, some[:-1])) <= most
                found += some
            assert found == whole
        await box.release()


async def test_ready_fields_of_mails_that_went_go_with_the_next_flush(machine: Machine, tmp_path: Path) -> None:
    """The ready fields of a moved mail are dropped from its old mailbox, but not before
    its session may have learned of the move. The copy in the new mailbox has its ready
    fields at once."""

    def kept(life: Life, box: Mailbox) -> list[int]:
        found = life.store.env.metacache.get_fields("anna", box.guid, range(1, 7))
        return [uid for uid, one in enumerate(found, 1) if one is not None]

    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(6)])
        box, target = await user.select("INBOX"), await user.select("Archive")
        await user.flush(everything=True)
        await user.copy(box, uids(1, 2), "Archive", move=True)
        await box.expunge(uids(3))
        assert kept(life, box) == [1, 2, 3, 4, 5, 6], "a session that was not told may still ask"
        assert kept(life, target) == [1, 2]
        await user.flush(everything=True)
        assert kept(life, box) == [4, 5, 6]
        assert kept(life, target) == [1, 2]
    async with machine.renamed("second", tmp_path / "empty").run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        assert None not in await box.fields([4, 5, 6])
        assert kept(life, box) == [4, 5, 6], "a segment has those of 1 to 3 as well"


def cleaner(life: Life, *, room: int, close_delay_s: float = 2.0) -> Cleaner:
    """Return a cleaner for this life. It works as if `max_space` were very small."""
    env = life.store.env
    env.metacache.max_space = room
    copies = Copies(life.store, close_delay_s=close_delay_s)
    return Cleaner(env.metacache, copies, weights=Weights(), clock=env.now, sleep=env.sleep)


async def fill_users(life: Life, count: int) -> None:
    for n in range(count):
        user = await life.user(f"user{n:02}")
        await user.append("INBOX", [NewMail(simple(k)) for k in range(5)])
        await user.append("Sent", [NewMail(simple(k)) for k in range(30)])
        box = await user.select("INBOX")
        await box.store_flags(uids(1, 3), "add", ["\\Flagged", f"word{n}"])
        await box.release()


async def test_with_no_room_everything_idle_is_uploaded_and_dropped_and_nothing_lost(machine: Machine) -> None:
    async with machine.run() as life:
        await fill_users(life, 8)
        before = {user.name: await whole(user) for user in life.users}
        for user in life.users[1:]:
            await user.release()
        held = life.users[0]
        box = await held.select("INBOX")
        life.users[1:] = []
        clean = cleaner(life, room=1)
        await clean.make_room()
        assert len(life.store.users) == 8, "all used just now"
        life.time.move(30.0)
        # A pass opens some boxes to upload them, and the next pass may drop them.
        for _ in range(3):
            await clean.make_room()
        metacache = life.store.env.metacache
        left = {space.user for space in metacache.users()}
        assert left == {"user00"}
        assert set(life.store.users) == {"user00"}
        assert "root" in metacache.boxes("user00")
        assert held.boxes[box.guid] is box
        assert box.guid in metacache.boxes("user00")
        assert len(box.state) == 5
        await box.release()
        metacache.max_space = 64 << 20
        for name, was in before.items():
            with life.counting() as requests:
                user = await life.user(name)
                assert (await user.status("Sent")).messages == 30
            assert requests.count("get") <= 2, "the list of mailboxes alone: its totals are exact"
            assert requests.count("list", "mail") == 0
            assert await whole(user) == was
        assert metacache.accounts.check() == []


async def test_a_mailbox_let_go_of_takes_deliveries_as_before(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(k)) for k in range(20)])
        await user.append("Sent", [NewMail(simple(k)) for k in range(20)])
        await life.store.env.metacache.commit()
        life.time.move(120.0)
        clean = cleaner(life, room=1)
        await clean.make_room()
        assert user.boxes == {}, "the session has none of them in hand"
        assert life.store.env.metacache.boxes("anna") == ["root"]
        for k in range(20, 25):
            await user.append("INBOX", [NewMail(simple(k))])
        box = await user.select("INBOX")
        assert box.state.uids.tolist() == list(range(1, 26))
        assert [field is not None for field in await box.fields(list(range(1, 26)))] == [True] * 25
        await box.release()
    async with machine.run() as life:
        box = await (await life.user()).select("INBOX")
        assert box.state.uids.tolist() == list(range(1, 26))
        await box.release()


@pytest.mark.usefixtures("single_mails")
async def test_sessions_deliveries_and_the_cleaner_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metacache has room for a tenth of the users in use. No operation fails, no
    mail is missing, and the counts of the cache are right."""
    machine.settings = replace(machine.settings, idle_s=0.1)
    monkeypatch.setattr("metacache._cleaner.RETRY_S", 0.02)
    async with machine.run() as life:
        clean = cleaner(life, room=100_000, close_delay_s=0.02)
        running = asyncio.create_task(clean.run())

        async def client(n: int) -> None:
            for turn in range(12):
                user = await life.store.open_user(f"user{n:02}", f"user{n:02}")
                await user.append(("INBOX", "Sent", "Archive")[turn % 3], [NewMail(simple(turn)) for _ in range(4)])
                box = await user.select("INBOX")
                await box.store_flags(box.state.uids[-1:], "add", ["\\Seen"])
                await box.fields(box.state.uids.tolist())
                await user.copy(box, box.state.uids[:1], "Trash")
                await box.release()
                await user.release()
                await asyncio.sleep(0.02)

        await asyncio.gather(*(client(n) for n in range(12)))
        running.cancel()
        assert clean.cleaned > 20
        assert life.store.env.metacache.accounts.check() == []
        life.store.env.metacache.max_space = 64 << 20
        for n in range(12):
            user = await life.user(f"user{n:02}")
            assert [(await user.status(name)).messages for name in ("INBOX", "Sent", "Archive", "Trash")] == [
                16, 16, 16, 12
            ]  # fmt: skip
            assert (await user.status("INBOX")).unseen == 12
            await whole(user)


async def test_a_list_whose_upload_takes_long_does_not_call_old_totals_exact(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root is uploaded with the old totals of a mailbox. The mailbox gets mail
    during this upload, and is uploaded itself."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("Sent", [NewMail(simple(1))])
        box = await user.select("Sent")
        under_way, asked, arrived = asyncio.Event(), asyncio.Event(), asyncio.Event()
        env_type = type(life.store.env)
        put_new, begin_changes = env_type.put_new, RootBox.begin_changes

        async def slow(env: Any, key: str, *more: Any) -> bool:
            if "/root/" in key and not under_way.is_set():
                under_way.set()
                await arrived.wait()
            return await put_new(env, key, *more)

        async def begin(rootbox: RootBox) -> None:
            if under_way.is_set():
                asked.set()
            await begin_changes(rootbox)

        monkeypatch.setattr(env_type, "put_new", slow)
        monkeypatch.setattr(RootBox, "begin_changes", begin)
        of_list = asyncio.create_task(user.flush(everything=True))
        await under_way.wait()
        await user.append("Sent", [NewMail(simple(2))])
        of_mailbox = asyncio.create_task(box.flush(everything=True))
        await asked.wait()
        arrived.set()
        await asyncio.gather(of_list, of_mailbox)
        await box.release()
        await user.release()
        life.users.clear()
        life.time.move(30.0)
        clean = cleaner(life, room=1)
        for _ in range(3):
            await clean.make_room()
        assert life.store.users == {}
        life.store.env.metacache.max_space = 64 << 20
        assert (await (await life.user()).status("Sent")).messages == 2


async def test_a_list_stays_while_a_user_who_left_memory_has_changes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cleaner uploads the root, whose bundle says that its totals are exact. The
    upload takes so long that meanwhile the user gets a mail and leaves memory. Then
    only the local copy of the mailbox has this mail."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("Sent", [NewMail(simple(1))])
        env_type = type(life.store.env)
        put_new, came = env_type.put_new, False

        async def slow(env: Any, key: str, *more: Any) -> bool:
            nonlocal came
            put = await put_new(env, key, *more)
            if "/root/" in key and not came:
                came = True
                await user.append("Sent", [NewMail(simple(2))])
                await user.release()
                leave(user)
                life.users.clear()
                del life.store.users[user.storage_id]
                life.time.move(30.0)
            return put

        monkeypatch.setattr(env_type, "put_new", slow)
        copies = Copies(life.store)
        await copies.flush("anna", "root")
        assert came
        assert not copies.unload("anna", "root")
        await life.store.env.metacache.commit()
        assert not copies.unload("anna", "root")
        await cleaner(life, room=1).make_room()
        life.store.env.metacache.max_space = 64 << 20
        assert (await (await life.user()).status("Sent")).messages == 2


async def test_a_user_stays_in_memory_while_the_list_is_uploaded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the upload would save an old list over the local copy of a user who was
    opened again meanwhile."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("Sent", [NewMail(simple(1))])
        await user.flush(everything=True)
        await user.append("Sent", [NewMail(simple(2))])
        await user.release()
        life.users.clear()
        life.time.move(30.0)
        under_way, arrived = asyncio.Event(), asyncio.Event()
        env_type = type(life.store.env)
        put_new = env_type.put_new

        async def slow(env: Any, key: str, *more: Any) -> bool:
            under_way.set()
            await arrived.wait()
            return await put_new(env, key, *more)

        monkeypatch.setattr(env_type, "put_new", slow)
        uploading = asyncio.create_task(user.rootbox.flush(everything=True))
        await under_way.wait()
        unload_idle(user, life.store.env.clock())
        busy, in_use = user.busy(), Copies(life.store).in_use("anna", "root")
        arrived.set()
        await uploading
        assert not user.boxes
        assert busy
        assert in_use
        assert not user.busy()


async def test_a_list_is_not_dropped_before_what_its_mailboxes_lack_is_uploaded(machine: Machine) -> None:
    """A mailbox left memory with a few new mails that only its local copy has. The root
    in the bucket does not count these mails."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("Sent", [NewMail(simple(1))])
        await user.flush(everything=True)
        await user.append("Sent", [NewMail(simple(2))])
        await user.release()
        life.users.clear()
        life.time.move(30.0)
        unload_idle(user, life.store.env.clock())
        assert user.boxes == {}
        copies = Copies(life.store)
        metacache = life.store.env.metacache
        assert copies.must_upload("anna", "root", metacache.peek("anna", "root"))
        await copies.flush("anna", "root")
        await metacache.commit()
        assert not copies.must_upload("anna", "root", metacache.peek("anna", "root"))


async def test_what_an_earlier_process_did_not_upload_is_uploaded_before_it_goes(machine: Machine) -> None:
    async with machine.run(kill=True) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(k)) for k in range(3)])
        box = await user.select("INBOX")
        await box.store_flags(uids(2), "add", ["\\Flagged"])
        await user.commit()
        await life.quiet()
    async with machine.run() as life:
        life.time.move(300.0)
        await asyncio.sleep(0.1)
        metacache = life.store.env.metacache
        for _ in range(3):
            await cleaner(life, room=1).make_room()
            life.time.move(300.0)
        assert list(metacache.users()) == []
        metacache.max_space = 64 << 20
        box = await (await life.user()).select("INBOX")
        assert box.state.flags.of_bits(int(box.state.bits[1])) == {"\\Flagged"} or "\\Flagged" in set(
            box.state.flags.of_bits(int(box.state.bits[1]))
        )
        await box.release()


async def test_above_the_limit_new_users_wait_and_sessions_go_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.run() as life:
        user = await life.user("anna")
        await user.append("INBOX", [NewMail(simple(1))])
        await life.store.env.metacache.commit()
        monkeypatch.setattr(life.store.env.metacache.accounts, "limit", life.store.env.metacache.space())
        assert life.store.env.metacache.full()
        with pytest.raises(Unavailable):
            await life.user("bo")
        box = await user.select("INBOX")
        for k in range(10):
            await user.append("INBOX", [NewMail(simple(k))])
            await box.store_flags(box.state.uids[-1:], "add", ["\\Seen"])
        assert (await user.status("INBOX")).unseen == 1
        await box.release()
        assert life.store.env.metacache.space() <= life.store.env.metacache.accounts.limit
        monkeypatch.undo()
        assert life.store.env.metacache.peek("anna", "root").change in tuple(Change)


async def test_who_waits_for_room_is_let_in_before_who_comes_later(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each open used to look for room by itself. The open that looked at the right
    moment came first, and others were refused."""
    async with machine.run() as life:
        metacache = life.store.env.metacache
        monkeypatch.setattr(metacache, "full", lambda: True)
        opened: list[str] = []

        async def open_one(name: str) -> None:
            await life.user(name)
            opened.append(name)

        first = asyncio.ensure_future(open_one("anna"))
        await asyncio.sleep(0.01)
        monkeypatch.setattr(metacache, "full", lambda: False)
        await asyncio.gather(open_one("bo"), first)
        assert opened == ["anna", "bo"]


async def test_an_open_compares_with_the_bucket_after_the_forced_interval_and_once_after_a_moment(
    machine: Machine,
) -> None:
    machine.settings = replace(machine.settings, forced_refresh_interval_s=3600.0)
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(k)) for k in range(3)])

    async def lists() -> tuple[int, int]:
        async with machine.run() as life:
            with life.counting() as requests:
                user = await life.user()
                assert (await user.status("INBOX")).messages == 3
                box = await user.select("INBOX")
                assert len(box.state) == 3
                await box.release()
            assert requests.count("get") == 0
            return requests.count("list", "index"), requests.count("list", "mail")

    assert await lists() == (0, 0)
    machine.bucket.time.move(4000.0)
    assert await lists() == (1, 0), "one LIST shows all bundles of the user"
    assert await lists() == (0, 0)
    moment = machine.bucket.time.now() + 10
    machine.settings = replace(machine.settings, refresh_index_once_after=moment)
    assert await lists() == (0, 0), "not yet"
    machine.bucket.time.move(20.0)
    assert await lists() == (1, 0)
    assert await lists() == (0, 0)
    machine.settings = replace(machine.settings, rescan_mails_once_after=moment)
    assert await lists() == (0, 1)
    assert await lists() == (0, 0)


async def test_a_refresh_finds_what_another_wrote_into_the_bucket(machine: Machine, tmp_path: Path) -> None:
    """Another writer changed the bucket without the knowledge of this backend. The next
    open after the interval sees the changes."""
    async with machine.run() as life:
        await (await life.user()).append("INBOX", [NewMail(simple(k)) for k in range(3)])
    async with machine.renamed("second", tmp_path / "other").run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(3))])
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Flagged"])
        await box.release()
    machine.settings = replace(machine.settings, refresh_index_once_after=1.0)
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        assert box.state.uids.tolist() == [1, 2, 3, 4]
        assert "\\Flagged" in box.state.flags.of_bits(int(box.state.bits[0]))
        await box.release()


async def test_the_nightly_flush_uploads_everything_once(machine: Machine) -> None:
    machine.settings = replace(machine.settings, upload_interval_s=1e6)
    soon = time.localtime(machine.bucket.time.now() + 120)
    machine.settings = replace(machine.settings, flush_at=f"{soon.tm_hour:02}:{soon.tm_min:02}")
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1))])
        with life.counting() as requests:
            await life.let_pass(30)
        assert requests.count("put", "index") == 0
        box = next(iter(user.boxes.values()))
        assert box.change is not Change.NONE
        with life.counting() as requests:
            await life.let_pass(150)
            for _ in range(100):
                # The mailbox may have left memory meanwhile.
                if (box := await user.box(box.guid)).change is Change.NONE:
                    break
                await asyncio.sleep(0.01)
        assert box.change is Change.NONE
        assert requests.count("put", "index") > 0


async def test_other_settings_hold_for_what_waits_already(machine: Machine) -> None:
    machine.settings = replace(machine.settings, upload_interval_s=1e6)
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(1)])
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Flagged"])
        await user.append("Sent", [NewMail(simple(n)) for n in range(3)])
        sent = await user.select("Sent")
        assert sent.due_at is None, "a few mails wait for nothing"
        await life.let_pass(30)
        life.store.use(replace(machine.settings, upload_interval_s=20.0, max_rescan_mail_count=2))
        soon = life.time.clock() + 20.0
        assert box.due_at <= soon
        assert sent.due_at <= soon
        await life.let_pass(40)
        assert (box.change, sent.change) == (Change.NONE, Change.NONE)
        await box.release()
        await sent.release()


async def test_another_hour_of_the_nightly_flush(machine: Machine) -> None:
    machine.settings = replace(machine.settings, upload_interval_s=1e6)
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(1)])
        (box,) = user.boxes.values()
        soon = time.localtime(life.time.now() + 120)
        life.store.use(replace(machine.settings, flush_at=f"{soon.tm_hour:02}:{soon.tm_min:02}"))
        await life.let_pass(150)
        for _ in range(100):
            if (box := await user.box(box.guid)).change is Change.NONE:
                break
            await asyncio.sleep(0.01)
        assert box.change is Change.NONE


def test_the_hour_comes_once_a_day() -> None:
    noon = datetime(2026, 1, 1, 12, 0).timestamp()
    night = Nightly("03:30", noon)
    assert not night.due(noon + 3600)
    assert night.due(noon + 16 * 3600)
    assert not night.due(noon + 17 * 3600)
    assert night.due(noon + 40 * 3600)
    assert not Nightly("", noon).due(noon + 1e9)


@pytest.mark.parametrize("turns", [5, 40, 150])
async def test_killed_while_it_cleans_nothing_is_lost(machine: Machine, turns: int) -> None:
    """The process is killed at each place between an upload and the commit that drops
    the copy."""
    async with machine.run(kill=True) as life:
        await fill_users(life, 5)
        before = {user.name: await whole(user) for user in life.users}
        for user in life.users:
            await user.release()
        await life.store.env.metacache.commit()
        await life.quiet()
        life.time.move(30.0)
        task = asyncio.create_task(cleaner(life, room=1).make_room())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        life.users.clear()
    async with machine.run() as life:
        for name, was in before.items():
            assert await whole(await life.user(name)) == was
        assert life.store.env.metacache.accounts.check() == []
