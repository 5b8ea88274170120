"""How far each group is in each boot of the journals, for operators.

It reads what a takeover would read, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from ..errors import Corrupt, Unavailable
from ..store.env import Env
from ..store.log.fence import Boot as ListedBoot
from ..store.log.fence import boots_of, list_journals, read
from ..store.log.journal import JournalObject
from .cursors import Progress, list_cursors, read_progress
from .dead import groups_in_bucket

log = structlog.get_logger()

READ_MAX: Final = 200
"""Objects of a boot that are read for the names of its users. Of more, only the number
is known."""


@dataclass(frozen=True)
class Lag:
    """A boot with events that a group has not handled. over: whether the boot has
    ended. behind: how many objects. users: how many users have events in those that
    were read. since: the time of the oldest, by the bucket's clock."""

    group: str
    backend: str
    boot: str
    over: bool
    behind: int
    users: int
    since: float


async def lags(env: Env) -> list[Lag]:
    """Return the boots in which a group is behind. Raises Unavailable."""
    boots = boots_of(await list_journals(env))
    found = []
    for group in await groups_in_bucket(env):
        progress = await read_progress(env, await list_cursors(env, group))
        for boot in boots:
            lag = await _lag(env, group, boot, progress.get((boot.backend, boot.name), Progress()))
            if lag is not None:
                found.append(lag)
    return found


async def _lag(env: Env, group: str, boot: ListedBoot, progress: Progress) -> Lag | None:
    behind = sorted(seq for seq in boot.objects if seq > progress.seq)
    users: set[str] = set()
    waiting = []
    for number, seq in enumerate(behind[:READ_MAX]):
        written = await _read(env, boot, seq)
        if written is None:
            continue
        if number == 0 and group not in written.groups:
            return None  # the group is the same in the whole boot
        found = {line.sid for line in written.lines if progress.users.get(line.sid, -1) < seq}
        if found:
            waiting.append(seq)
            users |= found
    waiting += behind[READ_MAX:]
    if not waiting:
        return None
    newest = await _read(env, boot, boot.last)
    over = newest is None or newest.closed
    return Lag(group, boot.backend, boot.name, over, len(waiting), len(users), boot.objects[waiting[0]])


async def _read(env: Env, boot: ListedBoot, seq: int) -> JournalObject | None:
    try:
        return await read(env, boot.backend, boot.name, seq)
    except (Corrupt, Unavailable) as exc:
        log.info("journal object cannot be read", backend=boot.backend, boot=boot.name, error=str(exc))
        return None
