"""The bytes of an object."""

from __future__ import annotations

import base64
import os
import random
import struct
import threading
from pathlib import Path
from zlib import crc32

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from obox.errors import ConfigError
from obox.objectstore import FRAME_BYTES, CorruptObject, NewerFormat, load_keys
from obox.objectstore import codec as codec_module
from obox.objectstore.codec import HEADER_BYTES, Codec, ObjectKind, ShortPrefix, UnknownKey, new_oid, oid_of
from obox.objectstore.keys import mail_key, owner_of
from obox.types import Guid, Oid, StorageId, Uid

RNG = random.Random(7)
KEYS = {"k1": b"1" * 32, "k2": b"2" * 32}
OID = Oid(bytes(range(16)))
OWNER = owner_of(mail_key(StorageId("anna"), Guid("ab" * 16), Uid(1)))
CODECS = {
    "plain": Codec({}, None, "none"),
    "zstd": Codec({}, None),
    "sealed": Codec(KEYS, "k1", "none"),
    "zstd-sealed": Codec(KEYS, "k2"),
}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]


def text(size: int) -> bytes:
    words = [RNG.randbytes(RNG.randint(1, 6)).hex().encode() for _ in range(200)]
    out = b" ".join(RNG.choices(words, k=size // 3 + 1))
    return out[:size]


payloads = st.one_of(
    st.binary(max_size=600),
    st.integers(0, 3 * FRAME_BYTES + 5).map(lambda n: (b"line %d\r\n" % n * (n // 6 + 1))[:n]),
    st.sampled_from([FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES]).map(RNG.randbytes),
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CODECS)), st.sampled_from(ObjectKind), st.binary(max_size=300), payloads, st.randoms())
def test_decode_gives_back_what_encode_was_given(
    name: str, kind: ObjectKind, meta: bytes, payload: bytes, rng: random.Random
) -> None:
    codec, oid = CODECS[name], Oid(os.urandom(16))
    data = codec.encode(kind, OWNER, oid, meta, payload)
    assert codec.decode(data, OWNER) == (kind, oid, meta, payload, 2)
    assert oid_of(data[:HEADER_BYTES]) == oid

    header = codec.decode_header(data, OWNER)
    assert (header.kind, header.oid, header.meta, header.payload_bytes) == (kind, oid, meta, len(payload))
    assert header.object_bytes == len(data)
    for _ in range(5):
        start = rng.randint(0, len(payload) + 3)
        end = rng.randint(0, len(payload) + 3)
        first, after = header.frames_for(start, end)
        assert header.decode_range(data[first:after], start, end) == payload[start:end]


def test_golden_bytes() -> None:
    """The object is compared byte for byte. A change of this test is a change of the
    format."""
    data = CODECS["plain"].encode(ObjectKind.MAIL, OWNER, OID, b"meta", b"Subject: hi\r\n\r\n")
    assert data.hex() == (
        "6f626f78"  # magic
        "02" "00" "01" "00"  # major, minor, kind, compression
        "0000000000000000"  # key id
        "000102030405060708090a0b0c0d0e0f"  # oid
        "04000000" "01000000" "0f00000000000000"  # meta bytes, frames, payload bytes
        + struct.pack("<I", crc32(data[:48] + OWNER + data[52:64])).hex()
        # the frame table
        + "0f000000" + struct.pack("<I", crc32(b"Subject: hi\r\n\r\n")).hex()
        + b"meta".hex()
        + b"Subject: hi\r\n\r\n".hex()
    )  # fmt: skip
    assert crc32(data) == GOLDEN["plain"]
    assert HEADER_BYTES == 52


GOLDEN = {"plain": 1431468677, "sealed": 263459436}


def test_golden_sealed_object() -> None:
    data = Codec(KEYS, "k1", "none").encode(ObjectKind.JOURNAL, OWNER, OID, b"meta", b"payload")
    assert (len(data), crc32(data)) == (52 + 8 + 4 + 16 + 7 + 16, GOLDEN["sealed"])
    assert data[8:16] == b"k1\0\0\0\0\0\0"
    assert b"meta" not in data
    assert b"payload" not in data

    # The test follows the description in the module's docstring, and uses no code of
    # the module.
    aead = AESGCM(HKDF(SHA256(), 32, salt=OID, info=b"obox 2 object" + OWNER).derive(KEYS["k1"]))
    meta = aead.decrypt(b"\xff" * 4 + bytes(8), data[60:80], data[:48] + OWNER + b"\xff" * 4 + b"\0")
    frame = aead.decrypt(bytes(12), data[80:], data[:48] + OWNER + bytes(4) + b"\1")
    assert (meta, frame) == (b"meta", b"payload")


def test_every_single_byte_counts(codec: Codec) -> None:
    data = codec.encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"some meta", text(700))
    for at in range(len(data)):
        for change in (1, 0x80, 0xFF):
            wrong = bytearray(data)
            wrong[at] ^= change
            with pytest.raises((CorruptObject, NewerFormat)):
                codec.decode(bytes(wrong), OWNER)


def test_every_truncation_and_extension_is_found(codec: Codec) -> None:
    data = codec.encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"some meta", text(400))
    for size in range(len(data)):
        with pytest.raises(CorruptObject):
            codec.decode(data[:size], OWNER)
    with pytest.raises(CorruptObject):
        codec.decode(data + b"\0", OWNER)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_decode_or_are_corrupt(data: bytes, with_magic: bool) -> None:
    if with_magic:
        data = b"obox\x02" + data
    for codec in CODECS.values():
        with pytest.raises((CorruptObject, NewerFormat)):
            codec.decode(data, OWNER)
        with pytest.raises((CorruptObject, NewerFormat, ShortPrefix)):
            codec.decode_header(data, OWNER)


def test_a_short_prefix_says_what_it_takes(codec: Codec) -> None:
    data = codec.encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"m" * 100, text(FRAME_BYTES * 2 + 9))
    needs = []
    for size in (1, HEADER_BYTES):
        with pytest.raises(ShortPrefix) as short:
            codec.decode_header(data[:size], OWNER)
        needs.append(short.value.need)
    assert needs[0] == HEADER_BYTES
    size = needs[1]
    header = codec.decode_header(data[:size], OWNER)
    assert (header.frames, size) == (3, header.frames_for(0, 1)[0])


