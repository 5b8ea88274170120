"""A user's list of mailboxes as a box: its state, its local copy, its bundles (docs/format.md, "Root").

How a box is loaded and saved: `box.Box`.
Refuses to know: mailboxes; what an entry means.
"""

from __future__ import annotations

from typing import Protocol

from metacache import Change

from ..mailbox import Root, RootDelta
from ..objectstore.keys import ROOT
from ..types import StorageId
from ._env import Env
from .box import Box
from .stage import Edit, ListChanged, Log


class Owner(Protocol):
    """The user, as its list sees it."""

    def require_there(self) -> None:
        """Raises NotFound when the user is being deleted."""

    def sync_totals(self) -> bool:
        """Bring the totals of the mailboxes in memory into the list; True if any differed."""


class RootBox(Box[Root, RootDelta]):
    """See the module's text."""

    def __init__(self, env: Env, log: Log, sid: StorageId, owner: Owner) -> None:
        super().__init__(env, log, sid, ROOT, 0, empty=Root, decode=RootDelta.decode)
        self._owner = owner

    def _altered(self, delta: RootDelta) -> ListChanged:
        self.state.join(delta)
        return ListChanged.by(delta)

    def wake(self) -> None:
        """No session watches the list."""

    def raise_floor(self, modseq: int) -> None:
        """While the list is being loaded: note what each mailbox's modseqs must be above when it is opened."""
        edit = Edit(self.sid)
        edit.add_loading(self, RootDelta(ahead=modseq), Change.IMPORTANT)
        self.log.stage(edit)

    async def flush(self, *, clean: bool = False) -> None:
        """Upload the list with its totals. clean: everything of the user has been flushed before. Raises
        Unavailable."""
        async with self.flushing:
            self._owner.require_there()
            stale = self._owner.sync_totals()
            if self.change is Change.NONE and not (clean and (stale or not self.stamp.clean)):
                return
            await self.upload("base", self.whole(), clean=clean)
            await self.bundles.clear()
            self.save()

    async def begin_changes(self) -> None:
        """Before the first bundle after a clean end: the list must no more say that its totals are exact."""
        if self.stamp.clean:
            self.change = max(self.change, Change.UNIMPORTANT)
            await self.flush()
