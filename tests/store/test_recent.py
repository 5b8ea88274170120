"""Mails in memory: the memory is bounded, holds the mails used last, and drops the
mails of a user who leaves. Decoding many mails at once gives the same result as
decoding each."""

from __future__ import annotations

from zlib import crc32

from machines import Machine
from mails import simple

from obox.objectstore import Codec, CorruptObject
from obox.objectstore.codec import ObjectKind
from obox.store import NewMail
from obox.store.operate import users as operate
from obox.store.recent import MAIL_BYTES_MAX, Recent
from obox.types import Oid, Owner

OWNER = Owner(b"anna/m/0/1")


def test_the_least_recently_used_goes_first() -> None:
    recent = Recent(bytes_max=30)
    for name in (b"a", b"b", b"c"):
        recent.put(name, name * 10)
    assert recent.get(b"a") == b"a" * 10
    recent.put(b"d", b"d" * 5)
    assert recent.get(b"b") is None
    assert [recent.get(name) is not None for name in (b"a", b"c", b"d")] == [True, True, True]
    assert recent.nbytes == 25


def test_bounded_and_nothing_counted_twice() -> None:
    recent = Recent(bytes_max=100)
    for number in range(1000):
        recent.put(b"%d" % (number % 37), bytes(number % 37))
        assert recent.nbytes <= 100
    recent.put(b"huge", bytes(MAIL_BYTES_MAX + 1))
    assert recent.get(b"huge") is None
    recent.clear()
    assert (recent.nbytes, len(recent)) == (0, 0)


async def test_a_second_read_needs_neither_file_nor_bucket(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(number)) for number in range(80)])
        box = await user.select("INBOX")
        uids = box.state.uids.tolist()
        first = [mail async for _, mail in box.mails(uids)]
        assert first == [simple(number) for number in range(80)]
        asked = user.env.fscache.stats()
        with life.counting() as requests:
            assert [mail async for _, mail in box.mails(uids)] == first
            assert [await box.mail(uid) for uid in uids] == first
        assert requests.requests() == {}
        now = user.env.fscache.stats()
        assert (now.hits, now.misses) == (asked.hits, asked.misses)


async def test_a_deleted_user_leaves_no_mail_in_memory(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(0))])
        box = await user.select("INBOX")
        await box.mail(1)
        env, sid = user.env, user.storage_id
        assert len(env.recent) == 1
        await user.release()
        async for _ in operate.delete(life.store, sid):
            pass
        assert len(env.recent) == 0


def test_decoding_many_is_decoding_each() -> None:
    """The objects are packed, unpacked, empty, sealed and damaged, and some have
    several frames."""
    plain, flat = Codec({}, None), Codec({}, None, "none")
    sealed = Codec({"k": b"k" * 32}, "k")
    payloads = [b"", b"x", b"words " * 300, b"\0" * 600_000, simple(1)]
    objects = [
        codec.encode(ObjectKind.MAIL, OWNER, Oid(bytes([at, which]) * 8), b"meta", payload)
        for which, codec in enumerate((plain, flat, sealed))
        for at, payload in enumerate(payloads)
    ]
    good = sealed.decode_many(objects, [OWNER] * len(objects))
    assert [one.payload for one in good if not isinstance(one, Exception)] == payloads * 3
    for at in (2, 4, 7, 12):
        damaged = bytearray(objects[at])
        damaged[-1] ^= 1
        objects[at] = bytes(damaged)
    mixed = sealed.decode_many(objects, [OWNER] * len(objects))
    assert [at for at, one in enumerate(mixed) if isinstance(one, CorruptObject)] == [2, 4, 7, 12]
    assert all(mixed[at] == good[at] for at in range(15) if at not in (2, 4, 7, 12))


def test_a_frame_that_lies_about_its_size_spoils_no_other() -> None:
    """The checksums are right, but the content has another size than the header says.
    Decompression finds that, and then each object is decoded by itself."""
    codec = Codec({}, None)
    words = [b"words %d " % number * 200 for number in range(3)]
    objects = [codec.encode(ObjectKind.MAIL, OWNER, Oid(bytes([at]) * 16), b"", one) for at, one in enumerate(words)]
    objects[1] = _relabelled(objects[1], len(words[1]) + 1)
    found = codec.decode_many(objects, [OWNER] * len(objects))
    assert isinstance(found[1], CorruptObject)
    assert [one.payload for one in (found[0], found[2]) if not isinstance(one, Exception)] == [words[0], words[2]]


def _relabelled(data: bytes, size: int) -> bytes:
    """Return the object with another payload length in its header, and with the
    checksum of this header."""
    signed = data[:40] + size.to_bytes(8, "little")
    return signed + crc32(data[52:60], crc32(signed + OWNER)).to_bytes(4, "little") + data[52:]
