"""Several mails of a mailbox in one object (docs/format.md, "Batch")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from machines import SID, Bucket, Life, Machine, fill, uids, whole
from mails import simple
from oldbuckets import KEYS, Old

from obox import forms
from obox.errors import ConfigError, Corrupt, Expunged, NotFound
from obox.mailbox import CLAIM_PURGED, State
from obox.objectstore import Codec, MemoryDriver
from obox.objectstore.keys import mail_key, user_prefix
from obox.store import Mailbox, NewMail
from obox.store.backend import mark
from obox.store.box.arrivals import BATCH_MAILS_MAX
from obox.store.mails.write import GROUP_BYTES_MAX, SHARED_MAX
from obox.store.operate import repair, upgrade, users
from obox.store.user.flush import sweep
from obox.types import Guid, StorageId, Uid

PUTS = ("put", "mail")
DAY_S = 86400.0


def key_of(guid: str, uid: int) -> str:
    return mail_key(SID, Guid(guid), Uid(uid))


class Site:
    """A bucket in memory, and a machine that serves it."""

    def __init__(self, tmp_path: Path, codec: Callable[[], Codec] = lambda: Codec({}, None), **settings: Any) -> None:
        self.memory = MemoryDriver()
        self.bucket = Bucket("memory://", codec, driver=self.memory)
        self.machine = Machine(self.bucket, tmp_path / "disk", **settings)
        self.machine.batches = True
        self.tmp_path = tmp_path

    def mails(self) -> dict[str, int]:
        """Return the sizes of the objects below m/, by key."""
        return {key: len(data) for key, (data, _) in self.memory.objects.items() if "/m/" in key}

    @asynccontextmanager
    async def elsewhere(self) -> AsyncIterator[Life]:
        """Run a backend that has nothing local."""
        other = self.machine.renamed("second", self.tmp_path / "other")
        other.lose_disk()
        async with other.run() as life:
            yield life


@pytest.fixture(params=["plain", "sealed"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, lambda: Codec(KEYS, "k1" if request.param == "sealed" else None))


@pytest.fixture
def plain(tmp_path: Path) -> Site:
    return Site(tmp_path)


# -- what it costs -----------------------------------------------------------------------------------------------------


async def test_multiappend_of_a_hundred_mails_is_one_put(plain: Site) -> None:
    async with plain.machine.run() as life:
        user = await life.user()
        await life.quiet()
        with life.counting() as requests:
            done = await user.append("INBOX", [NewMail(simple(number)) for number in range(100)])
        assert requests.requests() == {PUTS: 1}
        assert done.uids == [*range(1, 101)]


async def test_deliveries_at_the_same_time_share_a_put(plain: Site) -> None:
    """The first of them goes alone, or with those that came in the same turn."""
    async with plain.machine.run() as life:
        user = await life.user()
        await life.quiet()
        with life.counting() as requests:
            done = await asyncio.gather(*(user.append("INBOX", [NewMail(simple(n))]) for n in range(200)))
        assert requests.count("put", "mail") <= 3
        assert requests.count() == requests.count("put", "mail")
        assert sorted(uid for one in done for uid in one.uids) == [*range(1, 201)]
        box = await user.select("INBOX")
        for number, one in enumerate(done):
            assert await box.mail(one.uids[0]) == simple(number)
        await box.release()


@pytest.mark.parametrize("how", ["parallel", "multiappend"])
async def test_an_import_of_ten_thousand_mails_makes_at_most_a_hundred_puts(plain: Site, how: str) -> None:
    """Each of 256 senders sends its next mail when the last is acknowledged."""
    async with plain.machine.run() as life:
        user = await life.user()
        left = iter(range(10_000))

        async def sender() -> None:
            for number in left:
                await user.append("INBOX", [NewMail(b"Subject: %d\r\n\r\n" % number)])

        with life.counting() as requests:
            if how == "parallel":
                await asyncio.gather(*(sender() for _ in range(256)))
            else:
                await fill(user, "INBOX", [b"Subject: %d\r\n\r\n" % number for number in range(10_000)], at_once=250)
        assert (await user.status("INBOX")).messages == 10_000
        assert requests.count("put", "mail") <= 100


async def test_a_single_delivery_is_an_object_of_its_own(plain: Site) -> None:
    async with plain.machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(0))])
        await life.quiet()
        with life.counting() as requests:
            await user.append("INBOX", [NewMail(simple(1))])
        assert requests.requests() == {PUTS: 1}
        box = await user.select("INBOX")
        assert not box.state.column("place").any()
        assert not box.state.batches
        await box.release()


async def test_a_cold_reader_takes_neighbours_by_one_get(plain: Site) -> None:
    async with plain.machine.run() as life:
        await fill(await life.user(), "INBOX", [simple(number) for number in range(120)], at_once=120)
    async with plain.elsewhere() as life:
        box = await (await life.user()).select("INBOX")
        with life.counting() as requests:
            found = [mail async for _, mail in box.mails(box.state.uids.tolist())]
        assert found == [simple(number) for number in range(120)]
        assert requests.requests() == {("get", "mail"): 2}
        await box.release()


async def test_a_linger_waits_for_company(tmp_path: Path) -> None:
    site = Site(tmp_path, batch_linger_s=2.0)
    async with site.machine.run() as life:
        user = await life.user()
        await life.quiet()
        with life.counting() as requests:
            first = asyncio.ensure_future(user.append("INBOX", [NewMail(simple(0))]))
            await asyncio.sleep(0.01)
            second = asyncio.ensure_future(user.append("INBOX", [NewMail(simple(1))]))
            await asyncio.sleep(0.01)
            assert not first.done()
            life.time.move(2.5)
            await asyncio.gather(first, second)
        assert requests.count("put", "mail") == 1


async def test_bounds(plain: Site) -> None:
    """Large mails, and a large MULTIAPPEND, are objects of their own."""
    async with plain.machine.run() as life:
        user = await life.user()
        await life.quiet()
        with life.counting() as requests:
            await user.append("INBOX", [NewMail(simple(0)), NewMail(bytes(SHARED_MAX + 1))])
        assert requests.count("put", "mail") == 2
        mails = [NewMail(bytes(SHARED_MAX - 1)) for _ in range(GROUP_BYTES_MAX // SHARED_MAX + 1)]
        with life.counting() as requests:
            await user.append("INBOX", mails)
        assert requests.count("put", "mail") == len(mails)
        many = [NewMail(simple(number)) for number in range(BATCH_MAILS_MAX + 50)]
        with life.counting() as requests:
            await asyncio.gather(user.append("INBOX", many), *(user.append("INBOX", [one]) for one in many))
        assert requests.count("put", "mail") == 3


# -- what is in it -----------------------------------------------------------------------------------------------------


async def lived(life: Life) -> Any:
    """Fill a mailbox with single mails and batches, and return what a client sees."""
    user = await life.user()
    await user.append("INBOX", [NewMail(simple(0))])
    await user.append("INBOX", [NewMail(simple(n), ("\\Seen",) * (n % 2), 1_000_000 + n, n) for n in range(1, 9)])
    await user.append("INBOX", [NewMail(simple(20, size=200_000)), NewMail(b""), NewMail(simple(21))])
    box = await user.select("INBOX")
    await user.copy(box, uids(1, 2, 3, 10), "Archive")
    await user.copy(box, uids(4, 9), "Archive", move=True)
    await user.copy(box, uids(5), "INBOX")
    await box.expunge(uids(6, 11))
    await box.store_flags(uids(2, 3, 7), "add", ["$Label"])
    await box.release()
    return await whole(user)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_everything_is_found_again(site: Site, end: str) -> None:
    async with site.machine.run(kill=end == "kill") as life:
        seen = await lived(life)
        await life.quiet()
    async with site.machine.run() as life:
        assert await whole(await life.user()) == seen
    async with site.elsewhere() as life:
        assert await whole(await life.user()) == seen


def placed(state: State) -> dict[int, Any]:
    """Return where the mails lie, by UID."""
    places = state.column("place").tolist()
    return {uid: (state.home_of(at), places[at]) for at, uid in enumerate(state.uids.tolist())}


async def test_a_batch_that_no_index_has_is_found_by_list(site: Site) -> None:
    async with site.machine.run() as life:
        await (await life.user()).append("INBOX", [NewMail(simple(n), ("\\Seen",)) for n in range(3)])
        await (await life.user()).flush(everything=True)
    async with site.machine.run(kill=True) as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n), ("\\Seen", "$x") if n == 4 else ()) for n in range(3, 300)])
        box = await user.select("INBOX")
        rows = placed(box.state)
        seen = await whole(user)
    for key in [key for key in site.memory.keys if key.startswith("_journal/")]:
        await site.memory.delete_batch([key], kind="journal")
    async with site.elsewhere() as life:
        user = await life.user()
        assert await whole(user) == seen
        state = (await user.select("INBOX")).state
        assert rows == {
            uid: (state.home_of(at), state.column("place")[at].tolist()) for at, uid in enumerate(state.uids)
        }


async def test_a_mail_of_a_batch_decodes_only_as_itself(site: Site) -> None:
    """The places of two mails are exchanged, as in an index that is wrong."""
    async with site.machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
    async with site.elsewhere() as life:
        box = await (await life.user()).select("INBOX")
        place = box.state.column("place")
        place[[0, 1]] = place[[1, 0]]
        with pytest.raises(Corrupt):
            await box.mail(1)
        assert await box.mail(3) == simple(2)
        await box.release()


async def test_a_damaged_mail_hides_no_other(site: Site) -> None:
    async with site.machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(5)])
        box = await user.select("INBOX")
        start, length = box.state.column("place")[2, 1:].tolist()
        key = key_of(box.guid, 1)
        await box.release()
    data, modified = site.memory.objects[key]
    site.memory.objects[key] = data[: start + 60] + bytes(length - 60) + data[start + length :], modified
    async with site.elsewhere() as life:
        box = await (await life.user()).select("INBOX")
        found = {uid: mail async for uid, mail in box.mails([1, 2, 3, 4, 5])}
        assert isinstance(found.pop(3), Corrupt)
        assert found == {1: simple(0), 2: simple(1), 4: simple(3), 5: simple(4)}
        await box.release()


# -- UIDs --------------------------------------------------------------------------------------------------------------


class Answers(MemoryDriver):
    """A bucket that fails, or delays, the next PUTs of mails."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0
        self.gate: asyncio.Event | None = None

    async def put(self, key: str, data: bytes, *, kind: Any) -> None:
        if kind == "mail" and data and self.gate is not None:
            await self.gate.wait()
        await super().put(key, data, kind=kind)


