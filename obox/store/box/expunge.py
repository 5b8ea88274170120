"""Expunges mails of a mailbox, and releases the holders of their objects.

The object of a copy lies in another mailbox, its home. An expunge of the copy and the
release of its holder are in a single edit, so that no crash separates them. This module
deletes no object: `mails.purge` does that later.
"""

from __future__ import annotations

import numpy as np

from metacache import Change

from ...mailbox import Delta, Holders, UidArray, by_home, expunge_delta, uid_array, without_object
from ...types import Guid
from ..log.stage import Edit
from .index import Index


async def homes_of(mailbox: Index, uids: UidArray | None = None) -> dict[Guid, Index]:
    """Load the mailboxes that have the objects of copies among `uids`. None means all
    mails, also mails that arrive meanwhile."""
    found: dict[Guid, Index] = {}
    while True:
        asked = mailbox.state.uids if uids is None else uids
        missing = [guid for guid in _foreign(mailbox, asked) if guid not in found]
        if not missing:
            return found
        for guid in missing:
            found[guid] = await mailbox.user.box(guid)


def expunge_now(mailbox: Index, uids: UidArray, homes: dict[Guid, Index], *, lost: bool = False) -> UidArray:
    """Expunge mails and return those that existed; see `expunge_in`."""
    edit = mailbox.user.edit()
    gone = expunge_in(mailbox, edit, uids, homes, lost=lost)
    mailbox.user.log.stage(edit)
    return gone


def expunge_in(
    mailbox: Index, edit: Edit, uids: UidArray, homes: dict[Guid, Index], *, lost: bool = False, above: int = 0
) -> UidArray:
    """Add the expunge of mails, and the release of the holders of their objects, to an
    edit. Returns the mails that existed.

    homes: the result of `homes_of`. lost: whether there are no objects; then an object
    that comes back later must not be deleted. above: a MODSEQ of this mailbox that the
    edit has already used.
    """
    foreign = _foreign(mailbox, uids)
    batches = _batches_of(mailbox, uids) if lost else {}
    delta, gone = expunge_delta(mailbox.state, uids, max(mailbox.env.now_ms(), above + 1))
    if delta is None:
        return gone
    if lost:
        delta.purged = gone
        delta.batches = without_object(mailbox.state, batches.get(mailbox.guid, ()))
    edit.add(mailbox, delta, Change.IMPORTANT)
    for home, (own, far) in foreign.items():
        released = Holders()
        released.add(mailbox.guid, far, own, delta.highestmodseq)
        purged = np.intersect1d(uid_array(far), homes[home].state.gone_uid, assume_unique=True) if lost else None
        there = Delta(holders=released, purged=purged)
        if home != mailbox.guid:
            there.batches = without_object(homes[home].state, batches.get(home, ()))
        edit.add(homes[home], there, Change.IMPORTANT)
    return gone


def _batches_of(mailbox: Index, uids: UidArray) -> dict[Guid, list[int]]:
    """Return the batches in which mails lie: home -> their first UIDs."""
    state, out = mailbox.state, dict[Guid, list[int]]()
    where, there = state.positions(uids)
    where = where[there]
    home, first = state.column("home")[where], state.column("place")[where, 0]
    for number, batch in sorted({*zip(home.tolist(), first.tolist(), strict=True)}):
        if batch:
            out.setdefault(mailbox.guid if number < 0 else state.homes[number], []).append(batch)
    return out


def _foreign(mailbox: Index, uids: UidArray) -> dict[Guid, tuple[UidArray, UidArray]]:
    """Return those live `uids` whose mail is in another object than that of their own
    UID: home -> their UIDs, and the UIDs of their objects."""
    state = mailbox.state
    where, there = state.positions(uids)
    uids, home, home_uid = (state.column(name)[where[there]] for name in ("uid", "home", "home_uid"))
    return by_home(uids, home, home_uid, mailbox.guid, state.homes)
