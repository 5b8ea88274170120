"""Mails whose object is missing in the bucket or does not decode: what a read returns,
and what autofix_storage does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from machines import Bucket, Life, Machine, fill, uids
from mails import simple

from obox.errors import Corrupt, Expunged, NotFound, Unavailable
from obox.mailbox.invariants import check
from obox.mailbox.search import And, Body, Flag, Header, Not
from obox.objectstore import Codec, MemoryDriver, ObjectKind, load_keys
from obox.objectstore.faults import FaultyDriver
from obox.objectstore.keys import mail_key, owner_of
from obox.store import Env, NewMail, User
from obox.store.operate.repair import rebuild, resync
from obox.store.recent import Recent
from obox.store.user.flush import sweep
from obox.store.user.mailbox import Mailbox
from obox.types import Uid

GET, LIST = ("get", "mail"), ("list", "mail")
DAY = 86_400.0
LARGE = b"Subject: large\r\n\r\n" + bytes(range(33, 123)) * 20_000


pytestmark = pytest.mark.usefixtures("single_mails")


def plain() -> Codec:
    return Codec({}, None)


class Shelf:
    """A bucket in memory, a machine over it, and ways to remove and restore objects
    without the knowledge of the backend."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.driver = MemoryDriver()
        self.faults = FaultyDriver(self.driver, rng=random.Random(0))
        self.bucket = Bucket("memory://", plain, driver=self.faults)
        self.machine = Machine(self.bucket, path / "disk", **settings)
        # tests/store/test_batch.py has lost batches.

    async def take(self, life: Life, *keys: str) -> dict[str, bytes]:
        """Remove objects from the bucket and from the local caches."""
        taken = {key: await self.driver.get(key, kind="mail") for key in keys}
        await self.driver.delete_batch(keys, kind="mail")
        await self.forget(life, *keys)
        return taken

    async def replace(self, life: Life, key: str, data: bytes) -> None:
        await self.take(life, key)
        await self.driver.put(key, data, kind="mail")

    async def forget(self, life: Life, *keys: str) -> None:
        """Drop these objects from the local caches."""
        for key in keys:
            await life.store.env.fscache.drop(key)
        life.store.env.recent = Recent()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


async def opened(user: User, name: str = "INBOX") -> Mailbox:
    box = await user.select(name)
    assert isinstance(box, Mailbox)
    return box


def key_of(box: Mailbox, uid: int) -> str:
    return mail_key(box.user.storage_id, box.guid, Uid(uid))


async def read(box: Mailbox, numbers: Sequence[int], *, autofix: bool | None = None) -> dict[int, object]:
    """Return for each UID its mail or the kind of its error."""
    found = {uid: mail async for uid, mail in box.mails(numbers, autofix=autofix)}
    return {uid: mail if isinstance(mail, bytes) else type(mail) for uid, mail in found.items()}


GONE = type(None)


# -- without autofix ---------------------------------------------------------------------------------------------------


async def test_a_lost_mail_is_reported_and_hides_no_other(shelf: Shelf) -> None:
    """The read makes a single GET for each mail, and the index does not change."""
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(5)])
        box = await opened(user)
        await shelf.take(life, key_of(box, 2), key_of(box, 4))
        await shelf.forget(life, key_of(box, 5))
        await life.quiet()
        with life.counting() as requests:
            found = await read(box, [1, 2, 3, 4, 5])
        assert found == {1: simple(0), 2: NotFound, 3: simple(2), 4: NotFound, 5: simple(4)}
        assert requests.requests() == {GET: 3}
        with pytest.raises(NotFound):
            await box.mail(2)
        with pytest.raises(NotFound):
            await box.part(2, 0, 10)
        assert len(box.state) == 5


async def test_what_the_cache_still_has_is_served_and_nobody_notices(shelf: Shelf) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0)])
        box = await opened(user)
        await life.store.env.fscache.flush()
        await shelf.driver.delete_batch([key_of(box, 1)], kind="mail")
        await life.quiet()
        with life.counting() as requests:
            assert await read(box, [1], autofix=True) == {1: simple(0)}
        assert requests.requests() == {}
        assert len(box.state) == 1


