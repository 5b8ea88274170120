"""The one way out: every mail, claim and burnt UID that obox deletes is deleted here.

While its user lives an object goes when all of this is true:

    nothing refers to it       its own record is expunged, and no mailbox holds it (`State.dead`); a
                               claim or a burnt UID has no reader left
    the bucket knows that      a bundle says so (`garbage` is asked before a bundle is made of it)
    `delete_delay` has passed  since then
    nobody else has the user   the lease is renewed, and the mailbox has been compared with the bucket
                               under the present assignment

The last rule is for a backend that was suspended: another one may have taken over and copied a mail
that this one still believes to be expunged everywhere. Such a backend is fenced when it asks for its
lease, compares its mailboxes, and hears of the copies.

Of a user who is being deleted everything goes (`purge_all`): nobody has the user open, and nobody
can open it (`MailStore.bar`).

Invariant: no other file deletes a key of a mail; tests/store/test_purge.py holds that.
Refuses to know: why a mail was expunged, bundles, journals.
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
from .._env import Env
from ..index import Index


class Garbage(NamedTuple):
    """UIDs of one mailbox whose objects may go."""

    mails: list[int]
    claims: list[int]


def garbage(mailbox: Index) -> Garbage:
    """Expunged mails without holders, and claims and burnt UIDs, that have waited for the delay.

    The claims are known to bundles that are in the bucket; the mails are once a bundle of the present state is.
    """
    env, stamp, state = mailbox.env, mailbox.stamp, mailbox.state
    dead = state.dead(int((env.now() - env.delete_delay_s) * 1000)).tolist()
    claims = [uid for uid, count in state.claims.items() if count < CLAIM_PURGED and uid + count <= stamp.known_uidnext]
    if stamp.known_at > env.now() - env.delete_delay_s:
        claims = []  # no bundle that knows these UIDs has been in the bucket for the delay
    return Garbage(dead, claims)


async def purge(mailbox: Index, found: Garbage) -> None:
    """Delete the objects of what `garbage` has found, now that the bundles know of it; under the lock `flushing`.

    What nobody can be sure of stays for a later flush or sweep. Raises Unavailable.
    """
    if not any(found) or not await _alone(mailbox):
        return
    dead = np.intersect1d(found.mails, mailbox.state.dead(mailbox.env.now_ms())).tolist()  # none that is held since
    await _delete(mailbox, [*dead, *found.claims])
    mailbox.env.metacache.drop_fields(mailbox.sid, mailbox.guid, dead)  # of an earlier life that did not flush
    delta = Delta(purged=np.array(dead, dtype=np.uint32), claims=dict.fromkeys(found.claims, CLAIM_PURGED))
    mailbox.apply(delta, Change.UNIMPORTANT, journal=False)


async def purge_last(mailbox: Index) -> bool:
    """Delete the claims and burnt UIDs of a deleted mailbox; under the lock `flushing`.

    False: some of its mails are still in the bucket, or another mailbox holds one; nothing is deleted then. Raises
    Unavailable.
    """
    if not await _alone(mailbox) or bool((~mailbox.state.gone_purged).any()) or len(mailbox.state.active_holders()):
        return False
    await _delete(mailbox, [uid for uid, count in mailbox.state.claims.items() if count < CLAIM_PURGED])
    return True


async def _alone(mailbox: Index) -> bool:
    """Whether this backend may delete: it has the lease, and knows what others have written of the mailbox."""
    await mailbox.user.journal.lease()
    mailbox.user.require_there()
    return mailbox.assignment.covers(mailbox.stamp)


async def _delete(mailbox: Index, uids: Sequence[int]) -> None:
    keys = [mail_key(mailbox.sid, mailbox.guid, Uid(uid)) for uid in sorted({*uids})]
    await mailbox.env.delete(keys, kind="mail")
    for key in keys:
        await mailbox.env.fscache.drop(key)


async def purge_all(env: Env, infos: Sequence[ObjectInfo]) -> None:
    """Delete objects of a user who is being deleted, whatever they are. Raises Unavailable."""
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
