"""The bytes of every object that obox writes: header, frame table, meta, frames.

All integers are little-endian.

```
 offset  size  field
      0     4  magic, b"obox"
      4     1  major version, 2; 1 is read, any other version is not
      5     1  minor version, 0; a newer version is read: its additions are in the meta
      6     1  kind: 1 mail, 2 claim, 3 base, 4 diff, 5 cache, 6 journal, 7 format,
               8 pull, 9 cursor, 10 dead letter, 11 pack; others are kept as numbers
      7     1  compression of the frames: 0 none, 1 zstd
      8     8  key id, ASCII, NUL padded; all NUL: not encrypted
     16    16  oid
     32     4  bytes of the meta as stored
     36     4  number of frames
     40     8  bytes of the payload (plain, all frames)
     48     4  CRC-32 of bytes 0..48, the owner, the frame table and the meta as stored
     52   8*n  frame table, per frame: u32 bytes as stored, u32 CRC-32 of these bytes
  52+8n     m  meta: the caller's bytes, never compressed, sealed if the object is
               encrypted
      …     …  frames: each has 256 KiB of payload except the last, which has the rest;
               compressed, then sealed
```

Compression is a property of the object: if zstd does not make the payload smaller, all
frames are stored as they are. "Sealed" is AES-256-GCM: key = HKDF-SHA256(master key,
salt = oid, info = b"obox 2 object" and the owner), nonce = frame number u32 and 8 NUL
bytes, associated data = header bytes 0..48, the owner, frame number u32, 1 byte that is
1 on the last frame. The meta is frame 0xffffffff with last mark 0. It is sealed even if
it is empty, so that every encrypted object has an authentic header.

The owner says what an object belongs to (keys.owner_of makes it). It is not in the
object: a reader knows which owner the object must have. A copy of the object anywhere
else is refused: by the seal, or in a bucket without encryption by the header's CRC,
which finds mistakes but does not stop an attacker. Version 1 differs in two points: it
knows no owner, and its key has info = b"obox 1 object". A reader of version 1 checks
what its meta and payload say about themselves.

An object of zero bytes is a burnt claim: it has no header. See put_once.py.

Invariant: decode returns what encode was given, or it raises. A single wrong byte is
always found (CRC-32 over every byte except the CRC itself). An oid is for a single
object: the key comes from it, so a second object under the same oid and owner would use
a GCM nonce twice. encode refuses that as far as it remembers. `renewed` keeps the oid:
its bytes depend only on the object that it is given, the owner and the key, and version
1 has keys of its own.

This module does not know the content of meta and payload, where objects lie, or where
keys come from.

Diagnostics: CorruptObject (damaged, truncated, wrong key, or a key id that is not
configured: UnknownKey) and NewerFormat are for the caller to log with the object's key.
Nothing here is retried or logged.
"""

from __future__ import annotations

import random
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple
from zlib import crc32

import zstandard

from obox.errors import ConfigError
from obox.objectstore._errors import CorruptObject, NewerFormat, StoreError
from obox.objectstore._frames import (
    FRAME_BYTES,
    MANY,
    META_FRAME,
    TAG_BYTES,
    Compression,
    Header,
    decompress,
    split,
    zstd,
)
from obox.objectstore.master_keys import KEY_ID_BYTES, check_key_id
from obox.types import Oid, Owner

MAGIC: Final = b"obox"
MAJOR: Final = 2
OLD_MAJOR: Final = 1
"""A version that is read, and no longer written."""

MINOR: Final = 0

_MAGIC_BYTES: Final = 4
_MAJOR_BYTES: Final = 1
_MINOR_BYTES: Final = 1
_KIND_BYTES: Final = 1
_COMPRESSION_BYTES: Final = 1
OID_BYTES: Final = 16
_META_LENGTH_BYTES: Final = 4
_FRAMES_BYTES: Final = 4
_PAYLOAD_LENGTH_BYTES: Final = 8
_CRC_BYTES: Final = 4

