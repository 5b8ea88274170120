"""A user's boxes: the list of mailboxes, and the mailboxes in memory.

It opens a user, compares it with the bucket, flushes and unloads it. `user.User` has
what sessions ask of a user. The list is a box as a mailbox is (`root`): it has a local
copy, deltas in the journal, and a bundle in the bucket.

Invariant: a mailbox is in memory at most once. A mailbox whose bundles lack changes is
not unloaded. This module knows no protocols and no other users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog

from metacache import Change

from ...errors import Corrupt, NotFound, Unavailable
from ...mailbox import Delta, MailboxEntry, Root, RootDelta, Rows
from ...objectstore import ObjectInfo
from ...objectstore.keys import ROOT, bundles_prefix
from ...types import Guid, StorageId
from ..box.bundles import Bundles, by_box
from ..box.load import (
    Found,
    catch_up,
    compared,
    join_changes,
    join_unflushed,
    load_copy,
    rebuilt,
    refresh,
    restate,
)
from ..box.root import RootBox
from ..env import Env
from ..jobs import Job, Jobs
from ..log.journal import Journal
from ..log.stage import Absent, Edit, Log, Target
from ..log.takeover import Takeover
from ..stamp import Assignment, Trust
from ..watchers import Watchers
from . import copy as _copy
from . import discover as _discover
from . import mailboxes as _mailboxes
from . import unclean as _unclean
from .chores import Chores
from .identity import replaced
from .mailbox import PRIORITY_INBOX, PRIORITY_OTHER, Mailbox

log = structlog.get_logger()

LISTING_S: Final = 60.0
"""How long a LIST of bundles may be used; far less than any delay of deletion."""

T = TypeVar("T")


class Backend(Protocol):
    """What a user needs of the backend. unclean: an earlier owner may have crashed."""

    journal: Journal
    log: Log
    unclean: bool
    takeover: Takeover

    @property
    def jobs(self) -> Jobs:
        """Return the jobs of upkeep."""

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task that the backend waits for when it closes."""


