"""The bytes of a pack, and what a mailbox knows of packs (docs/format.md, "Pack")."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from machines import SID, Life, Machine, fill, whole
from mails import simple
from oldbuckets import KEYS

from obox.mailbox import Delta, Pack, State, counting, spots
from obox.mailbox.invariants import check, fingerprint
from obox.objectstore import Codec, CorruptObject, NewerFormat, ShortPrefix
from obox.objectstore.codec import ObjectKind, new_oid
from obox.objectstore.keys import is_pack, mail_key, owner_in, owner_of, pack_key, parse_pack_key, user_prefix
from obox.store.mails import pack
from obox.store.operate import users
from obox.types import Guid, Oid, Uid

GUID = Guid("a" * 32)
KEY = pack_key(SID, GUID, 7, "0190aabbccdd1234")
UIDS = (3, 4, 9, 4_000_000_000)


@pytest.fixture(params=["plain", "sealed"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(KEYS, "k1" if request.param == "sealed" else None)


def parts(codec: Codec, uids: tuple[int, ...] = UIDS, seed: int = 1) -> list[pack.Part]:
    rng = random.Random(seed)
    out = []
    for number, uid in enumerate(uids):
        oid = new_oid(rng)
        owner = owner_of(mail_key(SID, GUID, Uid(uid)))
        out.append(pack.Part(uid, oid, codec.encode(ObjectKind.MAIL, owner, oid, b"", simple(number))))
    return out


def test_key() -> None:
    assert parse_pack_key(KEY) == (SID, GUID, 7, "0190aabbccdd1234")
    assert owner_of(KEY) == owner_in("/copy/" + KEY) == f"{SID}/x/{GUID}".encode()
    assert is_pack(KEY)
    for bad in ("", KEY + "x", KEY[1:], KEY.replace(GUID, "root"), KEY.replace(".pack", ".base")):
        with pytest.raises(ValueError, match="not the key"):
            parse_pack_key(bad)
        assert not is_pack(bad)


def test_each_mail_is_at_its_place(codec: Codec) -> None:
    mails = parts(codec)
    data, known = pack.encode(codec, KEY, new_oid(random.Random(2)), ["b", "a"], mails)
    found = pack.table(codec, KEY, data)
    assert found.pack == known
    assert (found.size, found.oids) == (len(data), [part.oid for part in mails])
    assert known.covers == ("a", "b")
    for number, part in enumerate(mails):
        offset, length = known.find(part.uid) or (0, 0)
        envelope = data[offset : offset + length]
        assert envelope == part.envelope
        assert codec.decode(envelope, owner_of(mail_key(SID, GUID, Uid(part.uid)))).payload == simple(number)
    assert known.find(5) is known.find(4_000_000_001) is None


def test_the_head_alone_is_enough(codec: Codec) -> None:
    mails = parts(codec)
    data, known = pack.encode(codec, KEY, new_oid(random.Random(2)), [], mails)
    head = known.offset.item(0)
    assert pack.table(codec, KEY, data[:head]).pack == known
    for size in range(4, head):
        with pytest.raises(ShortPrefix) as short:
            pack.table(codec, KEY, data[:size])
        assert size < short.value.need <= head


def test_a_damaged_head_is_found(codec: Codec) -> None:
    data, known = pack.encode(codec, KEY, new_oid(random.Random(2)), ["x"], parts(codec))
    for at in range(known.offset.item(0)):
        for bit in (1, 128):
            with pytest.raises((CorruptObject, ShortPrefix, NewerFormat)):
                pack.table(codec, KEY, data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])


def test_a_pack_of_another_owner_does_not_decode(codec: Codec) -> None:
    data, _ = pack.encode(codec, KEY, new_oid(random.Random(2)), [], parts(codec))
    with pytest.raises(CorruptObject):
        pack.table(codec, pack_key(SID, Guid("b" * 32), 7, "w"), data)
    bundle = codec.encode(ObjectKind.BASE, owner_of(KEY), new_oid(random.Random(3)), b"", b"\x80")
    with pytest.raises(CorruptObject, match="kind"):
        pack.table(codec, KEY, bundle)


def columns(*numbers: int) -> bytes:
    return np.array(numbers, dtype="<u4").tobytes()


@pytest.mark.parametrize(
    ("payload", "tail"),
    [
        (b"", 9),
        (b"\xc1", 9),
        ({}, 9),
        ({"pack": [], "oids": b""}, 9),
        ({"pack": [[], b"", b"", b""], "oids": b""}, 0),
        ({"pack": [[], columns(1), columns(0), columns(9)], "oids": bytes(15)}, 9),
        ({"pack": [[1], columns(1), columns(0), columns(9)], "oids": bytes(16)}, 9),
        ({"pack": [[], columns(0), columns(0), columns(9)], "oids": bytes(16)}, 9),
        ({"pack": [[], columns(1), columns(1), columns(9)], "oids": bytes(16)}, 10),
        ({"pack": [[], columns(1), columns(0), columns(9)], "oids": bytes(16)}, 10),
        ({"pack": [[], columns(1), columns(0), columns(9)], "oids": bytes(16)}, 0),
        ({"pack": [[], columns(1, 1), columns(0, 4), columns(4, 5)], "oids": bytes(32)}, 9),
        ({"pack": [[], columns(2, 1), columns(0, 4), columns(4, 5)], "oids": bytes(32)}, 9),
        ({"pack": [[], columns(1, 2), columns(0, 3), columns(4, 5)], "oids": bytes(32)}, 8),
        ({"pack": [[], columns(1, 2), columns(0, 4), columns(4, 0)], "oids": bytes(32)}, 4),
        ({"pack": [[], columns(1, 2), columns(0), columns(9)], "oids": bytes(32)}, 9),
        ({"pack": [[], columns(1), columns(0xFFFFFFFF), columns(9)], "oids": bytes(16)}, 9),
        ({"pack": [[], columns(1)[:3], columns(0), columns(9)], "oids": bytes(16)}, 9),
        ({"pack": ["", 1, 2, 3], "oids": bytes(16)}, 9),
    ],
)
def test_a_hostile_table_is_refused(payload: Any, tail: int) -> None:
    codec = Codec({}, None)
    inside = payload if isinstance(payload, bytes) else msgspec.msgpack.encode(payload)
    meta = msgspec.msgpack.encode({"tail": tail})
    head = codec.encode(ObjectKind.PACK, owner_of(KEY), Oid(bytes(16)), meta, inside)
    with pytest.raises(CorruptObject):
        pack.table(codec, KEY, head + bytes(tail))


def test_mails_that_are_no_pack_are_refused() -> None:
    codec = Codec({}, None)
    mails = parts(codec)
    for wrong in ([], mails[::-1], [mails[0], mails[0]]):
        with pytest.raises(ValueError, match=r"a pack|UID order"):
            pack.encode(codec, KEY, new_oid(random.Random(2)), [], wrong)


# -- in a mailbox ------------------------------------------------------------------------------------------------------


def of(covers: tuple[str, ...], *uids: int, start: int = 100) -> Pack:
    many = np.array(uids, dtype="<u4")
    return Pack(covers, many, np.arange(start, start + 10 * len(uids), 10, dtype="<u4"), np.full_like(many, 10))


DELTAS = (
    Delta(packs={"01.a.pack": of((), 1, 2, 3)}, highestmodseq=9),
    Delta(packs={"02.b.pack": of((), 2, 3, 4)}),
    Delta(packs={"03.a.pack": of(("01.a.pack", "02.b.pack"), 1, 2, 3, 4)}, uidnext=5),
    Delta(packs={"04.b.pack": of((), 7, 8), "02.b.pack": of((), 2, 3, 4)}),
    # Damage: one name, two contents.
    Delta(packs={"04.b.pack": of((), 7, 8, start=200)}),
)


def test_packs_are_joined_in_any_order() -> None:
    prints = set()
    for order in itertools.permutations(DELTAS):
        state = State(GUID)
        for delta in (*order, order[0]):
            state.join(Delta.decode(delta.encode()))
            check(state)
        prints.add(repr(fingerprint(state)[-2]) + repr(sorted(spots(state.packs, range(10)).items())))
        again = State(GUID)
        again.join(Delta.decode(state.extract().encode()))
        assert counting(again.packs) == counting(state.packs) == ["04.b.pack", "03.a.pack"]
        assert fingerprint(again) == fingerprint(state)
        assert not state.extract(since=1).packs
    assert len(prints) == 1


def test_the_newest_pack_that_counts_is_read() -> None:
    packs = {"01.a.pack": of((), 1, 2, 3), "02.b.pack": of((), 3, 5, start=500)}
    assert spots(packs, [1, 3, 4]) == {1: ("01.a.pack", 100, 10), 3: ("02.b.pack", 500, 10)}
    packs["03.a.pack"] = of(("02.b.pack",), 9)
    assert spots(packs, [3, 5]) == {3: ("01.a.pack", 120, 10)}
    assert spots({}, [1]) == {}


@pytest.mark.parametrize(
    "raw", [[], {"a": 1}, {"a": [[], b"", b""]}, {"a": [[], b"abc", b"", b""]}, {1: []}, {"a": None}]
)
def test_a_delta_with_damaged_packs_does_not_decode(raw: Any) -> None:
    with pytest.raises(ValueError, match="not a mailbox delta"):
        Delta.decode(msgspec.msgpack.encode({"packs": raw}))


def test_a_mailbox_without_packs_has_no_bytes_for_them() -> None:
    state = State(GUID)
    assert b"packs" not in state.extract().encode()


# -- in the bucket -----------------------------------------------------------------------------------------------------


async def packed(life: Life, guid: Guid, uid: int, serial: int) -> str:
    """PUT a pack that has a mail of a mailbox. Returns its key."""
    env = life.store.env
    envelope = await env.get(mail_key(SID, guid, Uid(uid)), kind="mail")
    assert envelope is not None
    oid = env.codec.decode_header(envelope, owner_of(mail_key(SID, guid, Uid(uid)))).oid
    key = pack_key(SID, guid, serial, env.writer)
    data, _ = pack.encode(env.codec, key, env.new_oid(), [], [pack.Part(uid, oid, envelope)])
    await env.bucket.put(key, data, kind="index")
    return key


async def test_a_pack_beside_bundles_changes_nothing_for_a_login(machine: Machine, tmp_path: Path) -> None:
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(n) for n in range(3)])
        seen = await whole(user)
        box = await user.select("INBOX")
        await packed(life, box.guid, 1, 1)
        await box.release()
    other = machine.renamed("second", tmp_path / "other")
    async with other.run() as life:
        assert await whole(await life.user()) == seen


async def test_a_deleted_mailbox_and_a_deleted_user_leave_no_pack(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        guid = await user.create("Old")
        await fill(user, "Old", [simple(n) for n in range(3)])
        box = await user.select("Old")
        key = await packed(life, guid, 1, 1)
        await box.bundles.clear_all()
        assert await life.store.env.get(key, kind="index") is None
        await packed(life, guid, 1, 2)
        await box.release()
        await user.release()
        life.users.clear()
        found = [one async for one in users.delete(life.store, SID)]
        assert {one.what: one.objects for one in found}["packs"] == 1
        assert not await life.store.env.listing(user_prefix(SID), kind="index")