_SIGNED_BYTES: Final = (
    _MAGIC_BYTES
    + _MAJOR_BYTES
    + _MINOR_BYTES
    + _KIND_BYTES
    + _COMPRESSION_BYTES
    + KEY_ID_BYTES
    + OID_BYTES
    + _META_LENGTH_BYTES
    + _FRAMES_BYTES
    + _PAYLOAD_LENGTH_BYTES
)  # 4+1+1+1+1+8+16+4+4+8 = 48
HEADER_BYTES: Final = _SIGNED_BYTES + _CRC_BYTES  # 48+4 = 52

PAYLOAD_BYTES_MAX: Final = 1 << 30
"""1 GiB, far above any mail or bundle. A header that claims more is damaged, and
nothing is allocated for it.
"""

META_BYTES_MAX: Final = 64 << 20
"""64 MiB: the largest meta is the user table of a journal object."""

_FRAMES_MAX: Final = PAYLOAD_BYTES_MAX // FRAME_BYTES
_REMEMBERED_OIDS_MAX: Final = 4096

_FIXED = struct.Struct("<4sBBBB8s16sIIQ")
_CRC = struct.Struct("<I")
_ENTRY = struct.Struct("<II")
_ONE_FRAME = struct.Struct("<III")  # it is the header's checksum and the only entry
_NO_KEY: Final = bytes(KEY_ID_BYTES)
assert _FIXED.size == _SIGNED_BYTES


class ObjectKind(IntEnum):
    """The kind of an object: byte 6."""

    MAIL = 1
    CLAIM = 2
    BASE = 3
    DIFF = 4
    CACHE = 5
    JOURNAL = 6
    FORMAT = 7
    PULL = 8
    """It is sent between two backends and is never in the bucket."""

    CURSOR = 9
    DEAD_LETTER = 10
    PACK = 11


class ShortPrefix(ValueError):
    """More of the object's beginning is needed.

    Ask again with at least `need` bytes (or all, if there are fewer).
    """

    def __init__(self, need: int) -> None:
        super().__init__(f"a longer prefix is needed: {need} bytes")
        self.need = need


class UnknownKey(CorruptObject):
    """The object is sealed under a key id that is not configured.

    It is not damaged, but nobody can read it here.
    """


class Decoded(NamedTuple):
    """A whole object. kind: an ObjectKind, or a number that a newer minor version may
    know.

    major: in version 1 the caller checks what meta and payload say about their owner.
    """

    kind: int
    oid: Oid
    meta: bytes
    payload: bytes
    major: int = MAJOR


class _Plain(NamedTuple):
    """An object of one frame without a seal, with verified checksums: only
    decompressing is left.
    """

    kind: int
    oid: bytes
    meta: bytes
    compression: int
    frame: bytes
    expected: int
    major: int

    def decoded(self, payload: bytes) -> Decoded | None:
        if len(payload) != self.expected:
            return None
        return Decoded(self.kind, Oid(self.oid), self.meta, payload, self.major)


def _read_plain(data: bytes, owner: Owner, major_min: int) -> _Plain | None:
    """Read an object of one frame without a seal, as nearly every mail is.

    This takes a third of the time of the general way. None for any other object and for
    any doubt: the general way decides, and says what is wrong.
    """
    if len(data) < HEADER_BYTES + _ENTRY.size:
        return None
    magic, major, _, kind, compression, key_field, oid, meta_bytes, frames, expected = _FIXED.unpack_from(data)
    if magic != MAGIC or not major_min <= major <= MAJOR or key_field != _NO_KEY:
        return None
    if frames != 1 or not 0 < expected <= FRAME_BYTES:
        return None
    start = HEADER_BYTES + _ENTRY.size + meta_bytes
    signed_crc, length, frame_crc = _ONE_FRAME.unpack_from(data, _SIGNED_BYTES)
    frame = data[start:]
    if (
        len(frame) != length
        or crc32(data[HEADER_BYTES:start], crc32(_signed(data, major, owner))) != signed_crc
        or crc32(frame) != frame_crc
        or compression not in (Compression.NONE, Compression.ZSTD)
    ):
        return None
    return _Plain(kind, oid, data[start - meta_bytes : start], compression, frame, expected, major)