async def test_what_comes_during_a_put_is_the_next_batch(plain: Site) -> None:
    plain.memory = plain.bucket.driver = Answers()
    async with plain.machine.run() as life:
        user = await life.user()
        await life.quiet()
        plain.memory.gate = asyncio.Event()
        with life.counting() as requests:
            first = asyncio.ensure_future(user.append("INBOX", [NewMail(simple(0))]))
            await asyncio.sleep(0.01)
            others = [asyncio.ensure_future(user.append("INBOX", [NewMail(simple(n))])) for n in range(1, 6)]
            await asyncio.sleep(0.01)
            gave_up = others.pop()
            gave_up.cancel()
            await asyncio.sleep(0.01)
            plain.memory.gate.set()
            done = await asyncio.gather(first, *others)
        assert [one.uids for one in done] == [[1], [2], [3], [4], [5]]
        assert requests.count("put", "mail") == 2
        assert (await user.status("INBOX")).messages == 5, "the mail of a sender that gave up is not written"
        box = await user.select("INBOX")
        assert not box.arrivals.waiting
        assert not box.arrivals.writing
        await box.release()


async def test_the_uids_of_a_batch_that_was_lost_are_taken_again(plain: Site) -> None:
    """Another writer has the first UID. The whole batch takes UIDs above it."""
    async with plain.machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(0))])
        async with plain.elsewhere() as other:
            theirs = await other.user()
            assert (await theirs.append("INBOX", [NewMail(simple(n)) for n in (1, 2, 3)])).uids == [2, 3, 4]
            mine = await user.append("INBOX", [NewMail(simple(n)) for n in (4, 5)])
            assert mine.uids == [5, 6]
            box = await user.select("INBOX")
            assert [await box.mail(uid) for uid in range(1, 7)] == [simple(n) for n in range(6)]
            await box.release()


