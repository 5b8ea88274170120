"""COPY and MOVE (docs/format.md, "COPY, MOVE"). `user.py` uses it.

A claim in the bucket becomes visible in a single turn of the loop. Its records, its
holders and the expunges of a MOVE are one edit. The work before and after that turn
lets other sessions run. A COPY copies all mails or none (RFC 9051 §6.4.7), so the
number of mails of a COPY is limited. A MOVE is made in parts (RFC 6851 §3.3), and each
part is a complete MOVE.

This module knows no protocols.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

import numpy as np

from metacache import Change

from ...errors import Limit, OboxError
from ...mailbox import Delta, Holders, MailboxEntry, Rows, UidArray, by_home
from ...types import Guid
from ..api import Copied
from ..box.expunge import expunge_in, homes_of
from ..box.index import FIELDS_STEP, PART_MAILS, Index, Owner, tidy
from ..env import ANSWER_S, Env, answer_within
from ..log.stage import Edit
from ..mails.quota import Reservations, Room
from ..mails.write import write_claim

COPY_MAX: Final = 250_000
"""Mails of a COPY. They all become visible in a single turn of the loop, which takes 40
ms. A client that gets this limit as an error copies the mails in parts."""


class Copier(Owner, Protocol):
    """What a COPY needs of the user."""

    quota: Reservations

    def entry(self, name: str) -> MailboxEntry:
        """Raises NotFound."""


async def copy(user: Copier, source: Index, uids: UidArray, name: str) -> Copied:
    """See `api.User.copy`."""
    if len(uids) > COPY_MAX:
        raise Limit(f"a COPY of {len(uids)} mails; allowed: {COPY_MAX}")
    entry = user.entry(name)
    async with answer_within(ANSWER_S):
        target = await user.box(Guid(entry.guid))
        source.require_live()
        target.require_live()
        where, there = source.state.positions(uids)
        uids = uids[there]
        if len(uids) == 0:
            return Copied(entry.uidvalidity, uids, uids)
        target.require_room(len(uids))
        room = user.quota.take(int(source.state.column("size")[where[there]].sum(dtype=np.uint64)), len(uids))
        work = user.spawn(_copy(user, source, target, uids, room))
        work.add_done_callback(lambda _: room.end())
        return Copied(entry.uidvalidity, *await asyncio.shield(work))


async def move(user: Copier, source: Index, uids: UidArray, name: str) -> Copied:
    """See `api.User.copy`. Everything that can refuse the whole MOVE is checked before
    the first part."""
    entry = user.entry(name)
    done: list[tuple[UidArray, UidArray]] = []
    failure: OboxError | None = None
    try:
        async with answer_within(ANSWER_S):
            target = await user.box(Guid(entry.guid))
        source.require_live()
        where, there = source.state.positions(uids)
        uids = uids[there]
        target.state.spell(_flags_on(source.state.rows(where[there]).stamps))
        if target is not source:
            target.require_room(len(uids))
        for at in range(0, len(uids), PART_MAILS):
            async with answer_within(ANSWER_S):
                source.require_live()
                target.require_live()
                work = user.spawn(_copy(user, source, target, uids[at : at + PART_MAILS], None))
                done.append(await asyncio.shield(work))
    except OboxError as exc:
        if not done:
            raise
        failure = exc
    if not done:
        return Copied(entry.uidvalidity, uids, uids)
    old, new = (np.concatenate(column) for column in zip(*done, strict=True))
    return Copied(entry.uidvalidity, old, new, failure)


async def _copy(
    user: Copier, source: Index, target: Index, uids: UidArray, room: Room | None
) -> tuple[UidArray, UidArray]:
    """Write the claim, the journal, and then both mailboxes. It must not be cancelled.

    room: what a COPY has reserved of the quota; None for a MOVE.
    """
    move, until = room is None, user.env.clock() + ANSWER_S
    releasing: dict[Guid, Index] = await homes_of(source, uids) if move else {}
    holding = {target.guid: target}
    while True:
        # Mails that were expunged meanwhile are not copied.
        uids = uids[source.state.positions(uids)[1]]
        if len(uids) == 0:
            return uids, uids
        rows = rows_for_copy(source, target, uids)
        missing = [guid for guid in rows.homes if guid not in holding]
        if not missing:
            break
        for guid in missing:
            holding[guid] = await user.box(guid)
    lease = user.spawn(user.journal.lease()) if user.journal.stale() else None
    while True:
        await asyncio.sleep(0)
        slot, delta = await write_claim(target, rows, len(rows), until)
        new = np.arange(slot.uid, slot.uid + len(rows), dtype=np.uint32)
        held = {} if delta.rows is None else held_by(delta.rows, target.guid)
        target.state.reserve(len(target.state) + len(rows))
        await asyncio.sleep(0)

        def elsewhere(edit: Edit, modseq: int, held: dict[Guid, Holders] = held) -> None:
            for guid, holders in held.items():
                edit.add(holding[guid], Delta(holders=holders), Change.IMPORTANT)
            if move and not target.deleted:
                expunge_in(source, edit, uids, releasing, above=modseq if source is target else 0)

        slot.elsewhere = elsewhere
        slot.also = None if room is None else room.end
        target.slots.resolve(slot, "landed", delta)
        if await slot.done:
            break
    target.require_there()
    await tidy({**holding, **releasing}.values())
    await copy_fields(user.env, source, target, uids, new)
    await user.journal.sync()
    if lease is not None:
        await lease
    if user.env.until_heard is not None:
        await user.env.until_heard()
    user.env.owned.require(user.storage_id)
    return uids, new


def rows_for_copy(source: Index, target: Index, uids: UidArray) -> Rows:
    """Return the records that a COPY makes in `target`, without UIDs and MODSEQs yet.

    Raises Limit if `target` has no room for their keywords.
    """
    state = source.state
    rows = state.rows(state.positions(uids)[0])
    guids = [*state.homes, source.guid]  # -1 is the source itself, which is the last
    used = {guids[home] for home in np.flatnonzero(np.bincount(rows.home + 1)) - 1}
    rows.homes = sorted(used - {target.guid})
    numbers = {guid: number for number, guid in enumerate(rows.homes)}
    rows.home = np.array([numbers.get(guid, -1) for guid in guids], dtype=np.int32)[rows.home]
    rows.savedate = np.full(len(rows), source.env.now_ms(), dtype=np.int64)
    on = _flags_on(rows.stamps)
    rows.stamps = dict(zip(target.state.spell(on), on.values(), strict=True))
    rows.modseq = np.zeros(len(rows), dtype=np.uint64)
    return rows


def _flags_on(stamps: dict[str, Any]) -> dict[str, Any]:
    """Return a column for each flag that some mail has: 1 where the mail has the
    flag."""
    on = {flag: column & np.uint64(1) for flag, column in stamps.items()}
    return {flag: column for flag, column in on.items() if column.any()}


def held_by(rows: Rows, guid: Guid) -> dict[Guid, Holders]:
    """Return the holders that records of a mailbox mean for the mailboxes that have the
    shared objects."""
    found: dict[Guid, Holders] = {}
    for home, (uids, home_uids) in by_home(rows.uid, rows.home, rows.home_uid, guid, rows.homes).items():
        found[home] = Holders()
        found[home].add(guid, home_uids, uids, 0)
    return found


async def copy_fields(env: Env, source: Index, target: Index, uids: UidArray, new: UidArray) -> None:
    """Copy the ready fields of the originals, as far as they are local. Other sessions
    run meanwhile."""
    sid, turn = source.user.storage_id, env.turn(source.user.storage_id)
    for at in range(0, len(uids), FIELDS_STEP):
        if target.deleted:
            return
        step = slice(at, at + FIELDS_STEP)
        records = env.metacache.get_fields(sid, source.guid, uids[step].tolist())
        pairs = zip(new[step].tolist(), records, strict=True)
        target.put_fields([(uid, record) for uid, record in pairs if record is not None])
        if turn.over():
            await turn.end()
