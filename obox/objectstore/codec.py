"""The bytes of every object that obox writes: header, frame table, meta, frames.

All integers are little-endian.

```
 offset  size  field
      0     4  magic, b"obox"
      4     1  major version, 1: another one is not read
      5     1  minor version, 0: a newer one is read, what it adds is in the caller's meta
      6     1  kind: 1 mail, 2 claim, 3 base, 4 diff, 5 cache, 6 journal, 7 format, 8 pull; others are kept as numbers
      7     1  compression of the frames: 0 none, 1 zstd
      8     8  key id, ASCII, NUL padded; all NUL: not encrypted
     16    16  oid
     32     4  bytes of the meta as stored
     36     4  number of frames
     40     8  bytes of the payload (plain, all frames)
     48     4  CRC-32 of bytes 0..48, the frame table and the meta as stored
     52   8*n  frame table, per frame: u32 bytes as stored, u32 CRC-32 of the bytes as stored
  52+8n     m  meta: the caller's bytes, never compressed, sealed if the object is encrypted
      …     …  frames: each 256 KiB of payload but the last, which has the rest; compressed, then sealed
```

Compression is a property of the object: if zstd does not make the payload smaller, all frames are stored as they are.
Sealed is AES-256-GCM: key = HKDF-SHA256(master key, salt = oid, info = b"obox 1 object"), nonce = frame number u32 and
8 NUL bytes, associated data = header bytes 0..48, frame number u32, 1 byte that is 1 on the last frame. The meta is
frame 0xffffffff, last mark 0, and is sealed even when it is empty, so that every encrypted object has an authentic
header.

An object of zero bytes is a burnt claim: it has no header. See put_once.py.

Invariant: what decode returns is what encode was given, or it raises; a single wrong byte is always found (CRC-32 over
every byte but the CRC itself). One oid is for one object: the key comes from it, so a second object under the same oid
would use a GCM nonce twice. encode refuses that as far as it remembers.

Refuses to know: what meta and payload hold, where objects lie, where key files come from (load_keys reads one).

Diagnostics: CorruptObject (damaged, truncated, wrong key, or a key id that is not configured: UnknownKey) and
NewerFormat are for the caller to log with the object's key; nothing here is retried or logged. load_keys raises
ConfigError.
"""

from __future__ import annotations

import base64
import binascii
import random
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from obox.errors import ConfigError
from obox.objectstore._errors import CorruptObject, NewerFormat, StoreError
from obox.types import Oid

MAGIC: Final = b"obox"
MAJOR: Final = 1
MINOR: Final = 0

_MAGIC_BYTES: Final = 4
_MAJOR_BYTES: Final = 1
_MINOR_BYTES: Final = 1
_KIND_BYTES: Final = 1
_COMPRESSION_BYTES: Final = 1
_KEY_ID_BYTES: Final = 8
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
    + _KEY_ID_BYTES
    + OID_BYTES
    + _META_LENGTH_BYTES
    + _FRAMES_BYTES
    + _PAYLOAD_LENGTH_BYTES
)  # 4+1+1+1+1+8+16+4+4+8 = 48
HEADER_BYTES: Final = _SIGNED_BYTES + _CRC_BYTES  # 48+4 = 52

FRAME_BYTES: Final = 256 * 1024
"""Payload in a frame: what a partial FETCH reads at least."""

PAYLOAD_BYTES_MAX: Final = 1 << 30
"""1 GiB: far above any mail or bundle; a header that claims more is damaged, not a reason to allocate."""

META_BYTES_MAX: Final = 64 << 20
"""64 MiB: the largest meta is the user table of a journal object."""

_FRAMES_MAX: Final = PAYLOAD_BYTES_MAX // FRAME_BYTES
_TAG_BYTES: Final = 16
_META_FRAME: Final = 0xFFFFFFFF
_REMEMBERED_OIDS_MAX: Final = 4096

_FIXED = struct.Struct("<4sBBBB8s16sIIQ")
_CRC = struct.Struct("<I")
_ENTRY = struct.Struct("<II")
_ONE_FRAME = struct.Struct("<III")  # the header's checksum and the only entry
_NO_KEY: Final = bytes(_KEY_ID_BYTES)
_AAD = struct.Struct("<IB")
_NONCE = struct.Struct("<I8x")
assert _FIXED.size == _SIGNED_BYTES


class ObjectKind(IntEnum):
    """What an object holds: byte 6."""

    MAIL = 1
    CLAIM = 2
    BASE = 3
    DIFF = 4
    CACHE = 5
    JOURNAL = 6
    FORMAT = 7
    PULL = 8
    """Between two backends, never in the bucket."""


