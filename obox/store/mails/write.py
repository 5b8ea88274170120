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
from functools import partial
from typing import Final

import numpy as np
import structlog

from ...errors import Temporary, Unavailable
from ...loading import loaded
from ...mailbox import Delta, Rows
from ...objectstore.codec import ObjectKind
from ...objectstore.keys import mail_key, owner_of
from ...types import Uid
from ..box.arrivals import Arrival, Draft
from ..box.index import Index
from ..box.slots import UIDS_AT_ONCE, Fate, Slot
from ..env import TRY_LATER
from ..fields import Fields
from .batch import BATCHES, FORM
from .beside import wrote_batch
from .meta import INLINE_MAX, quick_fields, ready_fields
from .put import CLAIM_INLINE, FIELDS_S, decided, meta_of, put_slot
from .quota import Room

log = structlog.get_logger()

PUTS_AT_ONCE: Final = 8
"""PUTs in flight for a single MULTIAPPEND."""

SHARED_MAX: Final = 1 << 20
"""Octets of a mail that shares an object with others. A reader of a part of a larger
mail reads only the frames that it needs, and its PUT makes no other mail wait."""

GROUP_BYTES_MAX: Final = 16 << 20
"""Octets of a MULTIAPPEND that is written as one object. They are in memory at once.
The mails of a larger MULTIAPPEND are objects of their own."""

ATTEMPTS_MAX: Final = 8
"""UIDs that may be lost in a row to other writers before the write fails as
temporary, if it has taken LOST_S as well."""

LOST_S: Final = 5.0
"""How long a write whose UIDs are lost to others tries again at least. A writer of
batches that has not lost a UID notices us after one or two seconds (mails.beside)."""


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
    shared = mailbox.env.forms.writes(FORM) >= BATCHES and (
        len(drafts[0].source) <= SHARED_MAX if len(drafts) == 1 else _may_share(drafts)
    )
    with _keywords_held(mailbox, (flag for draft in drafts for flag in draft.flags)) as held:
        tries, until = 0, mailbox.env.clock() + LOST_S
        while tries < ATTEMPTS_MAX or mailbox.env.clock() < until:
            tries += 1
            if not shared:
                uids = await _write_singly(mailbox, drafts, room, held)
            else:
                arrival = _arrive(mailbox, drafts, room, held)
                try:
                    first = await arrival.done
                except asyncio.CancelledError:
                    mailbox.arrivals.withdraw(arrival)
                    raise
                uids = [Uid(first)] if len(drafts) == 1 else [Uid(first + number) for number in range(len(drafts))]
                uids = uids if first else []
            if uids:
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
    return uids


def _may_share(drafts: list[Draft]) -> bool:
    """Return whether several mails of a sender are written as one object."""
    sizes = [len(draft.source) for draft in drafts]
    return max(sizes) <= SHARED_MAX and sum(sizes) <= GROUP_BYTES_MAX


async def _write_singly(mailbox: Index, drafts: list[Draft], room: Room, held: list[Slot]) -> list[Uid]:
    """Write each mail as an object of its own. Returns no UIDs if some were lost to
    another writer. Raises Unavailable."""
    slots = await mailbox.slots.take(mailbox.state.uidnext, [1] * len(drafts))
    held.append(slots[-1])
    room.slots = slots
    for slot, draft in zip(slots, drafts, strict=True):
        slot.also = partial(room.used, len(draft.source))
    mailbox.user.spawn(_put_group(mailbox, slots, drafts))
    landed = all([await asyncio.shield(slot.done) for slot in slots])
    return [Uid(slot.uid) for slot in slots] if landed else []


def _arrive(mailbox: Index, drafts: list[Draft], room: Room, held: list[Slot]) -> Arrival:
    """Let mails be written, with those that others write to the mailbox at the same
    time."""
    if len(drafts) == 1:
        octets, alone = len(drafts[0].source), not isinstance(drafts[0].source, bytes)
    else:
        octets = sum([len(draft.source) for draft in drafts])
        alone = any([not isinstance(draft.source, bytes) for draft in drafts])
    arrival = Arrival(drafts, octets, alone, room, held, asyncio.get_running_loop().create_future())
    mailbox.arrivals.waiting.append(arrival)
    if not mailbox.arrivals.writing:
        mailbox.arrivals.writing = True
        mailbox.user.spawn(_write_arrivals(mailbox))
    return arrival


async def _write_arrivals(mailbox: Index) -> None:
    """Write all that waits, an object at a time, until nothing waits. Each object is
    resolved, however long it takes. A single mail is an object of its own."""
    arrivals, env, slots = mailbox.arrivals, mailbox.env, mailbox.slots
    try:
        while arrivals.waiting:
            # In a turn the other writer takes a pause for the end of our mails.
            if env.settings.batch_linger_s and not arrivals.is_full() and slots.at_once() == UIDS_AT_ONCE:
                await env.sleep(env.settings.batch_linger_s)
                if not arrivals.waiting:
                    break  # senders have given up meanwhile
            if not slots.open.is_set():
                try:
                    await slots.ready()
                except Unavailable as error:
                    arrivals.fail(error)
                continue  # senders may have given up meanwhile
            if len(arrivals.waiting) == 1:
                part, arrivals.waiting = arrivals.waiting, []
                drafts = part[0].drafts
            else:
                part = arrivals.take(slots.at_once())
                drafts = [draft for arrival in part for draft in arrival.drafts]
            # This does not wait, so that no arrival is lost in between.
            (slot,) = await slots.take(mailbox.state.uidnext, [len(drafts)])
            for arrival in part:
                arrival.held.append(slot)
                arrival.room.slots = (slot,)
            one = part[0]
            slot.also = partial(one.room.used, one.octets, len(drafts)) if len(part) == 1 else partial(_visible, part)
            slot.done.add_done_callback(partial(_done, part, slot.uid))
            if len(drafts) == 1:
                fate, delta, fields = await _put_mail(mailbox, slot, drafts[0])
                if fields is not None:
                    mailbox.put_fields([(slot.uid, fields.packed)])
            else:
                await loaded("obox.store.mails.put_batch")
                from .put_batch import put_batch

                fate, delta = await put_batch(mailbox, slot, drafts)
            slots.resolve(slot, fate, delta)
            if len(drafts) > 1:
                wrote_batch(mailbox)
    except BaseException as error:
        arrivals.fail(error if isinstance(error, Exception) else Unavailable(TRY_LATER))
        raise
    finally:
        arrivals.writing = False


def _visible(part: list[Arrival]) -> None:
    """Count mails as usage of the quota, because they have become visible."""
    for arrival in part:
        arrival.room.used(arrival.octets, len(arrival.drafts))


def _done(part: list[Arrival], uid: int, landed: asyncio.Future[bool]) -> None:
    """Set the UIDs of arrivals, which have become visible, or were lost."""
    for arrival in part:
        if not arrival.done.done():
            arrival.done.set_result(uid + arrival.first if landed.result() else 0)


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
        return await decided(mailbox, key, mailbox.env.new_oid()), None, None


async def _put_source(
    mailbox: Index, slot: Slot, draft: Draft, source: bytes
) -> tuple[Fate, Delta | None, Fields | None]:
    """PUT the bytes of a mail. Its fields are made while the bucket works."""
    env = mailbox.env
    meta = meta_of(mailbox, slot.uid, draft, env.now())
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