@pytest.mark.parametrize("size", [len(simple(0)), len(LARGE)], ids=["small", "large"])
@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "a bit", "another mail", "a newer format"])
async def test_a_damaged_mail_is_no_lost_one(shelf: Shelf, size: int, damage: str) -> None:
    """A read in whole and in part raises Corrupt, and autofix_storage does not expunge
    the mail."""
    source = simple(0) if size < len(LARGE) else LARGE
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [source, source])
        box = await opened(user)
        key = key_of(box, 1)
        data = bytearray(await shelf.driver.get(key, kind="mail"))
        other = await shelf.driver.get(key_of(box, 2), kind="mail")
        newer = bytes([*data[:4], data[4] + 1, *data[5:]])
        data[len(data) // 8] ^= 1
        damaged = {
            "garbage": b"no object of ours",
            "cut": bytes(data[: len(data) // 20]),
            "empty": b"",
            "a bit": bytes(data),
            "another mail": other,
            "a newer format": newer,
        }[damage]
        await shelf.replace(life, key, damaged)
        await shelf.forget(life, key_of(box, 2))
        assert await read(box, [1, 2], autofix=True) == {1: Corrupt, 2: source}
        with pytest.raises(Corrupt):
            await box.part(1, 0, len(source), autofix=True)
        assert box.state.uids.tolist() == [1, 2]


async def test_a_mail_under_a_key_that_is_not_configured_is_damaged(tmp_path: Path) -> None:
    key = tmp_path / "master.key"
    key.write_bytes(b"k" * 32)
    shelf = Shelf(tmp_path)
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0)])
        box = await opened(user)
        codec = Codec(load_keys({"k1": str(key)}), "k1", "none")
        owner = owner_of(key_of(box, 1))
        decoded = plain().decode(await shelf.driver.get(key_of(box, 1), kind="mail"), owner)
        sealed = codec.encode(ObjectKind.MAIL, owner, decoded.oid, decoded.meta, decoded.payload)
        await shelf.replace(life, key_of(box, 1), sealed)
        assert await read(box, [1], autofix=True) == {1: Corrupt}
        assert len(box.state) == 1


# -- searching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autofix", [False, True])
async def test_a_search_goes_on_over_lost_and_damaged_mails(shelf: Shelf, autofix: bool) -> None:
    """A lost mail matches neither a text nor NOT of this text. Conditions on its index
    record still apply."""
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [b"Subject: s%d\r\n\r\nneedle\r\n" % n for n in range(4)])
        box = await opened(user)
        await shelf.take(life, key_of(box, 2))
        await shelf.replace(life, key_of(box, 3), b"garbage")
        everything = box.state.uids
        header = await box.search(Header("subject", "s1"), everything, autofix=autofix)
        assert header.tolist() == [2], "out of the cached header"
        found = await box.search(Body("needle"), everything, autofix=autofix)
        assert found.tolist() == [1, 4]
        assert (await box.search(Not(Body("needle")), everything, autofix=autofix)).tolist() == []
        flagged = await box.search(And((Flag("\\Seen", False), Header("subject", "s2"))), everything, autofix=autofix)
        assert flagged.tolist() == [3]
        assert box.state.uids.tolist() == ([1, 3, 4] if autofix else [1, 2, 3, 4])


# -- autofix -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk", ["kept", "lost"])
async def test_a_mail_that_is_gone_is_expunged_and_its_key_left_alone(shelf: Shelf, disk: str) -> None:
    """The expunge is final, even if the machine is lost. Nothing deletes the object if
    it comes back."""
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(3)])
        box = await opened(user)
        key = key_of(box, 2)
        taken = await shelf.take(life, key)
        await life.quiet()
        before = box.state.highestmodseq
        with life.counting() as requests:
            assert await read(box, [1, 2, 3], autofix=True) == {1: simple(0), 2: GONE, 3: simple(2)}
        assert requests.requests() == {GET: 1, LIST: 1}
        assert box.state.uids.tolist() == [1, 3]
        assert box.state.gone_since(before).tolist() == [2]
        with pytest.raises(Expunged):
            await box.mail(2, autofix=True)
        check(box.state)
        await shelf.driver.put(key, taken[key], kind="mail")
        await life.let_pass(2)
    if disk == "lost":
        shelf.machine.lose_disk()
    async with shelf.machine.run() as life:
        user = await life.user()
        box = await opened(user)
        await life.let_pass(3 * DAY)
        await sweep(box)
        assert box.state.uids.tolist() == [1, 3]
        assert await shelf.driver.get(key, kind="mail") == taken[key]
        check(box.state)


