"""Somebody who can write to the bucket copies objects inside it. A read finds that, for
each kind of object.

In an encrypted bucket an attacker without the key can only copy objects. In a plain
bucket a copy is a mistake of an operator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from machines import SID, Bucket, Life, Machine, fill, uids
from mails import simple

from obox.errors import Corrupt
from obox.mailbox import Delta, Rows
from obox.mailbox.invariants import check
from obox.objectstore import Codec, CorruptObject, MemoryDriver, ObjectKind
from obox.objectstore.keys import bundles_prefix, journal_prefix, mail_key, owner_of, parse_bundle_key
from obox.store import Mailbox, NewMail, User
from obox.store.log.journal import JournalObject
from obox.store.operate.pull import Outgoing, Splitter, opened
from obox.store.user.discover import recheck
from obox.types import Guid, Oid, StorageId, Uid

pytestmark = pytest.mark.usefixtures("single_mails")

BEN = StorageId("ben")


@pytest.fixture(params=["sealed", "plain"])
def machine(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> Machine:
    if request.param == "sealed":
        bucket.codec = lambda: Codec({"k1": b"k" * 32}, "k1")
    made = Machine(bucket, tmp_path / "disk")
    return made


def driver(machine: Machine) -> MemoryDriver:
    assert isinstance(machine.bucket.driver, MemoryDriver)
    return machine.bucket.driver


async def copy(machine: Machine, source: str, target: str) -> None:
    """Copy an object as an attacker does who has no key."""
    await driver(machine).replace(target, await driver(machine).get(source, kind="mail"), kind="mail")


def key(box: Mailbox, uid: int) -> str:
    return mail_key(box.user.storage_id, box.guid, Uid(uid))


async def two_users(life: Life) -> tuple[User, User]:
    """Make Anna and Ben. Ben also has a claim, under UID 3 of his INBOX."""
    anna, ben = await life.user("anna"), await life.user("ben")
    await fill(anna, "INBOX", [simple(1), simple(2)])
    await fill(ben, "INBOX", [b"Subject: secret\r\n\r\nof Ben\r\n", simple(3)])
    inbox = await ben.select("INBOX")
    await ben.copy(inbox, uids(1), "INBOX")
    await inbox.release()
    return anna, ben


async def seen(box: Mailbox) -> dict[int, object]:
    out: dict[int, object] = {}
    async for uid, found in box.mails(box.state.uids.tolist()):
        out[uid] = found
    return out


Forge = Callable[[Mailbox, Mailbox, Mailbox], str]
"""A function of Anna's INBOX, her Archive and Ben's INBOX. It returns the key of the
object that is copied to Anna's next UID in INBOX."""

