"""One user's mail: the list of mailboxes, and what concerns several of them.

The list is a box like a mailbox is (`root`): a local copy, deltas in the journal, a bundle in the bucket. Making,
renaming and deleting mailboxes hand out names: they are in the bucket before they are acknowledged.

Invariant: a mailbox is in memory at most once, and one whose bundles are behind is not dropped from memory.
Refuses to know: protocols; other users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import structlog
from msgspec.structs import replace

from metacache import Change

from ..errors import Corrupt, Elsewhere, NotFound, TooBig, Unavailable
from ..mailbox import Delta, MailboxEntry, Root, RootDelta, Rows, Totals, UidArray
from ..mailbox.names import canonical, check_name
from ..objectstore import ObjectInfo
from ..objectstore.keys import ROOT, bundles_prefix
from ..types import Guid, StorageId
from . import _aftermath, _copy, _mailboxes, api
from ._bundles import by_box
from ._env import ANSWER_S, Env, answer_within
from ._quota import Quota
from ._writer import PUTS_AT_ONCE, Draft, write_mails
from .api import Appended, Copied, MailboxInfo, NewMail, Status, Usage
from .box import Found
from .index import Index
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


class User:
    """See the module's text and `api.User`."""

    def __init__(self, store: Backend, env: Env, name: str, storage_id: StorageId) -> None:
        self._store = store
        self.env = env
        self.name = name
        self.storage_id = storage_id
        self.quota = Quota(self)
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
        self._counting = False

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

    # -- opening ---------------------------------------------------------------------------------------------------

    async def open(self, pending: dict[str, list[bytes]], *, make: bool) -> None:
        """Load the list of mailboxes. make: at first use make it, else raise NotFound. Raises Unavailable, Corrupt."""
        env, box = self.env, self.rootbox
        self.pending = pending
        assignment = box.assignment
        worth, fragments = box.load_copy(assignment)
        exact = worth is Trust.TRUSTED
        if worth is not Trust.REBUILD:
            stamp = box.stamp
            if worth is Trust.COMPARE:
                current = assignment.covers(stamp)
                self._infos = by_box(await env.listing(bundles_prefix(self.storage_id), kind="index"))
                news = await self._take_in(self._infos.get(ROOT, []))
                exact = current or (stamp.clean and not pending and not self._unclean)
                if news:
                    box.stamp, exact = box.stamp.uncompared(), False
                box.stamp = replace(box.stamp, checked=env.now())
                if not current:
                    _aftermath.tell_unflushed(self)
                if box.change is not Change.NONE:  # the journal of the life before may not have it
                    box.restate()
                    await self.journal.sync()
        else:
            self._infos = by_box(await env.listing(bundles_prefix(self.storage_id), kind="index"))
            if ROOT not in self._infos and not make:
                raise NotFound("no such user")
            if ROOT not in self._infos and not await _mailboxes.first(self):
                self._infos = by_box(await env.listing(bundles_prefix(self.storage_id), kind="index"))
            if ROOT in self._infos:
                await box.rebuild(self._infos[ROOT])
                exact = box.stamp.clean and not pending and not self._unclean
            _aftermath.tell_unflushed(self)
            box.stamp = replace(box.stamp, checked=env.now())
        for data in [*fragments, *pending.pop(ROOT, [])]:
            box.join(data)
            box.change = Change.IMPORTANT
        if not self.root.entries:
            raise Corrupt("the list of mailboxes is empty")
        if not assignment.covers(box.stamp) and (ahead := _aftermath.ahead(self, unclean=self._unclean)):
            box.raise_floor(ahead)  # kept until each mailbox has been opened, in whatever life
        self._exact = {Guid(guid) for guid in self.root.entries if exact and guid not in pending}
        self._exact -= {
            guid for guid, totals in self.root.totals.items() if totals.modseq < self.root.ahead and totals.uidnext > 1
        }
        box.stamp = replace(box.stamp, generation=assignment.generation)
        if self._infos is not None:
            self._infos = {guid: self._infos.get(guid, []) for guid in self.root.entries}
            self._infos_at = env.clock()
        box.save()
        if box.change is not Change.NONE:
            box.changed(box.change)
        self._counted = exact
        self.sweep()
        for entry in self.root.entries.values():
            if entry.deleted and not entry.cleared and entry.deleted < env.now_ms() - env.delete_delay_s * 1000:
                self.spawn(_mailboxes.clear_deleted(self, entry))
            elif entry.cleared and (left := (self._infos or {}).get(entry.guid)):  # of a writer who did not know
                self.spawn(env.delete([info.key for info in left], kind="index"))

    def limit(self, quota_bytes: int | None, quota_messages: int | None) -> None:
        """Set the quota; after an unclean end the mailboxes that it counts are loaded, beside the session."""
        self.quota.bytes_max, self.quota.messages_max = quota_bytes, quota_messages
        if not self._counted and not self._counting and (quota_bytes is not None or quota_messages is not None):
            self._counting = True
            self.spawn(self._count_all())

    async def _count_all(self) -> None:
        """Make every mailbox's totals exact. What fails is tried again at the next login or delivery."""
        try:
            await self._load_inexact()
            self._counted = True
        finally:
            self._counting = False

    async def _load_inexact(self) -> None:
        for entry in list(self.root.names().values()):
            if Guid(entry.guid) not in self._exact:
                await self.box(Guid(entry.guid))

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
        now = self.env.now()
        box.stamp = replace(box.stamp, generation=box.assignment.generation, checked=now, listed=now)
        box.save()
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

    async def release(self) -> None:
        self.sessions -= 1
        self.used_at = self.env.clock()

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

    # -- the list of mailboxes -------------------------------------------------------------------------------------

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

    def entry(self, name: str) -> MailboxEntry:
        """Raises NotFound."""
        entry = self.root.names().get(canonical(name))
        if entry is None:
            raise NotFound(f"no mailbox {name!r}")
        return entry

    def mailboxes(self) -> list[MailboxInfo]:
        return _mailboxes.infos(self.root)

    def subscriptions(self) -> list[str]:
        return self.root.subscribed_names()

    async def create(self, name: str, special_use: str = "") -> Guid:
        return await _mailboxes.create(self, name, special_use)

    async def delete(self, name: str) -> None:
        await _mailboxes.delete(self, name)

    async def rename(self, old: str, new: str) -> None:
        await _mailboxes.rename(self, old, new)

    async def subscribe(self, name: str, on: bool) -> None:
        name = check_name(name)
        if self.root.subscribed(name) == on:
            return
        modseq = self.root.next_modseq(self.env.now_ms())
        await self.change_root(RootDelta(subscriptions={name: modseq * 2 + on}, highestmodseq=modseq))

    async def status(self, name: str) -> Status:
        entry = self.entry(name)
        guid = Guid(entry.guid)
        if guid not in self.boxes and guid in self._exact:
            totals = self.root.totals.get(guid, Totals())
        else:
            totals = (await self.box(guid)).totals()
        return Status(
            messages=totals.messages,
            recent=totals.recent,
            unseen=totals.unseen,
            deleted=totals.deleted,
            uidnext=totals.uidnext,
            uidvalidity=entry.uidvalidity,
            highestmodseq=max(totals.modseq, 1),
            size=totals.bytes,
        )

    async def select(self, name: str) -> Mailbox:
        box = await self.box(Guid(self.entry(name).guid))
        box.sessions += 1
        return box

    # -- mails -----------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        self.sync_totals()
        size, messages = self.root.usage()
        return Usage(size, messages, self.quota.bytes_max, self.quota.messages_max)

    def check_size(self, size: int) -> None:
        """Raises TooBig."""
        if size > self.env.settings.max_mail_size:
            raise TooBig(f"a mail of {size} bytes; allowed: {self.env.settings.max_mail_size}")

    async def append(self, name: str, mails: Sequence[NewMail]) -> Appended:
        entry = self.entry(name)
        for mail in mails:
            self.check_size(len(mail.source))
        room = self.quota.take(sum(len(mail.source) for mail in mails), len(mails))
        try:
            async with answer_within(ANSWER_S * (1 + len(mails) // PUTS_AT_ONCE)):
                box = await self.box(Guid(entry.guid))
                box.require_live()
                box.require_room(len(mails))
                box.state.spell(flag for mail in mails for flag in mail.flags)  # of all together
                drafts = [
                    Draft(mail.source, tuple(box.state.spell(mail.flags)), mail.internaldate, mail.zone)
                    for mail in mails
                ]
                return Appended(entry.uidvalidity, await write_mails(box, drafts, room))
        finally:
            room.end()

    async def copy(self, source: api.Mailbox, uids: UidArray, name: str, *, move: bool = False) -> Copied:
        if not isinstance(source, Mailbox):
            raise TypeError("a mailbox of another store")
        return await (_copy.move if move else _copy.copy)(self, source, uids, name)

    async def move_all(self, source: Index, name: str) -> None:
        """Move all mails of a mailbox to another one. Raises as `copy`."""
        done = await _copy.move(self, source, source.state.uids, name)
        if done.failure is not None:
            raise done.failure

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
                self.rootbox.stamp = replace(self.rootbox.stamp, generation=assignment.generation)
                self.rootbox.save()
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

    # -- upkeep ----------------------------------------------------------------------------------------------------

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

    async def flush_root(self, *, clean: bool = False) -> None:
        """See `RootBox.flush`."""
        await self.rootbox.flush(clean=clean)

    async def flush(self, *, everything: bool = False) -> None:
        """Upload all that is behind. Raises Unavailable."""
        for box in list(self.boxes.values()):
            await box.flush(everything=everything)
        await self.flush_root(clean=everything and not self.pending)

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
