"""After an unclean end, when a user is opened: tell what only local copies have, leave a gap in the modseqs.

Invariant: what belongs together becomes known together, also when the machine is lost once more right after.
"""

from __future__ import annotations

from typing import Final

from metacache import Change

from ..mailbox import Delta, State
from ..objectstore.keys import ROOT
from ..types import Guid
from .index import Owner
from .stamp import Stamp

AHEAD_MS: Final = 60_000
"""A new owner starts so far ahead of an unclean one's modseqs: clocks differ by less."""


def tell_unflushed(user: Owner) -> None:
    """Journal what a life before left in local copies alone, all in one go: an expunge and the holder that it releases,
    or a MOVE's two mailboxes, must not be known one without the other."""
    metacache, sid, edit = user.env.metacache, user.storage_id, user.edit()
    assignment = user.env.assignment(sid)
    for space in metacache.box_spaces(sid):
        copy = None if space.box == ROOT or space.change is Change.NONE else metacache.load(sid, space.box)
        stamp = None if copy is None else Stamp.decode(copy.stamp)
        if copy is None or stamp is None or assignment.covers(stamp):
            continue
        state = State(Guid(space.box))
        try:
            for data in [*([] if copy.base is None else [copy.base]), *copy.deltas]:
                state.join(Delta.decode(data))
        except ValueError:
            continue  # dropped when it is loaded
        edit.tell_journal(space.box, state.extract(0 if stamp.need_base else stamp.base_modseq))
        user.told.add(Guid(space.box))
    user.log.stage(edit)


def ahead(user: Owner, *, unclean: bool) -> int:
    """What the user's modseqs must be above because an owner ended uncleanly, just now or before a life in which nobody
    opened the user; 0 if none did, or the user is younger. unclean: just now."""
    if unclean:
        return user.env.now_ms() + AHEAD_MS
    known = user.journal.ahead
    young = all(entry.created > known for entry in user.root.entries.values())
    return 0 if young or user.root.ahead >= known else known