async def test_a_single_mail_in_the_range_of_a_batch_is_void(plain: Site) -> None:
    async with plain.machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(0)), NewMail(simple(1))])
        guid = (await user.select("INBOX")).guid
    await plain.memory.put(key_of(guid, 2), plain.memory.objects[key_of(guid, 1)][0], kind="mail")
    plain.machine.lose_disk()
    for key in [key for key in plain.memory.keys if "/x/" in key and guid in key]:
        await plain.memory.delete_batch([key], kind="index")
    async with plain.machine.run() as life:
        box = await (await life.user()).select("INBOX")
        assert [await box.mail(uid) for uid in box.state.uids.tolist()] == [simple(0), simple(1)]
        await box.release()


# -- deleting ----------------------------------------------------------------------------------------------------------


async def late(life: Life, box: Mailbox) -> None:
    """Let the delay pass, and delete what may be deleted."""
    await box.flush(everything=True)
    life.time.move(DAY_S + 10)
    await life.quiet()
    await sweep(box)


async def test_a_batch_goes_when_nothing_refers_to_any_of_its_mails(plain: Site) -> None:
    async with plain.machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(4)])
        box = await user.select("INBOX")
        batch = key_of(box.guid, 1)
        await user.copy(box, uids(2), "Archive")
        await box.expunge(uids(1, 2, 3))
        await late(life, box)
        assert batch in plain.memory.objects, "mail 4 is there"
        await box.expunge(uids(4))
        await late(life, box)
        assert batch in plain.memory.objects, "the copy of mail 2 is there"
        archive = await user.select("Archive")
        assert await archive.mail(1) == simple(1)
        await archive.expunge(uids(1))
        await life.quiet()
        await sweep(box)
        assert batch in plain.memory.objects, "the delay is not over"
        await late(life, box)
        assert batch not in plain.memory.objects
        assert not plain.mails().keys() & {key_of(box.guid, uid) for uid in range(1, 5)}
        await archive.release()
        await box.release()


