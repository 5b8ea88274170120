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
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final

import numpy as np
import structlog

from ...errors import Temporary, Unavailable
from ...mailbox import Delta, Rows
from ...objectstore import StoreError, find_outcome, put_once
from ...objectstore.codec import ObjectKind
from ...objectstore.keys import mail_key, owner_of
from ...turn import Turn
from ...types import Oid, Uid
from ..box.arrivals import Arrival, Draft
from ..box.index import Index
from ..box.slots import Fate, Slot
from ..env import TRY_LATER
from ..fields import Fields
from .batch import BATCHES, FORM, made, rows_of
from .meta import INLINE_MAX, MailMeta, quick_fields, ready_fields
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
        for _ in range(ATTEMPTS_MAX):
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
            if env.settings.batch_linger_s and not arrivals.is_full():
                await env.sleep(env.settings.batch_linger_s)
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
                fate, delta = await _put_batch(mailbox, slot, drafts)
            slots.resolve(slot, fate, delta)
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
    """Tell senders which UIDs their mails have, now that these are visible or lost."""
    for arrival in part:
        if not arrival.done.done():
            arrival.done.set_result(uid + arrival.first if landed.result() else 0)


async def _put_batch(mailbox: Index, slot: Slot, drafts: list[Draft]) -> tuple[Fate, Delta | None]:
    """PUT several mails as one object. Their fields are made while the bucket works."""
    env, now = mailbox.env, mailbox.env.now()
    uids = range(slot.uid, slot.uid + len(drafts))
    keys = [mail_key(mailbox.user.storage_id, mailbox.guid, Uid(uid)) for uid in uids]
    metas = [_meta(mailbox, uid, draft, now) for uid, draft in zip(uids, drafts, strict=True)]
    oids, head_oid = [env.new_oid() for _ in drafts], env.new_oid()
    envelopes: list[bytes] = []
    fields: list[tuple[int, bytes]] = []

    def encode(at: int, source: bytes) -> None:
        what = ObjectKind.MAIL, owner_of(keys[at]), oids[at], metas[at].encode(), source
        envelopes.append(env.codec.encode(*what))

    def make(sources: list[bytes]) -> tuple[bytes, Delta]:
        for at, source in enumerate(sources):
            encode(at, source)
        return made(env.codec, keys[0], head_oid, rows_of(metas, oids), envelopes)

    sources = [draft.source for draft in drafts if isinstance(draft.source, bytes)]
    if len(sources) < len(drafts):
        sources = []
        try:
            for at, draft in enumerate(drafts):
                # One at a time: the bytes of such mails are limited for all senders
                # together.
                async with _opened(draft) as source:
                    await asyncio.to_thread(encode, at, source)
                    await _make_fields(mailbox, [(uids[at], source)], fields)
        except Temporary as exc:
            log.error("mail cannot be read back", user=mailbox.user.name, uid=slot.uid, error=str(exc))
            return await _decided(mailbox, keys[0], head_oid), None
    small = sum(map(len, sources)) <= INLINE_MAX and len(drafts) <= CLAIM_INLINE
    data, delta = make(sources) if small else await asyncio.to_thread(make, sources)
    putting = mailbox.user.spawn(put_slot(mailbox, slot, data, head_oid))
    await asyncio.sleep(0)  # the request is sent
    await _make_fields(mailbox, list(zip(uids, sources, strict=False)), fields)
    fate = await putting
    if fate != "landed":
        return fate, None
    turn = Turn(env.clock)
    for key, envelope in zip(keys, envelopes, strict=True):
        await env.fscache.put(key, envelope)
        if turn.over():
            await turn.end()
    mailbox.put_fields(fields)
    return fate, delta


@asynccontextmanager
async def _opened(draft: Draft) -> AsyncIterator[bytes]:
    """Read a mail. Raises Temporary."""
    if isinstance(draft.source, bytes):
        yield draft.source
        return
    async with draft.source.open() as source:
        yield source


async def _make_fields(mailbox: Index, mails: list[tuple[int, bytes]], fields: list[tuple[int, bytes]]) -> None:
    """Make the ready fields of mails (UID, source) of a batch. Those that take longer
    than FIELDS_S are made by the first reader."""
    turn, slow = Turn(mailbox.env.clock), dict[int, asyncio.Task[Fields | None]]()
    for uid, source in mails:
        found = quick_fields(source)
        if found is None:
            slow[uid] = mailbox.user.spawn(ready_fields(source, mailbox=mailbox.guid, uid=uid))
        else:
            fields.append((uid, found.packed))
        if turn.over():
            await turn.end()
    if slow:
        await asyncio.wait(slow.values(), timeout=FIELDS_S)
    for uid, task in slow.items():
        made_now = task.result() if task.done() else None
        if made_now is not None:
            fields.append((uid, made_now.packed))


def _meta(mailbox: Index, uid: int, draft: Draft, now: float) -> MailMeta:
    return MailMeta(
        guid=mailbox.guid,
        uid=uid,
        size=len(draft.source),
        internaldate=int(now) if draft.internaldate is None else draft.internaldate,
        zone=draft.zone,
        savedate=int(now * 1000),
        flags=draft.flags,
    )


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
    meta = _meta(mailbox, slot.uid, draft, env.now())
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
