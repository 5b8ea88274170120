"""Opening a mailbox: from the local copy, from the bundles, and by LIST what no bundle knows.

One LIST from `uidnext` names every mail and claim that was written since, in UID order. A UID below a listed one that
has no object may still be on its way from a writer that is frozen: it is burnt (an empty object under its key), so that
it can never appear later. A mail inside the range of a lower claim is void.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from metacache import Change

from ..errors import Corrupt, Unavailable
from ..mailbox import CLAIM_PURGED, Delta, State
from ..objectstore import CorruptObject, NewerFormat, ObjectInfo, ShortPrefix, StoreError, UnknownKey, settle
from ..objectstore.codec import ObjectKind
from ..objectstore.keys import mail_key, mail_prefix, owner_of, parse_mail_key
from ..types import Uid
from ._bundles import Known
from ._env import GETS_AT_ONCE
from ._mail import MailMeta, check_claim, check_meta
from ._slots import Slot
from ._writer import stamp

if TYPE_CHECKING:
    from .mailbox import Mailbox

log = structlog.get_logger()

PREFIX_BYTES: Final = 4096
"""Read of each new mail: its header and meta, in one request."""

HOLES_MAX: Final = 10_000
"""Undecided UIDs that one open burns; more are a sign of something else and left to `oboxadm rebuild`."""


async def load(mailbox: Mailbox, infos: list[ObjectInfo] | None, pending: list[bytes]) -> None:
    """See `Mailbox.load`."""
    env, state, sid, generation = mailbox.env, mailbox.state, mailbox.user.storage_id, mailbox.env.generation
    merged = False
    copy = env.metacache.load(sid, mailbox.guid)
    known = Known.decode(copy.stamp) if copy is not None else None
    checked = 0.0 if known is None else known.checked
    if copy is not None and known is not None:
        try:
            for data in ([copy.base] if copy.base is not None else []) + copy.deltas:
                state.join(Delta.decode(data))
        except ValueError as exc:
            log.warning(
                "local index copy damaged, dropped", user=mailbox.user.name, mailbox=mailbox.guid, error=str(exc)
            )
            env.metacache.drop(sid, mailbox.guid)
            mailbox.state = state = type(state)(mailbox.guid)
            known = None
        else:
            mailbox.known, mailbox.change = known, copy.change
            mailbox.local_deltas = len(copy.deltas)
    if known is None and mailbox.guid in mailbox.user.born:
        mailbox.user.born.discard(mailbox.guid)
        mailbox.known.generation = generation
        mailbox.known.checked = mailbox.known.listed = env.now()
        mailbox.save()
        return
    if known is None:
        merged = await _from_bundles(mailbox, infos)
        mailbox.known.generation = -1
        if copy is not None:  # without a base: holders that were noted while the box was not in memory
            pending = [*copy.deltas, *pending]
    elif known.generation != generation or env.must_refresh(known.checked):
        unflushed = mailbox.change is not Change.NONE
        merged = await _take_bundles(mailbox, await mailbox.bundles.listing() if infos is None else infos)
        if mailbox.known is not known:
            mailbox.known.generation = -1  # others have written: mails too, perhaps
        mailbox.known.checked = env.now()
        stale = mailbox.known.generation != generation
        told = mailbox.guid in mailbox.user.told
        mailbox.user.told.discard(mailbox.guid)
        # The journal of the life before may not have it, and ours will speak of higher UIDs.
        if unflushed and stale and not told:
            since = 0 if mailbox.known.need_base else mailbox.known.base_modseq
            mailbox.user.journal.add(sid, mailbox.guid, state.extract(since).encode())
    known = mailbox.known
    for data in pending:
        state.join(_decode(mailbox, data))
        mailbox.change = Change.IMPORTANT
        known.need_base = True
    if known.generation == generation and not pending and not env.must_rescan(known.listed):
        if known.checked != checked:
            mailbox.save_stamp()
        if mailbox.change is not Change.NONE:
            mailbox.reckon()
        return
    deltas, _ = await discover(mailbox, [])
    ahead = mailbox.user.root.ahead
    behind = ahead > max((high for _, high in state.gaps), default=0)
    if merged or (behind and (state.uidnext > 1 or deltas)):
        gap = state.takeover_delta(max(ahead, env.now_ms()), 0, merged=merged)
        mailbox.user.journal.add(sid, mailbox.guid, gap.encode())
        state.join(gap)
        mailbox.change = Change.IMPORTANT
    for delta in deltas:
        _take_in(mailbox, delta)
        mailbox.change = max(mailbox.change, Change.UNIMPORTANT)
    known.generation = generation
    known.checked = known.checked or env.now()
    known.listed = env.now()
    mailbox.save()
    if mailbox.change is not Change.NONE:
        mailbox.reckon()


async def _from_bundles(mailbox: Mailbox, infos: list[ObjectInfo] | None) -> bool:
    """Join the heads of the bundles in the bucket; True if they are of more than one history."""
    loaded = await mailbox.bundles.load(await mailbox.bundles.listing() if infos is None else infos)
    mailbox.known = loaded.known
    for number, payload in enumerate(loaded.payloads):
        mailbox.state.join(_decode(mailbox, payload))
        if number == 0:
            loaded.known.base_modseq = mailbox.state.highestmodseq
            loaded.known.known_uidnext = mailbox.state.uidnext
            loaded.known.base_bytes = len(payload)
    loaded.known.flushed_uidnext = mailbox.state.uidnext
    return loaded.merged


def _decode(mailbox: Mailbox, data: bytes) -> Delta:
    try:
        return Delta.decode(data)
    except ValueError as exc:
        raise Corrupt(f"the index of a mailbox does not decode ({mailbox.guid}): {exc}") from exc


def _take_in(mailbox: Mailbox, delta: Delta) -> None:
    """Join one delta that LIST has found, under a modseq of its own; into the journal as well, which will soon speak of
    higher UIDs, so that no LIST begins this low again."""
    modseq = mailbox.state.next_modseq(mailbox.env.now_ms())
    stamp(delta, modseq)
    if delta.rows is not None:
        mailbox.user.adopt(mailbox, delta.rows)
    mailbox.user.journal.add(mailbox.user.storage_id, mailbox.guid, delta.encode())
    mailbox.state.join(delta)


async def discover(mailbox: Mailbox, ours: list[Slot]) -> tuple[list[Delta], int]:
    """LIST from `uidnext` and say what was written there, in UID order, and the UIDNEXT that follows.

    ours: our own slots in flight, which are left out. Raises Unavailable.
    """
    env, sid, guid = mailbox.env, mailbox.user.storage_id, mailbox.guid
    start = mailbox.state.uidnext
    skip = {slot.uid: slot.count for slot in ours if slot.fate in ("landed", "void", "orphan")}
    until: int | None = None
    """What the first LIST shows: another that writes on has holes above it at any time, and would hold us for ever."""
    while True:
        after = mail_prefix(sid, guid) + f"{start - 1:08x}"
        found: dict[int, int] = {}
        for info in await env.listing(mail_prefix(sid, guid), kind="mail", after=after):
            try:
                found[parse_mail_key(info.key).uid] = info.size
            except ValueError:
                log.warning("foreign object among the mails, left alone", key=info.key)
        if until is None:
            until = max([*found, *skip], default=start - 1)
        found = {uid: size for uid, size in found.items() if uid <= until}
        deltas, end, holes = await _read(mailbox, start, found, skip)
        gate = asyncio.Semaphore(GETS_AT_ONCE)

        async def burn(uid: int, gate: asyncio.Semaphore = gate) -> bool:
            """False: something has landed there meanwhile."""
            key = mail_key(sid, guid, Uid(uid))
            async with gate:
                try:
                    return await settle(env.bucket, key, env.new_oid(), kind="mail") != "other"
                except StoreError as exc:
                    raise env.unavailable("put", key, exc) from exc

        holes = holes[:HOLES_MAX]
        burnt = await asyncio.gather(*map(burn, holes))
        deltas += [Delta(claims={uid: 1}, uidnext=uid + 1) for uid in holes]
        if all(burnt):
            return sorted(deltas, key=_first_uid), end


def _first_uid(delta: Delta) -> int:
    return min(delta.claims, default=0) or (int(delta.rows.uid[0]) if delta.rows is not None else 0)


async def _read(
    mailbox: Mailbox, start: int, found: dict[int, int], skip: dict[int, int]
) -> tuple[list[Delta], int, list[int]]:
    """Read the headers of what was listed; returns deltas, UIDNEXT, and the UIDs that nothing decides."""
    env, sid, guid = mailbox.env, mailbox.user.storage_id, mailbox.guid
    wanted = [uid for uid, size in sorted(found.items()) if size and uid not in skip]
    prefixes = await env.get_all([mail_key(sid, guid, Uid(uid)) for uid in wanted], kind="mail", end=PREFIX_BYTES)
    bodies = dict(zip(wanted, prefixes, strict=True))
    deltas: list[Delta] = []
    holes: list[int] = []
    uid = start
    last = max([*found, *skip], default=start - 1)
    void_until = 0
    while uid <= last:
        if uid in skip and uid >= void_until:
            void_until = max(void_until, uid + skip[uid])
        elif uid < void_until:
            if uid in found:
                deltas.append(Delta(claims={uid: 1}, uidnext=uid + 1))
        elif uid not in found:
            holes.append(uid)
        elif not found[uid] or bodies.get(uid) is None:
            deltas.append(Delta(claims={uid: 1}, uidnext=uid + 1))
        else:
            delta, count = await _read_one(mailbox, uid, bodies[uid] or b"")
            deltas.append(delta)
            void_until = uid + count
        uid += 1
    return deltas, max(uid, void_until), holes


async def _read_one(mailbox: Mailbox, uid: int, prefix: bytes) -> tuple[Delta, int]:
    """What the object under a UID says: one mail, or a claim of a range.

    A damaged one, or one that belongs to another user, mailbox or UID, is skipped, logged and never deleted. Raises
    Corrupt when its key is not configured, or its format newer.
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
            body = prefix if len(prefix) == header.object_bytes else await env.get(key, kind="mail") or b""
            delta = Delta.decode(env.codec.decode(body, owner).payload)
            check_claim(delta, uid)
            return delta, max(delta.claims.values(), default=1)
        raise CorruptObject(f"an object of kind {header.kind} among the mails")
    except UnknownKey as exc:
        log.error("mail under an unknown key", user=mailbox.user.name, key=key, next_step="storage.encryption_keys")
        raise Corrupt("a mail is sealed under a key that is not configured") from exc
    except NewerFormat as exc:
        log.error("mail of a newer format", user=mailbox.user.name, key=key, next_step="upgrade this obox")
        raise Corrupt("a mail was written by a newer obox") from exc
    except (CorruptObject, Corrupt, ShortPrefix, ValueError) as exc:
        log.error("mail object does not decode, left alone", user=mailbox.user.name, key=key, error=str(exc))
        # Noted as cleared: nothing ever deletes it.
        return Delta(claims={uid: CLAIM_PURGED}, uidnext=uid + 1), 1


