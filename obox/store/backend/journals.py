"""Deletes what boots that are clean have left in the journal.

A backend deletes the objects of its own boots while it runs, and after a start. A
backend that never returns deletes nothing. So for each backend another backend does it.
It deletes the objects of clean boots, which nobody needs to read, once the mark that
says so is older than `delete_delay`. The newest object of each backend stays for ever
(docs/format.md, "Journal"). The object that says that a boot is clean is deleted at the
end, so that after a crash the boot is still known to be clean.

This module does not decide which backend deletes what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from ...objectstore.keys import journal_key
from ..log.fence import Ended, record
from ..log.takeover import Survey

if TYPE_CHECKING:
    from .store import MailStore

log = structlog.get_logger()

Clears = Callable[[str], bool]
"""A function that says whether this backend deletes what a backend has left."""


async def clear(store: MailStore, found: Survey, clears: Clears) -> None:
    """Mark boots as clean whose users have all been adopted, and delete the objects of
    boots that have been clean for the delay. Raises Unavailable, Corrupt."""
    env, floor = store.env, store.journal.modseq_floor
    for one in found.boots:
        named = found.replayed.users.get((one.boot.backend, one.boot.name), set())
        if clears(one.boot.backend) and named <= one.adopted:
            await record(env, one, named, set(), floor)
    limit = env.now() - env.delete_delay_s
    due = [one for one in found.clean if clears(one.boot.backend) and one.boot.objects[one.boot.last] < limit]
    for one in due:
        await _delete(store, one, found.newest[one.boot.backend])


async def _delete(store: MailStore, one: Ended, newest: str) -> None:
    boot = one.boot
    keys = [journal_key(boot.backend, boot.name, seq) for seq in sorted(boot.objects)]
    keys = [key for key in keys if key != newest]
    mark = journal_key(boot.backend, boot.name, boot.last)
    if not keys:
        return
    await store.journal.lease()  # a backend that was replaced deletes nothing
    await store.env.delete([key for key in keys if key != mark], kind="journal")
    await store.env.delete([key for key in keys if key == mark], kind="journal")
    log.info("journal of a clean boot deleted", backend=boot.backend, boot=boot.name, objects=len(keys))
