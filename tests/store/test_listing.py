"""LIST of some real stores leaves keys out, returns keys in another order, or returns
foreign keys. obox must not lose mail because of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from machines import Bucket, Machine, fill, uids, whole
from mails import simple
from structlog.testing import capture_logs

from obox.errors import Corrupt, Limit
from obox.objectstore import MemoryDriver, Refused
from obox.objectstore.keys import ROOT, bundle_key, bundles_prefix, journal_key, mail_key, mail_prefix, user_prefix
from obox.store import NewMail
from obox.store.box.bundles import VERSIONS_MAX
from obox.store.log.journal import JournalObject
from obox.store.mails.listed import UIDS_AHEAD_MAX
from obox.store.operate import repair, upgrade
from obox.store.operate import users as operate
from obox.types import Guid, Oid, StorageId, Uid
from tests.stores import Listing, MinioLike, SeaweedLike, Stubborn

SID = StorageId("anna")
OTHERS = {"mail": 1405, "mail-2": 704}
"""Backends that have ended, and how many journal objects of a clean boot each has
left."""


async def leave_journals(bucket: Bucket) -> None:
    """Write journal objects that are no longer needed: bundles cover them, and only
    `delete_delay` is not over yet."""
    store, codec = bucket.open(), bucket.codec()
    for backend, count in OTHERS.items():
        boot = "0123456789ab0000"
        for seq in range(count):
            ended = seq == count - 1
            journal = JournalObject(backend, boot, seq, seq, closed=ended, clean=ended)
            data = journal.encode(codec, Oid(seq.to_bytes(16, "big")))
            await store.put(journal_key(backend, boot, seq), data, kind="journal")
    await store.close()


@pytest.mark.parametrize("driver", [MemoryDriver, MinioLike, SeaweedLike])
async def test_flags_of_a_backend_survive_the_journals_of_others(
    bucket: Bucket, tmp_path: Path, driver: type[Listing]
) -> None:
    """mail-2 has 704 objects, mail has 1405, and mx has 4. On MinIO a LIST over all
    journals, page by page with start-after, left mx out."""
    bucket.url, bucket.driver = "memory://", driver(wall=bucket.time.now)
    await leave_journals(bucket)
    mx = Machine(bucket, tmp_path / "mx", backend="mx", durability="bucket", journal_interval_s=0.01)
    async with mx.run(kill=True) as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(4)])
        box = await user.select("INBOX")
        await box.flush()
        for uid, flag in ((1, "\\Seen"), (2, "\\Flagged"), (3, "$Work"), (4, "\\Answered")):
            await box.store_flags(uids(uid), "add", [flag])
        before = await whole(user)
    third = Machine(bucket, tmp_path / "third", backend="third")
    async with third.run() as life:
        with life.counting() as requests:
            user = await life.user()
            assert await whole(user) == before
            assert await operate.journal_objects(life.store)
        # The requests list the names, two pages of `mail`, and mail-2, mx and third.
        assert requests.count("list", "journal") == 6


async def test_the_fake_leaves_out_what_minio_left_out() -> None:
    """obox used to start each page behind the last key of the page before. On this fake
    a LIST over all journals then misses half of them."""
    bucket = MinioLike()
    for backend, count in {**OTHERS, "mx": 4}.items():
        for seq in range(count):
            await bucket.put(journal_key(backend, "0123456789ab0000", seq), b"", kind="journal")
    found: list[str] = []
    full = True
    while full:
        page = await bucket.list_page("_journal/", kind="journal", after=found[-1] if found else "", limit=1000)
        found += [info.key for info in page.items]
        full = len(page.items) == 1000
    counts = {name: sum(key.split("/")[1] == name for key in found) for name in (*OTHERS, "mx")}
    assert counts == {"mail": 658, "mail-2": 704, "mx": 0}


async def test_a_start_lists_the_backends_and_each_of_them_once(machine: Machine) -> None:
    async with machine.run() as life:
        await life.user()
    async with machine.renamed("second", machine.path / "2").run() as life:
        # The requests list the names, and the journal of `first`.
        assert life.bucket.stats.count("list", "journal") == 2


async def test_no_list_goes_over_the_journals_of_all_backends(bucket: Bucket, tmp_path: Path) -> None:
    """Neither a start nor a command sends such a LIST, because some stores leave keys
    out of it."""
    asked: list[str] = []

    class Asked(MemoryDriver):
        async def list_page(self, prefix: str, **how: Any) -> Any:
            asked.append(prefix)
            return await super().list_page(prefix, **how)

    bucket.url, bucket.driver = "memory://", Asked(wall=bucket.time.now)
    await leave_journals(bucket)
    async with Machine(bucket, tmp_path / "third", backend="third").run() as life:
        await life.user()
        await operate.journal_objects(life.store)
        *_, left = [one async for one in upgrade.finish(life.store)]
        assert left.objects > sum(OTHERS.values())
    journals = {prefix for prefix in asked if prefix.startswith("_journal/")}
    assert journals == {"_journal/mail/", "_journal/mail-2/", "_journal/third/"}


FOREIGN = [
    "_journal/notes.txt",
    "_journal/first/",
    "_journal/first/backup/0000000000000000",
    "_journal/%zz/0/0",
    user_prefix(SID),
    user_prefix(SID) + "m/",
    user_prefix(SID) + "m/old/00000001",
    user_prefix(SID) + "x/",
    user_prefix(SID) + "x/root/notes.txt",
    user_prefix(SID) + ".DS_Store",
    user_prefix(SID) + "a//b",
]
"""Keys that consoles, rclone and mistakes of operators leave."""


async def foreign_in(bucket: Bucket, guid: Guid, data: bytes) -> list[str]:
    keys = [*FOREIGN, mail_prefix(SID, guid), mail_prefix(SID, guid) + "readme", bundles_prefix(SID, guid) + "x.base"]
    store = bucket.open()
    for key in keys:
        await store.put(key, data, kind="mail")
    await store.close()
    return keys


@pytest.mark.usefixtures("single_mails")
@pytest.mark.parametrize("data", [b"", b"some text"])
async def test_foreign_objects_are_reported_and_left_alone(bucket: Bucket, tmp_path: Path, data: bytes) -> None:
    bucket.url = "memory://"
    machine = Machine(bucket, tmp_path / "first")
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(4)])
        guid = (await user.select("INBOX")).guid
        before = await whole(user)
        keys = await foreign_in(bucket, guid, data)
    machine.lose_disk()
    with capture_logs() as logs:
        async with machine.run() as life:
            user = await life.user()
            assert await whole(user) == before
            assert (await operate.mailboxes_in_bucket(life.store, SID))[guid] == 4
            await user.append("INBOX", [NewMail(simple(9))])
            *_, done = [one async for one in upgrade.upgrade(life.store, SID, SID)]
            below = [key for key in keys if key.startswith((user_prefix(SID) + "m/", user_prefix(SID) + "x/"))]
            # An object of no bytes is a burnt UID for all that do not look at its key.
            assert (done.foreign, done.damaged) == (len(below) if data else 0, 0)
            *_, left = [one async for one in upgrade.finish(life.store)]
            # A key in the form of a journal's key counts as a journal object.
            assert (left.users, left.journal, left.damaged, left.finished) == ({}, 0, 1, True)
    reported = {line["key"] for line in logs if "ignored" in line["event"]}
    assert {mail_prefix(SID, guid) + "readme", bundles_prefix(SID, guid) + "x.base", "_journal/first/"} <= reported
    assert set(keys) <= set(await bucket.keys())


async def test_an_index_of_a_version_that_no_box_reaches_is_foreign(bucket: Bucket, tmp_path: Path) -> None:
    bucket.url = "memory://"
    machine = Machine(bucket, tmp_path / "first")
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(4)])
        guid = (await user.select("INBOX")).guid
        before = await whole(user)
    keys = [bundle_key(SID, box, 2**64 - 1, "w", form) for box in (guid, ROOT) for form in ("base", "diff")]
    store = bucket.open()
    for key in keys:
        await store.put(key, b"some text", kind="index")
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        assert await whole(user) == before
        await user.append("INBOX", [NewMail(simple(9))])
        await user.flush(everything=True)
    assert set(keys) <= set(await bucket.keys())
    # This is the last version that counts, so none is left for the next index.
    await store.put(bundle_key(SID, guid, VERSIONS_MAX - 1, "w", "base"), b"some text", kind="index")
    await store.close()
    machine.lose_disk()
    async with machine.run() as life:
        with pytest.raises(Corrupt, match="remove it from the bucket"):
            [one async for one in repair.rebuild(life.store, SID, SID, lambda name: name == "INBOX")]


@pytest.mark.parametrize("data", [b"", b"some text"])
async def test_an_object_far_above_all_uids_is_foreign(bucket: Bucket, tmp_path: Path, data: bytes) -> None:
    """Its key has the form of a mail's key. It takes no UIDs from the mailbox, and no
    memory or requests for the UIDs below it."""
    bucket.url = "memory://"
    machine = Machine(bucket, tmp_path / "first")
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(4)])
        guid = (await user.select("INBOX")).guid
        before = await whole(user)
    keys = [mail_key(SID, guid, Uid(4 + UIDS_AHEAD_MAX + more)) for more in (100, 109)]
    store = bucket.open()
    for key in keys:
        await store.put(key, data, kind="mail")
    await store.close()
    machine.lose_disk()
    with capture_logs() as logs:
        async with machine.run() as life:
            user = await life.user()
            assert await whole(user) == before
            await user.append("INBOX", [NewMail(simple(9))])
            box = await user.box(guid)
            assert (box.state.uidnext, len(box.state)) == (6, 5)
            assert (await repair.resync(user, guid, keep_lost=True)).uidnext == 6
            with pytest.raises(Limit):
                await repair.resync(user, guid, keep_lost=True, skip_uids=repair.UIDS_SKIPPED_MAX + 1)
            before = await whole(user)
            for one in life.users:
                await one.release()
            life.users.clear()
            rebuilt = [one async for one in repair.rebuild(life.store, SID, SID, lambda name: name == "INBOX")]
            assert [one.name for one in rebuilt] == ["INBOX"]
            user = await life.user()
            assert {name: len(mails) for name, mails in (await whole(user)).items()} == {
                name: len(mails) for name, mails in before.items()
            }
            assert (await user.status("INBOX")).uidnext == 6
    assert repair.UIDS_SKIPPED_MAX < UIDS_AHEAD_MAX
    assert keys[0] in {line.get("key") for line in logs if "ignored" in line["event"]}
    assert set(keys) <= set(await bucket.keys())


async def deleted(life: Any, sid: StorageId) -> list[operate.Deleted]:
    return [one async for one in operate.delete(life.store, sid)]


@pytest.mark.parametrize("data", [b"", b"some text"])
async def test_a_user_goes_with_all_that_lies_below(bucket: Bucket, tmp_path: Path, data: bytes) -> None:
    bucket.url = "memory://"
    async with Machine(bucket, tmp_path / "first").run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(4)])
        guid = (await user.select("INBOX")).guid
        await foreign_in(bucket, guid, data)
        for one in life.users:
            await one.release()
        life.users.clear()
        life.store.users[SID].sessions = 0
        gone = await deleted(life, SID)
        assert {one.what for one in gone} >= {"mails", "index", "other"}
        assert await bucket.keys(user_prefix(SID)) == []
        assert "_journal/first/" in await bucket.keys(), "not the user's"


async def test_what_cannot_be_deleted_is_reported_and_ends_the_loop(bucket: Bucket, tmp_path: Path) -> None:
    """A client cannot name the key of such a marker in a DELETE. The loop of LIST and
    DELETE used to run for ever."""
    stay = [user_prefix(SID), user_prefix(SID) + "m/"]
    lists = 0

    class Counted(Stubborn):
        async def list_page(self, prefix: str, **how: Any) -> Any:
            nonlocal lists
            lists += 1
            if lists > 200:
                raise Refused("the loop does not end")
            return await super().list_page(prefix, **how)

    bucket.url, bucket.driver = "memory://", Counted(stay, wall=bucket.time.now)
    async with Machine(bucket, tmp_path / "first").run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(4)])
        await user.release()
        life.users.clear()
        store = bucket.open()
        for key in stay:
            await store.put(key, b"", kind="mail")
        for _ in range(2):
            with life.counting() as requests:
                gone = await deleted(life, SID)
            assert gone[-1] == operate.Deleted(stay[0], 2, 0, left=True)
            assert requests.count("delete") <= 6
            assert requests.count("list") <= 30
        assert await bucket.keys(user_prefix(SID)) == stay
        assert not await operate.is_in_bucket(life.store, SID), "a marker is no mail"