FORGED: dict[str, Forge] = {
    "another user's mail": lambda inbox, archive, bens: key(bens, 1),
    "another user's claim": lambda inbox, archive, bens: key(bens, 3),
    "another mailbox's mail of this UID": lambda inbox, archive, bens: key(archive, 3),
    "another UID's mail": lambda inbox, archive, bens: key(inbox, 1),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("found_by", ["delivery", "open", "resync"])
async def test_a_copy_under_the_next_uid_is_not_shown_and_stops_nothing(
    machine: Machine, forge: Forge, found_by: str
) -> None:
    async with machine.run() as life:
        anna, ben = await two_users(life)
        inbox, archive, bens = await anna.select("INBOX"), await anna.select("Archive"), await ben.select("INBOX")
        await fill(anna, "Archive", [simple(7), simple(8), simple(9)])
        forged = forge(inbox, archive, bens)
        await copy(machine, forged, key(inbox, 3))
        if found_by == "delivery":
            assert (await anna.append("INBOX", [NewMail(simple(5))])).uids == [4]
        if found_by == "resync":
            await recheck(inbox, await inbox.bundles.listing(), inbox.assignment)
        if found_by != "open":
            assert inbox.state.uids.tolist() == ([1, 2, 4] if found_by == "delivery" else [1, 2])
        for box in (inbox, archive, bens):
            await box.release()
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        inbox = await user.select("INBOX")
        expected = {1: simple(1), 2: simple(2)} | ({4: simple(5)} if found_by == "delivery" else {})
        assert await seen(inbox) == expected
        assert (await user.append("INBOX", [NewMail(simple(6))])).uids == [max(4, inbox.state.uidnext - 1)]
        assert await driver(machine).get(key(inbox, 3), kind="mail"), "left alone"
        check(inbox.state)
        await inbox.release()


async def test_many_copies_delay_nobody(machine: Machine) -> None:
    async with machine.run() as life:
        anna, ben = await two_users(life)
        inbox, bens = await anna.select("INBOX"), await ben.select("INBOX")
        for uid in range(3, 60):
            await copy(machine, key(bens, 1), key(inbox, uid))
        assert (await anna.append("INBOX", [NewMail(simple(5))])).uids == [60]
        assert inbox.state.uids.tolist() == [1, 2, 60]
        await inbox.release()
        await bens.release()


@pytest.mark.parametrize("warm", [False, True])
async def test_a_copy_over_a_mail_is_damage(machine: Machine, tmp_path: Path, warm: bool) -> None:
    async with machine.run() as life:
        anna, ben = await two_users(life)
        await fill(anna, "INBOX", [b"Subject: big\r\n\r\n" + b"x" * 3_000_000])
        inbox, bens = await anna.select("INBOX"), await ben.select("INBOX")
        if not warm:
            await life.store.env.fscache.flush()
            for uid in (1, 2, 3):
                await life.store.env.fscache.drop(key(inbox, uid))
            life.store.env.recent.clear()
        for uid in (1, 3):
            await copy(machine, key(bens, 1), key(inbox, uid))
        if warm:
            assert (await seen(inbox))[1] == simple(1), "the cache has the true one"
        else:
            found = await seen(inbox)
            assert found[2] == simple(2)
            assert isinstance(found[1], Corrupt)
            with pytest.raises(Corrupt):
                await inbox.mail(1)
            with pytest.raises(Corrupt):
                await inbox.part(3, 0, 10)
        await inbox.release()
        await bens.release()


async def test_a_forged_record_of_another_users_oid_finds_nothing_in_memory(machine: Machine) -> None:
    """Without encryption the store accepts a forged claim that is not sealed. The
    attacker reads the OID of Ben's mail in its header, and names the OID in the
    claim."""
    async with machine.run() as life:
        anna, ben = await two_users(life)
        inbox, bens = await anna.select("INBOX"), await ben.select("INBOX")
        assert b"secret" in await bens.mail(1)
        oid = (await driver(machine).get(key(bens, 1), kind="mail"))[16:32]
        rows = Rows.one(3, size=40, internaldate=1, zone=0, savedate=1, modseq=1, oid=oid)
        claim = Delta(rows=rows, claims={3: 1}, uidnext=4).encode()
        forged = Codec({}, None).encode(ObjectKind.CLAIM, owner_of(key(inbox, 3)), Oid(b"f" * 16), b"", claim)
        await driver(machine).put(key(inbox, 3), forged, kind="mail")
        assert (await anna.append("INBOX", [NewMail(simple(5))])).uids == [4]
        assert inbox.state.uids.tolist() == [1, 2, 3, 4]
        assert isinstance((await seen(inbox))[3], Corrupt)
        with pytest.raises(Corrupt):
            await inbox.mail(3)
        await inbox.release()
        await bens.release()


async def test_another_users_bundle_is_not_joined(machine: Machine) -> None:
    async with machine.run() as life:
        anna, ben = await two_users(life)
        guids = anna.entry("INBOX").guid, ben.entry("INBOX").guid
        for user in (anna, ben):
            await user.flush(everything=True)
    machine.lose_disk()
    (theirs,) = [k for k in await machine.bucket.keys(bundles_prefix(BEN, guids[1])) if k.endswith(".base")]
    await copy(machine, theirs, f"{bundles_prefix(SID, guids[0])}00000000000000ff.0123.base")
    async with machine.run() as life:
        user = await life.user()
        with pytest.raises(Corrupt, match=r"ff\.0123\.base"):
            await user.select("INBOX")
        archive = await user.select("Archive")
        assert len(archive.state) == 0
        await archive.release()


async def test_another_users_list_of_mailboxes_is_not_joined(machine: Machine) -> None:
    async with machine.run() as life:
        await two_users(life)
    machine.lose_disk()
    roots = [k for k in await machine.bucket.keys(bundles_prefix(BEN, "root")) if "first" not in k]
    await copy(machine, roots[-1], f"{bundles_prefix(SID, 'root')}00000000000000ff.0123.base")
    async with machine.run() as life:
        with pytest.raises(Corrupt):
            await life.store.open_user("anna", SID)


async def test_another_users_ready_fields_are_not_used(machine: Machine) -> None:
    async with machine.run() as life:
        anna, ben = await two_users(life)
        for user in (anna, ben):
            await fill(user, "INBOX", [simple(n) for n in range(10, 15)])
            await (await user.box(Guid(user.entry("INBOX").guid))).flush(everything=True)
    machine.lose_disk()
    keys = {
        sid: [k for k in await machine.bucket.keys(bundles_prefix(sid)) if k.endswith(".cache")] for sid in (SID, BEN)
    }
    spans = {parse_bundle_key(k).version: k for k in keys[BEN]}
    assert keys[SID]
    for own in keys[SID]:
        await copy(machine, spans.get(parse_bundle_key(own).version, keys[BEN][0]), own)
    async with machine.run() as life:
        inbox = await (await life.user()).select("INBOX")
        for field in await inbox.fields([1, 2]):
            assert field is not None
            assert b"secret" not in field.envelope
        await inbox.release()


async def test_a_journal_object_in_the_place_of_another_is_skipped(machine: Machine) -> None:
    """The changes in the copied journal object are not replayed, neither at another
    place of the history nor after a deletion of the user."""
    async with machine.run(kill=True) as life:
        anna = await life.user()
        await fill(anna, "INBOX", [simple(1), simple(2), simple(3)])
        inbox = await anna.select("INBOX")
        for uid in (1, 2, 3):
            await inbox.store_flags(uids(uid), "add", ["\\Flagged"])
            await life.store.journal.sync()
        boot = life.store.journal.boot
    objects = sorted(await machine.bucket.keys(journal_prefix("first", boot)))
    assert len(objects) >= 4
    flagged = objects[-3]
    await copy(machine, objects[-2], flagged)
    with pytest.raises(CorruptObject):
        JournalObject.decode(machine.bucket.codec(), await driver(machine).get(flagged, kind="journal"), flagged)
    machine.lose_disk()
    async with machine.run() as life:
        inbox = await (await life.user()).select("INBOX")
        flags = {
            int(uid): inbox.state.flags.of_bits(int(bits))
            for uid, bits in zip(inbox.state.uids, inbox.state.bits, strict=True)
        }
        assert [uid for uid, names in flags.items() if "\\Flagged" in names] == [2, 3]
        await inbox.release()


async def test_another_users_pull_is_refused(machine: Machine) -> None:
    async with machine.run() as life:
        _, ben = await two_users(life)
        with life.store.pulling(BEN):
            outgoing = Outgoing(life.store, BEN)
            await outgoing.prepare(ben.name, everything=False)
            data = b"".join([piece async for piece in outgoing.stream()])
        for raw in Splitter().feed(data):
            opened(life.store.env.codec, raw, BEN)
            with pytest.raises(Corrupt):
                opened(life.store.env.codec, raw, SID)
