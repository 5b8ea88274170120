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
from ...mailbox import Delta, Rows
from ...objectstore import CorruptObject, Header, NewerFormat, ShortPrefix
from ...objectstore.codec import Codec, Decoded, ObjectKind, envelope_bytes
from ...objectstore.keys import mail_key, owner_of, parse_mail_key
from ...types import Oid, Owner, Uid
from .meta import MailMeta, check_claim, check_meta

FORM: Final = "mails"
"""The form in `obox.forms` that allows batches."""

BATCHES: Final = 2
"""Its version from which a bucket may have batches."""


class HeadMeta(msgspec.Struct, omit_defaults=True):
    """The meta of a head. tail: the bytes behind it."""

    tail: int = 0


def rows_of(metas: Sequence[MailMeta], oids: Sequence[bytes]) -> Rows:
    """Return the records of several mails in UID order. They get their MODSEQ when they
    become visible, and say with 1 which flags they have."""
    uids = np.array([meta.uid for meta in metas], dtype=np.uint32)
    flags = list(dict.fromkeys(flag for meta in metas for flag in meta.flags))
    return Rows(
        uid=uids,
        size=np.array([meta.size for meta in metas], dtype=np.uint32),
        internaldate=np.array([meta.internaldate for meta in metas], dtype=np.int64),
        zone=np.array([meta.zone for meta in metas], dtype=np.int16),
        savedate=np.array([meta.savedate for meta in metas], dtype=np.int64),
        modseq=np.zeros(len(metas), dtype=np.uint64),
        home=np.full(len(metas), -1, dtype=np.int32),
        home_uid=uids,
        oid=np.frombuffer(b"".join(oids), dtype=np.uint8).reshape(-1, 16),
        place=np.zeros((len(metas), 3), dtype=np.uint32),
        stamps={flag: np.array([flag in meta.flags for meta in metas], dtype=np.uint64) for flag in flags},
    )


def made(codec: Codec, key: str, oid: Oid, rows: Rows, envelopes: Sequence[bytes]) -> tuple[bytes, Delta]:
    """Return a batch under a key, and what it adds to the state of its mailbox.

    rows: the records of the mails; their places are set here. oid: of the head.
    """
    first = parse_mail_key(key).uid
    rooms = [envelope_bytes(envelope)[1] for envelope in envelopes]
    ends = np.cumsum(rooms)
    rows.place = np.empty((len(rows), 3), dtype=np.uint32)
    rows.place[:, 0], rows.place[:, 1], rows.place[:, 2] = first, ends - rooms, rooms
    delta = Delta(rows=rows, batches={first: len(rows)}, uidnext=first + len(rows))
    meta = msgspec.msgpack.encode(HeadMeta(int(ends[-1])))
    head = codec.encode(ObjectKind.CLAIM, owner_of(key), oid, meta, delta.encode())
    room = envelope_bytes(head)[1]
    rows.place[:, 1] += np.uint32(room)
    return _joined([head, *envelopes], [room, *rooms]), delta


def _joined(envelopes: Sequence[bytes], rooms: Sequence[int]) -> bytes:
    return b"".join(part.ljust(room, b"\0") for part, room in zip(envelopes, rooms, strict=True))


def claimed(key: str, head: bytes, decoded: Decoded) -> Delta:
    """Return what a claim adds to its mailbox, with the places of the mails if it is the
    head of a batch.

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


def renewed(codec: Codec, key: str, data: bytes, was: Owner) -> bytes:
    """Return a batch as this version writes it: see `Codec.renewed`. The places of its
    mails stay. was: the owner that it is bound to, perhaps under another storage id.

    Raises StoreError kinds, Corrupt, ValueError; then the batch stays as it is.
    """
    head = data[: envelope_bytes(data)[0]]
    rows = claimed(key, head, codec.decode(head, was, lenient=True)).rows
    if rows is None:
        raise Corrupt("a batch without records")
    old_sid = was[: was.index(b"/")]
    found = parse_mail_key(key)
    envelopes, rooms = [codec.renewed(head, owner_of(key), was=was)], [int(rows.place[0, 1])]
    for uid, (_, offset, room) in zip(rows.uid.tolist(), rows.place.tolist(), strict=True):
        own = mail_key(found.sid, found.guid, Uid(uid))
        owner = owner_of(own)
        bound = Owner(old_sid + owner[owner.index(b"/") :])
        envelope = cut(data[offset : offset + room])
        check_meta(MailMeta.decode(codec.decode_header(envelope, bound, lenient=True).meta), own)
        envelopes.append(codec.renewed(envelope, owner, was=bound))
        rooms.append(room)
    if any(len(envelope) > room for envelope, room in zip(envelopes, rooms, strict=True)):
        raise Corrupt("a mail of a batch does not fit into its place")
    return _joined(envelopes, rooms)
