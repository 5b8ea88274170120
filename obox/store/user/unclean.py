"""Opens a user after an unclean end: writes changes that only local copies have to the
journal, and leaves a gap in the MODSEQs.

Invariant: changes that belong together are in a single journal object, even if the
machine is lost again right after.
"""

from __future__ import annotations

import asyncio
from typing import Final

from metacache import Change, Copy

from ...mailbox import Delta
from ...objectstore.keys import ROOT
from ...types import Guid
from ..box.index import Owner, state_of
from ..env import INLINE_DECODED_BYTES
from ..stamp import Stamp

FLOOR_MARGIN_MS: Final = 60_000
"""How far a new owner starts above the MODSEQs of an owner that ended uncleanly. Clocks
differ by less."""


async def journal_unflushed(user: Owner) -> None:
    """Write to the journal, in a single edit, the changes that an earlier boot left
    only in local copies. An expunge and the holder that it releases, or the two
    mailboxes of a MOVE, must not be known separately. The user is not open yet."""
    metacache, sid, edit = user.env.metacache, user.storage_id, user.edit()
    assignment, turn = user.env.assignment(sid), user.env.turn(sid)
    for space in metacache.box_spaces(sid):
        if space.box == ROOT or space.change is Change.NONE:
            continue
        copy = await metacache.large.load(sid, space.box)
        stamp = None if copy is None else Stamp.decode(copy.stamp)
        if copy is None or stamp is None or assignment.covers(stamp):
            continue
        since = stamp.since
        if turn.over():
            await turn.end()
        try:
            if len(copy.base or b"") > INLINE_DECODED_BYTES:
                delta = await asyncio.to_thread(_since, Guid(space.box), copy, since)
            else:
                delta = _since(Guid(space.box), copy, since)
        except ValueError:
            continue  # the copy is dropped when it is loaded
        edit.add_journal_only(space.box, delta, again=(sid, space.box) in user.journal.unloaded)
        user.journaled.add(Guid(space.box))
    user.log.stage(edit)


def _since(guid: Guid, copy: Copy, since: int) -> Delta:
    """Return what a copy has of changes after a MODSEQ. Raises ValueError."""
    return state_of(guid, copy.parts()).extract(since)


def modseq_floor(user: Owner, *, unclean: bool) -> int:
    """Return the MODSEQ floor after an unclean end: the user's next MODSEQ must exceed
    it. It is 0 if no owner ended uncleanly, or if the root already records it.

    unclean: whether the last owner before this boot may have ended uncleanly.
    """
    if unclean:
        return user.env.now_ms() + FLOOR_MARGIN_MS
    known = user.journal.modseq_floor
    young = all(entry.created > known for entry in user.root.entries.values())
    return 0 if young or user.root.modseq_floor >= known else known
