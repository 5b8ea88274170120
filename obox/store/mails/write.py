"""The one way in: mails, claims and burnt UIDs under new keys (docs/format.md,
"Delivery", "COPY, MOVE").

Steps of a delivery; the commit point is 3: 1. a UID is taken (`Slots.take`), the mail
encoded under it with a fresh oid; 2. the journal's lease is renewed beside it when it
is old; 3. PUT, create-only, under the UID's key; 4. when every lower UID is resolved:
index record into memory, local copy and journal; 5. the acknowledgement.

The PUT runs in a task of the store, so that a UID is resolved even if the client
disconnects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import structlog

from ...errors import Temporary, Unavailable
from ...mailbox import Delta, Rows
from ...objectstore import StoreError, find_outcome, put_once
from ...objectstore.codec import ObjectKind
from ...objectstore.keys import mail_key, owner_of
from ...types import Oid, Uid
from ..api import Source
from ..box.index import Index
from ..box.slots import Fate, Slot
from ..env import TRY_LATER
from ..fields import Fields
from .meta import INLINE_MAX, MailMeta, quick_fields, ready_fields
from .quota import Room

log = structlog.get_logger()

PUTS_AT_ONCE: Final = 8
"""PUTs in flight for a single MULTIAPPEND."""

CLAIM_INLINE: Final = 1000
"""Mails of a claim that is compressed on the loop: two milliseconds."""

FIELDS_S: Final = 2.0
"""How long a mail in the bucket waits for its ready fields. Without them it becomes
visible, and the first reader makes them. After a longer wait the sender would get 451
for a stored mail, and would send it again."""

DECIDE_S: Final = 1.0
"""Interval between attempts to resolve a UID. It is short, so that deliveries continue
soon after an outage."""

ATTEMPTS_MAX: Final = 8
"""UIDs that may be lost in a row to other writers before the write fails as
temporary."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A mail to be written. internaldate: None means now."""

    source: bytes | Source
    flags: tuple[str, ...]
    internaldate: int | None
    zone: int


async def write_mails(mailbox: Index, drafts: list[Draft], room: Room) -> list[Uid]:
    """Write mails under consecutive UIDs. All become visible or none does. They are
    durable on return. Raises Unavailable.

    Of very many mails, the first become visible some turns of the loop before the last
    (`slots.SHOW_AT_ONCE`).

    room: what the mails have reserved of the quota. It becomes usage as they become
    visible. If the call is cancelled, work under way completes, but is not
    acknowledged.
    """
    journal = mailbox.user.journal
    journal.check()
    lease = mailbox.user.spawn(journal.lease()) if journal.stale() else None
    with _keywords_held(mailbox, (flag for draft in drafts for flag in draft.flags)) as held:
        for _ in range(ATTEMPTS_MAX):
            slots = await mailbox.slots.take(mailbox.state.uidnext, [1] * len(drafts))
            held.append(slots[-1])
            room.slots = slots
            for slot, draft in zip(slots, drafts, strict=True):
                slot.also = partial(room.used, len(draft.source))
            mailbox.user.spawn(_put_group(mailbox, slots, drafts))
            if all([await asyncio.shield(slot.done) for slot in slots]):
                break
            if any(draft.source.lost for draft in drafts if not isinstance(draft.source, bytes)):
                raise Unavailable(TRY_LATER)
        else:
            raise Unavailable(TRY_LATER)
    mailbox.require_there()
    if lease is not None:
        await asyncio.shield(lease)
    if mailbox.unborn:
        await journal.sync()
    await journal.lease()  # again, because the machine may have been suspended since
    mailbox.env.owned.require(mailbox.user.storage_id)
    return [Uid(slot.uid) for slot in slots]


@contextmanager
def _keywords_held(mailbox: Index, flags: Iterable[str]) -> Iterator[list[Slot]]:
    """Count keywords against the mailbox's limit until the last slot of the list is
    visible or lost.

    So no other writer can take the places that `State.spell` has found for them.
    """
    names, slots = list(flags), list[Slot]()
    if not names:  # nearly all deliveries have none
        yield slots
        return
    end = mailbox.state.flags.expect(names)
    try:
        yield slots
    finally:
        if slots and not slots[-1].done.done():
            slots[-1].done.add_done_callback(lambda _: end())
        else:
            end()


