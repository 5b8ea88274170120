"""The bytes of a batch: several mails of one mailbox in one object (docs/format.md,
"Batch").

```
head     an envelope of kind 2 (claim): the records of the mails, and the range of UIDs
mails    the envelopes of the mails, in the order of their UIDs
```

Each envelope is followed by as many NULs as it would be longer if it were sealed. So
the places of the mails stay the same when a plain batch is sealed later (`storage
upgrade`), and no index has to change.

This module does not know the bucket, or how UIDs are taken. Diagnostics: StoreError
kinds and Corrupt, for the caller to log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from ...errors import Corrupt
from ...mailbox import Delta
from ...objectstore import CorruptObject, Header, NewerFormat, ShortPrefix
from ...objectstore.codec import Decoded, ObjectKind, envelope_bytes
from ...objectstore.keys import parse_mail_key
from .meta import check_claim

FORM: Final = "mails"
"""The form in `obox.forms` that allows batches."""

BATCHES: Final = 2
"""Its version from which a bucket may have batches."""


class HeadMeta(msgspec.Struct, omit_defaults=True):
    """The meta of a head. tail: the bytes behind it."""

    tail: int = 0


def claimed(key: str, head: bytes, decoded: Decoded) -> Delta:
    """Return what a claim adds to its mailbox, with the places of the mails if it is
    the head of a batch.

    head: the envelope of the claim alone, as it is stored; decoded: the same. Raises
    StoreError kinds, Corrupt, ValueError.
    """
    delta, first = Delta.decode(decoded.payload), parse_mail_key(key).uid
    check_claim(delta, first)
    if delta.batches and delta.rows is not None:
        place = delta.rows.place.copy()
        if bool((place[:, 0] != first).any()) or bool((place[:, 2] == 0).any()):
            raise Corrupt("a batch that does not say where its mails are")
        place[:, 1] += np.uint32(envelope_bytes(head)[1])
        delta.rows.place = place
    return delta


def head_of(data: bytes) -> bytes:
    """Return the head if an object is a batch, otherwise the object as it is."""
    try:
        return data[: envelope_bytes(data)[0]] if data[6:7] == bytes([ObjectKind.CLAIM]) else data
    except (CorruptObject, NewerFormat, ShortPrefix):
        return data


def joined(envelopes: Sequence[bytes], rooms: Sequence[int]) -> bytes:
    """Return envelopes in their rooms."""
    return b"".join(part.ljust(room, b"\0") for part, room in zip(envelopes, rooms, strict=True))


def cut(data: bytes) -> bytes:
    """Return the envelope at the beginning of what lies at its place, without the NULs
    behind it. Raises CorruptObject if it is not whole."""
    try:
        size, room = envelope_bytes(data)
    except ShortPrefix as exc:
        raise CorruptObject(f"an envelope of {len(data)} bytes, at least {exc.need} expected") from None
    except NewerFormat as exc:
        raise CorruptObject(str(exc)) from None
    if not size <= len(data) <= room:
        raise CorruptObject(f"an envelope of {len(data)} bytes, {size} expected")
    return data[:size]


def is_head(header: Header) -> bool:
    """Return whether mails lie behind this envelope. Raises Corrupt."""
    if header.kind != ObjectKind.CLAIM or not header.meta:
        return False
    try:
        return msgspec.msgpack.decode(header.meta, type=HeadMeta).tail > 0
    except msgspec.MsgspecError as exc:
        raise Corrupt(f"the meta of a claim does not decode: {exc}") from exc
