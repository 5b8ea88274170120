"""A user's list of mailboxes as a box: its state, its local copy, its bundles
(docs/format.md, "Root").

`box.Box` loads and saves it. This module knows no mailboxes, and does not know what an
entry means.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from metacache import Change

from ...mailbox import Encoded, Root, RootDelta
from ...objectstore.keys import ROOT
from ...types import StorageId
from ..env import Env
from ..log.stage import Edit, ListChanged, Log
from .box import Box


class Owner(Protocol):
    """What the list needs of its user."""

    def require_there(self) -> None:
        """Raises NotFound if the user is being deleted."""

    def sync_totals(self) -> bool:
        """Copy the totals of mailboxes in memory to the list. Returns True if any
        differed."""

    @property
    def uncounted(self) -> Collection[str]:
        """Return the mailboxes that the last `sync_totals` could not count."""


def list_of(parts: Iterable[bytes]) -> Root:
    """Return the list that these parts of a local copy make. Raises ValueError."""
    root = Root()
    for data in parts:
        root.join(RootDelta.decode(data))
    return root


class RootBox(Box[Root, RootDelta]):
    """See the module's text."""

    def __init__(self, env: Env, log: Log, sid: StorageId, owner: Owner) -> None:
        super().__init__(env, log, sid, ROOT, 0, empty=Root, decode=RootDelta.decode)
        self._owner = owner

    def _altered(self, delta: RootDelta) -> ListChanged:
        self.state.join(delta)
        return ListChanged.by(delta)

    def whole(self, *, without: Collection[str] = ()) -> Encoded:
        return [self.state.extract().encode()]

    def wake(self) -> None:
        """Do nothing, because no session watches the list."""

    def raise_floor(self, modseq: int) -> None:
        """Note the MODSEQ floor of all mailboxes, while the list is being loaded."""
        edit = Edit(self.sid)
        edit.add_loading(self, RootDelta(modseq_floor=modseq, identity=self.state.identity), Change.IMPORTANT)
        self.log.stage(edit)

    def _require_user(self) -> None:
        self._owner.require_there()

    def _lacks_bundle(self, *, everything: bool) -> bool:
        """everything: whether all mailboxes have been flushed before. Then the list
        says in the bucket that its totals are exact."""
        stale = self._owner.sync_totals()
        inexact = not self.stamp.clean and not self._owner.uncounted
        return self.change is not Change.NONE or (everything and (stale or inexact))

    async def _write_bundle(self, *, everything: bool) -> None:
        await self.upload("base", self.whole(), clean=everything and not self._owner.uncounted)

    def save_stamp(self) -> None:
        """Write the whole local copy, because the log does not know of the totals."""
        self.save()

    async def begin_changes(self) -> None:
        """Mark the totals of the list as not exact, before the first bundle after a
        clean end.

        This waits for an upload that has begun, because its bundle may say that the
        totals are exact.
        """
        async with self.flushing:
            if self.stamp.clean:
                self.change = max(self.change, Change.UNIMPORTANT)
                await self._flush(everything=False)
