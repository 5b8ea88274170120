"""Batches as this version writes them, for `upgrade`."""

from __future__ import annotations

from ...errors import Corrupt
from ...objectstore.codec import Codec, envelope_bytes
from ...objectstore.keys import mail_key, owner_of, parse_mail_key
from ...types import Owner, Uid
from ..mails.batch import claimed, cut, joined
from ..mails.meta import MailMeta, check_meta


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
    return joined(envelopes, rooms)
