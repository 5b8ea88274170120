"""The index of a mailbox in memory, and its changes.

It has the state, the bundles, the local copy and the UIDs in flight of a mailbox. What
sessions call is in `user.mailbox.Mailbox`. Code that reads, writes, discovers and
flushes takes an `Index`.

Invariant: `state` has what is acknowledged or resolved. Every change of it is part of
an edit that the log has staged. Sessions never see a UID while a lower UID may still
land.

This module knows no protocols and no other users, and does not know how it is loaded
and flushed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from metacache import Change

from ...errors import MailboxFull, NotFound
from ...mailbox import (
    Changed,
    Delta,
    Encoded,
    Gone,
    Root,
    Rows,
    State,
    UidArray,
    largest,
    renewal,
    uid_array,
)
from ...types import Guid, StorageId
from ..env import Env
from ..log.journal import Journal
from ..log.stage import Edit, Log
from .arrivals import Arrivals
from .box import Box
from .root import RootBox
from .slots import Slot, Slots

T = TypeVar("T")

PART_MAILS: Final = 50_000
"""Mails of a MOVE or an EXPUNGE that change in one turn of the loop: 10 ms. More change
in several edits, between which others run."""

JOIN_MAILS: Final = 20_000
"""Mails of another backend's bundle that are joined in one turn of the loop."""

TIDY_MIN: Final = 10_000
"""Holders that a change has added before they are merged at once, in a turn of their
own, and not by the next flush."""

FIELDS_STEP: Final = 1000
"""Mails whose ready fields are copied or dropped between two looks at the clock: a
millisecond."""