async def test_many_lost_mails_cost_a_list_each_and_one_expunge_a_batch(shelf: Shelf) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(300)])
        box = await opened(user)
        lost = list(range(2, 300, 2))
        await shelf.take(life, *(key_of(box, uid) for uid in lost))
        await life.quiet()
        with life.counting() as requests:
            found = await read(box, list(range(1, 301)), autofix=True)
            await life.store.journal.sync()
        assert {uid for uid, mail in found.items() if mail is GONE} == {*lost}
        assert requests.count("list", "mail") == len(lost)
        assert requests.count("get", "mail") == len(lost)
        assert requests.count("put") <= 2, "their expunges share journal objects"
        assert len(box.state) == 300 - len(lost)
        with life.counting() as requests:
            await read(box, lost, autofix=True)
        assert requests.requests() == {}
        check(box.state)


@pytest.mark.parametrize("how", ["mails", "mail", "fields", "part", "search"])
@pytest.mark.parametrize("given", [True, None], ids=["asked for", "by the settings"])
async def test_every_way_to_read_mends(tmp_path: Path, how: str, given: bool | None) -> None:
    shelf = Shelf(tmp_path, autofix_storage=given is None)
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [LARGE if how == "part" else simple(0)])
        box = await opened(user)
        life.store.env.metacache.drop_fields(user.storage_id, box.guid, [1])
        await shelf.take(life, key_of(box, 1))
        if given is None:
            assert await read(box, [1], autofix=False) == {1: NotFound}
        match how:
            case "mails":
                assert await read(box, [1], autofix=given) == {1: GONE}
            case "mail":
                with pytest.raises(Expunged):
                    await box.mail(1, autofix=given)
            case "fields":
                assert await box.fields([1], autofix=given) == [None]
            case "part":
                with pytest.raises(Expunged):
                    await box.part(1, 0, 100, autofix=given)
            case "search":
                assert len(await box.search(Body("x"), uids(1), autofix=given)) == 0
        assert len(box.state) == 0


@pytest.mark.parametrize("how", ["mails", "part"])
async def test_a_404_in_passing_expunges_nothing(shelf: Shelf, how: str) -> None:
    """The object is there. A second request finds it, and the mail is served as
    usual."""
    source = simple(0) if how == "mails" else LARGE
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [source, simple(1)])
        box = await opened(user)
        key = key_of(box, 1)
        await shelf.forget(life, key)
        shelf.faults.fail_next("get", key, "missing")
        await life.quiet()
        with life.counting() as requests:
            if how == "mails":
                assert await read(box, [1, 2], autofix=True) == {1: source, 2: simple(1)}
            else:
                assert await box.part(1, 1000, 2000, autofix=True) == source[1000:2000]
        assert requests.count("list") == 1
        assert requests.count("get") <= 4
        assert box.state.uids.tolist() == [1, 2]
        assert shelf.faults.history, "the fault was made"
        assert await box.mail(1) == source


async def test_a_list_that_names_what_no_get_finds_is_not_believed(shelf: Shelf) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0)])
        box = await opened(user)
        await shelf.forget(life, key_of(box, 1))
        shelf.faults.fail_next("get", key_of(box, 1), "missing", times=2)
        await life.quiet()
        with life.counting() as requests:
            assert await read(box, [1], autofix=True) == {1: GONE}
        assert requests.requests() == {GET: 2, LIST: 1}


