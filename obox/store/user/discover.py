"""Opens a mailbox: from the local copy, from the bundles, and by a LIST for mails that
no bundle has.

A LIST from `uidnext` names every mail and claim that was written since, in UID order.
If a UID below a listed UID has no object, a suspended writer may still send its PUT. So
the UID is burnt (an empty object under its key), and a mail can never appear there
later. A mail inside the range of a lower claim is void.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog

from metacache import Change

from ...errors import Corrupt, Unavailable
from ...mailbox import CLAIM_PURGED, Delta, State, takeover_delta
from ...objectstore import CorruptObject, NewerFormat, ObjectInfo, ShortPrefix, UnknownKey
from ...objectstore.codec import ObjectKind
from ...objectstore.keys import mail_key, owner_of, parse_bundle_key
from ...types import Uid
from ..box.index import Index, count_between, give_modseq, taken_back
from ..box.load import Found, catch_up, compared, join_journal, join_unflushed, load_copy, refresh, restate
from ..box.slots import Slot
from ..env import GETS_AT_ONCE, is_large
from ..log.stage import Edit
from ..log.takeover import one_history
from ..mails.batch import claimed
from ..mails.listed import listed_uids, near
from ..mails.meta import MailMeta, check_meta
from ..mails.put import burn
from ..stamp import Assignment, Trust, name_of

log = structlog.get_logger()

PREFIX_BYTES: Final = 4096
"""Bytes that are read of each new mail: its header and meta, in a single request."""

READ_AT_ONCE: Final = 1000
"""New mails whose keys are made in a turn of the loop."""

HOLES_MAX: Final = 10_000
"""Undecided UIDs that an open may burn. More of them mean another problem, for which
`oboxadm rebuild` is needed."""

HOLE_PAUSES_S: Final = (0.01, 0.03, 0.06, 0.1, 0.2)
"""Pauses between LISTs that wait for another writer's PUTs, before free UIDs are burnt.
A PUT that is under way lands meanwhile, and a writer that is gone is not waited for
long. The pauses begin again when some of the UIDs have been filled, because the writer
may PUT many mails as a group."""

HOLES_S: Final = 5.0
"""Limit of this wait, because senders wait for 15 s at most."""


async def load(mailbox: Index, infos: list[ObjectInfo] | None, pending: list[bytes]) -> None:
    """Take the state from the local copy if it can be trusted, otherwise from the
    bucket. Then join what is new there.

    infos: this mailbox's part of a LIST of bundles, or None without a LIST. pending:
    deltas from the journal of a boot that did not flush. Raises Unavailable, Corrupt.
    """
    env, user = mailbox.env, mailbox.user
    assignment = mailbox.assignment
    worth, fragments = await load_copy(mailbox, made_here=mailbox.guid in user.created_here)
    found, listed = Found.NOTHING, infos
    if worth is Trust.NEW:
        user.created_here.discard(mailbox.guid)
        return compared(mailbox, assignment, listed=env.now())
    if worth is not Trust.TRUSTED:
        unflushed = mailbox.change is not Change.NONE
        listed = await mailbox.bundles.listing() if infos is None else infos
        found = await catch_up(mailbox, worth, listed)
        journaled = mailbox.guid in user.journaled
        if worth is Trust.COMPARE:
            user.journaled.discard(mailbox.guid)
        if unflushed and not journaled and not assignment.covers(mailbox.stamp):
            # The journal of the boot before may not have it, and ours will have higher
            # UIDs.
            restate(mailbox)
    merged = await _join_journals(mailbox, fragments, pending, worth, listed or []) or found is Found.HISTORY
    pending, state = [*fragments, *pending], mailbox.state
    if assignment.covers(mailbox.stamp) and not pending and not env.must_rescan(mailbox.stamp.listed):
        if worth is Trust.COMPARE:
            mailbox.save_stamp()
        _count_unflushed(mailbox)
        return
    deltas, _, _ = await discover(mailbox, [])
    turn = env.turn(mailbox.user.storage_id)
    floor = user.root.modseq_floor
    behind = floor > max((high for _, high in state.gaps), default=0)
    if merged or (behind and (state.uidnext > 1 or deltas)):
        edit = user.edit()
        edit.add_loading(mailbox, takeover_delta(state, max(floor, env.now_ms()), 0, merged=merged), Change.IMPORTANT)
        user.log.stage(edit)
    for delta in deltas:
        # The journal will soon have higher UIDs. It gets these too, so that no LIST
        # begins this low again.
        edit = _found(mailbox, delta)
        edit.add_loading(mailbox, delta, Change.UNIMPORTANT)
        user.log.stage(edit)
        if turn.over():
            await turn.end()
    compared(mailbox, assignment, listed=env.now())
    _count_unflushed(mailbox)


def _count_unflushed(mailbox: Index) -> None:
    """Count the mails that no bundle has after a load, and set the time of their
    upload."""
    if mailbox.change is not Change.NONE:
        mailbox.unflushed_mails = count_between(mailbox.state, mailbox.stamp.flushed_uidnext, mailbox.state.uidnext)
        mailbox.changed(mailbox.change)


async def _join_journals(
    mailbox: Index, fragments: list[bytes], pending: list[bytes], worth: Trust, infos: list[ObjectInfo]
) -> bool:
    """Join what no bundle has. Returns whether the copy or the bundles may have changes
    that the owner of a journal did not know of. Raises Corrupt."""
    turn = mailbox.env.turn(mailbox.user.storage_id)
    join_unflushed(mailbox, fragments)
    before, altered = mailbox.state.highestmodseq, False
    for data in pending:
        if turn.over():
            await turn.end()
        altered = join_journal(mailbox, data) or altered
    if not (altered or mailbox.state.highestmodseq > before):
        return False
    if worth is not Trust.REBUILD:
        return True
    heads = set(mailbox.stamp.heads)
    written = [(parse_bundle_key(info.key).writer, info.modified) for info in infos if name_of(info.key) in heads]
    return not one_history(mailbox.user.sources, written)


def _found(mailbox: Index, delta: Delta) -> Edit:
    """Give a delta that LIST has found its MODSEQ. Returns an edit with its effects on
    other mailboxes, to which the caller adds the delta."""
    give_modseq(delta, mailbox.state.next_modseq(mailbox.env.now_ms()))
    edit = mailbox.user.edit()
    if delta.rows is not None:
        mailbox.user.hold(edit, mailbox.guid, delta.rows)
    return edit


async def discover(mailbox: Index, ours: list[Slot], pauses: Sequence[float] = ()) -> tuple[list[Delta], int, int]:
    """LIST from `uidnext`. Returns the deltas that were found in UID order, the UIDNEXT
    that follows, and the highest listed UID.

    It takes what the first LIST showed, and what follows without a free UID. Another
    active writer always has free UIDs above that, so waiting for it would never end.
    ours: our own slots in flight, which are left out. pauses: how often and how long
    another writer gets time to fill its free UIDs, before they are burnt. Raises
    Unavailable.
    """
    env, sid, guid = mailbox.env, mailbox.user.storage_id, mailbox.guid
    start = mailbox.state.uidnext
    resolved = [slot for slot in ours if slot.fate in ("landed", "void", "orphan")]
    # A bundle of another writer may have passed the first UID of a slot of ours. Then
    # the slot is known if it counts, and otherwise it covers no UID from `start` on.
    skip = {slot.uid: slot.count for slot in resolved if slot.uid >= start}
    waits, waited, left = iter(pauses), 0.0, 0
    bodies: dict[int, bytes | None] = {}
    least: int | None = None
    while True:
        found = near(await listed_uids(env, sid, guid, after=start - 1), sid, guid, start - 1)
        seen = max([*found, *skip], default=start - 1)
        until = least = seen if least is None else least
        while until + 1 in found or until + 1 in skip:
            until += skip.get(until + 1, 1)
        found = {uid: size for uid, size in found.items() if uid <= until}
        deltas, end, holes = await read_listed(mailbox, start, found, skip, bodies)
        if len(holes) < left and waited < HOLES_S:
            waits = iter(pauses)  # their writer still writes
        left = len(holes)
        wait = next(waits, None) if holes else None
        if wait is not None:
            waited += wait
            await env.sleep(wait)
            continue
        gate = asyncio.Semaphore(GETS_AT_ONCE)

        async def burn_one(uid: int, gate: asyncio.Semaphore = gate) -> bool:
            async with gate:
                return await burn(mailbox, uid)

        burnt = await asyncio.gather(*map(burn_one, holes))
        deltas += [Delta(claims={uid: 1}, uidnext=uid + 1) for uid in holes]
        if all(burnt):
            return (sorted(deltas, key=first_uid) if holes else deltas), end, seen


def first_uid(delta: Delta) -> int:
    return min(delta.claims, default=0) or (int(delta.rows.uid[0]) if delta.rows is not None else 0)


async def read_listed(
    mailbox: Index, start: int, found: dict[int, int], skip: dict[int, int], bodies: dict[int, bytes | None]
) -> tuple[list[Delta], int, list[int]]:
    """Read the headers of listed objects. Returns deltas in UID order, UIDNEXT, and the
    first HOLES_MAX of the UIDs that are undecided.

    bodies: the objects that have been read before, to which it adds those that it
    reads.
    """
    env, sid, guid = mailbox.env, mailbox.user.storage_id, mailbox.guid
    wanted = [uid for uid, size in sorted(found.items()) if size and uid not in skip and uid not in bodies]
    for at in range(0, len(wanted), READ_AT_ONCE):
        uids = wanted[at : at + READ_AT_ONCE]
        prefixes = await env.get_all([mail_key(sid, guid, Uid(uid)) for uid in uids], kind="mail", end=PREFIX_BYTES)
        bodies.update(zip(uids, prefixes, strict=True))
    deltas: list[Delta] = []
    holes: list[int] = []
    uid = start
    void_until = 0
    turn = env.turn(mailbox.user.storage_id)
    for known in sorted({*found, *skip}):
        if turn.over():
            await turn.end()
        free = range(max(uid, void_until), known)
        holes.extend(free[: HOLES_MAX - len(holes)])
        uid = known
        if uid in skip and uid >= void_until:
            void_until = max(void_until, uid + skip[uid])
        elif uid < void_until:
            if uid in found:
                deltas.append(Delta(claims={uid: 1}, uidnext=uid + 1))
        elif not found[uid] or bodies.get(uid) is None:
            deltas.append(Delta(claims={uid: 1}, uidnext=uid + 1))
        else:
            delta, count = await _read_one(mailbox, uid, bodies[uid] or b"")
            deltas.append(delta)
            void_until = uid + count
        uid += 1
    return deltas, max(uid, void_until), holes


async def _read_one(mailbox: Index, uid: int, prefix: bytes) -> tuple[Delta, int]:
    """Return the delta of the object under a UID: a mail, or a claim or batch of a
    range.

    An object that is damaged, or belongs to another user, mailbox or UID, is skipped,
    logged and never deleted. Raises Corrupt if its key is not configured, or its format
    is newer.
    """
    env = mailbox.env
    key = mail_key(mailbox.user.storage_id, mailbox.guid, Uid(uid))
    owner = owner_of(key)
    try:
        try:
            header = env.codec.decode_header(prefix, owner)
        except ShortPrefix as short:
            header = env.codec.decode_header(await env.get(key, kind="mail", end=short.need) or b"", owner)
        if header.kind == ObjectKind.MAIL:
            meta = MailMeta.decode(header.meta)
            check_meta(meta, key)
            return Delta(rows=meta.row(header.oid, 0), uidnext=uid + 1), 1
        if header.kind == ObjectKind.CLAIM:
            # The mails of a batch lie behind its head, and are not read here.
            size = header.object_bytes
            head = prefix[:size] if len(prefix) >= size else await env.get(key, kind="mail", end=size) or b""
            decoded = await env.decode(head, owner)
            work = partial(claimed, key, head, decoded)
            delta = await asyncio.to_thread(work) if is_large(head) else work()
            return delta, max((delta.batches or delta.claims).values(), default=1)
        raise CorruptObject(f"an object of kind {header.kind} among the mails")
    except UnknownKey as exc:
        log.error("mail under an unknown key", user=mailbox.user.name, key=key, next_step="storage.encryption_keys")
        raise Corrupt("a mail is sealed under a key that is not configured") from exc
    except NewerFormat as exc:
        log.error("mail of a newer format", user=mailbox.user.name, key=key, next_step="upgrade this obox")
        raise Corrupt("a mail was written by a newer obox") from exc
    except (CorruptObject, Corrupt, ShortPrefix, ValueError) as exc:
        log.error("mail object does not decode and is ignored", user=mailbox.user.name, key=key, error=str(exc))
        # It is noted as cleared, so that nothing ever deletes it.
        return Delta(claims={uid: CLAIM_PURGED}, uidnext=uid + 1), 1


async def recheck(mailbox: Index, infos: list[ObjectInfo], assignment: Assignment) -> None:
    """Join what other backends have written: their bundles, and mails by LIST. If no
    other backend has written, nothing needs an upload afterwards.

    assignment: under which the LIST `infos` was made. Raises Unavailable, Corrupt.
    """

    async def then(found: Found) -> None:
        two_histories = found is not Found.NOTHING or not assignment.covers(mailbox.stamp)
        if two_histories:
            mailbox.apply(takeover_delta(mailbox.state, mailbox.env.now_ms(), merged=True), Change.IMPORTANT)
        await mailbox.slots.recheck()
        if two_histories:
            mailbox.stamp = mailbox.stamp.for_new_base()

    await refresh(mailbox, infos, assignment, then)


async def after_loss(mailbox: Index) -> None:
    """Join what another writer wrote, after a UID was lost to it. Then show our own
    mails, or let them try again."""
    while True:
        try:
            deltas, uidnext, seen = await discover(mailbox, mailbox.slots.in_flight(), HOLE_PAUSES_S)
            break
        except Exception as exc:
            log.warning("refresh after a lost UID", user=mailbox.user.name, mailbox=mailbox.guid, error=str(exc))
            await mailbox.env.sleep(1.0)
    ranges = [
        (uid, uid + count)
        for delta in deltas
        for uid, count in (delta.batches or delta.claims).items()
        if delta.rows is not None or count > 1  # otherwise it is a burnt UID
    ]
    lost = {slot.uid for slot in mailbox.slots.in_flight() if any(a <= slot.uid < b for a, b in ranges)}
    lost |= {slot.uid for slot in mailbox.slots.in_flight() if _is_anothers(mailbox.state, slot)}
    if deltas or lost:
        mailbox.stamp = mailbox.stamp.for_new_base()
    others = sum(len(delta.rows) for delta in deltas if delta.rows is not None)
    deltas.reverse()

    turn = mailbox.env.turn(mailbox.sid)

    async def show(until: int) -> None:
        """Show all that is resolved up to a UID, in the order of the UIDs, so that
        others run meanwhile."""
        while True:
            if turn.over():
                await turn.end()
            first = min(first_uid(deltas[-1]) if deltas else until + 1, until + 1)
            if mailbox.slots.show(first - 1, lambda slot: slot.uid in lost):
                continue
            if first > until:
                return
            _show(mailbox, deltas.pop())

    for slot in mailbox.slots.in_flight():
        if slot.fate == "orphan" and slot.uid not in lost:
            await show(slot.uid - 1)
            edit = mailbox.user.edit()
            edit.add_journal_only(mailbox.guid, taken_back(mailbox, slot))
            mailbox.user.log.stage(edit)
            # Other readers that LIST the object must learn this before a higher UID is
            # visible.
            await _journaled(mailbox)
    await show(uidnext)
    mailbox.slots.refreshed(uidnext, seen, others)


def _is_anothers(state: State, slot: Slot) -> bool:
    """Return whether the state has got a UID in flight from another writer's bundle, so
    that it is not ours."""
    if slot.uid >= state.uidnext or slot.delta is None or slot.delta.rows is None:
        return False
    position = state.position(slot.uid)
    return position is None or bytes(state.column("oid")[position]) != bytes(slot.delta.rows.oid[0])


def _show(mailbox: Index, delta: Delta) -> None:
    """Make visible what a LIST has found."""
    edit = _found(mailbox, delta)
    edit.add(mailbox, delta, Change.UNIMPORTANT)
    mailbox.user.log.stage(edit)


async def _journaled(mailbox: Index) -> None:
    """Wait, however long, until visible changes are in the bucket."""
    while True:
        try:
            return await mailbox.user.journal.sync()
        except Unavailable:
            continue
