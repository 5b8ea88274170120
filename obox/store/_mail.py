"""The bytes that go with a mail: its meta, the ready fields, a claim (docs/format.md, "Mail", "Fields").

Pure: encodes and decodes, knows neither bucket nor cache.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from .. import mime
from ..errors import Corrupt
from ..mailbox import Rows
from .api import Fields

HEADER_CACHED_MAX: Final = 8 * 1024
"""Octets of a header block that is cached; a larger one is read with its mail. 99.9 % of mails have less."""


class MailMeta(msgspec.Struct, omit_defaults=True):
    """What a mail's object says of itself besides its bytes, so that the bucket alone rebuilds the index record.

    guid: of the mailbox that it was delivered to; size: octets; internaldate: unix seconds; zone: minutes east of UTC;
    savedate: unix milliseconds; flags: at delivery; uidl: of a migrated mail (RFC 1939 §7), "" for none. A map on disk:
    unknown keys are for newer minor versions.
    """

    guid: str
    uid: int
    size: int
    internaldate: int
    zone: int
    savedate: int
    flags: tuple[str, ...] = ()
    uidl: str = ""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> MailMeta:
        """Raises Corrupt."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as exc:
            raise Corrupt(f"a mail's meta does not decode: {exc}") from exc

    def row(self, oid: bytes, modseq: int) -> Rows:
        """The index record of this mail, new at `modseq`."""
        return Rows.one(
            self.uid,
            size=self.size,
            internaldate=self.internaldate,
            zone=self.zone,
            savedate=self.savedate,
            modseq=modseq,
            oid=oid,
            flags=self.flags,
        )


_FIELDS_HEAD: Final = struct.Struct("<BIIII")
_NO_HEADER: Final = 0xFFFFFFFF


def pack_fields(fields: Fields) -> bytes:
    """u8 version 1, four u32 lengths (envelope, body, bodystructure, header or 0xffffffff), then the four."""
    envelope, body, structure, header = fields
    head = _FIELDS_HEAD.pack(
        1, len(envelope), len(body), len(structure), _NO_HEADER if header is None else len(header)
    )
    return b"".join((head, envelope, body, structure, header or b""))


def unpack_fields(data: bytes) -> Fields | None:
    """The inverse; None for a version that this one does not know, which is then made anew."""
    version, envelope, body, structure, header = _FIELDS_HEAD.unpack_from(data)
    if version != 1:
        return None
    a = _FIELDS_HEAD.size
    b = a + envelope
    c = b + body
    d = c + structure
    return Fields(data[a:b], data[b:c], data[c:d], None if header == _NO_HEADER else data[d : d + header])


def make_fields(source: bytes) -> Fields:
    """The ready fields of a mail."""
    summary = mime.summary(source)
    header = summary.header if len(summary.header) <= HEADER_CACHED_MAX else None
    return Fields(summary.envelope, summary.body, summary.bodystructure, header)


