"""Lost mails: the index has a record of them, the bucket no object (docs/format.md, "A lost mail").

A GET that finds nothing proves little: a replica that is behind, a mistake in passing. `look_again` asks once more, and
what is gone then is expunged from the index. The object is left alone: should it come back nothing deletes it, and
`oboxadm rebuild` finds it. Other records of the same object, copies elsewhere, are looked at when they are read.

Invariant: nothing is expunged on one answer of the bucket alone; sessions that find the same mail wait for each other,
so that it is looked for and expunged once.
Diagnostics: each mail expunged is a warning with user, mailbox, UID and key, and so is one that was there after all. A
bucket that does not answer is `Unavailable`: then nothing changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from ...mailbox import UidArray, uid_array
from .._env import GETS_AT_ONCE
from ..index import Index

log = structlog.get_logger()


async def look_again(mailbox: Index, lost: Mapping[int, str], *, end: int | None = None) -> dict[str, bytes]:
    """Look for the objects of mails (UID to key) that a GET did not find; expunge the mails of those that are gone.

    Returns the objects that are there after all, by key. end: so many bytes of one are proof enough.
    Requests: a LIST for each object, and a GET for each that it names. Raises Unavailable.
    """
    env = mailbox.env
    gate = asyncio.Semaphore(GETS_AT_ONCE)

    async def look(key: str) -> bytes | None:
        async with gate:
            return await env.get(key, kind="mail", end=end) if await _listed(mailbox, key) else None

    async with mailbox.mending:
        here = {uid: key for uid, key in lost.items() if mailbox.state.position(uid) is not None}
        if not here or mailbox.deleted:
            return {}
        keys = list(dict.fromkeys(here.values()))
        found = dict(zip(keys, await asyncio.gather(*map(look, keys)), strict=True))
        there = {key: data for key, data in found.items() if data is not None}
        for key in there:
            log.warning("a mail that seemed lost is there", user=mailbox.user.name, key=key)
        await expunge(mailbox, {uid: key for uid, key in here.items() if key not in there})
        return there


async def _listed(mailbox: Index, key: str) -> bool:
    """Does a LIST name the key? Of what follows the one before it. Raises Unavailable."""
    prefix, _, uid = key.rpartition("/")
    before = f"{prefix}/{int(uid, 16) - 1:08x}"
    infos = await mailbox.env.listing(f"{prefix}/", kind="mail", after=before, limit=1)
    return any(info.key == key for info in infos)


async def expunge(mailbox: Index, lost: Mapping[int, str]) -> UidArray:
    """Expunge mails (UID to key) whose object is gone, and note that there is nothing to delete; say which were there.

    In the synced local commit on return. Raises Unavailable.
    """
    uids = uid_array(sorted(lost))
    if not lost:
        return uids
    mailbox.require_live()
    gone = mailbox.expunge_now(uids, await mailbox.homes(uids), lost=True)
    await mailbox.user.commit()
    for uid in gone.tolist():
        log.warning("lost mail expunged", user=mailbox.user.name, mailbox=mailbox.guid, uid=uid, key=lost[uid])
    return gone
