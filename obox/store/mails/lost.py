"""Lost mails: the index has a record of them, but the bucket has no object
(docs/format.md, "A lost mail").

A single GET that finds nothing proves little: a replica may be out of date, or the
error may be temporary. `check_again` checks again, and a mail that is still gone is
expunged from the index. The object is not deleted: if it comes back, nothing deletes
it, and `oboxadm rebuild` finds it. Other records of the same object, copies elsewhere,
are checked when they are read.

Invariant: no mail is expunged because of a single answer of the bucket. Sessions that
find the same mail wait for each other, so that it is looked for and expunged once.

Diagnostics: a warning is logged for each expunged mail, with user, mailbox, UID and
key, and for each mail that exists after all. If the bucket does not answer,
`Unavailable` is raised and nothing changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from ...errors import Unavailable
from ...mailbox import UidArray, uid_array
from ..box.expunge import expunge_now, homes_of
from ..box.index import Index
from ..env import GETS_AT_ONCE, TRY_LATER
from .packed import find, possible
from .places import Place, envelope_at

log = structlog.get_logger()


async def check_again(mailbox: Index, lost: Mapping[int, Place], *, end: int | None = None) -> dict[str, bytes]:
    """Look for the objects of mails (by UID) that a GET did not find; expunge the mails
    of those that are gone.

    Returns the envelopes that exist after all, by the key of the mail. end: how many
    bytes of an envelope are read as proof. Requests: a LIST for each mail, and a GET
    for each whose object the LIST names. Raises Unavailable.
    """
    env = mailbox.env
    gate = asyncio.Semaphore(GETS_AT_ONCE)

    async def look(place: Place) -> bytes | None:
        async with gate:
            if possible(env):
                found = await find(mailbox, place, oids[place.key], sure=True)
                return None if found is None else found[1]
            if not await _listed(mailbox, place.under):
                return None
            most = place.length if end is None else min(end, place.length or end)
            until = place.start + most if most else None
            data = await env.get(place.under, kind="mail", start=place.start, end=until)
            return data if data is None or end is not None else envelope_at(place, data)

    async with mailbox.mending:
        here = {uid: place for uid, place in lost.items() if mailbox.state.position(uid) is not None}
        if not here or mailbox.deleted:
            return {}
        positions = {place.key: mailbox.state.position(uid) for uid, place in here.items()}
        oids = {key: mailbox.state.column("oid")[at].tobytes() for key, at in positions.items()}
        places = list(dict.fromkeys(here.values()))
        found = dict(zip(places, await asyncio.gather(*map(look, places)), strict=True))
        there = {place.key: data for place, data in found.items() if data is not None}
        for key in there:
            log.warning("mail that seemed lost is there", user=mailbox.user.name, key=key)
        if possible(env) and len(there) < len(places):
            await renew(mailbox)
        await expunge(mailbox, {uid: place.under for uid, place in here.items() if place.key not in there})
        return there


async def renew(mailbox: Index) -> None:
    """Return when the lease has been renewed after the LISTs: nobody else has packed
    the mailbox unnoticed. Raises Unavailable."""
    await mailbox.user.journal.announce()
    if not mailbox.assignment.covers(mailbox.stamp):
        raise Unavailable(TRY_LATER)


async def _listed(mailbox: Index, key: str) -> bool:
    """Return whether a LIST that starts just before the key names it. Raises
    Unavailable."""
    prefix, _, uid = key.rpartition("/")
    before = f"{prefix}/{int(uid, 16) - 1:08x}"
    infos = await mailbox.env.listing(f"{prefix}/", kind="mail", after=before, limit=1)
    return any(info.key == key for info in infos)


async def expunge(mailbox: Index, lost: Mapping[int, str]) -> UidArray:
    """Expunge mails (UID to the key of its object) whose object is gone, and note that
    there is nothing to delete. Returns the mails that existed.

    The change is in the synced local commit on return. Raises Unavailable.
    """
    uids = uid_array(sorted(lost))
    if not lost:
        return uids
    mailbox.require_live()
    gone = expunge_now(mailbox, uids, await homes_of(mailbox, uids), lost=True)
    await mailbox.user.commit()
    for uid in gone.tolist():
        log.warning("lost mail expunged", user=mailbox.user.name, mailbox=mailbox.guid, uid=uid, key=lost[uid])
    return gone