async def test_a_deleted_mailbox_with_batches_is_cleared(plain: Site) -> None:
    async with plain.machine.run() as life:
        user = await life.user()
        guid = await user.create("Old")
        await fill(user, "Old", [simple(n) for n in range(5)])
        await (await user.box(guid)).flush(everything=True)
        await user.delete("Old")
        for _ in range(4):
            await life.let_pass(DAY_S + 60)
            await user.release()
            # The user leaves memory. The next open clears the mailbox.
            await life.let_pass(3600)
            user = life.users[-1] = await life.store.open_user("anna", SID)
            await asyncio.sleep(0.05)
        assert not [key for key in plain.memory.keys if guid in key]


async def test_a_deleted_user_leaves_nothing(plain: Site) -> None:
    async with plain.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(5)])
        await user.release()
        life.users.clear()
        found = [one async for one in users.delete(life.store, SID)]
        assert {one.what: one.objects for one in found}["mails"] == 1
        assert not [key for key in plain.memory.keys if key.startswith(user_prefix(SID))]


@pytest.mark.parametrize("restored", [False, True])
async def test_a_lost_batch(plain: Site, restored: bool) -> None:
    """Each mail is expunged when it is read. Nothing deletes the object if it comes
    back, although the other mails are expunged as well."""
    async with plain.machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
    async with plain.elsewhere() as life:
        user = await life.user()
        box = await user.select("INBOX")
        key = key_of(box.guid, 1)
        kept = plain.memory.objects[key]
        await plain.memory.delete_batch([key], kind="mail")
        with pytest.raises(NotFound):
            await box.mail(2)
        assert len(box.state) == 3, "one answer of the bucket proves nothing"
        with pytest.raises(Expunged):
            await box.mail(2, autofix=True)
        assert box.state.uids.tolist() == [1, 3]
        assert box.state.batches == {1: CLAIM_PURGED + 3}
        if restored:
            await plain.memory.put(key, kept[0], kind="mail")
            assert await box.mail(3) == simple(2)
        await box.expunge(uids(1, 3))
        await late(life, box)
        assert (key in plain.memory.objects) == restored
        await box.release()


