"""An object is bound to its owner. Objects of version 1, which were not bound, are read
and renewed."""

from __future__ import annotations

import os
import random

import pytest
import version1

from obox.errors import ConfigError
from obox.objectstore import FRAME_BYTES, Codec, CorruptObject, NewerFormat, ObjectKind
from obox.objectstore.keys import (
    bundle_key,
    journal_key,
    mail_key,
    owner_in,
    owner_of,
    pull_owner,
)
from obox.types import Guid, Oid, Owner, StorageId, Uid

from .test_codec import CODECS, KEYS, OWNER

GUID = Guid("ab" * 16)
OTHER = Guid("cd" * 16)
ANNA, BEN = StorageId("anna"), StorageId("ben")
PAYLOADS = {"small": b"body", "empty": b"", "frames": b"line of text\r\n" * (2 * FRAME_BYTES // 14)}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]


def refuses(codec: Codec, data: bytes, owner: Owner) -> None:
    with pytest.raises(CorruptObject):
        codec.decode(data, owner)
    with pytest.raises(CorruptObject):
        codec.decode_header(data, owner)
    assert isinstance(codec.decode_many([data], [owner])[0], CorruptObject)
    with pytest.raises(CorruptObject):
        codec.renewed(data, owner)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_any_other_owner_is_refused(codec: Codec, payload: bytes) -> None:
    data = codec.encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"meta", payload)
    assert codec.decode(data, OWNER).payload == payload
    changed = [bytes([*OWNER[:at], OWNER[at] ^ bit, *OWNER[at + 1 :]]) for at in range(len(OWNER)) for bit in (1, 32)]
    for other in (b"", OWNER[:-1], OWNER[1:], OWNER + b"0", *changed):
        refuses(codec, data, Owner(other))


def test_other_users_mailboxes_uids_bundles_and_journals_are_other_owners(codec: Codec) -> None:
    keys = [
        *(mail_key(sid, guid, Uid(uid)) for sid in (ANNA, BEN) for guid in (GUID, OTHER) for uid in (1, 2, 0x11)),
        *(bundle_key(sid, box, 1, "w", "base") for sid in (ANNA, BEN) for box in (GUID, OTHER, "root")),
        *(journal_key(backend, boot, seq) for backend in ("a", "b") for boot in ("1", "2") for seq in (0, 1)),
        "_format",
    ]
    owners = {owner_of(key) for key in keys} | {pull_owner(sid) for sid in (ANNA, BEN)}
    assert len(owners) == len(keys) + 2
    for owner in owners:
        data = codec.encode(ObjectKind.BASE, owner, Oid(os.urandom(16)), b"", b"x")
        for other in owners - {owner}:
            refuses(codec, data, other)


def test_owners_byte_for_byte() -> None:
    """The owners are compared byte for byte with docs/format.md. A change of this test
    is a change of the format."""
    assert owner_of(mail_key(ANNA, GUID, Uid(258))) == b"anna/m/abababababababababababababababab/00000102"
    assert owner_of(bundle_key(ANNA, "root", 3, "w", "base")) == b"anna/x/root"
    for form in ("base", "diff", "cache"):
        assert owner_of(bundle_key(ANNA, GUID, 3, "w", form)) == b"anna/x/abababababababababababababababab"
    assert owner_of(journal_key("b1", "0a", 17)) == b"_journal/b1/0a/0000000000000011"
    assert owner_of("_format") == b"_format"
    assert pull_owner(ANNA) == b"anna/pull"


def test_the_owner_is_found_in_the_path_of_a_copy() -> None:
    for key in (mail_key(ANNA, GUID, Uid(2)), bundle_key(ANNA, "root", 1, "w", "base"), journal_key("b", "1", 2)):
        assert owner_in(key) == owner_in(f"/backup/of/{key}") == owner_of(key)
    assert owner_in("/backup/_format") == b"_format"
    assert owner_in("/tmp/some.base") is None


# -- version 1 ---------------------------------------------------------------------------------------------------------

OLD = {
    "plain": {},
    "zstd": {"compress": True},
    "sealed": {"key_id": "k1", "key": KEYS["k1"]},
    "zstd-sealed": {"key_id": "k2", "key": KEYS["k2"], "compress": True},
}


@pytest.fixture(params=OLD)
def old(request: pytest.FixtureRequest) -> bytes:
    return version1.encode(ObjectKind.MAIL, os.urandom(16), b"meta", PAYLOADS["frames"], **OLD[request.param])


def test_version_1_is_read_until_the_bucket_has_left_it_behind(old: bytes) -> None:
    codec = Codec(KEYS, "k1")
    found = codec.decode(old, OWNER)
    assert (found.major, found.meta, found.payload) == (1, b"meta", PAYLOADS["frames"])
    assert codec.decode_many([old, old], [OWNER, OWNER]) == [found, found]
    header = codec.decode_header(old[:400], OWNER)
    assert (header.major, header.meta) == (1, b"meta")
    codec.major_min = 2
    for refused in (codec.decode, codec.decode_header):
        with pytest.raises(CorruptObject, match="upgraded"):
            refused(old, OWNER)
    assert isinstance(codec.decode_many([old], [OWNER])[0], CorruptObject)
    assert codec.decode(old, OWNER, lenient=True) == found


@pytest.mark.parametrize("target", CODECS)
def test_renewed(old: bytes, target: str) -> None:
    keys = KEYS if "sealed" in target or any(old[8:16]) else {}
    codec = Codec(keys, {"sealed": "k1", "zstd-sealed": "k2"}.get(target), "zstd:9")
    if "sealed" not in target and any(old[8:16]):
        # Nothing can be unsealed without a key.
        codec = Codec(KEYS, None)
    assert codec.outdated(old[:52])
    new = codec.renewed(old, OWNER)
    assert not codec.outdated(new[:52])
    was, now = codec.decode(old, OWNER), codec.decode(new, OWNER)
    assert now == (was.kind, was.oid, was.meta, was.payload, 2)
    assert any(new[8:16]) or not any(old[8:16])
    refuses(codec, new, Owner(OWNER + b"0"))
    assert codec.renewed(old, OWNER) == codec.renewed(new, OWNER) == new, "no key seals two texts under one nonce"
    if any(old[8:16]) and old[8:16] == new[8:16]:
        assert new[-16:] != old[-16:]
        assert new[-64:-16] != old[-64:-16], "another key: the same text under the same nonce differs"


def test_renewing_depends_on_no_setting_but_the_key(old: bytes) -> None:
    made = {Codec(KEYS, "k1", compress).renewed(old, OWNER) for compress in ("none", "zstd:1", "zstd:19")}
    assert len(made) == 1


def test_a_new_key_and_back() -> None:
    first, second = Codec(KEYS, "k1"), Codec(KEYS, "k2")
    data = first.encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"m", b"text")
    assert second.outdated(data)
    other = second.renewed(data, OWNER)
    assert first.renewed(other, OWNER) == data