@pytest.mark.parametrize("op", ["list", "get"])
async def test_an_outage_at_the_second_look_expunges_nothing(shelf: Shelf, op: Any) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0)])
        box = await opened(user)
        await shelf.forget(life, key_of(box, 1))
        shelf.faults.fail_next("get", key_of(box, 1), "missing")
        shelf.faults.fail_next(op, "/m/", "refused", times=99)
        with pytest.raises(Unavailable):
            await read(box, [1], autofix=True)
        assert len(box.state) == 1


async def test_while_nothing_can_be_changed_nothing_is_expunged(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0)])
        box = await opened(user)
        await shelf.take(life, key_of(box, 1))

        def late() -> None:
            raise Unavailable("the journal is late")

        with monkeypatch.context() as patch:
            patch.setattr(life.store.journal, "check", late)
            with pytest.raises(Unavailable):
                await read(box, [1], autofix=True)
            assert len(box.state) == 1
        assert await read(box, [1], autofix=True) == {1: GONE}


async def test_who_finds_the_same_mail_waits_for_who_looks(shelf: Shelf) -> None:
    """Several sessions find the lost mail at the same time. There is a single LIST and
    a single expunge."""
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(3)])
        box = await opened(user)
        await shelf.take(life, key_of(box, 1), key_of(box, 3))
        await life.quiet()
        with life.counting() as requests:
            found = await asyncio.gather(*(read(box, [1, 2, 3], autofix=True) for _ in range(8)))
        assert found == [{1: GONE, 2: simple(1), 3: GONE}] * 8
        assert requests.count("list") == 2
        assert len(box.state.gone_uid) == 2


async def test_an_expunged_mail_whose_object_is_purged_is_not_looked_for(tmp_path: Path) -> None:
    """This backend has expunged the mail and deleted its object, and a session still
    knows the UID. The session makes no request and no second expunge."""
    shelf = Shelf(tmp_path, delete_delay_s=0.0)
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0), simple(1)])
        box = await opened(user)
        await box.expunge(uids(1))
        await life.let_pass(1)
        await box.flush()
        await sweep(box)
        assert key_of(box, 1) not in await shelf.bucket.keys()
        await life.quiet()
        before = box.state.highestmodseq
        with life.counting() as requests:
            assert await read(box, [1, 2], autofix=True) == {1: GONE, 2: simple(1)}
        assert requests.requests() == {}
        assert box.state.highestmodseq == before


async def test_expunged_between_the_404_and_the_second_look(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0)])
        box = await opened(user)
        await shelf.take(life, key_of(box, 1))
        get = Env.get

        async def then_expunge(*args: Any, **named: Any) -> bytes | None:
            found = await get(*args, **named)
            await box.expunge(uids(1))
            return found

        monkeypatch.setattr(Env, "get", then_expunge)
        assert await read(box, [1], autofix=True) == {1: GONE}
        assert len(box.state.gone_uid) == 1


# -- copies ------------------------------------------------------------------------------------------------------------


async def test_a_lost_mail_is_copied_and_moved_without_being_read(shelf: Shelf) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0), simple(1)])
        box = await opened(user)
        await shelf.take(life, key_of(box, 1), key_of(box, 2))
        await life.quiet()
        with life.counting() as requests:
            copied = await user.copy(box, uids(1), "Archive")
            moved = await user.copy(box, uids(2), "Archive", move=True)
        assert requests.count("get") == 0
        assert (copied.target.tolist(), moved.target.tolist()) == ([1], [2])
        archive = await opened(user, "Archive")
        assert await read(archive, [1, 2]) == {1: NotFound, 2: NotFound}