class Compression(IntEnum):
    """How frames are compressed: byte 7."""

    NONE = 0
    ZSTD = 1


class ShortPrefix(ValueError):
    """More of the object's beginning is needed: ask again with at least `need` bytes (or all, if there are fewer)."""

    def __init__(self, need: int) -> None:
        super().__init__(f"a longer prefix is needed: {need} bytes")
        self.need = need


class UnknownKey(CorruptObject):
    """The object is sealed under a key id that is not configured: not damaged, but not readable here."""


class Decoded(NamedTuple):
    """A whole object. kind: an ObjectKind, or a number that a newer minor version may know."""

    kind: int
    oid: Oid
    meta: bytes
    payload: bytes


class _Seal:
    """Seals and opens the frames of one object."""

    __slots__ = ("_aead", "_signed")

    def __init__(self, master: bytes, oid: bytes, signed: bytes) -> None:
        self._aead = AESGCM(HKDF(SHA256(), 32, salt=oid, info=b"obox 1 object").derive(master))
        self._signed = signed

    def seal(self, data: bytes, number: int, last: bool) -> bytes:
        return self._aead.encrypt(_NONCE.pack(number), data, self._signed + _AAD.pack(number, last))

    def open(self, data: bytes, number: int, last: bool) -> bytes:
        try:
            return self._aead.decrypt(_NONCE.pack(number), data, self._signed + _AAD.pack(number, last))
        except InvalidTag:
            raise CorruptObject(f"frame {number} is not authentic (damaged, or another master key)") from None


