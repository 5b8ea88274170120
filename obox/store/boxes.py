"""A user's boxes: the list of mailboxes, and which mailboxes are in memory.

How a user is opened, compared with the bucket, flushed and let go. What sessions ask of a user is
`user.User`. The list is a box like a mailbox is (`root`): a local copy, deltas in the journal, a
bundle in the bucket.

Invariant: a mailbox is in memory at most once, and one whose bundles are behind is not dropped from
memory.
Refuses to know: protocols; other users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import structlog

from metacache import Change

from ..errors import Corrupt, Elsewhere, NotFound, Unavailable
from ..mailbox import Delta, MailboxEntry, Root, RootDelta, Rows
from ..objectstore import ObjectInfo
from ..objectstore.keys import ROOT, bundles_prefix
from ..types import Guid, StorageId
from . import _aftermath, _copy, _mailboxes
from ._bundles import Bundles, by_box
from ._env import Env
from .box import Found
from .journal import Journal
from .mailbox import PRIORITY_INBOX, PRIORITY_OTHER, Mailbox
from .rootbox import RootBox
from .stage import Absent, Edit, Log, Target
from .stamp import Trust

log = structlog.get_logger()

UNLOAD_AT_ONCE: Final = 100
"""Mailboxes of one user that leave memory in one turn of the loop: some 10 ms."""
WORKING_S: Final = 0.02
"""Between looks whether tasks have ended: a hundredth of what they may take."""

LISTING_S: Final = 60.0
"""How long a LIST of bundles is good for: well below any delay after which one that it names may be deleted."""

T = TypeVar("T")


class Backend(Protocol):
    """The backend, as a user sees it. unclean: an owner before this boot may have ended uncleanly."""

    journal: Journal
    log: Log
    unclean: bool

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
        self.sessions = 0
        self.working = 0
        """Tasks of this user under way, some of which outlive their session."""
        self.deleted = False
        """All of it goes from the bucket: who still has it in hand writes nothing."""
        self.used_at = env.clock()
        self.swept_at = env.clock()
        self.boxes: dict[Guid, Mailbox] = {}
        self.born: set[Guid] = set()
        """Mailboxes that this process made and has not loaded: there is nothing to load."""
        self.pending: dict[str, list[bytes]] = {}
        self.told: set[Guid] = set()
        """Mailboxes whose changes of a life before are in the journal of this one."""
        self._infos: dict[str, list[ObjectInfo]] | None = None
        """Bundles by box as of a LIST at `_infos_at`, each for the first load of its box."""
        self._infos_at = 0.0
        self._held: dict[Guid, Delta] = {}
        """Holders noted while their mailbox was not in memory."""
        self._loading: dict[Guid, asyncio.Task[Mailbox]] = {}
        self._exact: set[Guid] = set()
        self._counted = False

    @property
    def root(self) -> Root:
        """The list of mailboxes."""
        return self.rootbox.state

    @property
    def log(self) -> Log:
        return self._store.log

    @property
    def journal(self) -> Journal:
        return self._store.journal

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run to its end whatever becomes of the session; the store waits for it when it closes."""
        self.working += 1
        task = self._store.spawn(work)
        task.add_done_callback(self._worked)
        return task

    def _worked(self, task: asyncio.Task[Any]) -> None:
        self.working -= 1

    async def commit(self) -> None:
        """What was handed to the local copy is synced; with `durability = "bucket"`, in the bucket.

        A local disk that fails costs time only: then the bucket is waited for.
        """
        if self.env.settings.durability == "bucket":
            await self.journal.sync()
            return
        if not await self.env.settle():
            await self.journal.sync()
        self._require_ours()
        if self.journal.expired():
            await self.journal.lease()

    def require_there(self) -> None:
        """Raises NotFound when the user is being deleted."""
        if self.deleted:
            raise NotFound("the user has been deleted")

    def _require_ours(self) -> None:
        """Raises Elsewhere: what was staged is uploaded, and nothing of it is acknowledged."""
        if self.sessions and not self.env.owned.owns(self.storage_id):
            raise Elsewhere("another backend serves the user; try again")

    @property
    def _unclean(self) -> bool:
        """An owner ended uncleanly, just now, so that clients may know MODSEQs that are nowhere."""
        return self._store.unclean or self.env.owned.is_unclean(self.storage_id)

    async def settled(self) -> None:
        """Nothing of this user is under way any more: no mail without a verdict, no upload, no task."""
        for box in list(self.boxes.values()):
            await box.slots.settled()
            async with box.flushing:
                pass
        async with self.rootbox.flushing:
            pass
        while self.working:
            await self.env.sleep(WORKING_S)

    def edit(self) -> Edit:
        """An empty edit of this user's boxes."""
        return Edit(self.storage_id)

    async def change_root(self, delta: RootDelta, edit: Edit | None = None) -> None:
        """Take a change of the list in, with an edit that it belongs to; in the bucket on return."""
        self.journal.check()
        edit = edit or self.edit()
        edit.add(self.rootbox, delta, Change.IMPORTANT)
        self.log.stage(edit)
        await self.journal.sync()

    # -- opening ------------------------------------------------------------------------------------------------------

    async def open(self, pending: dict[str, list[bytes]], *, make: bool) -> None:
        """Load the list of mailboxes. make: at first use make it, else raise NotFound. Raises Unavailable, Corrupt."""
        env, box = self.env, self.rootbox
        self.pending = pending
        assignment = box.assignment
        worth, fragments = box.load_copy()
        exact = worth is Trust.TRUSTED
        if not exact:
            current, sure = assignment.covers(box.stamp), not pending and not self._unclean
            found = await self._catch_up(worth, make=make)
            exact = found is Found.NOTHING and (current or (box.stamp.clean and sure))
            if worth is Trust.REBUILD:
                exact = box.stamp.clean and sure
            if not current:
                _aftermath.tell_unflushed(self)
            if worth is Trust.COMPARE and box.change is not Change.NONE:  # the journal before may not have it
                box.restate()
                await self.journal.sync()
        box.join_unflushed([*fragments, *pending.pop(ROOT, [])])
        if not self.root.entries:
            raise Corrupt("the list of mailboxes is empty")
        if not assignment.covers(box.stamp) and (ahead := _aftermath.ahead(self, unclean=self._unclean)):
            box.raise_floor(ahead)  # kept until each mailbox has been opened, in whatever life
        self._exact = {Guid(guid) for guid in self.root.entries if exact and guid not in pending}
        self._exact -= {
            guid for guid, totals in self.root.totals.items() if totals.modseq < self.root.ahead and totals.uidnext > 1
        }
        if self._infos is not None:
            self._infos = {guid: self._infos.get(guid, []) for guid in self.root.entries}
            self._infos_at = env.clock()
        box.compared(assignment)
        if box.change is not Change.NONE:
            box.changed(box.change)
        self._counted = exact
        self.sweep()
        for entry in self.root.entries.values():
            if entry.deleted and not entry.cleared and entry.deleted < env.now_ms() - env.delete_delay_s * 1000:
                self.spawn(_mailboxes.clear_deleted(self, entry))
            elif entry.cleared and (left := (self._infos or {}).get(entry.guid)):  # of a writer who did not know
                self.spawn(Bundles(env, self.storage_id, entry.guid).remove(left))

    async def _catch_up(self, worth: Trust, *, make: bool) -> Found:
        """Read what is new of the list of mailboxes, or make the user. The LIST is of all bundles of the user. Raises
        NotFound, Unavailable, Corrupt."""
        self._infos = by_box(await self.env.listing(bundles_prefix(self.storage_id), kind="index"))
        if worth is Trust.REBUILD and ROOT not in self._infos:
            if not make:
                raise NotFound("no such user")
            if await _mailboxes.first(self):
                return Found.NOTHING
            self._infos = by_box(await self.env.listing(bundles_prefix(self.storage_id), kind="index"))
        found = await self.rootbox.catch_up(worth, self._infos.get(ROOT, []))
        if worth is Trust.COMPARE and found is not Found.NOTHING:
            self.rootbox.changed(Change.IMPORTANT)
        return found

    async def recheck(self, *, every: bool = False) -> None:
        """After we were fenced off: take in what the bucket has and we do not, without closing what is open.
        every: also of mailboxes that were compared since."""
        while not self.deleted:
            try:
                assignment = self.rootbox.assignment
                infos = by_box(await self.env.listing(bundles_prefix(self.storage_id), kind="index"))
                async with self.rootbox.flushing:
                    await self._take_in(infos.get(ROOT, []))
                for guid, box in list(self.boxes.items()):
                    if every or not assignment.covers(box.stamp):
                        await box.recheck(infos.get(guid, []))
                self.rootbox.compared(assignment)
                return
            except Unavailable:
                await self.env.sleep(1.0)
            except Corrupt as exc:
                log.error("what others wrote does not decode", user=self.name, error=str(exc))
                await self.env.sleep(60.0)

    async def _take_in(self, infos: list[ObjectInfo]) -> bool:
        """Join the bundles of the list that others have written; True if there were some. Raises Unavailable,
        Corrupt."""
        if await self.rootbox.take_bundles(infos) is Found.NOTHING:
            return False
        for entry in self.root.entries.values():
            box = self.boxes.get(Guid(entry.guid))
            if box is not None and entry.deleted:
                box.deleted = True
                box.wake()
        self.rootbox.changed(Change.IMPORTANT)
        return True

    # -- mailboxes in memory ------------------------------------------------------------------------------------------

    async def box(self, guid: Guid) -> Mailbox:
        """The mailbox, loaded once however many ask. Raises NotFound, Unavailable, Corrupt."""
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
        box = self.unloaded(entry)
        infos = None if self._infos is None else self._infos.pop(guid, None)
        if self.env.clock() - self._infos_at > LISTING_S:
            infos = None
        pending = self.pending.get(guid, [])
        await box.load(infos, pending)
        self.pending.pop(guid, None)
        self.boxes[guid] = box
        self._exact.add(guid)
        held = self._held.pop(guid, None)
        if held is not None:
            box.apply(held, Change.IMPORTANT, journal=False)  # what was saved as its local copy is without them
        return box

    def unloaded(self, entry: MailboxEntry) -> Mailbox:
        """A mailbox of which nothing has been loaded."""
        first = entry.name == "INBOX" or entry.special_use == "\\Junk"
        box = Mailbox(self.env, self, Guid(entry.guid), entry.uidvalidity, PRIORITY_INBOX if first else PRIORITY_OTHER)
        box.deleted = bool(entry.deleted)
        return box

    def fresh(self, entry: MailboxEntry) -> Mailbox:
        """A mailbox that was made just now: there is nothing to load."""
        box = self.unloaded(entry)
        box.compared(box.assignment, listed=self.env.now())
        self.boxes[box.guid] = box
        self._exact.add(box.guid)
        return box

    def rebuilt(self, box: Mailbox) -> None:
        """A mailbox was made anew out of its mails: what journals said of it before is not joined any more."""
        self.pending.pop(box.guid, None)
        self.boxes[box.guid] = box

    def forget(self, guid: Guid) -> None:
        """A mailbox has been cleared: memory and local copy let go of it."""
        self.boxes.pop(guid, None)
        self.env.metacache.drop(self.storage_id, guid)

    def hold(self, edit: Edit, guid: Guid, rows: Rows) -> None:
        """Add to an edit that those records of a mailbox which LIST has found hold objects of other mailboxes.

        To be added before the records: they must not be known anywhere before.
        """
        for home, holders in _copy.held_by(rows, guid).items():
            edit.add(self._target(home), Delta(holders=holders), Change.IMPORTANT)

    def _target(self, guid: Guid) -> Target[Delta]:
        """A mailbox for the log, whether it is in memory or not."""
        return self.boxes.get(guid) or Absent(guid, PRIORITY_OTHER, partial(self._remember, guid))

    def _remember(self, guid: Guid, delta: Delta) -> None:
        """Keep holders of a mailbox that is not in memory until it has been loaded, and load it."""
        waiting = self._held.setdefault(guid, Delta())
        if not waiting.holders:
            self.spawn(self._load_held(guid))
        waiting.holders.join(delta.holders)

    async def _load_held(self, guid: Guid) -> None:
        while guid in self._held:
            try:
                await self.box(guid)
            except Unavailable:
                await self.env.sleep(5.0)

    # -- upkeep -------------------------------------------------------------------------------------------------------

    def sync_totals(self, boxes: Mapping[Guid, Mailbox] | None = None) -> bool:
        """Bring the totals of the mailboxes in memory into the root; True if any differed. boxes: only of these."""
        fresh = {}
        for guid, box in (self.boxes if boxes is None else boxes).items():
            totals = box.totals()
            if self.root.totals.get(guid) != totals:
                fresh[guid] = totals
        if fresh:
            self.root.join(RootDelta(totals=fresh))
        return bool(fresh)

    async def flush(self, *, everything: bool = False) -> None:
        """Upload all that is behind. Raises Unavailable."""
        for box in list(self.boxes.values()):
            await box.flush(everything=everything)
        await self.rootbox.flush(clean=everything and not self.pending)

    def sweep(self) -> None:
        """Begin to delete objects that have waited for the delay, in the mailboxes that say they have some."""
        before = (self.env.now() - self.env.delete_delay_s) * 1000
        self.swept_at = self.env.clock()
        for guid, totals in self.root.totals.items():
            if 0 < totals.garbage < before and guid in self.root.entries:
                self.spawn(self._sweep(guid))

    async def _sweep(self, guid: Guid) -> None:
        try:
            await (await self.box(guid)).sweep()
        except Unavailable:
            pass  # at the next sweep

    def unload_idle(self, before: float) -> None:
        """Let go of mailboxes that nobody has used since, some at a time; never of one that is due for an upload."""
        boxes = self.boxes.items()
        idle = (it for it in boxes if not it[1].busy() and it[1].used_at < before and not it[1].is_behind())
        leaving = dict(islice(idle, UNLOAD_AT_ONCE))
        self.sync_totals(leaving)
        for guid, box in leaving.items():
            box.save_stamp()
            del self.boxes[guid]

    def opening(self) -> bool:
        """Some mailbox is being loaded, or must be."""
        return bool(self._loading or self._held)

    def busy(self) -> bool:
        return bool(
            self.sessions or self.boxes or self._loading or self.rootbox.change is not Change.NONE or self.pending
        )

    def leave(self) -> None:
        """Before the user leaves memory: keep what is derived."""
        self.sync_totals()
        self.rootbox.save()
