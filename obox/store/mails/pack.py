"""The bytes of a pack: many mails of one mailbox in one object (docs/format.md,
"Pack").

```
head     an envelope of kind 11 (pack): which mails it has, where, and their oids
mails    the envelopes of the mails as they were in other objects, in UID order
```

This module does not know the bucket, or which mails are packed. Diagnostics:
CorruptObject, NewerFormat and ShortPrefix, for the caller to log or to read more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from ...mailbox import Pack
from ...objectstore import CorruptObject, ShortPrefix
from ...objectstore.codec import Codec, ObjectKind, envelope_bytes
from ...objectstore.keys import owner_of
from ...types import Oid
from .batch import FORM

__all__ = ["FORM", "PACKS", "PACK_BYTES_MAX", "Packed", "Part", "encode", "table"]

PACKS: Final = 3
"""The version of the form `mails` from which a bucket may have packs."""

PACK_BYTES_MAX: Final = 64 << 20
"""The largest pack: 64 MiB of envelopes. A pack is rewritten as a whole."""


class Part(NamedTuple):
    """A mail for a pack. oid: of its envelope."""

    uid: int
    oid: bytes
    envelope: bytes


class Packed(NamedTuple):
    """The table of a pack. oids: those of the mails, in the order of `pack.uid`. size:
    of the object."""

    pack: Pack
    oids: list[bytes]
    size: int


class _Meta(msgspec.Struct, omit_defaults=True):
    """tail: the bytes behind the head."""

    tail: int = 0


class _Table(msgspec.Struct):
    """The payload of a head. pack: as in a delta, but the offsets begin where the head
    ends. oids: 16 bytes each, in the same order."""

    pack: list[object]
    oids: bytes


def encode(codec: Codec, key: str, oid: Oid, covers: Iterable[str], parts: Sequence[Part]) -> tuple[bytes, Pack]:
    """Return a pack of mails in UID order under a key, and what it adds to the state of
    its mailbox.

    covers: names of the packs that it makes superfluous. Raises ValueError on mails
    that are not in UID order, or are too large together.
    """
    lengths = np.array([len(part.envelope) for part in parts], dtype=np.int64)
    tail = int(lengths.sum())
    if not 0 < tail <= PACK_BYTES_MAX:
        raise ValueError(f"a pack of {tail} bytes; allowed: 1 to {PACK_BYTES_MAX}")
    column = np.dtype("<u4")
    uids = np.array([part.uid for part in parts], dtype=column)
    offsets = (np.cumsum(lengths) - lengths).astype(column)
    inside = Pack(tuple(sorted(covers)), uids, offsets, lengths.astype(column)).pack()
    Pack.unpack(inside)  # the rules of a reader
    payload = msgspec.msgpack.encode(_Table(inside, b"".join(part.oid for part in parts)))
    head = codec.encode(ObjectKind.PACK, owner_of(key), oid, msgspec.msgpack.encode(_Meta(tail)), payload)
    return b"".join([head, *(part.envelope for part in parts)]), Pack.unpack(inside).moved(len(head))


def table(codec: Codec, key: str, data: bytes) -> Packed:
    """Return the table of the pack under a key. data: at least the head, as it is
    stored.

    Raises ShortPrefix if more is needed, CorruptObject, NewerFormat.
    """
    size, _ = envelope_bytes(data)
    if size > len(data):
        raise ShortPrefix(size)
    decoded = codec.decode(data[:size], owner_of(key))
    if decoded.kind != ObjectKind.PACK:
        raise CorruptObject(f"an object of kind {decoded.kind}, not a pack")
    try:
        meta = msgspec.msgpack.decode(decoded.meta, type=_Meta)
        raw = msgspec.msgpack.decode(decoded.payload, type=_Table)
        pack = Pack.unpack(raw.pack).moved(size)
    except (msgspec.MsgspecError, ValueError, TypeError) as exc:
        raise CorruptObject(f"the head of a pack does not decode: {exc}") from exc
    ends = pack.offset.astype(np.int64) + pack.length
    if len(raw.oids) != 16 * len(pack) or not len(pack):
        raise CorruptObject(f"a pack of {len(pack)} mails with {len(raw.oids)} bytes of oids")
    if int(ends[-1]) != size + meta.tail or bool((ends[:-1] != pack.offset[1:]).any()) or pack.offset.item(0) != size:
        raise CorruptObject("a pack whose mails do not lie one behind the other")
    return Packed(pack, [raw.oids[at : at + 16] for at in range(0, len(raw.oids), 16)], size + meta.tail)
