"""COPY and MOVE between the mailboxes of two users: the mails are read and appended,
and counted by the quota of the owner of the target.

Order: each mail is read once, so that it can be read and is in the cache; then all
mails are appended, all or none; then a MOVE expunges them from the source. A crash
before the last step leaves a MOVE as a COPY.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import numpy as np

from ..errors import Corrupt, Expunged, Limit, NoPerm, OboxError, Temporary
from ..mailbox import UidArray
from ..mailbox.rights import flag_right
from ..store.api import Copied, Mailbox, NewMail, User

MAILS_MAX: Final = 1_000
"""Mails of a COPY or MOVE to another user. They are read from the bucket and written
again, and all of them become visible at the same time."""
READING_MAX: Final = 4
"""Mails of these commands that are in memory at the same time, in the whole process."""


class _Original:
    """A mail of the source, as `api.Source`."""

    lost = False

    def __init__(self, mailbox: Mailbox, uid: int, size: int, reading: asyncio.Semaphore) -> None:
        self._mailbox, self._uid, self._size, self._reading = mailbox, uid, size, reading

    def __len__(self) -> int:
        return self._size

    @asynccontextmanager
    async def open(self) -> AsyncIterator[bytes]:
        """See `api.Source`. Raises Temporary."""
        async with self._reading:
            try:
                mail = await self._mailbox.mail(self._uid)
            except (OboxError, TimeoutError) as exc:
                raise Temporary(f"a mail to be copied cannot be read: {exc}") from exc
            yield mail


class Target(NamedTuple):
    """Where mails are copied to. granted: returns what the visitor may do there now, or
    raises NotFound or NoPerm."""

    owner: User
    name: str
    granted: Callable[[], str]


async def copy(source: Mailbox, uids: UidArray, target: Target, *, move: bool, reading: asyncio.Semaphore) -> Copied:
    """Copy or move those of `uids` that exist. Flags that the visitor may not set in
    the target are dropped (RFC 4314 §4).

    Raises what `User.append` raises; NoPerm, Expunged, Corrupt, Unavailable.
    """
    target.granted()
    state = source.state
    where, there = state.positions(uids)
    uids, where = uids[there], where[there]
    if len(uids) == 0:
        return Copied(0, uids, uids)
    if len(uids) > MAILS_MAX:
        raise Limit(f"at most {MAILS_MAX} mails are copied to another user at a time")
    rows = state.rows(where)
    for uid in uids.tolist():
        await _check(source, uid, reading)
    # The rights may have changed meanwhile. Nothing is waited for from here on.
    rights = target.granted()
    on = {flag: column & np.uint64(1) for flag, column in rows.stamps.items() if flag_right(flag) in rights}
    mails = [
        NewMail(
            _Original(source, uid, int(rows.size[at]), reading),
            tuple(flag for flag, column in on.items() if column[at]),
            int(rows.internaldate[at]),
            int(rows.zone[at]),
        )
        for at, uid in enumerate(uids.tolist())
    ]
    done = await target.owner.append(target.name, mails)
    copied = Copied(done.uidvalidity, uids, np.array(done.uids, dtype=np.uint32))
    if not move:
        return copied
    try:
        await source.expunge(uids)
    except OboxError as error:
        return copied._replace(failure=error)
    return copied


async def _check(source: Mailbox, uid: int, reading: asyncio.Semaphore) -> None:
    """Read a mail before a UID is taken for its copy. Raises Expunged, Corrupt,
    Unavailable, NoPerm."""
    try:
        async with reading:
            await source.mail(uid)
    except (Expunged, NoPerm, Corrupt):
        raise
    except OboxError as exc:
        if exc.permanent:
            raise Corrupt(f"a mail to be copied cannot be read: {exc}") from exc
        raise