async def test_a_batch_that_only_seemed_lost_is_served(plain: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with plain.machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
    async with plain.elsewhere() as life:
        box = await (await life.user()).select("INBOX")
        get, once = life.store.env.get, [None]

        async def missing(key: str, **words: Any) -> bytes | None:
            return once.pop() if once and words["kind"] == "mail" else await get(key, **words)

        monkeypatch.setattr(type(life.store.env), "get", lambda env, key, **words: missing(key, **words))
        assert [mail async for _, mail in box.mails([1, 2, 3], autofix=True)] == [simple(n) for n in range(3)]
        assert len(box.state) == 3
        await box.release()


# -- repair, upgrade ---------------------------------------------------------------------------------------------------


async def test_rebuild_and_resync_read_the_heads(site: Site) -> None:
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(300)])
        await user.append("INBOX", [NewMail(simple(300))])
        box = await user.select("INBOX")
        done = await repair.resync(user, box.guid, keep_lost=False)
        assert (done.mails, done.lost, done.unknown) == (301, 0, 0)
        await box.release()
        await user.release()
        life.users.clear()
        found = [one async for one in repair.rebuild(life.store, SID, "anna", lambda name: name == "INBOX")]
        assert [one.mails for one in found] == [301]
        box = await (await life.user()).select("INBOX")
        assert [mail async for _, mail in box.mails(box.state.uids.tolist())] == [simple(n) for n in range(301)]
        await box.release()


async def test_resync_expunges_what_a_lost_batch_had(plain: Site) -> None:
    async with plain.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(3)])
        await user.append("INBOX", [NewMail(simple(3))])
        box = await user.select("INBOX")
        await plain.memory.delete_batch([key_of(box.guid, 1)], kind="mail")
        done = await repair.resync(user, box.guid, keep_lost=False)
        assert (done.lost, done.dropped) == (3, 3)
        assert box.state.uids.tolist() == [4]
        await box.release()


async def upgraded(life: Life, sid: StorageId = SID) -> upgrade.Upgraded:
    *_, done = [done async for done in upgrade.upgrade(life.store, sid, sid)]
    return done


