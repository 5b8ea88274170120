"""Gives an open user the changes of journals that ended.

Invariant: a mailbox that is in memory joins them under its lock, so that it is not
unloaded meanwhile. Any other mailbox takes them from `Boxes.pending` when it is loaded.
"""

from __future__ import annotations

from metacache import Change

from ...objectstore.keys import ROOT
from ...types import Guid
from ..box.load import join_changes
from .boxes import Boxes


async def join_journaled(user: Boxes, pending: dict[str, list[bytes]]) -> None:
    """Join changes of journals that ended, by box; mailboxes that are not in memory
    take them when they are loaded. Others run meanwhile. Raises Corrupt."""
    for data in pending.get(ROOT, []):
        user.root.join(user.rootbox.decoded(data))
        user.rootbox.changed(Change.IMPORTANT)
    user.rootbox.save()
    for guid, deltas in pending.items():
        while guid != ROOT and (box := user.boxes.get(Guid(guid))) is not None:
            async with box.flushing:
                # otherwise it was unloaded meanwhile
                if user.boxes.get(Guid(guid)) is box:
                    await join_changes(box, deltas)
                    break
        else:
            if guid != ROOT:
                user.pending.setdefault(guid, []).extend(deltas)