class _Zstd(threading.local):
    """One compressor per level and one decompressor for each thread: zstandard's objects are not for sharing."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self.compressors.get(level)
        if found is None:
            found = self.compressors[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
        return found


_zstd = _Zstd()
_MANY: Final = hasattr(zstandard.ZstdDecompressor, "multi_decompress_to_buffer")
"""False where zstandard runs without its C extension."""


class Header:
    """The verified beginning of an object: enough to read any range of its payload.

    start: offset of frame 0 in the object; object_bytes: the size the whole object must have.
    """

    __slots__ = (
        "_seal",
        "_table",
        "compression",
        "key_id",
        "kind",
        "meta",
        "minor",
        "object_bytes",
        "oid",
        "payload_bytes",
    )

    def __init__(
        self,
        *,
        kind: int,
        minor: int,
        compression: int,
        key_id: str,
        oid: Oid,
        meta: bytes,
        payload_bytes: int,
        start: int,
        entries: list[tuple[int, int]],
        seal: _Seal | None,
    ) -> None:
        self.kind = kind
        self.minor = minor
        self.compression = compression
        self.key_id = key_id
        self.oid = oid
        self.meta = meta
        self.payload_bytes = payload_bytes
        self._seal = seal
        self._table: list[tuple[int, int, int]] = []  # offset, length, crc; then the end as a row of its own
        at = start
        for length, crc in entries:
            self._table.append((at, length, crc))
            at += length
        self.object_bytes = at
        self._table.append((at, 0, 0))

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self._table) - 1

    def frames_for(self, start: int, end: int) -> tuple[int, int]:
        """Return the byte range (end excluded) of the object that holds payload bytes start..end.

        The range is cut at the payload's end; (n, n) when it is empty.
        """
        first, after = self._span(start, end)
        return self._table[first][0], self._table[after][0]

    def decode_range(self, data: bytes, start: int, end: int) -> bytes:
        """Return payload bytes start..end out of the object's bytes frames_for(start, end).

        Raises: CorruptObject, also when data is shorter or longer than that range.
        """
        first, after = self._span(start, end)
        base = self._table[first][0]
        if len(data) != self._table[after][0] - base:
            raise CorruptObject(f"{len(data)} bytes of frames {first}..{after}, not {self._table[after][0] - base}")
        if first == after:
            return b""
        view = memoryview(data)
        parts = [self._frame(view, base, number) for number in range(first, after)]
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        skip = first * FRAME_BYTES
        start, end = max(start, 0) - skip, min(end, self.payload_bytes) - skip
        return whole if start == 0 and end >= len(whole) else whole[start:end]

    def _span(self, start: int, end: int) -> tuple[int, int]:
        start, end = max(start, 0), min(end, self.payload_bytes)
        if start >= end:
            return 0, 0
        return start // FRAME_BYTES, -(-end // FRAME_BYTES)

    def _frame(self, view: memoryview, base: int, number: int) -> bytes:
        offset, length, crc = self._table[number]
        stored = view[offset - base : offset - base + length]
        if crc32(stored) != crc:
            raise CorruptObject(f"frame {number}: checksum does not match")
        frame = bytes(stored)
        if self._seal is not None:
            frame = self._seal.open(frame, number, number == self.frames - 1)
        expected = min(FRAME_BYTES, self.payload_bytes - number * FRAME_BYTES)
        if self.compression == Compression.ZSTD:
            frame = _decompress(frame, expected, number)
        if len(frame) != expected:
            raise CorruptObject(f"frame {number}: {len(frame)} bytes, not {expected}")
        return frame


def _decompress(frame: bytes, expected: int, number: int) -> bytes:
    """Return exactly expected bytes; the size is checked before anything is allocated, against bombs."""
    try:
        if zstandard.frame_content_size(frame) != expected:
            raise CorruptObject(f"frame {number}: does not hold {expected} bytes")
        return _zstd.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptObject(f"frame {number}: {error}") from None


class _Plain(NamedTuple):
    """An object of one frame without a seal, its checksums seen: what is left to do is to decompress the frame."""

    kind: int
    oid: bytes
    meta: bytes
    compression: int
    frame: bytes
    expected: int

    def decoded(self, payload: bytes) -> Decoded | None:
        return Decoded(self.kind, Oid(self.oid), self.meta, payload) if len(payload) == self.expected else None


def _read_plain(data: bytes) -> _Plain | None:
    """Take apart an object of one frame without a seal, as nearly every mail is, at a third of the general way's cost.

    None for any other and for any doubt: the general way decides, and says what is wrong.
    """
    if len(data) < HEADER_BYTES + _ENTRY.size:
        return None
    magic, major, _, kind, compression, key_field, oid, meta_bytes, frames, expected = _FIXED.unpack_from(data)
    if magic != MAGIC or major != MAJOR or key_field != _NO_KEY or frames != 1 or not 0 < expected <= FRAME_BYTES:
        return None
    start = HEADER_BYTES + _ENTRY.size + meta_bytes
    signed_crc, length, frame_crc = _ONE_FRAME.unpack_from(data, _SIGNED_BYTES)
    frame = data[start:]
    if (
        len(frame) != length
        or crc32(data[HEADER_BYTES:start], crc32(data[:_SIGNED_BYTES])) != signed_crc
        or crc32(frame) != frame_crc
        or compression not in (Compression.NONE, Compression.ZSTD)
    ):
        return None
    return _Plain(kind, oid, data[start - meta_bytes : start], compression, frame, expected)


def _decode_plain(data: bytes) -> Decoded | None:
    plain = _read_plain(data)
    if plain is None:
        return None
    if plain.compression == Compression.NONE:
        return plain.decoded(plain.frame)
    return plain.decoded(_decompress(plain.frame, plain.expected, 0))


def _decompress_many(frames: Sequence[_Plain]) -> list[bytes] | None:
    """Decompress in one call; None if one is damaged."""
    sizes = struct.pack(f"={len(frames)}Q", *(one.expected for one in frames))
    try:
        found = _zstd.decompressor.multi_decompress_to_buffer([one.frame for one in frames], decompressed_sizes=sizes)
    except zstandard.ZstdError:
        return None
    return [found[at].tobytes() for at in range(len(found))]


class Codec:
    """Encodes and decodes objects under one set of keys. Safe to use from several threads."""

    def __init__(self, keys: Mapping[str, bytes], encrypt_with: str | None, compress: str = "zstd:3") -> None:
        """keys: id -> 32 bytes, all of which decrypt; encrypt_with: the id that encrypts, None for plain objects.

        compress: "none" or "zstd:LEVEL" with level 1 to 19. Raises: ConfigError.
        """
        for key_id, key in keys.items():
            _check_key_id(key_id)
            if len(key) != 32:
                raise ConfigError(f"encryption key {key_id!r} has {len(key)} bytes; allowed: 32")
        if encrypt_with is not None and encrypt_with not in keys:
            raise ConfigError(
                f"encryption key {encrypt_with!r} is not among the keys; allowed: {', '.join(keys) or 'none'}"
            )
        self._keys = dict(keys)
        self._encrypt_with = encrypt_with
        self._level = _parse_compress(compress)
        self._used: OrderedDict[bytes, int] = OrderedDict()
        self._used_lock = threading.Lock()

    def encode(self, kind: ObjectKind, oid: Oid, meta: bytes, payload: bytes) -> bytes:
        """Return the object. One oid is for one object: take a new one when meta or payload change.

        Raises: ValueError on sizes above the limits, on an oid of another length, on an oid seen with other content.
        """
        if len(oid) != OID_BYTES or len(payload) > PAYLOAD_BYTES_MAX or len(meta) > META_BYTES_MAX:
            raise ValueError(f"oid of {len(oid)}, meta of {len(meta)}, payload of {len(payload)} bytes")
        frames = _split(payload)
        compression = Compression.NONE
        if self._level and payload:
            compressor = _zstd.compressor(self._level)
            packed = [compressor.compress(frame) for frame in frames]
            if sum(map(len, packed)) < len(payload):
                frames, compression = packed, Compression.ZSTD
        key_id = self._encrypt_with
        stored_meta_bytes = len(meta) if key_id is None else len(meta) + _TAG_BYTES
        key_field = b"" if key_id is None else key_id.encode("ascii")
        signed = _FIXED.pack(
            MAGIC, MAJOR, MINOR, kind, compression, key_field, oid, stored_meta_bytes, len(frames), len(payload)
        )
        if key_id is not None:
            self._remember(oid, crc32(payload, crc32(meta, crc32(signed))))
            seal = _Seal(self._keys[key_id], oid, signed)
            last = len(frames) - 1
            frames = [seal.seal(frame, number, number == last) for number, frame in enumerate(frames)]
            meta = seal.seal(meta, _META_FRAME, False)
        table = b"".join([_ENTRY.pack(len(frame), crc32(frame)) for frame in frames])
        crc = crc32(meta, crc32(table, crc32(signed)))
        return b"".join((signed, _CRC.pack(crc), table, meta, *frames))

    def decode(self, data: bytes) -> Decoded:
        """Return what a whole object holds. Raises: CorruptObject, UnknownKey, NewerFormat."""
        plain = _decode_plain(data)
        if plain is not None:
            return plain
        try:
            header = self.decode_header(data)
        except ShortPrefix as short:
            raise CorruptObject(f"an object of {len(data)} bytes, at least {short.need} expected") from None
        if len(data) != header.object_bytes:
            raise CorruptObject(f"an object of {len(data)} bytes, {header.object_bytes} expected")
        start, end = header.frames_for(0, header.payload_bytes)
        payload = header.decode_range(data[start:end], 0, header.payload_bytes)
        return Decoded(header.kind, header.oid, header.meta, payload)

    def decode_many(self, objects: Sequence[bytes]) -> list[Decoded | StoreError]:
        """Decode whole objects, many of them in a thread: the interpreter's lock is given up once, not for each.

        For one that `decode` refuses, its error.
        """
        out: list[Decoded | StoreError | None] = [None] * len(objects)
        packed: list[tuple[int, _Plain]] = []
        for at, data in enumerate(objects):
            plain = _read_plain(data)
            if plain is not None and plain.compression == Compression.ZSTD:
                packed.append((at, plain))
        if _MANY and len(packed) > 1:
            payloads = _decompress_many([plain for _, plain in packed])
            for (at, plain), payload in zip(packed, payloads or (), strict=payloads is not None):
                out[at] = plain.decoded(payload)
        return [self._try(data) if found is None else found for data, found in zip(objects, out, strict=True)]

    def _try(self, data: bytes) -> Decoded | StoreError:
        try:
            return self.decode(data)
        except StoreError as error:
            return error

    def decode_header(self, prefix: bytes) -> Header:
        """Return the header out of the first bytes of an object; 4 KiB hold nearly every one.

        Raises: ShortPrefix (and says how many bytes it takes), CorruptObject, UnknownKey, NewerFormat.
        """
        _check_start(prefix)
        if len(prefix) < HEADER_BYTES:
            raise ShortPrefix(HEADER_BYTES)
        signed = bytes(prefix[:_SIGNED_BYTES])
        _, _, minor, kind, compression, key_field, oid, meta_bytes, frames, payload_bytes = _FIXED.unpack(signed)
        if (
            frames != -(-payload_bytes // FRAME_BYTES)
            or frames > _FRAMES_MAX
            or meta_bytes > META_BYTES_MAX + _TAG_BYTES
        ):
            raise CorruptObject(f"header: {frames} frames for {payload_bytes} bytes, meta of {meta_bytes}")
        meta_at = HEADER_BYTES + frames * _ENTRY.size
        start = meta_at + meta_bytes
        if len(prefix) < start:
            raise ShortPrefix(start)
        (crc,) = _CRC.unpack_from(prefix, _SIGNED_BYTES)
        if crc32(memoryview(prefix)[HEADER_BYTES:start], crc32(signed)) != crc:
            raise CorruptObject("header: checksum does not match")
        if compression not in (Compression.NONE, Compression.ZSTD):
            raise CorruptObject(f"header: compression {compression}")
        meta = bytes(prefix[meta_at:start])
        key_id, seal = "", None
        if any(key_field):
            key_id = key_field.rstrip(b"\0").decode("ascii", "replace")
            master = self._keys.get(key_id)
            if master is None:
                raise UnknownKey(f"sealed under key {key_id!r}, which is not configured")
            seal = _Seal(master, oid, signed)
            meta = seal.open(meta, _META_FRAME, False)
        entries = [_ENTRY.unpack_from(prefix, HEADER_BYTES + i * _ENTRY.size) for i in range(frames)]
        return Header(
            kind=kind,
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
        """Refuse a second object under one oid, among the last few thousand."""
        with self._used_lock:
            if self._used.setdefault(oid, digest) != digest:
                raise ValueError(f"oid {oid.hex()} is used for a second object: a sealed object takes a fresh oid")
            if len(self._used) > _REMEMBERED_OIDS_MAX:
                self._used.popitem(last=False)


def oid_of(prefix: bytes) -> Oid:
    """Return the oid out of the first HEADER_BYTES of an object, unverified: enough to recognise one's own.

    Raises: CorruptObject, NewerFormat.
    """
    _check_start(prefix)
    if len(prefix) < HEADER_BYTES:
        raise CorruptObject(f"an object of {len(prefix)} bytes has no header")
    return Oid(bytes(prefix[16 : 16 + OID_BYTES]))


def new_oid(rng: random.Random) -> Oid:
    """Return a fresh object id: unique for ever, if rng is the system's or seeded apart."""
    return Oid(rng.randbytes(OID_BYTES))