class Owner(Protocol):
    """What a mailbox needs of its user.

    created_here: mailboxes that this process created and has not loaded. journaled:
    mailboxes whose changes of an earlier boot are in the journal of this boot. sources:
    the boots, by backend and name, whose journals have changes that no bundle had.
    """

    env: Env
    name: str
    storage_id: StorageId
    rootbox: RootBox
    created_here: set[Guid]
    journaled: set[Guid]

    @property
    def root(self) -> Root: ...

    @property
    def sources(self) -> frozenset[tuple[str, str]]: ...

    @property
    def log(self) -> Log: ...

    @property
    def journal(self) -> Journal: ...

    def edit(self) -> Edit:
        """Return an empty edit of this user's boxes."""

    def hold(self, edit: Edit, guid: Guid, rows: Rows) -> None:
        """Add the holders of objects to an edit that records of a mailbox refer to."""

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task to its end, even if the session ends."""

    async def commit(self) -> None:
        """Return when staged changes are as durable as an acknowledgement needs. Raises
        Unavailable."""

    async def box(self, guid: Guid) -> Index:
        """Load another mailbox. Raises NotFound, Unavailable, Corrupt."""

    def require_there(self) -> None:
        """Raises NotFound if the user is being deleted."""


class _Watch:
    """Ends a `watch` when it is called; smaller than a closure, for each session has
    one."""

    __slots__ = ("_wake", "watchers")

    def __init__(self, watchers: list[Callable[[], None]], wake: Callable[[], None]) -> None:
        self.watchers, self._wake = watchers, wake

    def __call__(self) -> None:
        if self._wake in self.watchers:
            self.watchers.remove(self._wake)


async def tidy(boxes: Iterable[Index]) -> None:
    """Merge what a change of many mails has left to be merged; others run meanwhile."""
    for box in boxes:
        if box.state.holders.late > TIDY_MIN:
            await asyncio.sleep(0)
            box.state.holders.merge()


async def drop_fields(mailbox: Index, uids: UidArray) -> None:
    """Drop ready fields of a mailbox; others run meanwhile."""
    sid, guid, turn = mailbox.user.storage_id, mailbox.guid, mailbox.env.turn(mailbox.user.storage_id)
    for at in range(0, len(uids), FIELDS_STEP):
        gone = uids[at : at + FIELDS_STEP].tolist()
        mailbox.env.keep(sid, guid, lambda cache, gone=gone: cache.drop_fields(sid, guid, gone))  # type: ignore[misc]  # mypy has no type for a lambda with a default
        if turn.over():
            await turn.end()


def count_between(state: State, low: int, high: int) -> int:
    """Return the number of live mails with low <= UID <= high."""
    return int(np.searchsorted(state.uids, high, side="right")) - int(np.searchsorted(state.uids, low))


def give_modseq(delta: Delta, modseq: int) -> None:
    """Give a new delta and its rows their MODSEQ, which is known only when they become
    visible. It is at least `modseq`.

    Flags at delivery are stamped with the save date, which is in the object. So a
    reader that finds the mail by LIST gives them the same stamps as the writer. A later
    removal is above the save date and wins in both cases.
    """
    rows = delta.rows
    if rows is not None:
        modseq = max(modseq, largest(rows.savedate))
        rows.modseq = np.array([modseq], dtype=np.uint64) if len(rows) == 1 else np.full(len(rows), modseq, np.uint64)
        if rows.stamps:
            on = rows.savedate.astype(np.uint64) * np.uint64(2) + np.uint64(1)
            stamped = rows.stamps.items()
            rows.stamps = {flag: np.where(stamps & np.uint64(1), on, np.uint64(0)) for flag, stamps in stamped}
    delta.highestmodseq = modseq


def state_of(guid: Guid, parts: Iterable[bytes]) -> State:
    """Return the state that these parts of a local copy make. Raises ValueError."""
    state = State(guid)
    for data in parts:
        state.join(Delta.decode(data))
    return state


def taken_back(mailbox: Index, slot: Slot) -> Delta:
    """Return the expunge of a mail of a group that has failed."""
    modseq = mailbox.state.next_modseq(mailbox.env.now_ms())
    return Delta(gone=Gone.at(modseq, uid_array([slot.uid])), highestmodseq=modseq, uidnext=slot.uid + 1)


class Index(Box[State, Delta]):
    """See the module's text."""

    def __init__(
        self,
        env: Env,
        user: Owner,
        guid: Guid,
        uidvalidity: int,
        priority: int,
        *,
        refresh: Callable[[Index], Coroutine[Any, Any, None]],
    ) -> None:
        """refresh: joins what another writer wrote, after a UID was lost to it."""
        empty = partial(State, guid)
        super().__init__(env, user.log, user.storage_id, guid, priority, empty=empty, decode=Delta.decode)
        self.user = user
        self.guid = guid
        self.uidvalidity = uidvalidity
        self.deleted = False
        self.unborn = False
        """Whether the creation of the mailbox is not yet in the bucket. No mail in the
        mailbox is acknowledged before it is."""
        self.sessions = 0
        self.used_at = env.clock()
        self.unflushed_mails = 0
        self.segments_read: set[str] = set()
        self.fields_left: list[UidArray] = []
        """UIDs that were expunged since the last flush. The next flush drops their
        ready fields."""
        self.mending = asyncio.Lock()
        self.finding = asyncio.Lock()
        """Held while packs are LISTed, so that readers who miss mails at the same time
        share the LIST."""
        """Held while lost mails are looked for again."""
        self._refresh = refresh
        self.slots = Slots(self._show, self._taken, self._chance)
        self.arrivals = Arrivals()
        self.watchers: list[Callable[[], None]] = []

    # -- the state (box.Box) -------------------------------------------------------------------------------------------

    def _join_others(self, delta: Delta, *, renew: bool) -> None:
        changed = self.state.join(delta)
        if renew and (fresh := renewal(self.state, changed, self.env.now_ms())) is not None:
            self.state.join(fresh)

    async def take_others(self, delta: Delta, *, renew: bool) -> None:
        turn = self.env.turn(self.sid)
        for part in delta.slices(JOIN_MAILS):
            if turn.over():
                await turn.end()
            self._join_others(part, renew=renew)

    @property
    def uidnext(self) -> int:
        return self.state.uidnext

    def whole(self, *, without: Collection[str] = ()) -> Encoded:
        return self.state.snapshot(without=without).parts()

    def lacking(self) -> Delta:
        return self.state.extract(self.stamp.since)

    def _wants_bundle(self, change: Change) -> bool:
        return change is Change.IMPORTANT or self.unflushed_mails > self.env.settings.max_rescan_mail_count

    async def _before_bundle(self) -> None:
        """Return when the journal has the effects of copies and expunges on other
        mailboxes. A bundle must not have them earlier."""
        await self.user.journal.sync()

    def _altered(self, delta: Delta) -> Changed:
        changed = self.state.join(delta)
        if len(changed.gone):
            self.fields_left.append(changed.gone)
        self.unflushed_mails += len(changed.new)
        return changed

    # -- changing ------------------------------------------------------------------------------------------------------

    def apply(self, delta: Delta, change: Change, *, journal: bool = True) -> None:
        """Stage a change of only this mailbox. journal: False if the journal need not
        have it."""
        edit = self.user.edit()
        (edit.add if journal else edit.add_local)(self, delta, change)
        self.user.log.stage(edit)

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        self.watchers.append(wake)
        return _Watch(self.watchers, wake)

    def wake(self) -> None:
        for wake in tuple(self.watchers):
            wake()

    @property
    def cleared(self) -> bool:
        """Return whether the mailbox is deleted, and its bundles too, or are being
        deleted. Then none may be written."""
        entry = self.user.root.entries.get(self.guid)
        return self.bundles.cleared or (entry is not None and bool(entry.cleared))

    def require_live(self) -> None:
        """Raises NotFound if the mailbox is deleted, Unavailable while the journal is
        late."""
        self.require_there()
        self.user.journal.check()

    def require_room(self, mails: int) -> None:
        """Raises MailboxFull when the mailbox, with what is being written to it, has no
        room for `mails` more."""
        most = self.env.settings.mailbox_mails_max
        waiting = self.arrivals.mails if self.arrivals.waiting else 0
        coming = sum([slot.count for slot in self.slots.in_flight()]) + waiting
        if len(self.state) + coming + mails > most:
            raise MailboxFull(f"the mailbox has {len(self.state)} mails; allowed: {most}")

    def require_there(self) -> None:
        """Raises NotFound when the mailbox is deleted."""
        if self.deleted:
            raise NotFound("the mailbox has been deleted")

    # -- new UIDs ------------------------------------------------------------------------------------------------------

    def _show(self, slot: Slot) -> None:
        """Show a slot: its contents become part of the state, or its UIDs are skipped
        for ever."""
        end = slot.uid + slot.count
        if slot.fate == "landed" and slot.delta is not None:
            delta = slot.delta
            modseq = self.state.next_modseq(self.env.now_ms())
            give_modseq(delta, modseq)
            delta.uidnext = end
            edit = self.user.edit()
            edit.add(self, delta, Change.IMPORTANT if delta.claims else Change.UNIMPORTANT)
            if slot.elsewhere is not None:
                slot.elsewhere(edit, delta.highestmodseq)
            self.user.log.stage(edit)
            if slot.also is not None:
                slot.also()
                slot.also = None  # it refers to the sender, whose list has this slot
        elif slot.fate == "orphan":
            self.apply(taken_back(self, slot), Change.IMPORTANT)
        else:
            self.apply(Delta(claims={slot.uid: 1}, uidnext=end), Change.UNIMPORTANT)

    def _chance(self) -> float:
        return int.from_bytes(self.env.random_bytes(2), "big") / 2**16

    def _taken(self) -> None:
        self.user.spawn(self._refresh(self))

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def put_fields(self, items: list[tuple[int, bytes]]) -> None:
        """Store ready fields by UID."""
        sid, guid = self.user.storage_id, self.guid
        self.env.keep(sid, guid, lambda cache: cache.put_fields(sid, guid, items))

    def busy(self) -> bool:
        writing = self.slots.pending or self.arrivals.writing
        return bool(self.sessions or writing or self.watchers or self.flushing.locked())
