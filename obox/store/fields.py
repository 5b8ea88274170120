"""The ready fields of a mail, as a single record (docs/format.md, "Cache segments").

    offset  size  type  field
    0       1     u8    version, 1
    1       16    u32   lengths of envelope, body, bodystructure and header;
                        0xffffffff for a header that is too long to be kept
    17      n     bytes the four, one after the other

Pure. A record is decoded only where it is read, because a FETCH of ten thousand mails
often needs only one of the four fields.
"""

from __future__ import annotations

import struct
from typing import Final

VERSION: Final = 1
_HEAD: Final = struct.Struct("<BIIII")
_HEAD_BYTES: Final = 1 + 4 * 4
_NO_HEADER: Final = 0xFFFFFFFF
_unpack: Final = _HEAD.unpack_from


class Fields:
    """What clients fetch most, in wire form. It is made once, when the mail arrives.

    body: the non-extended BODY. header: the header block, or None if it is too long to
    be kept.
    """

    __slots__ = ("packed",)

    def __init__(self, packed: bytes) -> None:
        """packed: a record of the present version (`opened`)."""
        self.packed = packed

    @classmethod
    def of(cls, envelope: bytes, body: bytes, bodystructure: bytes, header: bytes | None) -> Fields:
        length = _NO_HEADER if header is None else len(header)
        head = _HEAD.pack(VERSION, len(envelope), len(body), len(bodystructure), length)
        return cls(b"".join((head, envelope, body, bodystructure, header or b"")))

    @property
    def envelope(self) -> bytes:
        length = _unpack(self.packed)[1]
        return self.packed[_HEAD_BYTES : _HEAD_BYTES + length]

    @property
    def body(self) -> bytes:
        _, before, length, _, _ = _unpack(self.packed)
        start = _HEAD_BYTES + before
        return self.packed[start : start + length]

    @property
    def bodystructure(self) -> bytes:
        _, envelope, body, length, _ = _unpack(self.packed)
        start = _HEAD_BYTES + envelope + body
        return self.packed[start : start + length]

    @property
    def header(self) -> bytes | None:
        _, envelope, body, structure, length = _unpack(self.packed)
        if length == _NO_HEADER:
            return None
        start = _HEAD_BYTES + envelope + body + structure
        return self.packed[start : start + length]


def opened(records: list[bytes | None]) -> list[Fields | None]:
    """Decode records. The result is None if there is no record, or if it has another
    version; then the fields are made again."""
    return [Fields(record) if record is not None and record[0] == VERSION else None for record in records]
