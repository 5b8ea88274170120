"""A user's list of mailboxes as a box: its state, its local copy, its bundles (docs/format.md, "Root").

How a box is loaded and saved: `box.Box`.
Refuses to know: mailboxes; what an entry means.
"""

from __future__ import annotations

from typing import Protocol

from metacache import Change

from ..errors import Corrupt
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


class RootBox(Box):
    """See the module's text."""

    def __init__(self, env: Env, log: Log, sid: StorageId, owner: Owner) -> None:
        super().__init__(env, log, sid, ROOT, 0)
        self._owner = owner
        self.state = Root()

    # -- the state (box.Box) -------------------------------------------------------------------------------------------

    def join(self, data: bytes) -> None:
        try:
            self.state.join(RootDelta.decode(data))
        except ValueError as exc:
            raise Corrupt(f"the list of mailboxes does not decode: {exc}") from exc

    def join_others(self, data: bytes, *, renew: bool) -> None:
        self.join(data)

    def restart(self) -> None:
        self.state = Root()

    def whole(self) -> bytes:
        return self.state.extract().encode()

    @property
    def highestmodseq(self) -> int:
        return self.state.highestmodseq

    @property
    def uidnext(self) -> int:
        return 0

    # -- changing ------------------------------------------------------------------------------------------------------

    def take_in(self, delta: RootDelta, change: Change) -> ListChanged:
        """See `stage.Target`."""
        self.state.join(delta)
        self.local_deltas += 1
        self.changed(change)
        return ListChanged.by(delta)

    def wake(self) -> None:
        """No session watches the list."""

    def changed(self, change: Change) -> None:
        self.changes += 1
        self.change = max(self.change, change)
        if self.due_at is None:
            self.due_at = self.env.clock() + self.env.settings.upload_interval_s

    def restate(self) -> None:
        """Tell the journal all of the list."""
        edit = Edit(self.sid)
        edit.tell_journal(ROOT, self.state.extract())
        self.log.stage(edit)

    def raise_floor(self, modseq: int) -> None:
        """While the list is being loaded: note what each mailbox's modseqs must be above when it is opened."""
        edit = Edit(self.sid)
        edit.add_loading(self, RootDelta(ahead=modseq), Change.IMPORTANT)
        self.log.stage(edit)

    async def flush(self, *, clean: bool = False) -> None:
        """Upload the list with its totals. clean: everything of the user has been flushed before. Raises
        Unavailable."""
        journal = self.log.journal
        async with self.flushing:
            self._owner.require_there()
            stale = self._owner.sync_totals()
            if self.change is Change.NONE and not (clean and (stale or not self.stamp.clean)):
                return
            position, seen = journal.position(), self.changes
            await self.bundles.put("base", self.whole(), modseq=self.state.highestmodseq, clean=clean)
            journal.flushed(self.sid, ROOT, position, more=self.uploaded(seen))
            await self.bundles.clear()
            self.save()

    async def begin_changes(self) -> None:
        """Before the first bundle after a clean end: the list must no more say that its totals are exact."""
        if self.stamp.clean:
            self.change = max(self.change, Change.UNIMPORTANT)
            await self.flush()