def load_keys(files: Mapping[str, str]) -> dict[str, bytes]:
    """Read master keys, id -> file: 32 bytes, or their hex, or their base64. Raises: ConfigError, one line."""
    keys: dict[str, bytes] = {}
    for key_id, name in files.items():
        _check_key_id(key_id)
        try:
            raw = Path(name).read_bytes()
        except OSError as error:
            raise ConfigError(f"encryption key {key_id!r}: cannot read {name}: {error.strerror}") from None
        key = _parse_key(raw)
        if key is None:
            raise ConfigError(f"encryption key {key_id!r}: {name} holds no key; allowed: 32 bytes, raw, hex or base64")
        keys[key_id] = key
    return keys


def _parse_key(raw: bytes) -> bytes | None:
    if len(raw) == 32:
        return raw
    text = raw.strip()
    try:
        if len(text) == 64:
            return binascii.unhexlify(text)
        key = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return key if len(key) == 32 else None


def _check_key_id(key_id: str) -> None:
    if not (1 <= len(key_id) <= _KEY_ID_BYTES and key_id.isascii() and key_id.isalnum()):
        raise ConfigError(f"encryption key id {key_id!r}; allowed: 1 to {_KEY_ID_BYTES} ASCII letters and digits")


@lru_cache(maxsize=64)
def _parse_compress(value: str) -> int:
    """Return the zstd level, 0 for none."""
    if value == "none":
        return 0
    name, _, level = value.partition(":")
    if name == "zstd" and level.isascii() and level.isdigit() and 1 <= int(level) <= 19:
        return int(level)
    raise ConfigError(f'storage.compress = "{value}"; allowed: "none", "zstd:1" to "zstd:19"')


def _split(payload: bytes) -> list[bytes]:
    if len(payload) <= FRAME_BYTES:
        return [payload] if payload else []
    return [payload[at : at + FRAME_BYTES] for at in range(0, len(payload), FRAME_BYTES)]


def _check_start(prefix: bytes) -> None:
    if prefix[:_MAGIC_BYTES] != MAGIC[: len(prefix)] or not prefix:
        raise CorruptObject("no obox object: " + ("empty, a burnt claim" if not prefix else "wrong magic"))
    if len(prefix) > _MAGIC_BYTES and prefix[_MAGIC_BYTES] != MAJOR:
        if prefix[_MAGIC_BYTES] > MAJOR:
            raise NewerFormat(f"format {prefix[_MAGIC_BYTES]}, this obox reads {MAJOR}: upgrade it")
        raise CorruptObject(f"format {prefix[_MAGIC_BYTES]}")
