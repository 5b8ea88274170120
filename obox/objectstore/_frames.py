"""Frames of an object's payload: compressed, sealed, found by offset. codec.py
describes the format.

This module does not know the place of a header in the bytes or the names of keys.
Diagnostics: CorruptObject.
"""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import TYPE_CHECKING, Final
from zlib import crc32

import zstandard

from obox.objectstore._errors import CorruptObject
from obox.types import Oid

if TYPE_CHECKING:
    from obox.objectstore._seal import Seal

FRAME_BYTES: Final = 256 * 1024
"""Payload in a frame: the least that a partial FETCH reads."""

TAG_BYTES: Final = 16
META_FRAME: Final = 0xFFFFFFFF
"""The frame number under which the meta is sealed."""


class Compression(IntEnum):
    """How frames are compressed: byte 7."""

    NONE = 0
    ZSTD = 1


class _Zstd(threading.local):
    """A compressor per level and a decompressor for each thread: zstandard's objects
    must not be shared.
    """

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self.compressors.get(level)
        if found is None:
            found = self.compressors[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
        return found


zstd = _Zstd()
MANY: Final = hasattr(zstandard.ZstdDecompressor, "multi_decompress_to_buffer")
"""The attribute is False if zstandard runs without its C extension."""


class Header:
    """The verified beginning of an object: enough to read any range of its payload.

    start: offset of frame 0 in the object. object_bytes: the size that the whole object
    must have.
    """

    __slots__ = (
        "_seal",
        "_table",
        "compression",
        "key_id",
        "kind",
        "major",
        "meta",
        "minor",
        "object_bytes",
        "oid",
        "payload_bytes",
    )

    def __init__(  # noqa: PLR0913 - the fields of the header, by keyword
        self,
        *,
        kind: int,
        major: int,
        minor: int,
        compression: int,
        key_id: str,
        oid: Oid,
        meta: bytes,
        payload_bytes: int,
        start: int,
        entries: list[tuple[int, int]],
        seal: Seal | None,
    ) -> None:
        self.kind = kind
        self.major = major
        self.minor = minor
        self.compression = compression
        self.key_id = key_id
        self.oid = oid
        self.meta = meta
        self.payload_bytes = payload_bytes
        self._seal = seal
        # offset, length, crc; then the end as a row of its own
        self._table: list[tuple[int, int, int]] = []
        at = start
        for length, crc in entries:
            self._table.append((at, length, crc))
            at += length
        self.object_bytes = at
        self._table.append((at, 0, 0))

    @property
    def frames(self) -> int:
        """Return the number of frames."""
        return len(self._table) - 1

    def frames_for(self, start: int, end: int) -> tuple[int, int]:
        """Return the byte range (end excluded) of the object that contains payload
        bytes start..end.

        The range ends at the payload's end at the latest; it is (n, n) if it is empty.
        """
        first, after = self._span(start, end)
        return self._table[first][0], self._table[after][0]

    def decode_range(self, data: bytes, start: int, end: int) -> bytes:
        """Return payload bytes start..end out of the object's bytes frames_for(start,
        end).

        Raises: CorruptObject, also if data is shorter or longer than that range.
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

    def opened(self, view: memoryview, base: int, number: int) -> bytes:
        """A frame as it was before it was sealed: still compressed. base: offset of
        view in the object.
        """
        offset, length, crc = self._table[number]
        stored = view[offset - base : offset - base + length]
        if crc32(stored) != crc:
            raise CorruptObject(f"frame {number}: checksum does not match")
        frame = bytes(stored)
        return frame if self._seal is None else self._seal.open(frame, number, number == self.frames - 1)

    def _frame(self, view: memoryview, base: int, number: int) -> bytes:
        frame = self.opened(view, base, number)
        expected = min(FRAME_BYTES, self.payload_bytes - number * FRAME_BYTES)
        if self.compression == Compression.ZSTD:
            frame = decompress(frame, expected, number)
        if len(frame) != expected:
            raise CorruptObject(f"frame {number}: {len(frame)} bytes, not {expected}")
        return frame


def decompress(frame: bytes, expected: int, number: int) -> bytes:
    """Return exactly expected bytes.

    The size is checked before anything is allocated, against decompression bombs.
    """
    try:
        if zstandard.frame_content_size(frame) != expected:
            raise CorruptObject(f"frame {number}: does not hold {expected} bytes")
        return zstd.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptObject(f"frame {number}: {error}") from None


def split(payload: bytes) -> list[bytes]:
    if len(payload) <= FRAME_BYTES:
        return [payload] if payload else []
    return [payload[at : at + FRAME_BYTES] for at in range(0, len(payload), FRAME_BYTES)]