def _signed(prefix: bytes, major: int, owner: Owner) -> bytes:
    """Return the beginning of what the header's CRC covers, and the associated data of
    the seal."""
    return prefix[:_SIGNED_BYTES] if major == OLD_MAJOR else prefix[:_SIGNED_BYTES] + owner


def _info(major: int, owner: Owner) -> bytes:
    """Return the info of a key.

    It includes the owner, so that an object that is bound to another owner later, with
    the same oid, has another key.
    """
    return b"obox 1 object" if major == OLD_MAJOR else b"obox 2 object" + owner


def _decode_plain(data: bytes, owner: Owner, major_min: int) -> Decoded | None:
    plain = _read_plain(data, owner, major_min)
    if plain is None:
        return None
    if plain.compression == Compression.NONE:
        return plain.decoded(plain.frame)
    return plain.decoded(decompress(plain.frame, plain.expected, 0))


def _decompress_many(frames: Sequence[_Plain]) -> list[bytes] | None:
    """Decompress in a single call; None if a frame is damaged."""
    sizes = struct.pack(f"={len(frames)}Q", *(one.expected for one in frames))
    try:
        found = zstd.decompressor.multi_decompress_to_buffer([one.frame for one in frames], decompressed_sizes=sizes)
    except zstandard.ZstdError:
        return None
    return [found[at].tobytes() for at in range(len(found))]


