"""A user's list of mailboxes as a box: its state, its local copy, its bundles (docs/format.md, "Root").

Invariant: the local copy has all that memory has, and the bundles have it once `change` is NONE.
Refuses to know: mailboxes; what an entry means.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from metacache import Change

from ..errors import Corrupt
from ..mailbox import Root, RootDelta
from ..objectstore.keys import ROOT
from ..types import StorageId
from ._bundles import Bundles
from ._env import Env
from .stage import Edit, ListChanged, Log
from .stamp import Stamp


class Owner(Protocol):
    """The user, as its list sees it."""

    def require_there(self) -> None:
        """Raises NotFound when the user is being deleted."""

    def sync_totals(self) -> bool:
        """Bring the totals of the mailboxes in memory into the list; True if any differed."""


class RootBox:
    """See the module's text."""

    box = ROOT
    priority = 0

    def __init__(self, env: Env, log: Log, sid: StorageId, owner: Owner) -> None:
        self._env = env
        self._log = log
        self._sid = sid
        self._owner = owner
        self.state = Root()
        self.bundles = Bundles(env, sid, ROOT)
        self.change = Change.NONE
        self.changes = 0
        """Counts changes since the load, so that a flush sees whether more came meanwhile."""
        self.due_at: float | None = None
        self.flushing = asyncio.Lock()

    @property
    def stamp(self) -> Stamp:
        """What is known of the list's bundles."""
        return self.bundles.stamp

    @stamp.setter
    def stamp(self, stamp: Stamp) -> None:
        self.bundles.stamp = stamp

    def take_in(self, delta: RootDelta, change: Change) -> ListChanged:
        """See `stage.Target`."""
        self.state.join(delta)
        self.changed(change)
        return ListChanged.by(delta)

    def wake(self) -> None:
        """No session watches the list."""

    def join(self, data: bytes) -> None:
        """Join what a bundle, a local copy or a dead backend's journal has. Raises Corrupt."""
        try:
            self.state.join(RootDelta.decode(data))
        except ValueError as exc:
            raise Corrupt(f"the list of mailboxes does not decode: {exc}") from exc

    def changed(self, change: Change) -> None:
        """Note that the bundles are behind, and when that must end."""
        self.changes += 1
        self.change = max(self.change, change)
        if self.due_at is None:
            self.due_at = self._env.clock() + self._env.settings.upload_interval_s

    def is_due(self) -> bool:
        """Whether the time for an upload has come."""
        return self.due_at is not None and self._env.clock() >= self.due_at

    def due_by(self, latest: float) -> None:
        """What waits for its upload waits no longer than until then."""
        if self.due_at is not None:
            self.due_at = min(self.due_at, latest)

    def save(self) -> None:
        """Make the local copy one base of the whole state, under the present stamp."""
        data, stamp, sid, change = self.state.extract().encode(), self.stamp.encode(), self._sid, self.change
        self._env.keep(sid, ROOT, lambda cache: cache.replace(sid, ROOT, data, stamp, change=change, priority=0))

    def restate(self) -> None:
        """Tell the journal all of the list."""
        edit = Edit(self._sid)
        edit.tell_journal(ROOT, self.state.extract())
        self._log.stage(edit)

    def raise_floor(self, modseq: int) -> None:
        """While the list is being loaded: note what each mailbox's modseqs must be above when it is opened."""
        edit = Edit(self._sid)
        edit.add_loading(self, RootDelta(ahead=modseq), Change.IMPORTANT)
        self._log.stage(edit)

    async def flush(self, *, clean: bool = False) -> None:
        """Upload the list with its totals. clean: everything of the user has been flushed before. Raises
        Unavailable."""
        env, journal = self._env, self._log.journal
        async with self.flushing:
            self._owner.require_there()
            stale = self._owner.sync_totals()
            if self.change is Change.NONE and not (clean and (stale or not self.stamp.clean)):
                return
            position, seen = journal.position(), self.changes
            payload = self.state.extract().encode()
            await self.bundles.put("base", payload, modseq=self.state.highestmodseq, clean=clean)
            more = self.changes != seen
            self.change = self.change if more else Change.NONE
            self.due_at = env.clock() + env.settings.upload_interval_s if more else None
            journal.flushed(self._sid, ROOT, position, more=more)
            await self.bundles.clear()
            self.save()

    async def begin_changes(self) -> None:
        """Before the first bundle after a clean end: the list must no more say that its totals are exact."""
        if self.stamp.clean:
            self.change = max(self.change, Change.UNIMPORTANT)
            await self.flush()
