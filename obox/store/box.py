"""A box: what a mailbox and a user's list of mailboxes have in common.

A box is a state that changes by joins alone, a local copy of it, its bundles in the bucket, and the
mark of what the bundles lack. How a box is loaded, compared with the bucket and saved is written
here once; what its state is, the subclasses say (`index.Index`, `rootbox.RootBox`).

Invariant: the local copy has all that memory has, and the bundles have it once `change` is NONE.
Refuses to know: users, sessions, what a delta says.
Diagnostics: a local copy that does not decode is dropped, with a warning, and the bucket is read; a
bundle that does not is `Corrupt`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from enum import Enum
from typing import Final

import structlog
from msgspec.structs import replace

from metacache import Change

from ..errors import Corrupt
from ..objectstore import ObjectInfo
from ..types import StorageId
from ._bundles import Bundles
from ._env import Env
from .stage import Log
from .stamp import Assignment, Stamp, Trust, trust

LOCAL_DELTAS_MAX: Final = 64
"""Deltas behind the base of a local copy, above which a flush folds them into it."""

_log = structlog.get_logger()


class Found(Enum):
    """What others have written: nothing that we do not know; bundles that continue what we know; another history."""

    NOTHING = "nothing"
    MORE = "more"
    HISTORY = "history"


class Box(ABC):
    """See the module's text. box: a GUID, or `root`; priority: of its local copy."""

    def __init__(self, env: Env, log: Log, sid: StorageId, box: str, priority: int) -> None:
        self.env = env
        self.log = log
        self.sid = sid
        self.box = box
        self.priority = priority
        self.bundles = Bundles(env, sid, box)
        self.change = Change.NONE
        self.changes = 0
        """Counts changes since the load, so that a flush sees whether more came meanwhile."""
        self.due_at: float | None = None
        self.local_deltas = 0
        self.flushing = asyncio.Lock()

    # -- the state, which subclasses have ------------------------------------------------------------------------------

    @abstractmethod
    def join(self, data: bytes) -> None:
        """Join what a bundle, a local copy or a dead backend's journal has. Raises Corrupt."""

    @abstractmethod
    def join_others(self, data: bytes, *, renew: bool) -> None:
        """Join a bundle that another backend has written. Raises Corrupt."""

    @abstractmethod
    def restart(self) -> None:
        """Begin again with an empty state."""

    @abstractmethod
    def whole(self) -> bytes:
        """All of the state, as a delta."""

    @property
    @abstractmethod
    def highestmodseq(self) -> int:
        """Of the state."""

    @property
    @abstractmethod
    def uidnext(self) -> int:
        """Of the state; 0 where it has no UIDs."""

    @abstractmethod
    def changed(self, change: Change) -> None:
        """Note that the bundles are behind, and when that must end."""

    # -- loading -------------------------------------------------------------------------------------------------------

    @property
    def stamp(self) -> Stamp:
        """What is known of the bundles; of the local copy too, once it is saved."""
        return self.bundles.stamp

    @stamp.setter
    def stamp(self, stamp: Stamp) -> None:
        self.bundles.stamp = stamp

    @property
    def assignment(self) -> Assignment:
        """Under which this backend has the user at present."""
        return self.env.assignment(self.sid)

    def load_copy(self, assignment: Assignment, *, made_here: bool = False) -> tuple[Trust, list[bytes]]:
        """Take the state from the local copy. Returns what that is worth, and deltas of a copy without a base: holders
        that were noted while the box was not in memory."""
        copy = self.env.metacache.load(self.sid, self.box)
        stamp = None if copy is None else Stamp.decode(copy.stamp)
        if copy is not None and stamp is not None:
            try:
                for data in ([copy.base] if copy.base is not None else []) + copy.deltas:
                    self.join(data)
            except Corrupt as exc:
                _log.warning("local index copy damaged, dropped", user=self.sid, mailbox=self.box, error=str(exc))
                self.env.metacache.drop(self.sid, self.box)
                self.restart()
                stamp = None
            else:
                self.stamp, self.change, self.local_deltas = stamp, copy.change, len(copy.deltas)
        fragments = [] if copy is None or stamp is not None else copy.deltas
        return trust(copy, stamp, assignment, made_here=made_here), fragments

    async def rebuild(self, infos: list[ObjectInfo]) -> bool:
        """Join the heads of the bundles in a LIST; True if they are of more than one history. Raises Unavailable,
        Corrupt."""
        loaded = await self.bundles.load(infos)
        self.stamp = loaded.stamp
        for number, payload in enumerate(loaded.payloads):
            await asyncio.sleep(0)  # each may have all mails
            self.join(payload)
            if number == 0:
                of_base = {"base_modseq": self.highestmodseq, "base_bytes": len(payload)}
                self.stamp = replace(self.stamp, known_uidnext=self.uidnext, **of_base)
        self.stamp = replace(self.stamp, flushed_uidnext=max(1, self.uidnext))
        return loaded.merged

    async def take_bundles(self, infos: list[ObjectInfo], *, renew: bool = False) -> Found:
        """Join those bundles of a LIST that others have written. renew: sessions are looking. Raises Unavailable,
        Corrupt."""
        stamp, unflushed = self.stamp, self.change is not Change.NONE
        if stamp.knows(infos):
            return Found.NOTHING
        loaded = await self.bundles.load(infos)
        for payload in loaded.payloads:
            self.join_others(payload, renew=renew)
        self.stamp = replace(
            loaded.stamp,
            version=max(loaded.stamp.version, stamp.version),
            generation=stamp.generation,
            listed=stamp.listed,
            flushed_uidnext=stamp.flushed_uidnext,
            need_base=True,
        )
        return Found.HISTORY if unflushed or loaded.merged else Found.MORE

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Make the local copy one base of the whole state, under the present stamp."""
        data, stamp, sid, box, change = self.whole(), self.stamp.encode(), self.sid, self.box, self.change
        priority = self.priority
        self.env.keep(sid, box, lambda cache: cache.replace(sid, box, data, stamp, change=change, priority=priority))
        self.local_deltas = 0

    def save_stamp(self) -> None:
        """Note the bundles and the change mark with the local copy; fold it when it has many deltas."""
        if self.local_deltas > LOCAL_DELTAS_MAX:
            self.save()
        else:
            sid, box, change, stamp = self.sid, self.box, self.change, self.stamp.encode()
            self.env.keep(sid, box, lambda cache: cache.mark(sid, box, change, stamp))

    def is_due(self) -> bool:
        """Whether the time for an upload has come."""
        return self.due_at is not None and self.env.clock() >= self.due_at

    def due_by(self, latest: float) -> None:
        """What waits for its upload waits no longer than until then."""
        if self.due_at is not None:
            self.due_at = min(self.due_at, latest)

    def uploaded(self, seen: int) -> bool:
        """A bundle has all changes but those after the first `seen`. True if more have come: the box stays changed."""
        self.due_at = None
        more = self.changes != seen
        if more:
            self.changed(self.change)
        else:
            self.change = Change.NONE
        return more