class Codec:
    """Encodes and decodes objects under a set of keys. Several threads may use it."""

    def __init__(
        self,
        keys: Mapping[str, bytes],
        encrypt_with: str | None,
        compress: str = "zstd:3",
        *,
        require_encryption: bool = False,
    ) -> None:
        """keys: id -> 32 bytes, all of which decrypt; encrypt_with: the id that
        encrypts, None for plain objects.

        compress: "none" or "zstd:LEVEL" with level 1 to 19. require_encryption: plain
        and old objects are refused. Raises: ConfigError.
        """
        for key_id, key in keys.items():
            check_key_id(key_id)
            if len(key) != 32:
                raise ConfigError(f"encryption key {key_id!r} has {len(key)} bytes; allowed: 32")
        if encrypt_with is not None and encrypt_with not in keys:
            raise ConfigError(
                f"encryption key {encrypt_with!r} is not among the keys; allowed: {', '.join(keys) or 'none'}"
            )
        if keys:  # see its text; no mail has to wait for it later
            import obox.objectstore._seal  # noqa: F401 - only its import counts
        self._keys = dict(keys)
        self.encrypt_with = encrypt_with
        self._level = _parse_compress(compress)
        if require_encryption and encrypt_with is None:
            raise ConfigError("storage.require_encryption is on; allowed: with storage.encryption_keys")
        self._plain_allowed = not require_encryption
        self.major_min = MAJOR if require_encryption else OLD_MAJOR
        """Objects of an older version are refused: MAJOR as soon as the whole bucket
        has this version.
        """
        self._used: OrderedDict[bytes, int] = OrderedDict()
        self._used_lock = threading.Lock()

    def encode(self, kind: ObjectKind, owner: Owner, oid: Oid, meta: bytes, payload: bytes) -> bytes:
        """Return the object. Take a new oid if owner, meta or payload change.

        Raises: ValueError on sizes above the limits, on an oid of another length, on an
        oid that was used with other content.
        """
        if len(oid) != OID_BYTES or len(payload) > PAYLOAD_BYTES_MAX or len(meta) > META_BYTES_MAX:
            raise ValueError(f"oid of {len(oid)}, meta of {len(meta)}, payload of {len(payload)} bytes")
        frames = split(payload)
        compression = Compression.NONE
        if self._level and payload:
            compressor = zstd.compressor(self._level)
            packed = [compressor.compress(frame) for frame in frames]
            if sum(map(len, packed)) < len(payload):
                frames, compression = packed, Compression.ZSTD
        if self.encrypt_with is not None:
            self._remember(oid, crc32(payload, crc32(meta, crc32(owner, kind))))
        return self._put_together(
            kind,
            owner,
            oid,
            meta,
            frames,
            minor=MINOR,
            compression=compression,
            key_id=self.encrypt_with or "",
            payload_bytes=len(payload),
        )

    def _put_together(
        self,
        kind: int,
        owner: Owner,
        oid: Oid,
        meta: bytes,
        frames: list[bytes],
        *,
        minor: int,
        compression: int,
        key_id: str,
        payload_bytes: int,
    ) -> bytes:
        """frames: compressed, not sealed. key_id: "" for a plain object."""
        signed = _FIXED.pack(
            MAGIC,
            MAJOR,
            minor,
            kind,
            compression,
            key_id.encode("ascii"),
            oid,
            len(meta) + TAG_BYTES if key_id else len(meta),
            len(frames),
            payload_bytes,
        )
        bound = signed + owner
        if key_id:
            from obox.objectstore._seal import Seal

            seal = Seal(self._keys[key_id], oid, _info(MAJOR, owner), bound)
            last = len(frames) - 1
            frames = [seal.seal(frame, number, number == last) for number, frame in enumerate(frames)]
            meta = seal.seal(meta, META_FRAME, False)
        table = b"".join([_ENTRY.pack(len(frame), crc32(frame)) for frame in frames])
        crc = crc32(meta, crc32(table, crc32(bound)))
        return b"".join((signed, _CRC.pack(crc), table, meta, *frames))

    def outdated(self, prefix: bytes) -> bool:
        """Return whether an object has an older version, or is not sealed under the key
        that encrypts.

        It uses the first HEADER_BYTES, unverified. Raises: CorruptObject, NewerFormat.
        """
        _check_start(prefix, OLD_MAJOR)
        if len(prefix) < HEADER_BYTES:
            raise CorruptObject(f"an object of {len(prefix)} bytes has no header")
        key_id = _key_id(prefix[8 : 8 + KEY_ID_BYTES])
        return prefix[_MAGIC_BYTES] != MAJOR or key_id != (self.encrypt_with or key_id)

    def renewed(self, data: bytes, owner: Owner, *, was: Owner | None = None) -> bytes:
        """Return an object as this version writes it, with the oid that it has.

        It is sealed under the key that encrypts. Frames stay compressed as they are, so
        that renewing once more gives the same bytes: no key ever seals two texts under
        the same nonce. The caller has checked what version 1 says about its owner. was:
        the owner to which the object is bound, if that is another owner. Objects that
        `decode` refuses as old or plain are read. Raises: CorruptObject, UnknownKey,
        NewerFormat.
        """
        header = self._whole(data, owner if was is None else was, lenient=True)
        start, _ = header.frames_for(0, header.payload_bytes)
        # else damaged bytes would get a good checksum
        header.decode_range(data[start:], 0, header.payload_bytes)
        frames = [header.opened(memoryview(data), 0, number) for number in range(header.frames)]
        return self._put_together(
            header.kind,
            owner,
            header.oid,
            header.meta,
            frames,
            minor=header.minor if header.major == MAJOR else MINOR,
            compression=header.compression,
            key_id=self.encrypt_with or header.key_id,
            payload_bytes=header.payload_bytes,
        )

    def decode(self, data: bytes, owner: Owner, *, lenient: bool = False) -> Decoded:
        """Return the content of a whole object.

        lenient: old and plain objects are read although they are otherwise refused, to
        renew them. Raises: CorruptObject (also for an object of another owner),
        UnknownKey, NewerFormat.
        """
        if self._plain_allowed:
            plain = _decode_plain(data, owner, self.major_min)
            if plain is not None:
                return plain
        header = self._whole(data, owner, lenient=lenient)
        start, end = header.frames_for(0, header.payload_bytes)
        payload = header.decode_range(data[start:end], 0, header.payload_bytes)
        return Decoded(header.kind, header.oid, header.meta, payload, header.major)

    def _whole(self, data: bytes, owner: Owner, *, lenient: bool) -> Header:
        """Return the header of an object that is complete."""
        try:
            header = self.decode_header(data, owner, lenient=lenient)
        except ShortPrefix as short:
            raise CorruptObject(f"an object of {len(data)} bytes, at least {short.need} expected") from None
        if len(data) != header.object_bytes:
            raise CorruptObject(f"an object of {len(data)} bytes, {header.object_bytes} expected")
        return header

    def decode_many(self, objects: Sequence[bytes], owners: Sequence[Owner]) -> list[Decoded | StoreError]:
        """Decode whole objects, if there are many in a thread.

        The thread gives up the interpreter's lock once, and not for each object. For an
        object that `decode` refuses, the result has its error.
        """
        out: list[Decoded | StoreError | None] = [None] * len(objects)
        packed: list[tuple[int, _Plain]] = []
        for at, (data, owner) in enumerate(zip(objects, owners, strict=True)):
            plain = _read_plain(data, owner, self.major_min) if self._plain_allowed else None
            if plain is not None and plain.compression == Compression.ZSTD:
                packed.append((at, plain))
        if MANY and len(packed) > 1:
            payloads = _decompress_many([plain for _, plain in packed])
            for (at, plain), payload in zip(packed, payloads or (), strict=payloads is not None):
                out[at] = plain.decoded(payload)
        return [
            self._try(data, owner) if found is None else found
            for data, owner, found in zip(objects, owners, out, strict=True)
        ]

    def _try(self, data: bytes, owner: Owner) -> Decoded | StoreError:
        try:
            return self.decode(data, owner)
        except StoreError as error:
            return error

    def decode_header(self, prefix: bytes, owner: Owner, *, lenient: bool = False) -> Header:
        """Return the header out of the first bytes of an object; 4 KiB contain nearly
        every header.

        lenient: see `decode`. Raises: ShortPrefix (which says how many bytes are
        needed), CorruptObject, UnknownKey, NewerFormat.
        """
        _check_start(prefix, OLD_MAJOR if lenient else self.major_min)
        if len(prefix) < HEADER_BYTES:
            raise ShortPrefix(HEADER_BYTES)
        signed = bytes(prefix[:_SIGNED_BYTES])
        _, major, minor, kind, compression, key_field, oid, meta_bytes, frames, payload_bytes = _FIXED.unpack(signed)
        if (
            frames != -(-payload_bytes // FRAME_BYTES)
            or frames > _FRAMES_MAX
            or meta_bytes > META_BYTES_MAX + TAG_BYTES
        ):
            raise CorruptObject(f"header: {frames} frames for {payload_bytes} bytes, meta of {meta_bytes}")
        meta_at = HEADER_BYTES + frames * _ENTRY.size
        start = meta_at + meta_bytes
        if len(prefix) < start:
            raise ShortPrefix(start)
        (crc,) = _CRC.unpack_from(prefix, _SIGNED_BYTES)
        bound = _signed(signed, major, owner)
        if crc32(memoryview(prefix)[HEADER_BYTES:start], crc32(bound)) != crc:
            raise CorruptObject("header: checksum does not match (damaged, or the object of another owner)")
        if compression not in (Compression.NONE, Compression.ZSTD):
            raise CorruptObject(f"header: compression {compression}")
        meta = bytes(prefix[meta_at:start])
        key_id, seal = "", None
        if not any(key_field):
            if not (self._plain_allowed or lenient):
                raise CorruptObject("not encrypted, which storage.require_encryption refuses")
        else:
            key_id = _key_id(key_field)
            master = self._keys.get(key_id)
            if master is None:
                raise UnknownKey(f"sealed under key {key_id!r}, which is not configured")
            from obox.objectstore._seal import Seal

            seal = Seal(master, oid, _info(major, owner), bound)
            meta = seal.open(meta, META_FRAME, False)
        entries = [_ENTRY.unpack_from(prefix, HEADER_BYTES + i * _ENTRY.size) for i in range(frames)]
        return Header(
            kind=kind,
            major=major,
            minor=minor,
            compression=compression,
            key_id=key_id,
            oid=Oid(oid),
            meta=meta,
            payload_bytes=payload_bytes,
            start=start,
            entries=entries,
            seal=seal,
        )

    def _remember(self, oid: bytes, digest: int) -> None:
        """Refuse a second object under the same oid, among the last few thousand."""
        with self._used_lock:
            if self._used.setdefault(oid, digest) != digest:
                raise ValueError(f"oid {oid.hex()} is used for a second object: a sealed object takes a fresh oid")
            if len(self._used) > _REMEMBERED_OIDS_MAX:
                self._used.popitem(last=False)


def oid_of(prefix: bytes) -> Oid:
    """Return the oid out of the first HEADER_BYTES of an object, unverified.

    This is enough to recognise an object of one's own. Raises: CorruptObject,
    NewerFormat.
    """
    _check_start(prefix, OLD_MAJOR)
    if len(prefix) < HEADER_BYTES:
        raise CorruptObject(f"an object of {len(prefix)} bytes has no header")
    return Oid(bytes(prefix[16 : 16 + OID_BYTES]))


def envelope_bytes(data: bytes) -> tuple[int, int]:
    """Return the size of the envelope that begins here, and the size that it has once
    it is sealed. Both are unverified. Raises: CorruptObject, ShortPrefix."""
    _check_start(data, OLD_MAJOR)
    if len(data) < HEADER_BYTES:
        raise ShortPrefix(HEADER_BYTES)
    _, _, _, _, _, key_field, _, meta_bytes, frames, _ = _FIXED.unpack_from(data)
    if frames > _FRAMES_MAX:
        raise CorruptObject(f"header: {frames} frames")
    start = HEADER_BYTES + frames * _ENTRY.size
    if len(data) < start:
        raise ShortPrefix(start)
    stored = sum(_ENTRY.unpack_from(data, HEADER_BYTES + at * _ENTRY.size)[0] for at in range(frames))
    size = start + meta_bytes + stored
    return size, size if any(key_field) else size + TAG_BYTES * (frames + 1)


def payload_bytes_of(prefix: bytes) -> int:
    """Return the size of the payload that an object claims in its first HEADER_BYTES,
    unverified; 0 if these are no header."""
    return _FIXED.unpack_from(prefix)[-1] if len(prefix) >= HEADER_BYTES else 0


def new_oid(rng: random.Random) -> Oid:
    """Return a new object id: unique for ever, if rng is the system's or has a seed of
    its own.
    """
    return Oid(rng.randbytes(OID_BYTES))


@lru_cache(maxsize=64)
def _parse_compress(value: str) -> int:
    """Return the zstd level, 0 for none."""
    if value == "none":
        return 0
    name, _, level = value.partition(":")
    if name == "zstd" and level.isascii() and level.isdigit() and 1 <= int(level) <= 19:
        return int(level)
    raise ConfigError(f'storage.compress = "{value}"; allowed: "none", "zstd:1" to "zstd:19"')


def _key_id(field: bytes) -> str:
    return field.rstrip(b"\0").decode("ascii", "replace")


def _check_start(prefix: bytes, major_min: int) -> None:
    if prefix[:_MAGIC_BYTES] != MAGIC[: len(prefix)] or not prefix:
        raise CorruptObject("no obox object: " + ("empty, a burnt claim" if not prefix else "wrong magic"))
    if len(prefix) > _MAGIC_BYTES and not major_min <= prefix[_MAGIC_BYTES] <= MAJOR:
        major = prefix[_MAGIC_BYTES]
        if major > MAJOR:
            raise NewerFormat(f"format {major}, this obox reads {MAJOR}: upgrade it")
        raise CorruptObject(f"format {major}" + (", refused in an upgraded bucket" if major == OLD_MAJOR else ""))