@pytest.mark.parametrize("home", ["kept", "expunged"])
async def test_a_lost_copy_lets_go_of_its_home_and_the_home_finds_out_by_itself(shelf: Shelf, home: str) -> None:
    """autofix_storage removes the record of the copy and its holder in the home
    mailbox. The record in the home mailbox is removed when the mail is read there."""
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0), simple(1)])
        box = await opened(user)
        await user.copy(box, uids(1), "Archive")
        await user.copy(box, uids(1), "Sent")
        if home == "expunged":
            await box.expunge(uids(1))
        key = key_of(box, 1)
        taken = await shelf.take(life, key)
        archive, sent = await opened(user, "Archive"), await opened(user, "Sent")
        assert await read(archive, [1], autofix=True) == {1: GONE}
        assert len(archive.state) == 0
        assert len(sent.state) == 1, "each mailbox looks for itself"
        assert [holder for holder, released in box.state.holders.items() if not released] == [(1, sent.guid, 1)]
        assert box.state.uids.tolist() == ([1, 2] if home == "kept" else [2])
        assert await read(sent, [1], autofix=True) == {1: GONE}
        assert all(released for _, released in box.state.holders.items())
        assert await read(box, [1, 2], autofix=True) == {1: GONE, 2: simple(1)}
        await shelf.driver.put(key, taken[key], kind="mail")
        await life.let_pass(3 * DAY)
        for one in (archive, sent, box):
            await sweep(one)
            check(one.state)
        assert await shelf.driver.get(key, kind="mail") == taken[key]


async def test_a_copy_within_its_mailbox_is_lost_with_its_mail(shelf: Shelf) -> None:
    """Two records refer to the same object. The store looks for the object once."""
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(0)])
        box = await opened(user)
        await user.copy(box, uids(1), "INBOX")
        await shelf.take(life, key_of(box, 1))
        await life.quiet()
        with life.counting() as requests:
            assert await read(box, [1, 2], autofix=True) == {1: GONE, 2: GONE}
        assert requests.requests() == {GET: 1, LIST: 1}
        assert all(released for _, released in box.state.holders.items())
        check(box.state)


async def test_a_copy_whose_home_is_deleted(shelf: Shelf) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await user.create("Work")
        await fill(user, "Work", [simple(0)])
        work = await opened(user, "Work")
        await user.copy(work, uids(1), "Archive")
        key = key_of(work, 1)
        await work.release()
        await user.delete("Work")
        await shelf.take(life, key)
        archive = await opened(user, "Archive")
        assert await read(archive, [1], autofix=True) == {1: GONE}
        await archive.release()
        await life.let_pass(3 * DAY)
    async with shelf.machine.run() as life:
        user = await life.user()
        await life.let_pass(10)
        assert (await user.status("Archive")).messages == 0


# -- repair ------------------------------------------------------------------------------------------------------------


async def test_force_resync_finds_the_rest(shelf: Shelf) -> None:
    async with shelf.machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(4)])
        box = await opened(user)
        keys = [key_of(box, uid) for uid in (1, 2, 3)]
        taken = await shelf.take(life, *keys)
        assert await read(box, [1], autofix=True) == {1: GONE}
        reported = await resync(user, box.guid, keep_lost=True)
        assert (reported.mails, reported.lost, reported.dropped) == (3, 2, 0)
        done = await resync(user, box.guid, keep_lost=False)
        assert (done.mails, done.lost, done.dropped) == (1, 2, 2)
        assert box.state.uids.tolist() == [4]
        for key, data in taken.items():
            await shelf.driver.put(key, data, kind="mail")
        await life.let_pass(3 * DAY)
        await sweep(box)
        assert {*keys} <= {*await shelf.bucket.keys()}, "deleted by nobody"
        sid = user.storage_id
        await box.release()
        await user.release()
        life.users.clear()
        rebuilt = [one async for one in rebuild(life.store, sid, "anna", lambda name: name == "INBOX")]
        assert [(one.name, one.mails) for one in rebuilt] == [("INBOX", 4)], "the way to get them back"


async def test_a_mailbox_without_a_name_gets_the_prefix(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, lost_mailbox_prefix="lost and found ")
    async with shelf.machine.run() as life:
        user = await life.user()
        guid = await user.create("Work")
        await user.append("Work", [NewMail(simple(0))])
        sid = user.storage_id
    shelf.machine.lose_disk()
    for key in await shelf.bucket.keys():
        if "/x/root/" in key or key.startswith("_journal/"):
            await shelf.driver.delete_batch([key], kind="index")
    async with shelf.machine.run() as life:
        names = [one.name async for one in rebuild(life.store, sid, "anna", lambda name: False)]
        assert f"lost and found {guid[:8]}" in names
