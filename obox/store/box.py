"""A box: what a mailbox and a user's list of mailboxes have in common.

A box is a state that changes by joins alone, a local copy of it, its bundles in the bucket, and the
mark of what the bundles lack. How a box is loaded, compared with the bucket, changed, uploaded and
saved is written here once; what its state is, the subclasses say (`index.Index`, `rootbox.RootBox`).

Invariant: the local copy has all that memory has, and the bundles have it once `change` is NONE.
Refuses to know: users, sessions, what a delta says.
Diagnostics: a local copy that does not decode is dropped, with a warning, and the bucket is read; a
bundle that does not is `Corrupt`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog
from msgspec.structs import replace

from metacache import Change

from ..errors import Corrupt
from ..mailbox import Changed, Delta, RootDelta
from ..objectstore import ObjectInfo
from ..objectstore.keys import Form
from ..types import StorageId
from ._bundles import Bundles
from ._env import Env
from .stage import Edit, ListChanged, Log
from .stamp import Assignment, Stamp, Trust, trust

LOCAL_DELTAS_MAX: Final = 64
"""Deltas behind the base of a local copy, above which a flush folds them into it."""

D = TypeVar("D", Delta, RootDelta)

_log = structlog.get_logger()


class Found(Enum):
    """What others have written: nothing that we do not know; bundles that continue what we know; another history."""

    NOTHING = "nothing"
    MORE = "more"
    HISTORY = "history"


class Joinable(Protocol[D]):
    """The state of a box: it changes by joins alone."""

    highestmodseq: int

    def join(self, delta: D) -> object:
        """Commutative, associative, idempotent."""

    def extract(self) -> D:
        """All of it, as a delta."""


S = TypeVar("S", bound=Joinable[Any])


class Box(ABC, Generic[S, D]):
    """See the module's text. box: a GUID, or `root`; priority: of its local copy; empty: makes a state; decode: a
    delta out of bytes, raises ValueError."""

    def __init__(
        self,
        env: Env,
        log: Log,
        sid: StorageId,
        box: str,
        priority: int,
        *,
        empty: Callable[[], S],
        decode: Callable[[bytes], D],
    ) -> None:
        self.env = env
        self.log = log
        self.sid = sid
        self.box = box
        self.priority = priority
        self.state = empty()
        self.bundles = Bundles(env, sid, box)
        self.change = Change.NONE
        self.changes = 0
        """Counts changes since the load, so that a flush sees whether more came meanwhile."""
        self.due_at: float | None = None
        self.local_deltas = 0
        self.flushing = asyncio.Lock()
        self._empty = empty
        self._decode: Callable[[bytes], D] = decode

    # -- what subclasses say of their state ----------------------------------------------------------------------------

    @abstractmethod
    def _altered(self, delta: D) -> Changed | ListChanged:
        """Join a delta; say what it altered."""

    @abstractmethod
    def wake(self) -> None:
        """Tell the box's sessions that they have something to look at."""

    @property
    def uidnext(self) -> int:
        """Of the state; 0 where it has no UIDs."""
        return 0

    def lacking(self) -> D:
        """What the bundles lack of the state, or more."""
        delta: D = self.state.extract()
        return delta

    def wants_bundle(self, change: Change) -> bool:
        """Whether a change must be uploaded within the interval."""
        return True

    async def _before_bundle(self) -> None:
        """Return when a bundle of the present state may be written. Raises Unavailable."""

    # -- joining -------------------------------------------------------------------------------------------------------

    def decoded(self, data: bytes) -> D:
        """A delta. Raises Corrupt."""
        try:
            return self._decode(data)
        except ValueError as exc:
            raise Corrupt(f"the index of a box does not decode ({self.box}): {exc}") from exc

    def join(self, data: bytes) -> None:
        """Join what a bundle, a local copy or a dead backend's journal has. Raises Corrupt."""
        self.state.join(self.decoded(data))

    def join_others(self, data: bytes, *, renew: bool) -> None:
        """Join a bundle that another backend has written. renew: sessions are looking. Raises Corrupt."""
        self.join(data)

    def join_unflushed(self, fragments: Iterable[bytes]) -> None:
        """Join what no bundle has: out of journals, or of a local copy without a base. Raises Corrupt."""
        for data in fragments:
            self.join(data)
            self.change = Change.IMPORTANT
            self.stamp = replace(self.stamp, need_base=True)

    def take_in(self, delta: D, change: Change) -> Changed | ListChanged:
        """See `stage.Target`."""
        altered = self._altered(delta)
        self.local_deltas += 1
        self._behind(change)
        return altered

    def changed(self, change: Change) -> None:
        """Note that the bucket's bundles are behind, and when that must end; wakes the sessions."""
        self._behind(change)
        self.wake()

    def _behind(self, change: Change) -> None:
        self.changes += 1
        self.change = max(self.change, change)
        if self.due_at is None and self.wants_bundle(change):
            self.due_at = self.env.clock() + self.env.settings.upload_interval_s

    def restate(self) -> None:
        """Tell the journal what the bundles lack: an older journal may not have it."""
        edit = Edit(self.sid)
        edit.tell_journal(self.box, self.lacking())
        self.log.stage(edit)

    def whole(self) -> bytes:
        """All of the state, as a delta."""
        data: bytes = self.state.extract().encode()
        return data

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

    def load_copy(self, *, made_here: bool = False) -> tuple[Trust, list[bytes]]:
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
                self.state = self._empty()
                stamp = None
            else:
                self.stamp, self.change, self.local_deltas = stamp, copy.change, len(copy.deltas)
        fragments = [] if copy is None or stamp is not None else copy.deltas
        return trust(copy, stamp, self.assignment, made_here=made_here), fragments

    async def catch_up(self, worth: Trust, infos: list[ObjectInfo]) -> Found:
        """After `load_copy`, where the copy is not the state: read what is new in a LIST of the bundles, or all of it.
        Raises Unavailable, Corrupt."""
        if worth is Trust.REBUILD:
            found = Found.HISTORY if await self.rebuild(infos) else Found.NOTHING
        else:
            found = await self.take_bundles(infos)
            if found is not Found.NOTHING:
                self.stamp = self.stamp.uncompared()  # others have written: more than bundles, perhaps
        self.stamp = replace(self.stamp, checked=self.env.now())
        return found

    def compared(self, assignment: Assignment, *, listed: float | None = None) -> None:
        """The state is what the bucket has, and more: the local copy is trusted as long as the assignment stands.

        listed: when the mails were LISTed, if they were.
        """
        stamp = replace(self.stamp, generation=assignment.generation, checked=self.stamp.checked or self.env.now())
        self.stamp = stamp if listed is None else replace(stamp, listed=listed)
        self.save()

    async def rebuild(self, infos: list[ObjectInfo]) -> bool:
        """Join the heads of the bundles in a LIST; True if they are of more than one history. Raises Unavailable,
        Corrupt."""
        loaded = await self.bundles.load(infos)
        self.stamp = loaded.stamp
        for number, payload in enumerate(loaded.payloads):
            await asyncio.sleep(0)  # each may have all mails
            self.join(payload)
            if number == 0:
                of_base = {"base_modseq": self.state.highestmodseq, "base_bytes": len(payload)}
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

    async def upload(
        self, form: Form, payload: bytes, *, clean: bool = False, landed: Callable[[], None] | None = None
    ) -> None:
        """PUT a bundle of the present state, and tell the journal what it covers; the caller saves the local copy.

        payload: encoded in this turn of the loop; clean: see `Stamp`; landed: called once the bundle is there. Raises
        Unavailable.
        """
        journal = self.log.journal
        position, seen, modseq, uidnext = journal.position(), self.changes, self.state.highestmodseq, self.uidnext
        await self._before_bundle()
        await self.bundles.put(form, payload, modseq=modseq, uidnext=uidnext, clean=clean)
        if landed is not None:
            landed()
        self.due_at = None
        if more := self.changes != seen:
            self.changed(self.change)
        else:
            self.change = Change.NONE
        journal.flushed(self.sid, self.box, position, more=more)

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