async def test_a_batch_is_sealed_and_its_mails_stay_where_they_are(tmp_path: Path) -> None:
    """A site begins to encrypt. The index does not change, and a plain batch is not
    accepted afterwards."""
    site = Site(tmp_path)
    async with site.machine.run() as life:
        seen = await lived(life)
        box = await life.store.users[SID].select("INBOX")
        places = box.state.column("place").tolist()
        await box.release()
    before = {key: data for key, (data, _) in site.memory.objects.items() if "/m/" in key}
    site.bucket.codec = lambda: Codec(KEYS, "k1")
    async with site.machine.run() as life:
        done = await upgraded(life)
        assert (done.damaged, done.foreign) == (0, 0)
        assert (await upgraded(life)).upgraded == 0
    batch = next(key for key in before if key.endswith("00000002"))
    assert len(site.memory.objects[batch][0]) == len(before[batch])
    assert b"Subject" not in site.memory.objects[batch][0]
    await site.memory.delete_batch([key for key in site.memory.keys if key.startswith("_journal")], kind="journal")
    async with site.machine.run() as life:
        *_, left = [left async for left in upgrade.finish(life.store)]
        assert (left.users, left.damaged, left.finished) == ({}, 0, True)
    site.bucket.codec = lambda: Codec(KEYS, "k1", require_encryption=True)
    async with site.elsewhere() as life:
        assert await whole(await life.user()) == seen
        box = await life.store.users[SID].select("INBOX")
        assert box.state.column("place").tolist() == places
        await box.release()
    # A new key, and a reader that has the old bytes half read.
    site.bucket.codec = lambda: Codec(KEYS, "k2")
    async with site.machine.run() as life:
        assert (await upgraded(life)).damaged == 0
        assert await whole(await life.user()) == seen


async def test_a_damaged_mail_keeps_its_batch_as_it_is(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.machine.run() as life:
        await fill(await life.user(), "INBOX", [simple(n) for n in range(3)])
    key = next(iter(site.mails()))
    data, modified = site.memory.objects[key]
    site.memory.objects[key] = data[:-40] + bytes(40), modified
    site.bucket.codec = lambda: Codec(KEYS, "k1")
    async with site.machine.run() as life:
        assert (await upgraded(life)).damaged == 1
        assert site.memory.objects[key][0] == data[:-40] + bytes(40)


@pytest.mark.parametrize("kind", ["plain", "sealed"])
async def test_a_copied_user_gets_the_batches(tmp_path: Path, kind: str) -> None:
    site = Site(tmp_path, lambda: Codec(KEYS, "k1" if kind == "sealed" else None))
    carla = StorageId("carla")
    async with site.machine.run() as life:
        seen = await lived(life)
    for key, (data, _) in list(site.memory.objects.items()):
        if "/anna/" in key:
            await site.memory.put(user_prefix(carla) + key.split("/", 2)[2], data, kind="mail")
    async with site.machine.run() as life:
        *_, done = [done async for done in upgrade.take_over_copy(life.store, carla, SID)]
        assert (done.damaged, done.foreign) == (0, 0)
        assert await whole(await life.user("carla")) == seen
        assert await whole(await life.user()) == seen


@pytest.mark.parametrize("kind", ["plain", "sealed"])
async def test_a_bucket_without_batches_is_served_and_upgraded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket was written by an obox that knew no batches. It gets none until the
    version is raised. Then the older obox refuses it."""
    old = Old(kind, tmp_path, 2)
    async with old.machine.run() as life:
        await old.check(life)
        user = await life.user()
        with life.counting() as requests:
            done = await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
        assert requests.count("put", "mail") == 3
        first = done.uids[0]
        await user.flush(everything=True)
        more = {str(uid): simple(n) for n, uid in enumerate(done.uids)}
        await old.check(life, more)
        await mark.raise_forms(life.store.env, forms.reads())
        with life.counting() as requests:
            await user.append("INBOX", [NewMail(simple(n)) for n in range(3)])
        assert requests.count("put", "mail") == 1
        more |= {str(first + 3 + n): simple(n) for n in range(3)}
        await old.check(life, more)
    old.machine.lose_disk()
    async with old.machine.run() as life:
        await old.check(life, more)
        box = await (await life.user()).select("INBOX")
        for uid, mail in more.items():
            assert await box.mail(int(uid)) == mail
        await box.release()
    monkeypatch.setitem(forms.FORMS, "mails", forms.Form(1, 1))
    with pytest.raises(ConfigError, match="mails 2"):
        async with old.machine.run():
            pass
    monkeypatch.delitem(forms.FORMS, "mails")
    with pytest.raises(ConfigError, match="mails 2"):
        async with old.machine.run():
            pass
