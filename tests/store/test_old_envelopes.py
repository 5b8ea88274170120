"""Buckets that the first version of obox wrote are served and upgraded. The archives
version-1-*.tar.gz are what a killed backend left.

`oldbuckets` says what is in an archive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import version1
from machines import SID, Life, Machine, uids, whole
from mails import simple
from oldbuckets import KEYS, Old
from turns import turns

from obox.errors import ConfigError, Corrupt, InUse, Unavailable
from obox.objectstore import Codec, ObjectKind, Unreachable
from obox.objectstore.keys import mail_key, owner_of, user_prefix
from obox.store import MailStore, NewMail
from obox.store.log.journal import JournalObject, Line
from obox.store.mails.meta import MailMeta
from obox.store.operate import upgrade
from obox.types import Guid, StorageId, Uid

USERS = (SID, StorageId("ben"))


@pytest.fixture(params=["plain", "sealed"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    return Old(request.param, tmp_path)


async def run(store: MailStore, *sids: StorageId, **options: Any) -> upgrade.Upgraded:
    total = upgrade.Upgraded()
    for sid in sids or USERS:
        *_, done = [done async for done in upgrade.upgrade(store, sid, sid, **options)]
        for name in ("objects", "outdated", "upgraded", "damaged", "foreign"):
            setattr(total, name, getattr(total, name) + getattr(done, name))
    return total


async def finish(store: MailStore) -> upgrade.Left:
    *_, left = [left async for left in upgrade.finish(store)]
    return left


@asynccontextmanager
async def served(old: Old) -> AsyncIterator[Life]:
    async with old.machine.run() as life:
        yield life


async def test_it_is_served_as_it_is(old: Old) -> None:
    assert old.majors() == {1}
    async with served(old) as life:
        await old.check(life)
        user = await life.user()
        assert (await user.append("INBOX", [NewMail(simple(1))])).uids == [7]
        await user.flush(everything=True)
    assert old.majors() == {1, 2}
    old.machine.lose_disk()
    async with served(old) as life:
        await old.check(life, {"7": simple(1)})


async def test_upgrade(old: Old) -> None:
    async with served(old) as life:
        await old.check(life)
        before = old.objects()
        planned = await run(life.store, dry_run=True)
        assert before.items() <= old.objects().items(), "the takeover may add to it"
        assert planned.upgraded == 0 < planned.outdated
        # A client is logged in during the upgrade.
        user = await life.user()
        inbox = await user.select("INBOX")
        done = await run(life.store)
        assert (done.upgraded, done.damaged, done.foreign) == (planned.outdated, 0, 0)
        assert old.majors() == {2}
        again = await run(life.store)
        assert (again.outdated, again.upgraded) == (0, 0)
        await inbox.store_flags(uids(1), "add", ["\\Flagged"])
        await inbox.store_flags(uids(1), "remove", ["\\Flagged"])
        await inbox.release()
        # The mails come from fscache, which has them in version 1.
        await old.check(life)
        left = await finish(life.store)
        assert not left.finished
        assert left.users == {}
        assert left.journal, "of the life that wrote the archive"
    old.machine.lose_disk()
    async with served(old) as life:
        await old.check(life)


async def finished(old: Old) -> None:
    """Upgrade the bucket, and let the journal of version 1 be deleted after its
    delay."""
    async with served(old) as life:
        await old.check(life)
        await run(life.store)
    for key in [key for key, data in old.objects("_journal/").items() if data[4] == 1]:
        await old.memory.delete_batch([key], kind="journal")
    async with served(old) as life:
        # The mails come from fscache here too.
        await old.check(life)
        left = await finish(life.store)
        assert left.finished
        assert (left.users, left.journal, left.damaged) == ({}, 0, 0)


async def test_a_finished_bucket_has_version_2_alone(old: Old) -> None:
    oid = old.objects("_format")["_format"][16:32]
    stray = next(key for key in old.objects() if "/ben/m/" in key)
    data = old.objects()[stray]
    await finished(old)
    assert {data[4] for data in old.objects().values() if data} == {2}
    assert old.objects("_format")["_format"][16:32] == oid, "it is the same bucket"
    old.machine.lose_disk()
    async with served(old) as life:
        await old.check(life)
        assert (await finish(life.store)).finished
    old.machine.lose_disk()
    new = old.objects()[stray]
    # This is an object that somebody had kept.
    await old.memory.replace(stray, data, kind="mail")
    async with served(old) as life:
        left = await finish(life.store)
        assert not left.finished
        assert len(left.users) == 1
        with pytest.raises(Corrupt):
            await old.check(life)
        for user in [*life.users]:
            await user.release()
            life.users.remove(user)
        assert (await run(life.store)).upgraded == 1
        assert old.objects()[stray] == new, "the same bytes as the first time"
        await old.check(life)


async def test_files_of_the_cache_are_fetched_again_after_the_upgrade(old: Old) -> None:
    await finished(old)
    async with served(old) as life:
        life.store.env.recent.clear()
        inbox = await (await life.user()).select("INBOX")
        with life.counting() as requests:
            assert len(await inbox.part(5, 300_000, 300_100)) == 100
            assert [uid async for uid, mail in inbox.mails([1, 2, 4]) if isinstance(mail, bytes)] == [1, 2, 4]
        assert requests.count("get", "mail") >= 4
        await inbox.release()
        await old.check(life)


async def test_restored_bundles_of_version_1_are_upgraded_where_nobody_can_open_them(old: Old) -> None:
    kept = {key: data for key, data in old.objects().items() if "/anna/" in key}
    await finished(old)
    old.machine.lose_disk()
    for key in [key for key in old.objects() if "/anna/" in key]:
        await old.memory.delete_batch([key], kind="mail")
    for key, data in kept.items():
        await old.memory.put(key, data, kind="mail")
    async with served(old) as life:
        with pytest.raises(Corrupt):
            await life.store.open_user("anna", SID)
        done = await run(life.store, SID)
        assert done.damaged == 0
        assert old.majors() == {2}
        user = await life.user()
        assert len(await whole(user)) > 3


@pytest.mark.parametrize("step", [*range(1, 12), 15, 19, 22])
async def test_it_may_be_killed_after_any_step(tmp_path: Path, step: int) -> None:
    """The bucket stops working at the nth request that writes. Half of these requests
    take effect, and the others do not."""
    old = Old("sealed", tmp_path)
    async with old.machine.run(kill=True) as life:
        await old.check(life)
        left = step
        replace = life.bucket.replace

        async def dying(key: str, data: bytes, *, kind: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Unreachable("dead")
            if left == 0 and step % 2:
                await replace(key, data, kind=kind)
                raise Unreachable("dead")
            await replace(key, data, kind=kind)

        life.bucket.replace = dying
        with pytest.raises(Unavailable):
            await run(life.store)
        assert old.majors() == {1, 2}
    old.machine.lose_disk()
    async with served(old) as life:
        await old.check(life)
        done = await run(life.store)
        assert 0 < done.upgraded < done.objects
        assert old.majors() == {2}
        await old.check(life)


async def test_nothing_that_was_deleted_comes_back(old: Old) -> None:
    """A mail is deleted after the upgrade has listed it, and before the upgrade
    rewrites it."""
    async with served(old) as life:
        user = await life.user()
        inbox = await user.select("INBOX")
        key = mail_key(SID, inbox.guid, Uid(4))
        upgrading = upgrade.upgrade(life.store, SID, SID)
        # The bundles have been listed now.
        await anext(upgrading)
        listing = life.bucket.list

        async def late(prefix: str, **options: Any) -> Any:
            found = await listing(prefix, **options)
            if prefix.endswith("/m/"):
                await old.memory.delete_batch([key], kind="mail")
            return found

        life.bucket.list = late
        async for _ in upgrading:
            pass
        assert key not in old.objects()
        await inbox.release()


async def test_what_belongs_elsewhere_stays_as_it_is(old: Old) -> None:
    """Objects of version 1 say in their meta data to whom they belong. The upgrade
    counts objects that do not decode and foreign objects, and leaves them as they
    are."""
    async with served(old) as life:
        user = await life.user()
        inbox, archive = await user.select("INBOX"), await user.select("Archive")
        bens = await (await life.user("ben")).select("INBOX")
        mails = {box: mail_key(box.user.storage_id, box.guid, Uid(1)) for box in (inbox, archive, bens)}
        wrong = [
            mail_key(SID, archive.guid, Uid(5)),
            mail_key(SID, inbox.guid, Uid(90)),
            mail_key(SID, inbox.guid, Uid(91)),
        ]
        for target, source in zip(wrong, (bens, inbox, archive), strict=True):
            await old.memory.replace(target, old.objects()[mails[source]], kind="mail")
        await old.memory.put(f"{mails[inbox]}.bak", b"x", kind="mail")
        damaged = mail_key(SID, inbox.guid, Uid(2))
        data = old.objects()[damaged]
        await old.memory.replace(damaged, data[:-1] + bytes([data[-1] ^ 1]), kind="mail")
        before = {key: old.objects()[key] for key in (*wrong, damaged, f"{mails[inbox]}.bak")}
        done = await run(life.store)
        assert (done.damaged, done.foreign) == (4, 1)
        assert {key: old.objects()[key] for key in before} == before
        for box in (inbox, archive, bens):
            await box.release()
        await user.flush(everything=True)
    old.machine.lose_disk()
    async with served(old) as life:
        user = await life.user()
        inbox = await user.select("INBOX")
        assert inbox.state.uids.tolist() == [1, 2, 4, 5, 6]
        await inbox.release()


async def test_a_copy_of_version_1_is_known_by_its_meta(old: Old) -> None:
    """Version 1 knows no owner. A mail that is copied to the same UID of another
    mailbox names its own mailbox, and a claim that is copied to another UID names its
    own UID. Neither is shown, and the next mail gets the next UID."""
    claims = [key for key, data in old.objects().items() if "/m/" in key and data[6] == ObjectKind.CLAIM]
    (second,) = [key for key in claims if key.endswith("2")]
    async with served(old) as life:
        user = await life.user()
        inbox, bens = await user.select("INBOX"), await (await life.user("ben")).select("INBOX")
        sources = {"of Ben": mail_key(StorageId("ben"), bens.guid, Uid(1)), "claim": second}
        sources["of Anna"] = mail_key(SID, inbox.guid, Uid(1))
        for name, source in sources.items():
            target = mail_key(SID, await user.create(name), Uid(1))
            await old.memory.put(target, old.objects()[source], kind="mail")
        await inbox.release()
        await bens.release()
        await user.flush(everything=True)
    old.machine.lose_disk()
    async with served(old) as life:
        user = await life.user()
        for name in sources:
            box = await user.select(name)
            assert len(box.state) == 0, name
            assert (await user.append(name, [NewMail(simple(1))])).uids == [2]
            await box.release()


@pytest.mark.parametrize("part", [False, True])
async def test_a_mail_of_version_1_is_served_under_its_own_uid_alone(old: Old, part: bool) -> None:
    """Somebody also forged the index, so that it names the OID of the mail that lies
    under this key."""
    async with served(old) as life:
        user = await life.user()
        inbox, bens = await user.select("INBOX"), await (await life.user("ben")).select("INBOX")
        source, target = (mail_key(box.user.storage_id, box.guid, Uid(1)) for box in (bens, inbox))
        await old.memory.replace(target, old.objects()[source], kind="mail")
        inbox.state.column("oid")[0] = bens.state.column("oid")[0]
        with pytest.raises(Corrupt):
            await (inbox.part(1, 0, 10) if part else inbox.mail(1))
        await inbox.release()
        await bens.release()


async def test_a_site_that_begins_to_encrypt(tmp_path: Path) -> None:
    """A site switches encryption on. Plain objects are read beside sealed objects. The
    upgrade seals the plain objects, and from then on no plain object is accepted."""
    old = Old("plain", tmp_path)
    strict = Codec(KEYS, "k1", require_encryption=True)
    old.machine.bucket.codec = lambda: strict
    with pytest.raises(ConfigError, match="format 1"):
        async with served(old):
            pass
    old.machine.lose_disk()
    old.machine.bucket.codec = lambda: Codec(KEYS, "k1")
    await finished(old)
    assert all(data[8:10] == b"k1" for data in old.objects().values() if data)
    old.machine.lose_disk()
    old.machine.bucket.codec = lambda: strict
    async with served(old) as life:
        await old.check(life)
        user = await life.user()
        inbox = await user.select("INBOX")
        key = mail_key(SID, inbox.guid, Uid(7))
        meta = MailMeta(inbox.guid, 7, 6, 1, 0, 1)
        forged = Codec({}, None).encode(
            ObjectKind.MAIL, owner_of(key), life.store.env.new_oid(), meta.encode(), b"forged"
        )
        await old.memory.put(key, forged, kind="mail")
        assert (await user.append("INBOX", [NewMail(simple(1))])).uids == [8]
        assert 7 not in inbox.state.uids.tolist()
        await inbox.release()


async def test_an_old_format_that_is_put_back_is_refused(tmp_path: Path) -> None:
    """With the old format object the bucket would accept objects of version 1 again."""
    old = Old("sealed", tmp_path)
    kept = old.objects()["_format"]
    await finished(old)
    await old.memory.replace("_format", kept, kind="format")
    old.machine.bucket.codec = lambda: Codec(KEYS, "k1", require_encryption=True)
    with pytest.raises(ConfigError, match="format 1"):
        async with served(old):
            pass


async def test_a_new_key_is_used_for_everything(tmp_path: Path) -> None:
    old = Old("sealed", tmp_path)
    await finished(old)
    old.machine.bucket.codec = lambda: Codec(KEYS, "k2")
    async with served(old) as life:
        assert (await run(life.store)).upgraded > 0
    for key in [key for key, data in old.objects("_journal/").items() if data[8:10] == b"k1"]:
        await old.memory.delete_batch([key], kind="journal")
    async with served(old) as life:
        assert (await finish(life.store)).finished
    old.machine.lose_disk()
    old.machine.bucket.codec = lambda: Codec({"k2": KEYS["k2"]}, "k2")
    async with served(old) as life:
        await old.check(life)


@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_copied_user_becomes_another_one(old: Old, upgraded: bool) -> None:
    """Anna's objects were copied to another storage id, as when an operator restores a
    backup beside her mail."""
    if upgraded:
        await finished(old)
    carla = StorageId("carla")
    for key, data in old.objects().items():
        if "/anna/" in key:
            target = user_prefix(carla) + key.split("/", 2)[2]
            await old.memory.put(target, data, kind="mail")
    async with served(old) as life:
        if upgraded:
            with pytest.raises(Corrupt):
                await life.store.open_user("carla", carla)
        take_over = upgrade.take_over_copy
        planned = [done async for done in take_over(life.store, carla, SID, dry_run=True)][-1]
        first = take_over(life.store, carla, SID)
        # The first run is cut short here.
        await anext(first)
        await first.aclose()
        *_, done = [done async for done in take_over(life.store, carla, SID)]
        assert (done.damaged, done.foreign) == (0, 0)
        assert 0 < done.upgraded < planned.outdated == planned.objects == done.objects
        *_, again = [done async for done in take_over(life.store, carla, SID)]
        assert again.outdated == 0
        user = await life.user("carla")
        if upgraded:
            found = await whole(user)
            assert {box: len(found[box][-1]) for box in old.expected["anna"]} == {
                box: len(was["mails"]) for box, was in old.expected["anna"].items()
            }
        with pytest.raises(InUse):
            await anext(take_over(life.store, carla, SID))
        await old.check(life)
        assert (await run(life.store, carla)).damaged == 0


async def test_a_new_bucket_is_of_version_2_and_takes_no_other(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(1))])
        inbox = await user.select("INBOX")
        meta = MailMeta(inbox.guid, 2, 4, 1, 0, 1)
        data = version1.encode(ObjectKind.MAIL, bytes(16), meta.encode(), b"body")
        await life.bucket.put(mail_key(SID, Guid(inbox.guid), Uid(2)), data, kind="mail")
        assert (await user.append("INBOX", [NewMail(simple(2))])).uids == [3]
        assert inbox.state.uids.tolist() == [1, 3]
        await inbox.release()


async def test_large_and_very_many_objects_are_renewed_off_the_loop(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are mail and journal objects of many MB, compressed to a few kB, and very
    many mails."""
    async with machine.run() as life:
        user = await life.user()
        (guid,) = [entry.guid for entry in user.root.entries.values() if entry.name == "INBOX"]
        large = b"Subject: x\r\n\r\n" + bytes(100 << 20)
        meta = MailMeta(guid, 1, len(large), 1, 0, 1)
        key = mail_key(SID, Guid(guid), Uid(1))
        objects = {key: version1.encode(1, bytes(16), meta.encode(), large, compress=True)}
        oid = bytes(range(16))
        said = JournalObject("gone", "000000000001", 0, 0, [Line(SID, [(guid, bytes(40 << 20))])])
        objects[said.key] = version1.encode(6, oid, b"", msgspec.msgpack.encode(said), compress=True)
        for uid in range(2, 10_000):
            objects[mail_key(SID, Guid(guid), Uid(uid))] = b"obox\2" + bytes(60)
        driver = life.bucket.driver.inner
        for name, data in objects.items():
            driver.objects[name] = (data, 1e9)
        driver.keys[:] = sorted(driver.objects)
        with turns() as found:
            left = await asyncio.create_task(finish(life.store))
        found.check()
        assert left.users == {SID: 1}
        assert (left.journal, left.damaged) == (1, 0)
        with turns() as found:
            done = await asyncio.create_task(run(life.store, SID))
        found.check()
        assert done.upgraded == 1
        for name in objects:
            driver.objects.pop(name)
        driver.keys[:] = sorted(driver.objects)
