"""Deletes mails, claims and burnt UIDs. No other module deletes any of them.

If its user is not being deleted, an object is deleted when all of this is true:

    nothing refers to it       its record is expunged, and no mailbox holds it
                               (`State.dead`); no reader needs a claim or burnt UID
    the bucket has that        a bundle has it (`garbage` is called before a bundle)
    `delete_delay` has passed  since then
    its batch has no other     an object with several mails is deleted as a whole, when
                               all of this holds for each of them
    nobody else has the user   the lease is renewed, and the mailbox was compared with
                               the bucket under the present assignment

The last rule is for a backend that was suspended. Another backend may have taken over,
and copied a mail that is expunged in all mailboxes for the first backend. The first
backend is fenced when it renews its lease. It then compares its mailboxes, and finds
the copies.

All objects of a user who is being deleted are deleted (`purge_all`). No session has the
user open, and none can open it (`MailStore.barring`).

Invariant: no other file deletes a key of a mail; tests/store/test_purge.py checks that.
This module does not know why a mail was expunged, and knows no bundles and no journals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from metacache import Change

from ...mailbox import CLAIM_PURGED, Delta, UidArray, batches_used, dead_batches, in_batches, without_object
from ...objectstore import ObjectInfo
from ...objectstore.keys import mail_key, parse_mail_key
from ...turn import Turn
from ...types import Uid
from ..box.index import PART_MAILS, Index, drop_fields
from ..env import Env

DELETE_AT_ONCE: Final = 1000
"""Objects that are deleted by one request, after which others run."""


class Garbage(NamedTuple):
    """UIDs of a mailbox whose objects may be deleted. batches: the first UIDs."""

    mails: UidArray
    claims: list[int]
    batches: list[int]


def garbage(mailbox: Index) -> Garbage:
    """Return expunged mails without holders, batches of which all mails are such, and
    claims and burnt UIDs, whose delay is over.

    Bundles in the bucket already have the claims. They have the mails once a bundle of
    the present state is in the bucket.
    """
    env, stamp, state = mailbox.env, mailbox.stamp, mailbox.state
    before = int((env.now() - env.delete_delay_s) * 1000)
    dead = state.dead(before)
    claims = [uid for uid, count in state.claims.items() if count < CLAIM_PURGED and uid + count <= stamp.known_uidnext]
    if stamp.known_at > env.now() - env.delete_delay_s:
        claims = []  # no bundle with these UIDs has been in the bucket for the delay
    return Garbage(dead, claims, dead_batches(state, before))


async def purge(mailbox: Index, found: Garbage) -> None:
    """Delete the objects that `garbage` has found, now that bundles have it. The caller
    holds the lock `flushing`.

    They are deleted in parts, with the same checks before each. If this is not safe at
    present, a later flush or sweep deletes them. Raises Unavailable.
    """
    mails, claims, batches = found
    state = mailbox.state
    while batches:
        # They come first. Otherwise a crash could leave a batch whose mails are all
        # noted as purged, and no sweep would look for it.
        if not await _alone(mailbox):
            return
        some, batches = batches[:PART_MAILS], batches[PART_MAILS:]
        # Without batches of which a mail is held since.
        some = sorted({*some} & {*dead_batches(state, mailbox.env.now_ms())} - batches_used(state))
        await _delete(mailbox, some)
        mailbox.apply(Delta(batches=without_object(state, some)), Change.UNIMPORTANT, journal=False)
    while len(mails) or claims:
        if not await _alone(mailbox):
            return
        part, mails = mails[:PART_MAILS], mails[PART_MAILS:]
        some, claims = claims[:PART_MAILS], claims[PART_MAILS:]
        # Without mails that are held since.
        dead = np.intersect1d(part, state.dead(mailbox.env.now_ms()), assume_unique=True)
        used = batches_used(state)
        single = [uid for uid in dead[~in_batches(state, dead)].tolist() if uid not in used]
        await _delete(mailbox, [*single, *(uid for uid in some if uid not in used and uid not in state.batches)])
        # An earlier process that did not flush may have left them.
        await drop_fields(mailbox, dead)
        mailbox.apply(Delta(purged=dead, claims=dict.fromkeys(some, CLAIM_PURGED)), Change.UNIMPORTANT, journal=False)


async def purge_last(mailbox: Index) -> bool:
    """Delete the claims and burnt UIDs of a deleted mailbox, and what is left of its
    batches. The caller holds the lock `flushing`.

    Returns False, and deletes nothing, if some of its mails are still in the bucket or
    are held by another mailbox. Raises Unavailable.
    """
    state = mailbox.state
    if not await _alone(mailbox) or bool((~state.gone_purged).any()) or len(state.holders.needed()):
        return False
    batches = [uid for uid, count in state.batches.items() if count < CLAIM_PURGED]
    if not {*batches} <= {*dead_batches(state, mailbox.env.now_ms())} - batches_used(state):
        return False
    await _delete(mailbox, [*batches, *(uid for uid, count in state.claims.items() if count < CLAIM_PURGED)])
    return True


async def _alone(mailbox: Index) -> bool:
    """Return whether this backend may delete. It must have the lease, and must have
    read what others have written to the mailbox."""
    await mailbox.user.journal.lease()
    mailbox.user.require_there()
    return mailbox.assignment.covers(mailbox.stamp)


async def _delete(mailbox: Index, uids: Sequence[int]) -> None:
    left, turn = iter(sorted({*uids})), mailbox.env.turn(mailbox.sid)
    while keys := [mail_key(mailbox.sid, mailbox.guid, Uid(uid)) for uid in islice(left, DELETE_AT_ONCE)]:
        await mailbox.env.delete(keys, kind="mail")
        await _drop(mailbox.env, keys, turn)


async def _drop(env: Env, keys: Iterable[str], turn: Turn) -> None:
    """Drop the local copies of mails; others run meanwhile."""
    for key in keys:
        await env.fscache.drop(key)
        if turn.over():
            await turn.end()


async def purge_all(env: Env, infos: Sequence[ObjectInfo]) -> None:
    """Delete objects of any kind of a user who is being deleted. Raises Unavailable."""
    await env.delete([info.key for info in infos], kind="mail")
    await _drop(env, (info.key for info in infos if is_mail(info.key)), Turn(env.clock))


def is_mail(key: str) -> bool:
    """Return whether a key is of a mail, a claim or a burnt UID."""
    try:
        parse_mail_key(key)
    except ValueError:
        return False
    return True