async def _put_group(mailbox: Index, slots: list[Slot], drafts: list[Draft]) -> None:
    """PUT every mail of a group and resolve its slots, however long it takes. Either
    all have landed, or none counts."""
    gate = asyncio.Semaphore(PUTS_AT_ONCE)

    async def put_one(slot: Slot, draft: Draft) -> tuple[Fate, Delta | None, Fields | None]:
        async with gate:
            return await _put_mail(mailbox, slot, draft)

    if len(slots) == 1:
        results = [await _put_mail(mailbox, slots[0], drafts[0])]
    else:
        # The last mail is sent first. Another writer that LISTs then sees how far the
        # group reaches, and waits for lower UIDs.
        pairs = list(zip(slots, drafts, strict=True))
        last, *others = await asyncio.gather(*(put_one(slot, draft) for slot, draft in [pairs[-1], *pairs[:-1]]))
        results = [*others, last]
    all_landed = all(fate == "landed" for fate, _, _ in results)
    if all_landed:
        made = zip(slots, results, strict=True)
        mailbox.put_fields([(slot.uid, fields.packed) for slot, (_, _, fields) in made if fields is not None])
    for slot, (fate, delta, _) in zip(slots, results, strict=True):
        if fate == "landed" and not all_landed:
            mailbox.slots.resolve(slot, "orphan", delta)
        else:
            mailbox.slots.resolve(slot, fate, delta)


async def _put_mail(mailbox: Index, slot: Slot, draft: Draft) -> tuple[Fate, Delta | None, Fields | None]:
    """PUT a mail, which may have to be read first."""
    if isinstance(draft.source, bytes):
        return await _put_source(mailbox, slot, draft, draft.source)
    try:
        async with draft.source.open() as source:
            return await _put_source(mailbox, slot, draft, source)
    except Temporary as exc:
        log.error("mail cannot be read back", user=mailbox.user.name, uid=slot.uid, error=str(exc))
        key = mail_key(mailbox.user.storage_id, mailbox.guid, Uid(slot.uid))
        return await _decided(mailbox, key, mailbox.env.new_oid()), None, None


async def _put_source(
    mailbox: Index, slot: Slot, draft: Draft, source: bytes
) -> tuple[Fate, Delta | None, Fields | None]:
    """PUT the bytes of a mail. Its fields are made while the bucket works."""
    env = mailbox.env
    now = env.now()
    meta = MailMeta(
        guid=mailbox.guid,
        uid=slot.uid,
        size=len(source),
        internaldate=int(now) if draft.internaldate is None else draft.internaldate,
        zone=draft.zone,
        savedate=int(now * 1000),
        flags=draft.flags,
    )
    oid, key = env.new_oid(), mail_key(mailbox.user.storage_id, mailbox.guid, Uid(slot.uid))
    what = ObjectKind.MAIL, owner_of(key), oid, meta.encode(), source
    data = env.codec.encode(*what) if len(source) <= INLINE_MAX else await asyncio.to_thread(env.codec.encode, *what)
    putting = mailbox.user.spawn(put_slot(mailbox, slot, data, oid))
    await asyncio.sleep(0)  # the request is sent
    fields = quick_fields(source)
    making = None
    if fields is None:
        making = mailbox.user.spawn(ready_fields(source, mailbox=mailbox.guid, uid=slot.uid))
    fate = await putting
    if fate != "landed":
        return fate, None, None
    if making is not None and (await asyncio.wait((making,), timeout=FIELDS_S))[0]:
        fields = making.result()
    await env.fscache.put(key, data)
    return fate, Delta(rows=meta.row(oid, 0)), fields


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
    return await _decided(mailbox, key, oid)


async def _decided(mailbox: Index, key: str, oid: Oid) -> Fate:
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


async def write_claim(mailbox: Index, rows: Rows | None, count: int, until: float) -> tuple[Slot, Delta]:
    """Claim `count` UIDs with a single PUT that has their records, or with no records;
    then the UIDs are skipped for ever. No new attempt begins after `until`. The caller
    must resolve the slot as "landed" with the delta. Raises Unavailable.
    """
    with _keywords_held(mailbox, () if rows is None else rows.stamps) as held:
        return await _write_claim(mailbox, rows, count, until, held)


async def _write_claim(
    mailbox: Index, rows: Rows | None, count: int, until: float, held: list[Slot]
) -> tuple[Slot, Delta]:
    env = mailbox.env
    for _ in range(ATTEMPTS_MAX):
        (slot,) = await mailbox.slots.take(mailbox.state.uidnext, [count])
        held.append(slot)
        numbered = None if rows is None else rows.take(slice(None))
        if numbered is not None:
            numbered.uid = np.arange(slot.uid, slot.uid + count, dtype=np.uint32)
        delta = Delta(rows=numbered, claims={slot.uid: count}, uidnext=slot.uid + count)
        oid = env.new_oid()
        owner = owner_of(mail_key(mailbox.user.storage_id, mailbox.guid, Uid(slot.uid)))
        what = ObjectKind.CLAIM, owner, oid, b"", delta.encode()
        data = env.codec.encode(*what) if count <= CLAIM_INLINE else await asyncio.to_thread(env.codec.encode, *what)
        fate = await put_slot(mailbox, slot, data, oid)
        if fate == "landed":
            return slot, delta
        mailbox.slots.resolve(slot, fate)
        await slot.done
        if env.clock() > until:
            break
    raise Unavailable(TRY_LATER)