class Boxes:
    """See the module's text."""

    def __init__(self, store: Backend, env: Env, name: str, storage_id: StorageId) -> None:
        self._store = store
        self.env = env
        self.name = name
        self.storage_id = storage_id
        self.rootbox = RootBox(env, store.log, storage_id, self)
        self.changes = Watchers(store.log.watchers, storage_id)
        self.sessions = 0
        self.working = 0
        """Running tasks, some of which outlive their session."""
        self.deleted = False
        """Whether the user is being deleted, so that nothing may be written."""
        self.used_at = env.clock()
        self.boxes: dict[Guid, Mailbox] = {}
        self.created_here: set[Guid] = set()
        """Mailboxes that this process created and has not loaded."""
        self.pending: dict[str, list[bytes]] = {}
        self.journaled: set[Guid] = set()
        """Mailboxes whose changes of an earlier boot are in the journal of this
        boot."""
        self._infos: dict[str, list[ObjectInfo]] | None = None
        """Bundles by box from a LIST at `_infos_at`, for the first load of each box.
        The LIST was made under the assignment `_infos_under`."""
        self._infos_at = 0.0
        self._infos_under = self.rootbox.assignment
        self._held: dict[Guid, Delta] = {}
        """Holders noted while their mailbox was not in memory. The local copy has them
        too."""
        self._loading: dict[Guid, asyncio.Task[Mailbox]] = {}
        self._exact: set[Guid] = set()
        self._counted = False
        self.uncounted: set[Guid] = set()
        """Mailboxes that the last `sync_totals` could not count."""
        self.chores = Chores(self)

    @property
    def root(self) -> Root:
        """Return the list of mailboxes."""
        return self.rootbox.state

    @property
    def log(self) -> Log:
        return self._store.log

    @property
    def journal(self) -> Journal:
        return self._store.journal

    @property
    def jobs(self) -> Jobs:
        return self._store.jobs

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task that may outlive the session. The store waits for it when it
        closes."""
        self.working += 1
        task = self._store.spawn(work)
        task.add_done_callback(self._worked)
        return task

    def _worked(self, task: asyncio.Task[Any]) -> None:
        self.working -= 1

    async def commit(self) -> None:
        """Return when staged changes are as durable as `durability` says. If the local
        disk fails, wait for the bucket instead.
        """
        if self.env.settings.durability == "bucket":
            await self.journal.sync()
        else:
            if not await self.env.commit_staged():
                await self.journal.sync()
            if self.journal.expired():
                await self.journal.lease()
        if self.env.until_heard is not None:
            await self.env.until_heard()
        self._require_ours()

    def require_there(self) -> None:
        """Raises NotFound if the user is being deleted."""
        if self.deleted:
            raise NotFound("the user has been deleted")

    def _require_ours(self) -> None:
        """Raises Elsewhere if another backend has the user. Then what was staged is
        uploaded, but nothing of it is acknowledged."""
        if self.sessions:
            self.env.owned.require(self.storage_id)

    @property
    def _unclean(self) -> bool:
        """Return whether an owner has crashed, so that clients may know MODSEQs that no
        object has."""
        return self._store.unclean or self.env.owned.is_unclean(self.storage_id)

    def edit(self) -> Edit:
        """Return an empty edit of this user's boxes."""
        return Edit(self.storage_id)

    async def change_root(self, delta: RootDelta, edit: Edit | None = None) -> None:
        """Stage a change of the list and its edit. It is in the bucket on return."""
        self.journal.check()
        edit = edit or self.edit()
        delta.identity = self.root.identity
        edit.add(self.rootbox, delta, Change.IMPORTANT)
        self.log.stage(edit)
        await self.journal.sync()
        if self.env.until_heard is not None:
            await self.env.until_heard()

    # -- opening ------------------------------------------------------------------------------------------------------

    @property
    def sources(self) -> frozenset[tuple[str, str]]:
        """See `index.Owner`."""
        return frozenset(self._store.takeover.sources.get(self.storage_id, ()))

    async def open(self, pending: dict[str, list[bytes]], *, make: bool) -> None:
        """Load or `make` the list. Raises NotFound, Unavailable, Corrupt."""
        env = self.env
        self.pending = pending
        # What another backend writes under a later assignment may be in no LIST below.
        assignment = self._infos_under = self.rootbox.assignment
        worth, fragments = await load_copy(self.rootbox)
        exact = worth is Trust.TRUSTED
        if not exact:
            self._infos = by_box(await env.listing(bundles_prefix(self.storage_id), kind="index"))
            if worth is Trust.COMPARE and await replaced(env, self.rootbox, self._infos.get(ROOT, [])):
                log.info("local copies of a user whom another backend deleted are dropped", user=self.storage_id)
                env.metacache.drop_user(self.storage_id)
                self.rootbox = RootBox(env, self._store.log, self.storage_id, self)
                worth, fragments = Trust.REBUILD, []
        box = self.rootbox
        if not exact:
            current, sure = assignment.covers(box.stamp), not pending and not self._unclean
            found = await self._catch_up(worth, self._infos or {}, make=make)
            exact = found is Found.NOTHING and (current or (box.stamp.clean and sure))
            if worth is Trust.REBUILD:
                exact = box.stamp.clean and sure
            if not current:
                await _unclean.journal_unflushed(self)
            # The journal before may not have it.
            if worth is Trust.COMPARE and box.change is not Change.NONE:
                restate(box)
                await self.journal.sync()
        join_unflushed(box, [*fragments, *pending.pop(ROOT, [])])
        if not self.root.entries:
            raise Corrupt("the list of mailboxes is empty")
        if not assignment.covers(box.stamp) and (floor := _unclean.modseq_floor(self, unclean=self._unclean)):
            box.raise_floor(floor)  # It is kept until each mailbox was opened.
        self._exact = {Guid(guid) for guid in self.root.entries if exact and guid not in pending}
        self._exact -= {
            guid
            for guid, totals in self.root.totals.items()
            if totals.modseq < self.root.modseq_floor and totals.uidnext > 1
        }
        if self._infos is not None:
            self._infos = {guid: self._infos.get(guid, []) for guid in self.root.entries}
            self._infos_at = env.clock()
        compared(box, assignment)
        if box.change is not Change.NONE:
            box.changed(box.change)
        self._counted = exact
        self.chores.sweep()
        for entry in self.root.entries.values():
            if entry.deleted and not entry.cleared and entry.deleted < env.now_ms() - env.delete_delay_s * 1000:
                self.chores.note("clear", entry.guid, partial(_mailboxes.clear_deleted, self, entry))
            elif entry.cleared and (left := (self._infos or {}).get(entry.guid)):
                # A writer that did not know of the deletion has left them.
                self.chores.note("clear", entry.guid, partial(Bundles(env, self.storage_id, entry.guid).remove, left))

    async def _catch_up(self, worth: Trust, infos: dict[str, list[ObjectInfo]], *, make: bool) -> Found:
        """Read new bundles of the list of mailboxes, or create the user. infos: all
        bundles of the user. Raises NotFound, Unavailable, Corrupt."""
        if worth is Trust.REBUILD and ROOT not in infos:
            if not make:
                raise NotFound("no such user")
            if await _mailboxes.first(self):
                return Found.NOTHING
            self._infos = infos = by_box(await self.env.listing(bundles_prefix(self.storage_id), kind="index"))
        found = await catch_up(self.rootbox, worth, infos.get(ROOT, []))
        if worth is Trust.COMPARE and found is not Found.NOTHING:
            self.rootbox.changed(Change.IMPORTANT)
        return found

    async def recheck(self, *, every: bool = False) -> None:
        """Join what only the bucket has, after a fence. Open mailboxes stay open.
        every: also mailboxes that were compared since."""
        while not self.deleted:
            try:
                assignment, began = self.rootbox.assignment, self.env.clock()
                infos = by_box(await self.env.listing(bundles_prefix(self.storage_id), kind="index"))
                self._infos = {guid: infos.get(guid, []) for guid in self.root.entries if guid not in self.boxes}
                self._infos_at, self._infos_under = began, assignment
                then = partial(self._recheck_mailboxes, infos, assignment, every)
                await refresh(self.rootbox, infos.get(ROOT, []), assignment, then)
                return
            except Unavailable:
                await self.env.sleep(1.0)
            except Corrupt as exc:
                log.error("index written by another backend does not decode", user=self.name, error=str(exc))
                await self.env.sleep(60.0)

    async def _recheck_mailboxes(
        self, infos: dict[str, list[ObjectInfo]], assignment: Assignment, every: bool, found: Found
    ) -> None:
        """See `recheck`. found: what the list of mailboxes has joined."""
        if found is not Found.NOTHING:
            for entry in self.root.entries.values():
                gone = self.boxes.get(Guid(entry.guid))
                if gone is not None and entry.deleted:
                    gone.deleted = True
                    gone.wake()
            self.rootbox.changed(Change.IMPORTANT)
        for guid, box in list(self.boxes.items()):
            if every or not assignment.covers(box.stamp):
                await _discover.recheck(box, infos.get(guid, []), assignment)

    # -- mailboxes in memory ------------------------------------------------------------------------------------------

    async def box(self, guid: Guid) -> Mailbox:
        """Return the mailbox, loaded once for all callers. Raises NotFound,
        Unavailable, Corrupt."""
        self.require_there()
        box = self.boxes.get(guid)
        if box is not None:
            box.used_at = self.env.clock()
            return box
        task = self._loading.get(guid)
        if task is None:
            task = self._loading[guid] = self.spawn(self._load(guid))
            task.add_done_callback(lambda _: self._loading.pop(guid, None))
        return await asyncio.shield(task)

    async def _load(self, guid: Guid) -> Mailbox:
        entry = self.root.entries.get(guid)
        if entry is None:
            raise NotFound("no such mailbox")
        if self.env.before_load is not None:
            await self.env.before_load(guid)
        box = self.unloaded(entry)
        infos = None if self._infos is None else self._infos.pop(guid, None)
        old = self.env.clock() - self._infos_at > LISTING_S
        if old or self._infos_under.generation != box.assignment.generation:
            infos = None
        pending = list(self.pending.get(guid, []))
        await _discover.load(box, infos, pending)
        came = self.pending.pop(guid, [])[len(pending) :]
        self.boxes[guid] = box
        if came:
            async with box.flushing:
                await join_changes(box, came)
        self._exact.add(guid)
        held = self._held.pop(guid, None)
        if held is not None:
            # The local copy that was saved does not have them.
            box.apply(held, Change.IMPORTANT, journal=False)
        if self.env.is_stale(self.storage_id, box.stamp):
            self.spawn(self.recheck())
        return box

    def unloaded(self, entry: MailboxEntry) -> Mailbox:
        """Return a mailbox object that is not loaded yet."""
        first = entry.name == "INBOX" or entry.special_use == "\\Junk"
        box = Mailbox(self.env, self, Guid(entry.guid), entry.uidvalidity, PRIORITY_INBOX if first else PRIORITY_OTHER)
        box.deleted = bool(entry.deleted)
        return box

    def fresh(self, entry: MailboxEntry) -> Mailbox:
        """Return a new mailbox, which has nothing to load."""
        box = self.unloaded(entry)
        compared(box, box.assignment, listed=self.env.now())
        self.boxes[box.guid] = box
        self._exact.add(box.guid)
        return box

    def rebuilt(self, box: Mailbox, infos: list[ObjectInfo]) -> None:
        """Use a mailbox that was rebuilt from its mails, without earlier journals.
        infos: a LIST of its bundles."""
        self.pending.pop(box.guid, None)
        self.env.metacache.drop(self.storage_id, box.guid)
        rebuilt(box, infos)
        self.boxes[box.guid] = box

    def forget(self, guid: Guid) -> None:
        """Drop a cleared mailbox from memory and local copies."""
        self.boxes.pop(guid, None)
        self.env.metacache.drop(self.storage_id, guid)

    def hold(self, edit: Edit, guid: Guid, rows: Rows) -> None:
        """Add holders to an edit for records, found by LIST, that refer to objects of
        other mailboxes. Add them before the records, so that no reader lacks them.
        """
        for home, holders in _copy.held_by(rows, guid).items():
            edit.add(self._target(home), Delta(holders=holders), Change.IMPORTANT)

    def _target(self, guid: Guid) -> Target[Delta]:
        """Return a mailbox as a target of the log, whether it is in memory or not."""
        return self.boxes.get(guid) or Absent(guid, PRIORITY_OTHER, partial(self._remember, guid))

    def _remember(self, guid: Guid, delta: Delta) -> None:
        """Keep holders for a mailbox until it has been loaded, and load it."""
        waiting = self._held.setdefault(guid, Delta())
        if not waiting.holders:
            self.chores.begin("load", guid, partial(self._load_held, guid))
        waiting.holders.join(delta.holders)

    async def _load_held(self, guid: Guid) -> None:
        try:
            await self.box(guid)
        except NotFound:
            self._held.pop(guid, None)
            raise

    # -- upkeep -------------------------------------------------------------------------------------------------------

    def sync_totals(self, boxes: Mapping[Guid, Mailbox] | None = None) -> bool:
        """Copy totals of mailboxes in memory to the root. Returns True if any
        differed.

        A mailbox that cannot be counted is in `uncounted`, and the root keeps the
        totals that it has of it.
        """
        fresh = {}
        self.uncounted = set()
        for guid, box in (self.boxes if boxes is None else boxes).items():
            try:
                totals = box.totals()
            except Exception:  # a bug with one mailbox must not delay the others
                self.uncounted.add(guid)
                # It fails again, and is logged by its name.
                self.jobs.check(Job("totals", self.storage_id, guid), box.totals)
                continue
            if self.root.totals.get(guid) != totals:
                fresh[guid] = totals
        if fresh:
            self.root.join(RootDelta(totals=fresh))
        return bool(fresh)

    async def flush(self, *, everything: bool = False) -> None:
        """Upload all that the bucket lacks. Raises Unavailable.

        A mailbox that cannot be uploaded for a reason of its own delays no other. Its
        error is raised when the others are done.
        """
        failures: list[Exception] = []
        for box in list(self.boxes.values()):
            try:
                await box.flush(everything=everything)
            except Unavailable:
                raise
            except Exception as exc:
                failures.append(exc)
        await self.rootbox.flush(everything=everything and not self.pending and not failures)
        if failures:
            raise failures[0]

    def opening(self) -> bool:
        """Return whether a mailbox is being loaded, or must be loaded."""
        return bool(self._loading or self._held)

    def busy(self) -> bool:
        """Return whether the user must stay in memory: also while the list is uploaded,
        since the upload saves the local copy when it is over."""
        changing = self.rootbox.change is not Change.NONE or self.rootbox.flushing.locked()
        deleting = not all(map(self.jobs.waits, self.chores.due))
        return bool(self.sessions or self.boxes or self._loading or changing or self.pending or deleting)
