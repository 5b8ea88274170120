"""The store as owner of the local copies: what of them is in use, must be uploaded, and may go (metacache.Owner).

Invariant: a copy whose mailbox is in memory goes only in the same turn of the loop in which the memory lets go of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metacache import Change, Copy

from ..errors import NotFound
from ..objectstore.keys import ROOT
from ..types import Guid, StorageId
from ._bundles import Known

if TYPE_CHECKING:
    from .store import MailStore


class Copies:
    """See `metacache.Owner`. close_delay_s: what was used so lately is in use."""

    def __init__(self, store: MailStore, *, close_delay_s: float = 2.0) -> None:
        self._store = store
        self._close_delay_s = close_delay_s

    def in_use(self, user: str, box: str) -> bool:
        sid = StorageId(user)
        if self._store.opening(sid) is not None or self._store.awaits_takeover(sid):
            return True
        found = self._store.users.get(sid)
        if found is None:
            return False
        lately = self._store.env.clock() - self._close_delay_s
        if box == ROOT:
            return bool(found.sessions or found.opening() or found.boxes or found.pending or found.used_at > lately)
        mailbox = found.boxes.get(Guid(box))
        return found.opening() if mailbox is None else mailbox.busy() or mailbox.used_at > lately

    def must_upload(self, user: str, box: str, copy: Copy | None) -> bool:
        if copy is None or copy.change is Change.NONE:
            return False
        return Known.decode(copy.stamp) is not None  # without a stamp nobody can read it

    async def flush(self, user: str, box: str) -> None:
        sid = StorageId(user)
        opened = await self._store.load_user(self._store.name_of(sid), sid)
        if box == ROOT:
            await opened.flush_root()
            return
        try:
            await (await opened.box(Guid(box))).flush(everything=True)
        except NotFound:
            return

    def let_go(self, user: str, box: str) -> bool:
        sid = StorageId(user)
        found = self._store.users.get(sid)
        if found is None:
            return True
        if box == ROOT:
            if found.busy():
                return False
            del self._store.users[sid]
            return True
        mailbox = found.boxes.get(Guid(box))
        if mailbox is None:
            return not found.opening()
        if mailbox.busy() or mailbox.change is not Change.NONE:
            return False
        found.sync_totals()
        del found.boxes[Guid(box)]
        return True
