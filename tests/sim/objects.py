"""What lies in the simulated bucket, found without an index: mails alone, and mails in
batches.

It decodes the bytes as docs/format.md describes them, and uses the codec alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from obox.mailbox import Delta
from obox.objectstore import ObjectKind
from obox.objectstore.keys import mail_key, mail_prefix, owner_of, parse_mail_key
from obox.types import Guid, StorageId, Uid

from .model import require, token_of
from .world import CODEC, World


@lru_cache(maxsize=4096)
def claim_in(key: str, data: bytes) -> Delta | None:
    """Return the claim of an object, None if it is a mail."""
    header = CODEC.decode_header(data, owner_of(key), lenient=True)
    if header.kind != ObjectKind.CLAIM:
        return None
    return Delta.decode(CODEC.decode(data[: header.object_bytes], owner_of(key), lenient=True).payload)


def found_mail(world: World, sid: StorageId, guid: str, uid: int) -> tuple[tuple[str, int] | None, bytes | None]:
    """Return where a mail lies (key, offset), and its token. None: the bucket has no
    such mail."""
    objects = world.memory.objects
    own = mail_key(sid, Guid(guid), Uid(uid))
    taken = 0
    for key in world.memory.keys:
        if not key.startswith(mail_prefix(sid, Guid(guid))) or key > own:
            continue
        first, data = int(parse_mail_key(key).uid), objects[key][0]
        # Below `taken` it is void.
        delta = claim_in(key, data) if data and first >= taken else None
        if delta is None:
            continue
        taken = first + (delta.batches or delta.claims)[first]
        if delta.batches and uid < taken:
            start, envelope = [*_envelopes(key, data)][uid - first]
            return (key, start), _token(own, envelope)
    data = objects[own][0] if own in objects else b""
    if not data:
        return None, None
    require(claim_in(own, data) is None, "a record whose object is a claim:", own)
    return (own, 0), _token(own, data)


def mails_of(key: str, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the UIDs and tokens of a batch."""
    found = parse_mail_key(key)
    for number, (_, envelope) in enumerate(_envelopes(key, data)):
        own = mail_key(found.sid, found.guid, Uid(found.uid + number))
        yield found.uid + number, _token(own, envelope)


def _envelopes(key: str, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the envelope of each mail of a batch. The simulated bucket
    is not encrypted, so that each is followed by 16 NULs for the meta and for each
    frame."""
    head = CODEC.decode_header(data, owner_of(key), lenient=True)
    at = head.object_bytes + 16 * (1 + head.frames)
    found = parse_mail_key(key)
    uid = int(found.uid)
    while at < len(data):
        own = mail_key(found.sid, found.guid, Uid(uid))
        header = CODEC.decode_header(data[at:], owner_of(own), lenient=True)
        yield at, data[at : at + header.object_bytes]
        at += header.object_bytes + 16 * (1 + header.frames)
        uid += 1


def _token(key: str, envelope: bytes) -> bytes:
    return token_of(CODEC.decode(envelope, owner_of(key), lenient=True).payload)