async def recheck(mailbox: Mailbox, infos: list[ObjectInfo]) -> None:
    """See `Mailbox.recheck`. Where nobody else has written nothing is to be uploaded afterwards."""
    generation, known = mailbox.env.generation, mailbox.known
    async with mailbox.flushing:
        await _take_bundles(mailbox, infos, renew=True)
    two_histories = mailbox.known is not known or known.generation != generation
    if two_histories:
        mailbox.apply(mailbox.state.takeover_delta(mailbox.env.now_ms(), merged=True), Change.IMPORTANT)
    await mailbox.slots.recheck()
    mailbox.known.generation = generation
    mailbox.known.need_base |= two_histories
    mailbox.save()


async def _take_bundles(mailbox: Mailbox, infos: list[ObjectInfo], *, renew: bool = False) -> bool:
    """Join the bundles that others have written; True if that makes one history of two. renew: sessions are looking."""
    known, state, unflushed = mailbox.known, mailbox.state, mailbox.change is not Change.NONE
    if known.knows(infos):
        return False
    loaded = await mailbox.bundles.load(infos)
    for payload in loaded.payloads:
        changed = state.join(_decode(mailbox, payload))
        renewal = state.renewal(changed, mailbox.env.now_ms()) if renew else None
        if renewal is not None:
            state.join(renewal)
    loaded.known.version = max(loaded.known.version, known.version)
    loaded.known.generation, loaded.known.listed = known.generation, known.listed
    loaded.known.flushed_uidnext = known.flushed_uidnext
    loaded.known.need_base = True
    mailbox.known = loaded.known
    return unflushed or loaded.merged


