"""Repairs a user's indexes: by comparing them with the bucket (`resync`), or from mails
alone (`rebuild`).

`resync` joins all bundles, finds mails that no bundle knows, and mails whose object is
gone. It loses no existing data. `rebuild` is for indexes that do not decode. It makes
the list of mailboxes from the bundles that still decode, and a mailbox from the headers
of its mails. Data that only an index had is lost then, and `UNKNOWN` names it.

Invariant: UIDs stay, UIDNEXT and MODSEQ never fall below what any readable bundle says.
A damaged bundle is covered by a new bundle, and never deleted before its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import structlog

from ...errors import Corrupt, Limit
from ...mailbox import Delta, MailboxEntry, Root, RootDelta, Rows, in_batches
from ...objectstore import ObjectInfo
from ...objectstore.keys import ROOT, UID_MAX, mail_key
from ...types import Guid, StorageId, Uid
from ..backend import upload
from ..box.bundles import Bundles
from ..box.index import give_modseq
from ..env import ANSWER_S
from ..mails.listed import listed_uids, near
from ..mails.lost import expunge as expunge_lost
from ..mails.lost import renew
from ..mails.packed import find, possible
from ..mails.places import place_of
from ..mails.write import write_claim
from ..user.discover import read_listed, recheck
from ..user.mailboxes import first_list
from . import users as operate

if TYPE_CHECKING:
    from ..backend.store import MailStore
    from ..user.mailbox import Mailbox
    from ..user.user import User

log = structlog.get_logger()

UNKNOWN: Final = "flags since delivery, expunges and moves since, keywords"
SLICE: Final = 2000
"""Mails that are checked before other tasks run, which takes a few milliseconds."""


UIDS_SKIPPED_MAX: Final = 1 << 24
"""UIDs that `resync` skips. `UIDS_AHEAD_MAX` must be more than that."""


class Resynced(NamedTuple):
    """mails: the present number. new: mails that were found by LIST or in bundles of
    others. lost: mails whose object is gone. dropped: lost mails that were expunged.
    unknown: objects below UIDNEXT that no index has. uidnext: the present UIDNEXT."""

    mails: int
    new: int
    lost: int
    dropped: int
    unknown: int
    uidnext: int


async def resync(user: User, guid: Guid, *, keep_lost: bool, skip_uids: int = 0) -> Resynced:
    """Make the index of a mailbox agree with the bucket.

    skip_uids: how many UIDs are never used. It must be at least the number of UIDs that
    were used after the backup from which the bucket was restored. Raises Unavailable,
    Corrupt; Limit if not enough UIDs are left.
    """
    box = await user.box(guid)
    before = len(box.state)
    assignment = box.assignment
    await recheck(box, await box.bundles.listing(), assignment)
    listed = await listed_uids(box.env, box.sid, guid)
    lost = await _lost_mails(box, listed)
    if not keep_lost:
        await expunge_lost(box, lost)
    if skip_uids:
        await _skip(box, skip_uids)
    await box.flush()
    unknown = sum(1 for uid, size in listed.items() if size and uid < box.state.uidnext and not _known(box, uid))
    dropped = 0 if keep_lost else len(lost)
    new = max(0, len(box.state) + dropped - before)
    return Resynced(len(box.state), new, len(lost), dropped, unknown, box.state.uidnext)


async def _skip(box: Mailbox, count: int) -> None:
    """Claim UIDs without records, as COPY claims them, so that every writer of this
    mailbox skips them."""
    if count > UIDS_SKIPPED_MAX:
        raise Limit(f"{count} UIDs to skip; allowed: {UIDS_SKIPPED_MAX} at a time")
    if box.state.uidnext + count > UID_MAX:
        raise Limit(f"the next UID is {box.state.uidnext}: {count} more are not left of {UID_MAX}")
    while True:
        slot, delta = await write_claim(box, None, count, box.env.clock() + ANSWER_S)
        box.slots.resolve(slot, "landed", delta)
        if await slot.done:
            return


async def _lost_mails(box: Mailbox, listed: dict[int, int]) -> dict[int, str]:
    """Return UIDs whose object neither LIST nor GET finds, with the key."""
    state, sid = box.state, box.user.storage_id
    homes: dict[Guid, dict[int, int]] = {box.guid: listed}
    out = {}
    for step, uid in enumerate(state.uids.tolist()):
        if step % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        at = state.position(uid)
        if at is None:
            continue  # it was expunged meanwhile
        home, home_uid = state.home_of(at)
        under = int(state.column("place")[at, 0]) or home_uid
        if home not in homes:
            # The positions change meanwhile.
            homes[home] = await listed_uids(box.env, sid, home)
        key = mail_key(sid, home, Uid(under))
        if homes[home].get(under) or await box.env.get(key, kind="mail", end=1):
            continue
        # It may have been expunged meanwhile.
        if possible(box.env) and (at := state.position(uid)) is not None:
            place = place_of(state, at, sid, home, home_uid)
            if await find(box, place, state.column("oid")[at].tobytes()) is not None:
                continue
        out[uid] = key
    if out and possible(box.env):
        await renew(box)
    return out


def _known(box: Mailbox, uid: int) -> bool:
    """Return whether the index has the object under a UID."""
    state = box.state
    if state.position(uid) is not None or uid in state.gone_uid:
        return True
    if bool(in_batches(state, np.array([uid], dtype=np.uint32))[0]):
        return True
    return any(first <= uid < first + max(1, count) for first, count in state.claims.items())


class Rebuilt(NamedTuple):
    """A mailbox, or the list of mailboxes (name ""). result: what was done. unknown:
    what could not be known."""

    name: str
    mails: int
    result: str
    unknown: str


async def rebuild(store: MailStore, sid: StorageId, name: str, wanted: Callable[[str], bool]) -> AsyncIterator[Rebuilt]:
    """Rebuild boxes that do not decode, mailboxes that are in no list, and mailboxes
    that `wanted` selects.

    Raises InUse (a session or delivery has the user open), Unavailable.
    """
    try:
        await upload.unload(store, sid, upload=True)
    except Corrupt as error:
        log.warning("user not uploaded before the rebuild", user=name, error=str(error))
    if (done := await _root(store, sid)) is not None:
        yield done
    user = await store.load_user(name, sid, make=True)
    with store.barring(sid):
        found = await operate.mailboxes_in_bucket(store, sid)
        orphans = [guid for guid, mails in found.items() if mails and guid not in user.root.entries]
        for guid in orphans:
            await user.change_root(_entry(user, guid))
        rewritten = []
        for shown, entry in list(user.root.names().items()):
            guid = Guid(entry.guid)
            result = ""
            if guid in orphans:
                result = "found without a name"
            elif wanted(shown):
                result = "rebuilt"
            else:
                try:
                    await user.box(guid)
                except Corrupt:
                    result = "did not decode, rebuilt"
            if result:
                rewritten.append(await _mailbox(user, entry))
                unknown = f"its name, {UNKNOWN}" if guid in orphans else UNKNOWN
                yield Rebuilt(shown, len(rewritten[-1].state), result, unknown)
        await _hold_again(user, {box.guid for box in rewritten})
        for box in rewritten:
            await box.flush()
        if rewritten:
            await user.rootbox.flush()


async def _root(store: MailStore, sid: StorageId) -> Rebuilt | None:
    """Write the list of mailboxes again from the bundles that decode. Returns None if
    all of them decode."""
    env = store.env
    bundles = Bundles(env, sid, ROOT)
    infos = [info for info in await bundles.listing() if info.size]
    try:
        for payload in (await bundles.load(infos)).payloads:
            RootDelta.decode(payload)
        return None  # a damaged bundle does not matter if a good bundle covers it
    except (Corrupt, ValueError):
        pass
    root = Root()
    for info in infos:
        data = await env.get(info.key, kind="index")
        try:
            root.join(RootDelta.decode((await bundles.decode(info.key, data or b""))[1]))
        except (Corrupt, ValueError) as error:
            log.error("list of mailboxes is damaged", key=info.key, error=str(error))
    copy = env.metacache.load(sid, ROOT)
    for data in [] if copy is None else copy.parts():
        try:
            root.join(RootDelta.decode(data))
        except ValueError:
            continue
    lost = not root.entries
    if lost:
        rewritten = first_list(env)
        rewritten.identity = root.identity  # the user is still the same
        root.join(rewritten)
    bundles.cover(infos)
    await bundles.put("base", root.extract().encode(), modseq=root.highestmodseq)
    env.metacache.drop(sid, ROOT)
    await env.commit_staged()
    unknown = "names, subscriptions, special uses of all mailboxes" if lost else "what only the damaged bundles had"
    return Rebuilt("", len(root.names()), "list of mailboxes rebuilt", unknown)


def _entry(user: User, guid: Guid) -> RootDelta:
    root, now = user.root, user.env.now_ms()
    name = user.env.settings.lost_mailbox_prefix + guid[:8]
    entry = MailboxEntry(guid, name, root.next_modseq(now), now, root.next_uidvalidity(now // 1000))
    return RootDelta([entry], highestmodseq=entry.stamp, uidvalidity=entry.uidvalidity)


async def _mailbox(user: User, entry: MailboxEntry) -> Mailbox:
    """Make a mailbox from its mails, in memory and in the local copy. It is not
    uploaded yet."""
    env, sid, guid = user.env, user.storage_id, Guid(entry.guid)
    box = user.unloaded(entry)
    infos = [info for info in await box.bundles.listing() if info.size]
    found = await listed_uids(box.env, box.sid, guid)
    least = await _floor(box, infos)
    # If there is no bundle, the first UID may be any: a migration has chosen it.
    found = near(found, sid, guid, least.uidnext or min(found, default=0))
    deltas, uidnext, _ = await read_listed(box, 1, found, {}, {})
    turn = env.turn(sid)
    for delta in deltas:
        if turn.over():
            await turn.end()
        give_modseq(delta, max(box.state.next_modseq(env.now_ms()), least.highestmodseq + 1))
        box.state.join(delta)
    box.state.join(Delta(uidnext=max(uidnext, least.uidnext), highestmodseq=least.highestmodseq))
    user.rebuilt(box, infos)
    return box


async def _floor(box: Mailbox, infos: list[ObjectInfo]) -> Delta:
    """Return the highest UIDNEXT and MODSEQ of the bundles that decode, so that values
    which clients know stay valid."""
    least = Delta()
    for info in infos:
        if info.key.endswith(".cache"):
            continue
        try:
            data = await box.env.get(info.key, kind="index")
            delta = Delta.decode((await box.bundles.decode(info.key, data or b""))[1])
        except (Corrupt, ValueError):
            continue
        least.uidnext = max(least.uidnext, delta.uidnext)
        least.highestmodseq = max(least.highestmodseq, delta.highestmodseq)
    return least


async def _hold_again(user: User, rewritten: set[Guid]) -> None:
    """Add holders to rebuilt mailboxes for records elsewhere that share their objects,
    and to other mailboxes for copies in rebuilt mailboxes."""
    for entry in list(user.root.names().values()):
        box = await user.box(Guid(entry.guid))
        mask = box.state.foreign()
        rows: Rows = box.state.rows(mask)
        if box.guid not in rewritten:
            keep = np.array(
                [home >= 0 and rows.homes[home] in rewritten for home in rows.home.tolist()], dtype=np.bool_
            )
            rows = rows.take(keep)
        if len(rows):
            edit = user.edit()
            user.hold(edit, box.guid, rows)
            user.log.stage(edit)
