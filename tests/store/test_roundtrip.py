"""Mails of every kind come back byte for byte: whole and in parts, from caches and from
the bucket, encrypted or not, compressed or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Bucket, Machine
from mails import every_kind

from obox.mime import summary
from obox.objectstore import Codec
from obox.store import Mailbox, NewMail, User

FRAME = 256 << 10


async def append_all(user: User) -> dict[int, bytes]:
    out = {}
    for mail in every_kind().values():
        appended = await user.append("INBOX", [NewMail(mail)])
        out[appended.uids[0]] = mail
    return out


async def check(box: Mailbox, mails: dict[int, bytes]) -> None:
    """Check single mails and mails that are read ahead, sizes, ready fields, and ranges
    around each boundary."""
    rng = random.Random(7)
    assert box.state.uids.tolist() == list(mails)
    assert box.state.column("size").tolist() == [len(mail) for mail in mails.values()]
    assert {uid: mail async for uid, mail in box.mails(list(mails))} == mails
    fields = await box.fields(list(mails))
    for (uid, mail), ready in zip(mails.items(), fields, strict=True):
        assert await box.mail(uid) == mail
        made = summary(mail)
        assert ready is not None
        assert (ready.envelope, ready.body, ready.bodystructure) == (made.envelope, made.body, made.bodystructure)
        assert ready.header in (None, made.header)
        edges = {
            0,
            1,
            1000,
            len(mail) - 1,
            len(mail),
            len(mail) + 5,
            *(FRAME * n + d for n in (1, 2, 20) for d in (-1, 0, 1)),
        }
        ranges = [(low, high) for low in edges for high in edges if 0 <= low <= high]
        for start, end in rng.sample(ranges, min(12, len(ranges))):
            assert await box.part(uid, start, end) == mail[start:end], (uid, start, end)


async def test_append_and_read(any_bucket: Bucket, any_codec: Callable[[], Codec], tmp_path: Path) -> None:
    any_bucket.codec = any_codec
    machine = Machine(any_bucket, tmp_path / "disk")
    async with machine.run() as life:
        user = await life.user()
        mails = await append_all(user)
        box = await user.select("INBOX")
        await check(box, mails)
    machine.lose_disk()
    async with machine.run() as life:
        box = await (await life.user()).select("INBOX")
        await check(box, mails)


async def test_deliveries_that_no_bundle_knows(
    any_codec: Callable[[], Codec], bucket: Bucket, machine: Machine
) -> None:
    """The backend is killed at once, and the disk is lost. LIST finds each mail with
    its size and dates."""
    bucket.codec = any_codec
    async with machine.run(kill=True) as life:
        mails = await append_all(await life.user())
    machine.lose_disk()
    async with machine.run() as life:
        box = await (await life.user()).select("INBOX")
        await check(box, mails)


async def test_encrypted_objects_show_nothing(bucket: Bucket, machine: Machine, any_codec: Callable[[], Codec]) -> None:
    bucket.codec = any_codec
    secret = b"Subject: the-secret-word\r\n\r\n" + b"the-secret-word\r\n" * 100
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(secret, ("the-secret-word",))])
        await user.create("the-secret-word")
    store = bucket.open()
    encrypted = bucket.codec().encrypt_with is not None
    found = b"".join([await store.get(key, kind="mail") for key in await bucket.keys()])
    assert not (encrypted and b"the-secret-word" in found)


async def test_metadata_of_an_append(machine: Machine) -> None:
    mail = every_kind()["text"]
    async with machine.run() as life:
        user = await life.user()
        appended = await user.append("Sent", [NewMail(mail, ("\\Seen", "$Forwarded"), 1_700_000_000, -150)])
        assert appended.uids == [1]
    machine.lose_disk()
    async with machine.run() as life:
        box = await (await life.user()).select("Sent")
        assert box.uidvalidity == appended.uidvalidity
        assert box.state.column("internaldate").tolist() == [1_700_000_000]
        assert box.state.column("zone").tolist() == [-150]
        assert box.state.flags.of_bits(int(box.state.bits[0])) == ["\\Seen", "$Forwarded"]


@pytest.mark.usefixtures("single_mails")
async def test_a_damaged_object_is_an_error_and_never_another_mail(bucket: Bucket, machine: Machine) -> None:
    from obox.errors import Corrupt, NotFound

    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(mail) for mail in list(every_kind().values())[:3]])
    machine.lose_disk()
    store = bucket.open()
    first, second, third = sorted(key for key in await bucket.keys() if "/m/" in key)
    body = await store.get(second, kind="mail")
    await store.delete([first, second, third], kind="mail")
    # The object is valid, but belongs to another mail.
    await store.put(first, body, kind="mail")
    await store.put(second, body[:-1] + bytes([body[-1] ^ 1]), kind="mail")
    async with machine.run() as life:
        box = await (await life.user()).select("INBOX")
        for uid, error in ((1, Corrupt), (2, Corrupt), (3, NotFound)):
            with pytest.raises(error):
                await box.mail(uid)
        assert [type(mail) async for _, mail in box.mails([1, 2, 3])] == [Corrupt, Corrupt, NotFound]
        fields = await box.fields([1, 2, 3])
        assert len(fields) == 3, "the list still shows what segments know"