@pytest.mark.parametrize("name", CODECS)
def test_an_object_that_was_copied_is_bound_to_its_new_owner_on_purpose(name: str) -> None:
    """The copy keeps its OID and belongs to another key. The nonce is the same, so the
    same plain text must not give the same bytes."""
    codec, other = CODECS[name], owner_of(mail_key(BEN, GUID, Uid(1)))
    data = codec.encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"meta", b"body" * 100)
    new = codec.renewed(data, other, was=OWNER)
    assert codec.decode(new, other) == codec.decode(data, OWNER)
    refuses(codec, new, OWNER)
    if "sealed" in name:
        assert new[60:64] != data[60:64]


def test_damage_is_not_renewed(old: bytes) -> None:
    codec = Codec(KEYS, "k1")
    for _ in range(60):
        wrong = bytearray(old)
        wrong[random.randrange(len(wrong))] ^= 1 << random.randrange(8)
        with pytest.raises((CorruptObject, NewerFormat)):
            codec.renewed(bytes(wrong), OWNER)


def test_plain_objects_are_refused_where_encryption_is_required() -> None:
    plain = CODECS["zstd"].encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"", b"body")
    strict = Codec(KEYS, "k1", require_encryption=True)
    for refused in (strict.decode, strict.decode_header):
        with pytest.raises(CorruptObject, match="require_encryption"):
            refused(plain, OWNER)
    assert isinstance(strict.decode_many([plain], [OWNER])[0], CorruptObject)
    assert strict.decode(strict.renewed(plain, OWNER), OWNER).payload == b"body"
    with pytest.raises(CorruptObject, match="format 1"):
        strict.decode(version1.encode(ObjectKind.MAIL, bytes(16), b"", b"body", **OLD["sealed"]), OWNER)
    with pytest.raises(ConfigError, match="encryption_keys"):
        Codec(KEYS, None, require_encryption=True)
