"""Takes mailboxes, and then the user, out of memory.

Invariant: what leaves memory is in the local copy, and its totals are in the list of
mailboxes. This module does not decide when a user leaves (`backend.upkeep`).
"""

from __future__ import annotations

from functools import partial
from typing import Final

from metacache import Change

from ...mailbox import RootDelta
from ...types import Guid
from ..box.root import RootBox
from ..jobs import Job
from .boxes import Boxes
from .mailbox import Mailbox

UNLOAD_AT_ONCE: Final = 100
"""The number of mailboxes of a user that are unloaded in a turn of the loop, which
takes some 10 ms."""

WORKING_S: Final = 0.02
"""Interval of checks whether tasks have ended, a hundredth of their time limit."""


async def wait_idle(user: Boxes) -> None:
    """Return when no UID is undecided, and no upload and no task is under way."""
    for box in list(user.boxes.values()):
        await box.slots.all_resolved()
        async with box.flushing:
            pass
    async with user.rootbox.flushing:
        pass
    while user.working:
        await user.env.sleep(WORKING_S)


def unload_idle(user: Boxes, before: float) -> None:
    """Unload some mailboxes that were not used since and are not due for an upload.
    Each is a job of its own: a mailbox that fails stays, and the others leave."""
    left = UNLOAD_AT_ONCE
    for guid, box in list(user.boxes.items()):
        if not left:
            break
        # A few new mails are no reason to stay: journal and local copy have them.
        behind = box.change is Change.IMPORTANT or box.due_at is not None
        if not box.busy() and box.used_at < before and not behind:
            left -= user.jobs.check(Job("unload", user.storage_id, guid), partial(_unload, user, guid, box))


def _unload(user: Boxes, guid: Guid, box: Mailbox) -> None:
    totals = box.totals()
    if user.root.totals.get(guid) != totals:
        user.root.join(RootDelta(totals={guid: totals}))
    box.save_stamp()
    _note(user, box)
    del user.boxes[guid]


def leave(user: Boxes) -> None:
    """Save derived data before the user is unloaded."""
    user.sync_totals()
    user.rootbox.save()
    _note(user, user.rootbox)
    for box in user.boxes.values():
        _note(user, box)


def _note(user: Boxes, box: Mailbox | RootBox) -> None:
    """Note that the journal has all changes of a box that is unloaded."""
    if box.change is not Change.NONE:
        user.journal.unloaded.add((user.storage_id, box.box))
