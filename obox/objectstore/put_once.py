"""Create-only PUTs whose answer may be lost: who owns the key now?

put_once  1. PUT the object. Stored: ours.
          2. Refused as existing: GET the first HEADER_BYTES. Our oid: an earlier
             attempt of ours succeeded: ours. Another oid, or no bytes: somebody else's
             object, or burnt: take the next key.
find_outcome  for a PUT of unknown outcome (OutcomeUnknown), which may succeed late,
          minutes from now:
          1. PUT an empty object under the same key. Stored: the key is burnt, and the
             late PUT is refused for ever.
          2. Refused as existing: GET the existing object, as above. Empty: burnt
             already (by us or by somebody else).

A crash between the steps leaves the key unknown to this process. A backend that lists
the key later sees what was stored: a mail that was never acknowledged, or a burnt
claim. Both are legal.

Invariant: after find_outcome has returned, the answer never changes. True and "ours"
mean durable.

This module does not know which key comes next, or the content of the object except its
oid.

Diagnostics: OutcomeUnknown is for `find_outcome`, now or later: the key must stay
pending. It is also raised if a PUT was refused as existing and the existing object
cannot be read, or is gone again. put_once raises Unreachable and Refused only if
nothing of ours can have been stored. A damaged header is "other": the object is not
touched, and the caller takes another key.
"""

from __future__ import annotations

from typing import Literal

from obox.objectstore._driver import Kind, ObjectStore
from obox.objectstore._errors import AlreadyExists, CorruptObject, NewerFormat, OutcomeUnknown, StoreError
from obox.objectstore.codec import HEADER_BYTES, oid_of
from obox.types import Oid

Outcome = Literal["ours", "burnt", "other"]


async def put_once(store: ObjectStore, key: str, data: bytes, oid: Oid, kind: Kind) -> bool:
    """Store an encoded object.

    Returns True if it is stored, and False if somebody else's object, or a burnt claim,
    is under the key. oid: the oid with which data was encoded. Raises: OutcomeUnknown
    (then call `find_outcome`), Unreachable and Refused (nothing was stored).
    """
    try:
        await store.put(key, data, kind=kind)
    except AlreadyExists:
        return await _owner_now(store, key, oid, kind) == "ours"
    return True


async def find_outcome(store: ObjectStore, key: str, oid: Oid, kind: Kind) -> Outcome:
    """Decide a PUT of unknown outcome, for good.

    "ours": it succeeded. "burnt": it never will succeed, the key is lost. "other":
    somebody else's object is there. Raises: OutcomeUnknown, Unreachable, Refused: still
    unknown, call again.
    """
    try:
        await store.put(key, b"", kind=kind)
    except AlreadyExists:
        return await _owner_now(store, key, oid, kind)
    return "burnt"


async def _owner_now(store: ObjectStore, key: str, oid: Oid, kind: Kind) -> Outcome:
    """Say whose object is under the key, after a PUT was refused there."""
    try:
        prefix = await store.get(key, kind=kind, end=HEADER_BYTES)
        if not prefix:
            return "burnt"
        return "ours" if oid_of(prefix) == oid else "other"
    except (CorruptObject, NewerFormat):
        return "other"
    except StoreError as error:
        raise OutcomeUnknown(f"put {key}: refused as existing, but what is there cannot be read: {error}") from error
