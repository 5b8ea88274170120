"""PUTs under UIDs, and finds out what became of them: a mail, a claim, a batch or a
burnt UID.

Invariant: the outcome of a PUT is known when a call returns, however long it takes.
"""

from __future__ import annotations

from typing import Final

import structlog

from ...objectstore import StoreError, find_outcome, put_once
from ...objectstore.keys import mail_key
from ...types import Oid, Uid
from ..box.arrivals import Draft
from ..box.index import Index
from ..box.slots import Fate, Slot
from .meta import MailMeta

log = structlog.get_logger()

DECIDE_S: Final = 1.0
"""Interval between attempts to resolve a UID. It is short, so that deliveries continue
soon after an outage."""

FIELDS_S: Final = 2.0
"""How long a mail in the bucket waits for its ready fields. Without them it becomes
visible, and the first reader makes them. After a longer wait the sender would get 451
for a stored mail, and would send it again."""

CLAIM_INLINE: Final = 1000
"""Mails of a claim that is compressed on the loop: two milliseconds."""


def meta_of(mailbox: Index, uid: int, draft: Draft, now: float) -> MailMeta:
    """Return the meta of a mail that is written at `now`."""
    return MailMeta(
        guid=mailbox.guid,
        uid=uid,
        size=len(draft.source),
        internaldate=int(now) if draft.internaldate is None else draft.internaldate,
        zone=draft.zone,
        savedate=int(now * 1000),
        flags=draft.flags,
    )


async def put_slot(mailbox: Index, slot: Slot, data: bytes, oid: Oid) -> Fate:
    """PUT under a slot's UID and return the outcome. If the outcome of the PUT is
    unknown, it is found out, however long it takes. An object that landed counts,
    because a LIST would find it."""
    key = mail_key(mailbox.user.storage_id, mailbox.guid, Uid(slot.uid))
    try:
        return "landed" if await put_once(mailbox.env.bucket, key, data, oid, kind="mail") else "taken"
    except StoreError as exc:
        if (limiter := mailbox.env.undecided).due():
            log.warning(
                "delivery undecided", user=mailbox.user.name, key=key, error=str(exc), skipped=limiter.skipped()
            )
    return await decided(mailbox, key, oid)


async def decided(mailbox: Index, key: str, oid: Oid) -> Fate:
    """Return the outcome of a PUT that was or was not sent, however long it takes to
    find out."""
    pause = 0.5
    while True:
        try:
            outcome = await find_outcome(mailbox.env.bucket, key, oid, kind="mail")
        except StoreError:
            await mailbox.env.sleep(pause)
            pause = min(pause * 2, DECIDE_S)
            continue
        return "landed" if outcome == "ours" else "void" if outcome == "burnt" else "taken"


async def burn(mailbox: Index, uid: int) -> bool:
    """Put nothing under a UID that nobody seems to have used, so that no late PUT can
    land there. False: something has landed meanwhile. Raises Unavailable."""
    env, key = mailbox.env, mail_key(mailbox.user.storage_id, mailbox.guid, Uid(uid))
    try:
        return await find_outcome(env.bucket, key, env.new_oid(), kind="mail") != "other"
    except StoreError as exc:
        raise env.unavailable("put", key, exc) from exc
