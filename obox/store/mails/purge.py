"""Deletes mails, claims and burnt UIDs. No other module deletes any of them.

If its user is not being deleted, an object is deleted when all of this is true:

    nothing refers to it       its record is expunged, and no mailbox holds it
                               (`State.dead`); no reader needs a claim or burnt UID
    the bucket has that        a bundle has it (`garbage` is called before a bundle)
    `delete_delay` has passed  since then
    nobody else has the user   the lease is renewed, and the mailbox was compared with
                               the bucket under the present assignment

The last rule is for a backend that was suspended. Another backend may have taken over,
and copied a mail that is expunged in all mailboxes for the first backend. The first
backend is fenced when it renews its lease. It then compares its mailboxes, and finds
the copies.

All objects of a user who is being deleted are deleted (`purge_all`). No session has the
user open, and none can open it (`MailStore.block_opening`).

Invariant: no other file deletes a key of a mail; tests/store/test_purge.py checks that.
This module does not know why a mail was expunged, and knows no bundles and no journals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metacache import Change

from ...mailbox import CLAIM_PURGED, Delta
from ...objectstore import ObjectInfo
from ...objectstore.keys import mail_key, parse_mail_key
from ...types import Uid
from ..box.index import Index
from ..env import Env


class Garbage(NamedTuple):
    """UIDs of a mailbox whose objects may be deleted."""

    mails: list[int]
    claims: list[int]


def garbage(mailbox: Index) -> Garbage:
    """Return expunged mails without holders, and claims and burnt UIDs, whose delay is
    over.

    Bundles in the bucket already have the claims. They have the mails once a bundle of
    the present state is in the bucket.
    """
    env, stamp, state = mailbox.env, mailbox.stamp, mailbox.state
    dead = state.dead(int((env.now() - env.delete_delay_s) * 1000)).tolist()
    claims = [uid for uid, count in state.claims.items() if count < CLAIM_PURGED and uid + count <= stamp.known_uidnext]
    if stamp.known_at > env.now() - env.delete_delay_s:
        claims = []  # no bundle with these UIDs has been in the bucket for the delay
    return Garbage(dead, claims)


async def purge(mailbox: Index, found: Garbage) -> None:
    """Delete the objects that `garbage` has found, now that bundles have it. The caller
    holds the lock `flushing`.

    If this is not safe at present, a later flush or sweep deletes them. Raises
    Unavailable.
    """
    if not any(found) or not await _alone(mailbox):
        return
    # Without mails that are held since.
    free = set(mailbox.state.dead(mailbox.env.now_ms()).tolist())
    dead = [uid for uid in found.mails if uid in free]
    await _delete(mailbox, [*dead, *found.claims])
    # An earlier process that did not flush may have left them.
    mailbox.env.metacache.drop_fields(mailbox.sid, mailbox.guid, dead)
    delta = Delta(purged=np.array(dead, dtype=np.uint32), claims=dict.fromkeys(found.claims, CLAIM_PURGED))
    mailbox.apply(delta, Change.UNIMPORTANT, journal=False)


async def purge_last(mailbox: Index) -> bool:
    """Delete the claims and burnt UIDs of a deleted mailbox. The caller holds the lock
    `flushing`.

    Returns False, and deletes nothing, if some of its mails are still in the bucket or
    are held by another mailbox. Raises Unavailable.
    """
    if not await _alone(mailbox) or bool((~mailbox.state.gone_purged).any()) or len(mailbox.state.active_holders()):
        return False
    await _delete(mailbox, [uid for uid, count in mailbox.state.claims.items() if count < CLAIM_PURGED])
    return True


async def _alone(mailbox: Index) -> bool:
    """Whether this backend may delete. It must have the lease, and must have read what
    others have written to the mailbox."""
    await mailbox.user.journal.lease()
    mailbox.user.require_there()
    return mailbox.assignment.covers(mailbox.stamp)


async def _delete(mailbox: Index, uids: Sequence[int]) -> None:
    keys = [mail_key(mailbox.sid, mailbox.guid, Uid(uid)) for uid in sorted({*uids})]
    await mailbox.env.delete(keys, kind="mail")
    for key in keys:
        await mailbox.env.fscache.drop(key)


async def purge_all(env: Env, infos: Sequence[ObjectInfo]) -> None:
    """Delete objects of any kind of a user who is being deleted. Raises Unavailable."""
    await env.delete([info.key for info in infos], kind="mail")
    for info in infos:
        if is_mail(info.key):
            await env.fscache.drop(info.key)


def is_mail(key: str) -> bool:
    """Whether a key is of a mail, a claim or a burnt UID."""
    try:
        parse_mail_key(key)
    except ValueError:
        return False
    return True
