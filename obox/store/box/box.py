"""A box: what a mailbox and a user's list of mailboxes have in common.

A box is a state that changes only by joins, a local copy of it, its bundles in the
bucket, and the mark of what the bundles lack. This module loads a box, compares it with
the bucket, changes, uploads and saves it. Subclasses define the state (`index.Index`,
`root.RootBox`).

Invariant: the local copy has all that memory has, and the bundles have it once `change`
is NONE. This module knows no users, no sessions and no contents of deltas. Diagnostics:
a local copy that does not decode is dropped, with a warning, and the bucket is read. A
bundle that does not decode is `Corrupt`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog

from metacache import Change

from ...errors import Corrupt
from ...mailbox import Changed, Delta, Encoded, RootDelta, joined
from ...objectstore.keys import Form
from ...types import StorageId
from ..env import INLINE_DECODED_BYTES, Env
from ..log.stage import ListChanged, Log
from ..stamp import Assignment, Stamp
from .bundles import Bundles

LOCAL_DELTAS_MAX: Final = 64
"""Deltas after the base of a local copy. With more, a flush joins them into the
base."""

D = TypeVar("D", Delta, RootDelta)

_log = structlog.get_logger()


class Joinable(Protocol[D]):
    """The state of a box. It changes only by joins."""

    highestmodseq: int

    def join(self, delta: D) -> object:
        """Join a delta. A join is commutative, associative and idempotent."""

    def extract(self) -> D:
        """Return the whole state as a delta."""


S = TypeVar("S", bound=Joinable[Any])


class Box(ABC, Generic[S, D]):
    """See the module's text. box: a GUID, or `root`; priority: of its local copy;
    empty: makes a state; decode: a delta out of bytes, raises ValueError."""

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
        """Counts changes since the load, so that a flush notices changes that came
        meanwhile."""
        self.due_at: float | None = None
        self.local_deltas = 0
        self.flushing = asyncio.Lock()
        self.empty = empty
        self._decode: Callable[[bytes], D] = decode

    # -- what subclasses say of their state ----------------------------------------------------------------------------

    @abstractmethod
    def _altered(self, delta: D) -> Changed | ListChanged:
        """Join a delta. Returns what it altered."""

    @abstractmethod
    def wake(self) -> None:
        """Wake the box's sessions, because the state has changed."""

    @property
    def uidnext(self) -> int:
        """Return UIDNEXT of the state; 0 if it has no UIDs."""
        return 0

    def lacking(self) -> D:
        """Return a delta that has at least what the bundles lack of the state."""
        delta: D = self.state.extract()
        return delta

    def _wants_bundle(self, change: Change) -> bool:
        """Return whether a change must be uploaded within the interval."""
        return True

    @abstractmethod
    def _require_user(self) -> None:
        """Raises NotFound if the user is being deleted."""

    def _ended(self) -> bool:
        """Return whether the box needs no bundle any more, because it was deleted. Then
        its changes are dropped."""
        return False

    @abstractmethod
    def _lacks_bundle(self, *, everything: bool) -> bool:
        """Return whether a flush must write a bundle now."""

    @abstractmethod
    async def _write_bundle(self, *, everything: bool) -> None:
        """Write a bundle of the present state. Raises Unavailable."""

    async def _write_derived(self, *, everything: bool) -> bool:
        """Upload what can be made again from mails, if there is enough of it. Returns
        True if there was. Raises Unavailable."""
        return False

    async def _before_bundle(self) -> None:
        """Return when a bundle of the present state may be written. Raises
        Unavailable."""

    # -- joining -------------------------------------------------------------------------------------------------------

    def decoded(self, data: bytes) -> D:
        """Return a delta out of bytes. Raises Corrupt."""
        try:
            return self._decode(data)
        except ValueError as exc:
            raise Corrupt(f"the index of a box does not decode ({self.box}): {exc}") from exc

    async def read(self, data: bytes) -> D:
        """Return a delta out of bytes; a thread decodes a large one. Raises Corrupt."""
        if len(data) > INLINE_DECODED_BYTES:
            return await asyncio.to_thread(self.decoded, data)
        return self.decoded(data)

    def _join_others(self, delta: D, *, renew: bool) -> None:
        """Join a bundle that another backend has written. renew: sessions use the
        box."""
        self.state.join(delta)

    async def take_others(self, delta: D, *, renew: bool) -> None:
        """Do `_join_others` of any size; others run meanwhile."""
        self._join_others(delta, renew=renew)

    def join_staged(self, delta: D, change: Change) -> Changed | ListChanged:
        """See `stage.Target`."""
        altered = self._altered(delta)
        self.local_deltas += 1
        self._behind(change)
        return altered

    def changed(self, change: Change) -> None:
        """Note that the bundles in the bucket lack changes, and until when they must be
        uploaded. Wakes the sessions."""
        self._behind(change)
        self.wake()

    def _behind(self, change: Change) -> None:
        self.changes += 1
        self.change = max(self.change, change)
        if self.due_at is None and self._wants_bundle(change):
            self.due_at = self.env.clock() + self.env.settings.upload_interval_s

    @abstractmethod
    def whole(self, *, without: Collection[str] = ()) -> Encoded:
        """Return the whole state as a delta: the parts of its encoding, which later
        changes leave as they are. without: keywords that it leaves out."""

    # -- loading -------------------------------------------------------------------------------------------------------

    @property
    def stamp(self) -> Stamp:
        """Return what is known of the bundles. Once it is saved, the local copy has it
        too."""
        return self.bundles.stamp

    @stamp.setter
    def stamp(self, stamp: Stamp) -> None:
        self.bundles.stamp = stamp

    @property
    def assignment(self) -> Assignment:
        """Return the assignment under which this backend has the user at present."""
        return self.env.assignment(self.sid)

    # -- uploading -----------------------------------------------------------------------------------------------------

    async def flush(self, *, everything: bool = False) -> bool:
        """Upload what the bundles lack, and delete bundles that have been superfluous
        for `delete_delay`. Returns True if something was written.

        everything: also unimportant changes and derived data. Raises Unavailable;
        nothing is lost then, and the next flush tries again.
        """
        async with self.flushing:
            return await self._flush(everything=everything)

    async def _flush(self, *, everything: bool) -> bool:
        """See `flush`. The caller holds `flushing`."""
        self._require_user()
        if self._ended():
            return False
        if wrote := self._lacks_bundle(everything=everything):
            await self._write_bundle(everything=everything)
        wrote |= await self._write_derived(everything=everything)
        if await self.bundles.clear() or wrote:
            self.save_stamp()
        return wrote

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the local copy as a single base of the whole state, under the present
        stamp."""
        data, stamp, sid, box, change = self.whole(), self.stamp.encode(), self.sid, self.box, self.change
        priority = self.priority
        self.env.keep(sid, box, lambda cache: cache.replace(sid, box, data, stamp, change=change, priority=priority))
        self.local_deltas = 0

    async def upload(
        self, form: Form, parts: Encoded, *, clean: bool = False, landed: Callable[[], None] | None = None
    ) -> None:
        """PUT a bundle of the present state, and report to the journal what it covers.
        The caller saves the local copy.

        parts: the encoding of the state, made in this turn of the loop; a thread puts
        the parts together. clean: see `Stamp`. landed: called once the bundle is in the
        bucket. Raises Unavailable.
        """
        journal = self.log.journal
        position, seen, modseq, uidnext = journal.position(), self.changes, self.state.highestmodseq, self.uidnext
        payload = joined(parts) if len(parts) == 1 else await asyncio.to_thread(joined, parts)
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
        """Write stamp and change mark to the local copy. Join its deltas into the base
        if there are many."""
        if self.local_deltas > LOCAL_DELTAS_MAX:
            self.save()
        else:
            sid, box, change, stamp = self.sid, self.box, self.change, self.stamp.encode()
            self.env.keep(sid, box, lambda cache: cache.mark(sid, box, change, stamp))

    def is_due(self) -> bool:
        """Return whether the time for an upload has come."""
        return self.due_at is not None and self.env.clock() >= self.due_at

    def due_by(self, latest: float) -> None:
        """Set the latest time of the upload of changes that wait for it."""
        if self.due_at is not None:
            self.due_at = min(self.due_at, latest)
