"""Uploads a mailbox's index (docs/format.md, "Flush").

Steps; the commit point is 2:
 1. under the mailbox's flush lock, in a single turn of the loop: note the journal's
   position, and take what has changed since the base (or everything); a thread puts the
   encoding together, and the journal has all of it before the next step;
 2. PUT the bundle;
 3. local copy: its stamp names the bundle, and its change mark is cleared if no change
   came meanwhile;
 4. the journal learns what is covered; cached fields follow as a segment if there are
   enough;
 5. objects and bundles that have been superfluous for `delete_delay` are deleted.
A crash after 2 leaves a bundle that covers changes which the journal still has. To join
them again changes nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
import numpy as np

from metacache import Change

from ...mailbox import Encoded
from ..box.bundles import DIFF_FREE_BYTES, DIFF_SHARE, segment_range
from ..box.index import Index, count_between, drop_fields
from ..mails.purge import garbage, purge

SEGMENT_MAILS_MIN: Final = 100
"""If there are as many new mails, a flush uploads their ready fields. That costs a
hundredth of a request for each mail."""

SEGMENT_MAILS_MAX: Final = 2000
"""Mails in a segment. It has about 1 MiB, some 300 KiB compressed."""

CARRIED_BYTES_MAX: Final = 16 * 1024
"""Largest fragment that is carried forward in the journal instead of being written as a
bundle. An object of an hour has room for many."""

CARRIED_S_MAX: Final = 86400.0
"""How long changes may be carried forward. After a day, a bundle is cheaper than the
journal objects that carry a few mails of a quiet backend."""

KEYWORD_FORGET_S: Final = 30 * 86400.0
"""A keyword that no mail has had for this time is left out of a base. If two writers do
not know of each other for longer, a removed keyword may come back on a mail."""

SEGMENTS_MERGED: Final = 8
"""Number of small segments that are merged into a larger segment."""


def ended(mailbox: Index) -> bool:
    """See `Box._ended`: the mailbox was deleted and cleared. Then changes in a journal
    are no reason for another bundle."""
    if not mailbox.cleared:
        return False
    user, guid = mailbox.user, mailbox.guid
    mailbox.change, mailbox.due_at, mailbox.unflushed_mails = Change.NONE, None, 0
    user.journal.flushed(user.storage_id, guid, user.journal.position(), more=False)
    user.env.metacache.drop(user.storage_id, guid)
    return True


async def carry(mailbox: Index) -> None:
    """Write changes that have long been in the journal, but are too few for a bundle,
    to a newer journal object. More than a few new mails, or a large fragment, are
    written as a bundle instead. Raises Unavailable."""
    async with mailbox.flushing:
        stamp, user = mailbox.stamp, mailbox.user
        user.require_there()
        if ended(mailbox):
            return
        few = mailbox.unflushed_mails <= mailbox.env.settings.max_rescan_mail_count
        few &= user.journal.carried(user.storage_id, mailbox.guid) < CARRIED_S_MAX
        if mailbox.change is Change.UNIMPORTANT and few and not stamp.merged:
            delta = mailbox.state.extract(stamp.since)
            if len(delta.encode()) <= CARRIED_BYTES_MAX:
                edit = user.edit()
                edit.carry(mailbox.guid, delta)
                user.log.stage(edit)
                return
        if mailbox.change is Change.NONE:
            user.journal.flushed(user.storage_id, mailbox.guid, user.journal.position(), more=False)
        else:
            await write_bundle(mailbox)


async def write_bundle(mailbox: Index) -> None:
    """See `Box._write_bundle`."""
    await mailbox.user.rootbox.begin_changes()
    stamp, state, mails = mailbox.stamp, mailbox.state, mailbox.unflushed_mails
    gone = len(mailbox.fields_left)
    old = garbage(mailbox)
    base, diff_max = stamp.base_next, max(DIFF_FREE_BYTES, stamp.base_bytes // DIFF_SHARE)
    parts: Encoded = ()
    if not base:
        diff = state.snapshot(stamp.base_modseq)
        # This is known without encoding all records of the mailbox.
        base = diff.least_bytes > diff_max
        parts = () if base else diff.parts()
    forgotten: list[str] = []
    long_ago = int((mailbox.env.now() - KEYWORD_FORGET_S) * 1000)
    if base or sum(map(len, parts)) > diff_max:
        base, forgotten = True, state.forgettable(long_ago)
        parts = mailbox.whole(without=forgotten)

    def landed() -> None:
        state.forget(forgotten, long_ago)
        mailbox.unflushed_mails -= mails

    await mailbox.upload("base" if base else "diff", parts, landed=landed)
    await _drop_fields_left(mailbox, gone)
    # It is saved now: a copy that is loaded again must not use this version again.
    mailbox.save_stamp()
    await purge(mailbox, old)


async def _drop_fields_left(mailbox: Index, count: int) -> None:
    """Drop the ready fields of the first `count` UIDs in `fields_left`. Not earlier,
    because a MOVE copies them afterwards, and a session that does not know of the
    expunge may fetch them."""
    if count:
        gone = np.concatenate(mailbox.fields_left[:count])
        del mailbox.fields_left[:count]
        await drop_fields(mailbox, gone)


async def sweep(mailbox: Index) -> None:
    """Delete objects whose delay is over, without waiting for a flush. Raises
    Unavailable."""
    async with mailbox.flushing:
        mailbox.user.require_there()
        if ended(mailbox):
            return
        if mailbox.change is not Change.NONE:
            await write_bundle(mailbox)
        else:
            await purge(mailbox, garbage(mailbox))
        if await mailbox.bundles.clear():
            mailbox.save_stamp()


async def write_fields(mailbox: Index, *, everything: bool) -> bool:
    """See `Box._write_derived`: ready fields, as segments."""
    return (everything or _uncached(mailbox) >= SEGMENT_MAILS_MIN) and await _flush_fields(mailbox)


def _uncached(mailbox: Index) -> int:
    return len(mailbox.state.uids) - int(np.searchsorted(mailbox.state.uids, mailbox.stamp.cached_uid, side="right"))


async def _flush_fields(mailbox: Index) -> bool:
    """Upload the ready fields of mails that no segment has. Merge small consecutive
    segments."""
    uids = mailbox.state.uids
    todo = uids[np.searchsorted(uids, mailbox.stamp.cached_uid, side="right") :].tolist()
    for at in range(0, len(todo), SEGMENT_MAILS_MAX):
        await _put_segment(mailbox, todo[at], todo[min(at + SEGMENT_MAILS_MAX, len(todo)) - 1])
    small = [
        span
        for span in sorted(map(segment_range, mailbox.stamp.segments))
        if count_between(mailbox.state, *span) < SEGMENT_MAILS_MAX // SEGMENTS_MERGED
    ]
    if len(small) >= SEGMENTS_MERGED and all(record is not None for record in _local(mailbox, small)):
        await _put_segment(mailbox, small[0][0], small[-1][1])
    return bool(todo)


def _local(mailbox: Index, spans: list[tuple[int, int]]) -> list[bytes | None]:
    """Return the records of live mails in these ranges that the local copy has."""
    uids = mailbox.state.uids
    inside = uids[np.searchsorted(uids, spans[0][0]) : np.searchsorted(uids, spans[-1][1], side="right")].tolist()
    return mailbox.env.metacache.get_fields(mailbox.user.storage_id, mailbox.guid, inside)


async def _put_segment(mailbox: Index, low: int, high: int) -> None:
    uids = mailbox.state.uids
    inside = uids[np.searchsorted(uids, low) : np.searchsorted(uids, high, side="right")].tolist()
    records = mailbox.env.metacache.get_fields(mailbox.user.storage_id, mailbox.guid, inside)
    pairs = [(uid, record) for uid, record in zip(inside, records, strict=True) if record is not None]
    await mailbox.bundles.put_segment(low, high, msgspec.msgpack.encode(pairs))
    await asyncio.sleep(0)