def test_a_range_reads_only_its_frames(codec: Codec) -> None:
    payload = text(4 * FRAME_BYTES + 77)
    data = codec.encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"", payload)
    header = codec.decode_header(data[:200], OWNER)
    assert header.frames == 5
    one = header.frames_for(FRAME_BYTES + 5, FRAME_BYTES + 9)
    assert one == header.frames_for(FRAME_BYTES, 2 * FRAME_BYTES)
    assert one[1] - one[0] <= FRAME_BYTES + 16
    ends = [header.frames_for(0, len(payload)), header.frames_for(-5, 10**12)]
    assert ends == [(one[0] - (one[0] - header.frames_for(0, 1)[0]), len(data))] * 2
    first, after = header.frames_for(FRAME_BYTES - 3, FRAME_BYTES + 3)
    part = data[first:after]
    assert header.decode_range(part, FRAME_BYTES - 3, FRAME_BYTES + 3) == payload[FRAME_BYTES - 3 : FRAME_BYTES + 3]
    with pytest.raises(CorruptObject):
        header.decode_range(part[:-1], FRAME_BYTES - 3, FRAME_BYTES + 3)
    # This frame has the right length, but is another frame.
    with pytest.raises(CorruptObject):
        header.decode_range(bytes(len(part)), FRAME_BYTES - 3, FRAME_BYTES + 3)


def test_versions() -> None:
    codec = CODECS["plain"]
    data = bytearray(codec.encode(ObjectKind.MAIL, OWNER, OID, b"meta", b"body"))
    # This is a newer minor version, with its checksum.
    data[5] = 9
    data[48:52] = struct.pack("<I", crc32(bytes(data[52 : 52 + 8 + 4]), crc32(bytes(data[:48]) + OWNER)))
    assert codec.decode(bytes(data), OWNER).payload == b"body"
    assert codec.decode_header(bytes(data), OWNER).minor == 9
    data[4] = 3
    with pytest.raises(NewerFormat, match="format 3"):
        codec.decode(bytes(data), OWNER)
    with pytest.raises(NewerFormat):
        oid_of(bytes(data))


def test_a_burnt_claim_is_no_object() -> None:
    with pytest.raises(CorruptObject, match="burnt"):
        CODECS["plain"].decode(b"", OWNER)


def test_what_does_not_compress_is_stored_as_it_is() -> None:
    payload = random.randbytes(5000)
    data = CODECS["zstd"].encode(ObjectKind.MAIL, OWNER, OID, b"", payload)
    assert (len(data), CODECS["zstd"].decode_header(data, OWNER).compression) == (HEADER_BYTES + 8 + 5000, 0)
    assert len(CODECS["zstd"].encode(ObjectKind.MAIL, OWNER, OID, b"", b"a" * 5000)) < 200


def test_keys_rotate_and_wrong_keys_are_found() -> None:
    data = Codec({"old": b"o" * 32}, "old").encode(ObjectKind.BASE, OWNER, OID, b"m", b"p")
    assert Codec({"new": b"n" * 32, "old": b"o" * 32}, "new").decode(data, OWNER).payload == b"p"
    assert Codec({"old": b"o" * 32}, None).decode(data, OWNER).payload == b"p"
    with pytest.raises(UnknownKey, match="'old'"):
        Codec({}, None).decode(data, OWNER)
    with pytest.raises(CorruptObject, match="authentic"):
        Codec({"old": b"x" * 32}, None).decode(data, OWNER)


