"""A user's mailbox over bucket, metacache and fscache, as sessions use it. All sessions
share it.

The state of the mailbox, and its changes, are in its index (`box.index.Index`). This
module knows no protocols and no other users.

Diagnostics: a lost mail (its object is gone) is `NotFound`, and is logged with its key.
A damaged mail is `Corrupt`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

import numpy as np

from metacache import Change

from ...errors import Expunged, NotFound
from ...loading import loaded
from ...mailbox import DELETED, Delta, FlagOp, Totals, UidArray, flag_delta
from ...mailbox.rights import ALL
from ...mailbox.search import Query
from ...types import Guid
from ..api import Fields, Stored, Unreadable
from ..box.expunge import expunge_now, homes_of
from ..box.index import PART_MAILS, Index, Owner, count_between, tidy
from ..env import Env
from ..mails import read
from ..mails.places import place_of
from . import discover as _discover
from . import flush as _flush

PRIORITY_INBOX: Final = 2
PRIORITY_OTHER: Final = 3


class Mailbox(Index):
    """A mailbox in memory; see the module's text and `api.Mailbox`."""

    rights = ALL

    def __init__(self, env: Env, user: Owner, guid: Guid, uidvalidity: int, priority: int) -> None:
        super().__init__(env, user, guid, uidvalidity, priority, refresh=_discover.after_loss)

    async def release(self) -> None:
        self.sessions -= 1
        self.used_at = self.env.clock()

    def totals(self) -> Totals:
        state = self.state
        recent = count_between(state, state.recent, state.uidnext)
        deleted = int(np.count_nonzero(state.bits & np.uint64(DELETED)))
        garbage = state.garbage_since()
        return Totals(
            state.highestmodseq, len(state), state.unseen, state.bytes, state.uidnext, recent, deleted, garbage
        )

    # -- changing ------------------------------------------------------------------------------------------------------

    def take_recent(self) -> int:
        first = self.state.recent
        if first < self.state.uidnext:
            self.apply(Delta(recent=self.state.uidnext), Change.UNIMPORTANT, journal=False)
        return first

    async def store_flags(
        self,
        uids: UidArray,
        op: FlagOp,
        flags: Iterable[str],
        unchanged_since: int | None = None,
        *,
        committed: bool = True,
    ) -> Stored:
        self.require_live()
        refused = np.empty(0, dtype=np.uint32)
        if unchanged_since is not None:
            where, there = self.state.positions(uids)
            uids, where = uids[there], where[there]
            stale = self.state.modseqs[where] > np.uint64(unchanged_since)
            refused, uids = uids[stale], uids[~stale]
        delta, changed = flag_delta(self.state, uids, op, flags, self.env.now_ms())
        if delta is None:
            return Stored(changed, refused, 0)
        self.apply(delta, Change.IMPORTANT)
        if committed:
            await self.user.commit()
        return Stored(changed, refused, delta.highestmodseq)

    async def expunge(self, uids: UidArray) -> UidArray:
        self.require_live()
        gone: list[UidArray] = []
        for at in range(0, len(uids), PART_MAILS):
            if gone:
                await asyncio.sleep(0)
                if self.deleted:
                    break
            part = uids[at : at + PART_MAILS]
            homes = await homes_of(self, part)
            gone.append(expunge_now(self, part, homes))
            await tidy(homes.values())
        found = np.concatenate(gone) if gone else uids
        if len(found):
            await self.user.commit()
        return found

    # -- reading -------------------------------------------------------------------------------------------------------

    def _autofixes(self, autofix: bool | None) -> bool:
        """Return whether a lost mail is looked for again, and expunged."""
        return self.env.settings.autofix_storage if autofix is None else autofix

    async def fields(
        self, uids: Sequence[int], *, autofix: bool | None = None, bytes_max: int = sys.maxsize
    ) -> list[Fields | Unreadable | None]:
        return await read.fields(self, uids, autofix=self._autofixes(autofix), bytes_max=bytes_max)

    async def mail(self, uid: int, *, autofix: bool | None = None) -> bytes:
        async for _, found in self.mails([uid], autofix=autofix):
            if isinstance(found, bytes):
                return found
            raise Expunged("the mail has been expunged") if found is None else found
        raise AssertionError("one answer for each")

    def mails(
        self, uids: Sequence[int], *, autofix: bool | None = None
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        return read.mails(self, uids, autofix=self._autofixes(autofix))

    async def part(self, uid: int, start: int, end: int, *, autofix: bool | None = None) -> bytes:
        try:
            return await read.part(self, uid, start, end)
        except NotFound:
            position = self.state.position(uid)
            if position is None or not self._autofixes(autofix):
                raise
            place = place_of(self.state, position, self.user.storage_id, *self.state.home_of(position))
        await read.look_again(self, {uid: place}, end=1)
        return await read.part(self, uid, start, end)

    async def search(self, query: Query, uids: UidArray, *, autofix: bool | None = None) -> UidArray:
        await loaded("obox.store.user.search")
        from .search import search

        env = self.env
        return await search(
            self, query, uids, now=env.now(), autofix=self._autofixes(autofix), turn=env.turn(self.user.storage_id)
        )

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def _require_user(self) -> None:
        self.user.require_there()

    def _ended(self) -> bool:
        return _flush.ended(self)

    def _lacks_bundle(self, *, everything: bool) -> bool:
        urgent = everything or self.is_due()
        return self.change is Change.IMPORTANT or (self.change is not Change.NONE and urgent)

    async def _write_bundle(self, *, everything: bool) -> None:
        await _flush.write_bundle(self)

    async def _write_derived(self, *, everything: bool) -> bool:
        return await _flush.write_fields(self, everything=everything)
