"""Mails that lie in packs are read (docs/packs.md). The tests write the packs
themselves: obox does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from machines import SID, Bucket, Life, Machine, fill, uids, whole
from mails import simple

from obox import forms
from obox.errors import Expunged, NotFound, Unavailable
from obox.objectstore import Codec, MemoryDriver
from obox.objectstore.keys import mail_key, owner_of, pack_key
from obox.store import Mailbox, NewMail
from obox.store.mails import pack
from obox.store.mails.batch import cut
from obox.store.operate import repair
from obox.types import Uid

GET, LIST, HEADS = ("get", "mail"), ("list", "mail"), ("list", "index")


@pytest.fixture(autouse=True)
def _three(monkeypatch: pytest.MonkeyPatch) -> None:
    """This obox does not say that it reads packs."""
    monkeypatch.setitem(forms.FORMS, "mails", forms.Form(1, 3, offers=1))


class Site:
    """A bucket in memory, and a machine that serves it."""

    def __init__(self, tmp_path: Path) -> None:
        self.memory = MemoryDriver()
        self.bucket = Bucket("memory://", lambda: Codec({}, None), driver=self.memory)
        self.machine = Machine(self.bucket, tmp_path / "disk")
        self.other = self.machine.renamed("second", tmp_path / "other")
        # Most of these packs hold mails that were objects of their own.
        self.machine.batches = self.other.batches = False

    async def pack(
        self, life: Life, box: Mailbox, some: Sequence[int], serial: int = 1, covers: Iterable[str] = ()
    ) -> str:
        """PUT a pack of mails, which no index knows. Returns its key."""
        parts = []
        for uid in some:
            at = box.state.position(uid)
            assert at is not None
            first, start, length = box.state.column("place")[at].tolist()
            key = mail_key(SID, box.guid, Uid(first or uid))
            data = self.memory.objects[key][0]
            envelope = cut(data[start : start + length]) if first else data
            parts.append(pack.Part(uid, box.state.column("oid")[at].tobytes(), envelope))
        key, env = pack_key(SID, box.guid, serial, "other"), life.store.env
        data, _ = pack.encode(env.codec, key, env.new_oid(), covers, parts)
        await self.memory.put(key, data, kind="index")
        return key

    async def drop(self, box: Mailbox, some: Sequence[int]) -> None:
        """Delete the single objects of mails."""
        await self.memory.delete_batch([mail_key(SID, box.guid, Uid(uid)) for uid in some], kind="mail")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def allow(*lives: Life) -> None:
    """Let the bucket have packs. What is written before are single objects."""
    for life in lives:
        life.store.env.forms.rise({"mails": 3})


async def forget(life: Life, box: Mailbox) -> None:
    """Empty the caches of mails."""
    life.store.env.recent.clear()
    for uid in box.state.uids.tolist():
        await life.store.env.fscache.drop(mail_key(SID, box.guid, Uid(uid)))


async def test_an_index_that_knows_no_pack_finds_every_mail(site: Site) -> None:
    """Another backend has packed the mailbox. One LIST and one head are read, and later
    mails are read by ranges."""
    mails = [simple(n) for n in range(300)]
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", mails)
        box = await user.select("INBOX")
        await site.pack(life, box, [*range(1, 301)])
        await site.drop(box, [*range(1, 301)])
        await box.release()
    async with site.other.run() as life:
        allow(life)
        box = await (await life.user()).select("INBOX")
        with life.counting() as requests:
            found = [mail async for _, mail in box.mails(box.state.uids.tolist())]
        assert found == mails
        assert requests.requests()[HEADS] == 1
        assert len(box.state.packs) == 1
        await forget(life, box)
        with life.counting() as requests:
            found = [mail async for _, mail in box.mails(box.state.uids.tolist())]
        assert found == mails
        assert requests.requests() == {GET: 1}
        await box.flush(everything=True)
        await box.release()
    site.machine.lose_disk()
    async with site.machine.run() as life:
        allow(life)
        box = await (await life.user()).select("INBOX")
        with life.counting() as requests:
            assert [mail async for _, mail in box.mails(box.state.uids.tolist())] == mails
        assert requests.requests() == {GET: 1}, "the base has the places"
        await box.release()


async def test_a_cold_fetch_of_ten_thousand_mails_makes_at_most_thirty_gets(site: Site) -> None:
    body = np.random.default_rng(1).bytes(6000).hex().encode()
    mails = [b"Subject: %d\r\n\r\n%b" % (n, body[n % 4000 :][:8000]) for n in range(10_000)]
    async with site.machine.run() as life:
        site.machine.batches = True
        user = await life.user()
        await fill(user, "INBOX", mails, at_once=250)
        box = await user.select("INBOX")
        for serial in range(2):
            await site.pack(life, box, [*range(1 + 5000 * serial, 5001 + 5000 * serial)], serial + 1)
        await site.drop(box, [*range(1, 10_001)])
        await box.release()
    async with site.other.run() as life:
        allow(life)
        box = await (await life.user()).select("INBOX")
        assert await box.mail(1) == mails[0]
        await box.flush(everything=True)
        await box.release()
    site.machine.lose_disk()
    async with site.machine.run() as life:
        allow(life)
        box = await (await life.user()).select("INBOX")
        at = 0
        with life.counting() as requests:
            async for uid, mail in box.mails(box.state.uids.tolist()):
                assert mail == mails[uid - 1]
                at += 1
        assert at == 10_000
        assert requests.count() <= 30
        await box.release()


async def test_a_place_that_is_stale_is_looked_for_again(site: Site) -> None:
    """The known pack was covered and deleted; then the mail is alone again; then in
    nothing."""
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(4)])
        allow(life)
        box = await user.select("INBOX")
        old = await site.pack(life, box, [1, 2, 3])
        new = await site.pack(life, box, [2, 3, 4], 2, [old.rsplit("/", 1)[1]])
        kept = dict(site.memory.objects)
        await site.drop(box, [1, 2, 3, 4])
        await site.memory.delete_batch([new], kind="index")
        await forget(life, box)
        assert await box.mail(2) == simple(1)
        await site.memory.put(new, kept[new][0], kind="index")
        await site.memory.delete_batch([old], kind="index")
        await forget(life, box)
        assert [await box.mail(uid) for uid in (2, 3, 4)] == [simple(1), simple(2), simple(3)]
        with pytest.raises(NotFound):
            await box.mail(1)
        single = mail_key(SID, box.guid, Uid(1))
        await site.memory.put(single, kept[single][0], kind="mail")
        assert await box.mail(1) == simple(0)
        await box.release()


async def test_a_foreign_object_under_the_key_of_a_packed_mail_is_not_the_mail(site: Site) -> None:
    """A writer that was frozen for days PUTs its mail under a key that is free
    again."""
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(2)])
        allow(life)
        box = await user.select("INBOX")
        await site.pack(life, box, [1, 2])
        env, key = life.store.env, mail_key(SID, box.guid, Uid(1))
        late = env.codec.encode(1, owner_of(key), env.new_oid(), b"\x80", b"late")
        site.memory.objects[key] = late, 0.0
        await forget(life, box)
        assert await box.mail(1) == simple(0)
        await box.release()


async def test_copies_and_parts_of_large_mails_are_read_from_the_pack_of_their_home(site: Site) -> None:
    large = b"Subject: large\r\n\r\n" + bytes(range(33, 123)) * 30_000
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0), large, simple(2)])
        box = await user.select("INBOX")
        await user.copy(box, uids(1, 2, 3), "Archive")
        await site.pack(life, box, [1, 2, 3])
        await site.drop(box, [1, 2, 3])
        await box.release()
        seen = await whole(user)
    async with site.other.run() as life:
        allow(life)
        user = await life.user()
        archive = await user.select("Archive")
        for start in range(0, len(large), 256 << 10):
            assert await archive.part(2, start, start + (256 << 10)) == large[start : start + (256 << 10)]
        assert [await archive.mail(uid) for uid in (1, 2, 3)] == [simple(0), large, simple(2)]
        assert await whole(user) == seen
        await archive.release()


async def test_a_mail_is_lost_only_after_a_list_and_a_renewed_lease(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(3)])
        allow(life)
        box = await user.select("INBOX")
        await site.pack(life, box, [1, 2])
        await site.drop(box, [1, 2, 3])
        await forget(life, box)
        assert await box.mail(1, autofix=True) == simple(0)
        await life.quiet()
        announced: list[int] = []

        async def refused() -> None:
            announced.append(1)
            raise Unavailable("fenced")

        monkeypatch.setattr(user.journal, "announce", refused)
        with pytest.raises(Unavailable):
            await box.mail(3, autofix=True)
        assert announced
        assert box.state.uids.tolist() == [1, 2, 3]
        monkeypatch.delattr(user.journal, "announce")
        with pytest.raises(Expunged):
            await box.mail(3, autofix=True)
        assert box.state.uids.tolist() == [1, 2]
        await box.release()


@pytest.mark.parametrize("damage", ["head", "short", "kind"])
async def test_a_damaged_pack_hides_no_other(site: Site, damage: str) -> None:
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(3)])
        allow(life)
        box = await user.select("INBOX")
        await site.pack(life, box, [1, 2], 1)
        bad = await site.pack(life, box, [1, 2, 3], 2)
        data = site.memory.objects[bad][0]
        wrong = {"head": data[:60] + bytes(10) + data[70:], "short": data[:-1], "kind": data[:6] + b"\3" + data[7:]}
        site.memory.objects[bad] = wrong[damage], 0.0
        await site.drop(box, [1, 2])
        await forget(life, box)
        assert [await box.mail(uid) for uid in (1, 2, 3)] == [simple(0), simple(1), simple(2)]
        await box.release()


async def test_a_bucket_without_packs_is_never_asked_for_them(site: Site) -> None:
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(3)])
        box = await user.select("INBOX")
        await site.drop(box, [1])
        await forget(life, box)
        with life.counting() as requests:
            with pytest.raises(NotFound):
                await box.mail(1)
            assert await box.mail(2) == simple(1)
        assert requests.requests() == {GET: 2}
        await box.release()


async def test_mails_of_a_batch_and_new_mails_are_read_beside_packs(site: Site) -> None:
    site.machine.batches = True
    async with site.machine.run() as life:
        allow(life)
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(n)) for n in range(6)])
        box = await user.select("INBOX")
        gone = await site.pack(life, box, [1, 2, 3])
        await user.append("INBOX", [NewMail(simple(6))])
        await forget(life, box)
        expected = [simple(n) for n in range(7)]
        assert [mail async for _, mail in box.mails(box.state.uids.tolist())] == expected
        # The places in the pack become known. Then the pack is gone, and the batch is
        # there.
        key = mail_key(SID, box.guid, Uid(1))
        batch = site.memory.objects[key][0]
        await site.drop(box, [1])
        await forget(life, box)
        assert await box.mail(2) == expected[1]
        await site.memory.put(key, batch, kind="mail")
        await site.memory.delete_batch([gone], kind="index")
        await forget(life, box)
        assert [mail async for _, mail in box.mails(box.state.uids.tolist())] == expected
        await box.release()


async def test_resync_does_not_take_packed_mails_for_lost(site: Site) -> None:
    async with site.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(4)])
        allow(life)
        box = await user.select("INBOX")
        await user.copy(box, uids(1, 4), "Archive")
        await site.pack(life, box, [1, 2])
        await site.drop(box, [1, 2, 4])
        done = await repair.resync(user, box.guid, keep_lost=False)
        assert (done.mails, done.lost, done.dropped) == (3, 1, 1)
        assert box.state.uids.tolist() == [1, 2, 3]
        archive = await user.select("Archive")
        done = await repair.resync(user, archive.guid, keep_lost=True)
        assert (done.mails, done.lost, done.dropped) == (2, 1, 0)
        await archive.release()
        await box.release()