def test_frames_of_a_sealed_object_cannot_change_places() -> None:
    """Two frames are swapped together with their rows in the table, and the checksum is
    made again. Only the authentication of the sealed frames can show that."""
    codec = Codec(KEYS, "k1", "none")
    data = codec.encode(ObjectKind.MAIL, OWNER, Oid(b"s" * 16), b"", random.randbytes(2 * FRAME_BYTES))
    start, frame = HEADER_BYTES + 16 + 16, FRAME_BYTES + 16
    a, b = data[start : start + frame], data[start + frame :]
    table = data[HEADER_BYTES + 8 : HEADER_BYTES + 16] + data[HEADER_BYTES : HEADER_BYTES + 8]
    meta = data[HEADER_BYTES + 16 : start]
    crc = struct.pack("<I", crc32(meta, crc32(table, crc32(data[:48] + OWNER))))
    with pytest.raises(CorruptObject, match="authentic"):
        codec.decode(data[:48] + crc + table + meta + b + a, OWNER)


def test_a_sealed_header_cannot_be_forged() -> None:
    codec = Codec(KEYS, "k1", "none")
    data = bytearray(codec.encode(ObjectKind.MAIL, OWNER, Oid(b"h" * 16), b"meta", b"body"))
    data[6] = ObjectKind.CLAIM
    data[48:52] = struct.pack("<I", crc32(bytes(data[52 : 52 + 8 + 20]), crc32(bytes(data[:48]) + OWNER)))
    with pytest.raises(CorruptObject, match="authentic"):
        codec.decode_header(bytes(data), OWNER)


def test_one_oid_is_not_sealed_twice() -> None:
    codec = Codec(KEYS, "k1")
    first = codec.encode(ObjectKind.MAIL, OWNER, OID, b"uid 1", b"body")
    assert codec.encode(ObjectKind.MAIL, OWNER, OID, b"uid 1", b"body") == first
    with pytest.raises(ValueError, match="fresh oid"):
        codec.encode(ObjectKind.MAIL, OWNER, OID, b"uid 2", b"body")


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(64 << 20))
    frame_table = struct.pack("<II", len(bomb), crc32(bomb))
    signed = struct.pack("<4sBBBB8s16sIIQ", b"obox", 2, 0, 1, 1, b"", OID, 0, 1, 100)
    data = signed + struct.pack("<I", crc32(frame_table, crc32(signed + OWNER))) + frame_table + bomb
    with pytest.raises(CorruptObject, match="does not hold 100 bytes"):
        CODECS["zstd"].decode(data, OWNER)


@pytest.mark.parametrize(("frames", "payload_bytes"), [(2**32 - 1, 2**50), (2, 100), (0, 100), (1, 0), (8192, 2**31)])
def test_a_header_that_claims_too_much_is_corrupt(frames: int, payload_bytes: int) -> None:
    signed = struct.pack("<4sBBBB8s16sIIQ", b"obox", 2, 0, 1, 1, b"", OID, 0, frames, payload_bytes)
    with pytest.raises(CorruptObject):
        CODECS["zstd"].decode_header(signed + bytes(4), OWNER)


def test_threads_share_a_codec() -> None:
    codec, failures = Codec(KEYS, "k1"), []
    bodies = [text(30_000) for _ in range(4)]

    def work(body: bytes) -> None:
        for _ in range(30):
            if (
                codec.decode(codec.encode(ObjectKind.MAIL, OWNER, Oid(os.urandom(16)), b"m", body), OWNER).payload
                != body
            ):
                failures.append(body)

    threads = [threading.Thread(target=work, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_new_oid() -> None:
    assert new_oid(random.Random(1)) == new_oid(random.Random(1)) != new_oid(random.Random(2))
    assert len(new_oid(random.SystemRandom())) == 16


@pytest.mark.parametrize("compress", ["", "zstd", "zstd:", "zstd:0", "zstd:20", "zstd:x", "gzip:3", "none:1"])
def test_bad_compress(compress: str) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        Codec({}, None, compress)


def test_bad_keys() -> None:
    with pytest.raises(ConfigError, match="allowed: 32"):
        Codec({"a": b"short"}, None)
    with pytest.raises(ConfigError, match="not among the keys"):
        Codec({"a": b"x" * 32}, "b")
    for key_id in ("", "ninebytes", "a b", "ä"):
        with pytest.raises(ConfigError, match="key id"):
            Codec({key_id: b"x" * 32}, None)


def test_load_keys(tmp_path: Path) -> None:
    key = random.randbytes(32)
    for name, data in {
        "raw": key,
        "hex": key.hex().encode() + b"\n",
        "base64": base64.b64encode(key) + b"\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert load_keys({"k": str(tmp_path / name)}) == {"k": key}
    (tmp_path / "bad").write_bytes(b"not a key\n")
    for name, why in {"bad": "has no key", "none": "No such file"}.items():
        with pytest.raises(ConfigError, match=why):
            load_keys({"k": str(tmp_path / name)})
    assert codec_module.MAGIC == b"obox"