async def refresh(mailbox: Mailbox) -> None:
    """After a UID was lost to another writer: take in what it wrote, then let our own mails stand or try again."""
    while True:
        try:
            deltas, uidnext = await discover(mailbox, mailbox.slots.in_flight())
            break
        except Exception as exc:
            log.warning("refresh after a lost UID", user=mailbox.user.name, mailbox=mailbox.guid, error=str(exc))
            await mailbox.env.sleep(1.0)
    claimed = [
        (uid, uid + count)
        for delta in deltas
        for uid, count in delta.claims.items()
        if delta.rows is not None or count > 1  # else it is a burnt UID
    ]
    lost = {slot.uid for slot in mailbox.slots.in_flight() if any(a <= slot.uid < b for a, b in claimed)}
    lost |= {slot.uid for slot in mailbox.slots.in_flight() if _is_anothers(mailbox.state, slot)}
    mailbox.known.need_base |= bool(deltas or lost)
    others = sum(len(delta.rows) for delta in deltas if delta.rows is not None)
    deltas.reverse()

    def show(until: int) -> None:
        """All that is settled up to a UID, in one go."""
        while deltas and _first_uid(deltas[-1]) <= until:
            _show(mailbox, deltas.pop())
        mailbox.slots.show(until, lambda slot: slot.uid in lost)

    for slot in mailbox.slots.in_flight():
        if slot.fate == "orphan" and slot.uid not in lost:
            show(slot.uid - 1)
            mailbox.user.journal.add(mailbox.user.storage_id, mailbox.guid, mailbox.taken_back(slot).encode())
            await _journaled(mailbox)  # whoever finds the object by LIST must know before a higher UID shows
    show(uidnext)
    mailbox.slots.refreshed(uidnext, others)


def _is_anothers(state: State, slot: Slot) -> bool:
    """A UID in flight that the state has come to know meanwhile, by the bundles of another writer, and not as ours."""
    if slot.uid >= state.uidnext or slot.delta is None or slot.delta.rows is None:
        return False
    position = state.position(slot.uid)
    return position is None or bytes(state.column("oid")[position]) != bytes(slot.delta.rows.oid[0])


def _show(mailbox: Mailbox, delta: Delta) -> None:
    """Make visible what LIST has found."""
    stamp(delta, mailbox.state.next_modseq(mailbox.env.now_ms()))
    if delta.rows is not None:
        mailbox.user.adopt(mailbox, delta.rows)
    mailbox.apply(delta, Change.UNIMPORTANT)


async def _journaled(mailbox: Mailbox) -> None:
    """Wait, however long, until what was shown is in the bucket."""
    while True:
        try:
            return await mailbox.user.journal.sync()
        except Unavailable:
            continue
