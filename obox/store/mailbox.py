"""One mailbox of one user over bucket, metacache and fscache; shared by all sessions.

Invariant: `state` is what is acknowledged or settled; every change of it is a delta that was first handed to the local
copy and the journal. Sessions never see a UID of which a lower one may still land.
Refuses to know: protocols, other users.
Diagnostics: a lost mail (its object is gone) is `NotFound` and logged with its key; a damaged one `Corrupt`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import structlog

from metacache import Change

from ..errors import Corrupt, Expunged, NotFound
from ..mailbox import DELETED, Changed, Delta, FlagOp, Gone, State, Totals, UidArray, uid_array
from ..mailbox.search import Query
from ..objectstore import ObjectInfo, StoreError
from ..objectstore.codec import OLD_MAJOR, Decoded
from ..objectstore.keys import mail_key, owner_of
from ..types import Guid, Uid
from . import _discover, _flush, _lost, _reader, _recent, _writer
from ._bundles import Bundles, Known
from ._env import Env
from ._mail import MailMeta, check_meta
from ._search import search
from ._slots import Slot, Slots
from .api import Fields, Stored, Unreadable

if TYPE_CHECKING:
    from .user import User

log = structlog.get_logger()

PRIORITY_INBOX: Final = 2
PRIORITY_OTHER: Final = 3

LOCAL_DELTAS_MAX: Final = 64
"""Deltas behind the base of a local copy, above which a flush folds them into it."""


class Mailbox:
    """A mailbox in memory; see the module's text and `api.Mailbox`."""

    def __init__(self, env: Env, user: User, guid: Guid, uidvalidity: int, priority: int) -> None:
        self.env = env
        self.user = user
        self.guid = guid
        self.uidvalidity = uidvalidity
        self.priority = priority
        self.state = State(guid)
        self.known = Known()
        self.bundles = Bundles(env, user.storage_id, guid)
        self.deleted = False
        self.clearing = False
        self.unborn = False
        """Its making is not yet in the bucket: no mail in it is acknowledged before."""
        self.sessions = 0
        self.used_at = env.clock()
        self.changes = 0
        """Counts changes since load, so that a flush sees whether more came meanwhile."""
        self.change = Change.NONE
        self.unflushed_mails = 0
        self.due_at: float | None = None
        self.local_deltas = 0
        self.segments_read: set[str] = set()
        self.fields_left: list[int] = []
        """UIDs that have gone since the last flush: their ready fields go with the next."""
        self.flushing = asyncio.Lock()
        self.mending = asyncio.Lock()
        """Held while lost mails are looked for once more."""
        self.slots = Slots(self._show, self._taken, self._chance)
        self._watchers: list[Callable[[], None]] = []

    # -- life ------------------------------------------------------------------------------------------------------

    async def load(self, infos: list[ObjectInfo] | None, pending: list[bytes]) -> None:
        """Take the state from the local copy if it is to be trusted, else from the bucket; then what is new there.

        infos: this mailbox's part of a LIST of bundles, None if there was none; pending: deltas out of the journal of a
        backend that did not flush. Raises Unavailable, Corrupt.
        """
        await _discover.load(self, infos, pending)

    async def recheck(self, infos: list[ObjectInfo]) -> None:
        """Take in what other backends have written: their bundles, and mails by LIST. Raises Unavailable, Corrupt."""
        await _discover.recheck(self, infos)

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._watchers.append(wake)

        def end() -> None:
            if wake in self._watchers:
                self._watchers.remove(wake)

        return end

    def wake(self) -> None:
        for wake in tuple(self._watchers):
            wake()

    async def release(self) -> None:
        self.sessions -= 1
        self.used_at = self.env.clock()

    def totals(self) -> Totals:
        state = self.state
        recent = self.count_between(state.recent, state.uidnext)
        deleted = int(np.count_nonzero(state.bits & np.uint64(DELETED)))
        garbage = state.garbage_since()
        return Totals(
            state.highestmodseq, len(state), state.unseen, state.bytes, state.uidnext, recent, deleted, garbage
        )

    def check_consistency(self) -> None:
        """Assert the state's invariants."""
        self.state.check()

    # -- changing --------------------------------------------------------------------------------------------------

    def apply(self, delta: Delta, change: Change, *, journal: bool = True) -> Changed:
        """Take a delta in: memory, local copy (staged), journal (staged); wakes the sessions."""
        data = delta.encode()
        sid, guid, priority = self.user.storage_id, self.guid, self.priority
        self.env.keep(sid, guid, lambda cache: cache.append(sid, guid, data, change, priority=priority))
        self.local_deltas += 1
        if journal:
            self.user.journal.add(self.user.storage_id, self.guid, data)
        changed = self.state.join(delta)
        self.fields_left += changed.gone.tolist()
        self.changed(change, len(changed.new))
        return changed

    def changed(self, change: Change, mails: int = 0) -> None:
        """Note that the bucket's bundles are behind, and when that must end."""
        self.changes += 1
        self.change = max(self.change, change)
        self.unflushed_mails += mails
        settings = self.env.settings
        soon = change is Change.IMPORTANT or self.unflushed_mails > settings.max_rescan_mail_count
        if soon and self.due_at is None:
            self.due_at = self.env.clock() + settings.upload_interval_s
        self.wake()

    def reckon(self) -> None:
        """After a load with changes that no bundle has: say how many mails, and when it must end."""
        self.unflushed_mails = self.count_between(self.known.flushed_uidnext, self.state.uidnext)
        self.changed(self.change)

    def take_recent(self) -> int:
        first = self.state.recent
        if first < self.state.uidnext:
            self.apply(Delta(recent=self.state.uidnext), Change.UNIMPORTANT, journal=False)
        return first

    async def store_flags(
        self, uids: UidArray, op: FlagOp, flags: Iterable[str], unchanged_since: int | None = None
    ) -> Stored:
        self.require_live()
        refused = np.empty(0, dtype=np.uint32)
        if unchanged_since is not None:
            where, there = self.state.positions(uids)
            uids, where = uids[there], where[there]
            stale = self.state.modseqs[where] > np.uint64(unchanged_since)
            refused, uids = uids[stale], uids[~stale]
        delta, changed = self.state.flag_delta(uids, op, flags, self.env.now_ms())
        if delta is None:
            return Stored(changed, refused, 0)
        self.apply(delta, Change.IMPORTANT)
        await self._commit()
        return Stored(changed, refused, delta.highestmodseq)

    async def expunge(self, uids: UidArray) -> UidArray:
        self.require_live()
        homes = await self.homes(uids)
        gone = self.expunge_now(uids, homes)
        if len(gone):
            await self._commit()
        return gone

    @property
    def cleared(self) -> bool:
        """Deleted, and nothing of it is left in the bucket."""
        entry = self.user.root.entries.get(self.guid)
        return self.clearing or (entry is not None and bool(entry.cleared))

    async def homes(self, uids: UidArray | None = None) -> dict[Guid, Mailbox]:
        """The mailboxes that hold the objects of those of `uids` that are copies, loaded; None: of all that there are
        on return, whatever came meanwhile."""
        found: dict[Guid, Mailbox] = {}
        while True:
            asked = self.state.uids if uids is None else uids
            missing = [guid for guid in self.foreign(asked) if guid not in found]
            if not missing:
                return found
            for guid in missing:
                found[guid] = await self.user.box(guid)

    def expunge_now(self, uids: UidArray, homes: dict[Guid, Mailbox], *, lost: bool = False) -> UidArray:
        """Expunge and release the objects' holders in one go, so that one journal object has both.

        lost: there are no objects, and none that comes back later is to be deleted.
        """
        foreign = self.foreign(uids)
        delta, gone = self.state.expunge_delta(uids, self.env.now_ms())
        if delta is None:
            return gone
        if lost:
            delta.purged = gone
        self.apply(delta, Change.IMPORTANT)
        for home, holders in foreign.items():
            released = {(home_uid, self.guid, uid): delta.highestmodseq for uid, home_uid in holders}
            ended = uid_array([far for _, far in holders]) if lost else None
            purged = None if ended is None else np.intersect1d(ended, homes[home].state.gone_uid)
            homes[home].apply(Delta(holders=released, purged=purged), Change.IMPORTANT)
        return gone

    def foreign(self, uids: UidArray) -> dict[Guid, list[tuple[int, int]]]:
        """Of live `uids`, those whose mail is not in the object of their own UID: home -> [(uid, home uid)]."""
        state = self.state
        where, there = state.positions(uids)
        where = where[there]
        out: dict[Guid, list[tuple[int, int]]] = {}
        for at in np.flatnonzero(state.foreign()[where]).tolist():
            guid, far = state.home_of(int(where[at]))
            out.setdefault(guid, []).append((int(state.uids[where[at]]), far))
        return out

    def require_live(self) -> None:
        """Raises NotFound when the mailbox is deleted, Unavailable while the journal is late."""
        self.require_there()
        self.user.journal.check()

    def require_there(self) -> None:
        """Raises NotFound when the mailbox is deleted."""
        if self.deleted:
            raise NotFound("the mailbox has been deleted")

    async def _commit(self) -> None:
        await self.user.commit()

    # -- new UIDs --------------------------------------------------------------------------------------------------

    def _show(self, slot: Slot) -> None:
        """A slot's turn: what it holds becomes part of the state, or its UIDs are skipped for ever."""
        end = slot.uid + slot.count
        if slot.fate == "landed" and slot.delta is not None:
            delta = slot.delta
            modseq = self.state.next_modseq(self.env.now_ms())
            _writer.stamp(delta, modseq)
            delta.uidnext = end
            self.apply(delta, Change.IMPORTANT if delta.claims else Change.UNIMPORTANT)
            if slot.also is not None:
                slot.also()
        elif slot.fate == "orphan":
            self.apply(self.taken_back(slot), Change.IMPORTANT)
        else:
            self.apply(Delta(claims={slot.uid: 1}, uidnext=end), Change.UNIMPORTANT)

    def taken_back(self, slot: Slot) -> Delta:
        """Expunges a mail of a group that has failed."""
        modseq = self.state.next_modseq(self.env.now_ms())
        return Delta(gone=Gone.at(modseq, uid_array([slot.uid])), highestmodseq=modseq, uidnext=slot.uid + 1)

    def _chance(self) -> float:
        return int.from_bytes(self.env.random_bytes(2), "big") / 2**16

    def _taken(self) -> None:
        self.user.spawn(_discover.refresh(self))

    # -- reading ---------------------------------------------------------------------------------------------------

    def mends(self, autofix: bool | None) -> bool:
        """Is a lost mail to be looked for once more, and expunged?"""
        return self.env.settings.autofix_storage if autofix is None else autofix

    async def fields(self, uids: Sequence[int], *, autofix: bool | None = None) -> list[Fields | Unreadable | None]:
        return await _reader.fields(self, uids, autofix=self.mends(autofix))

    async def mail(self, uid: int, *, autofix: bool | None = None) -> bytes:
        async for _, found in self.mails([uid], autofix=autofix):
            if isinstance(found, bytes):
                return found
            raise Expunged("the mail has been expunged") if found is None else found
        raise AssertionError("one answer for each")

    async def read(self, key: str, oid: bytes, *, expunged: bool) -> bytes:
        """The mail under a key. expunged: the mail is. Raises NotFound, Expunged, Corrupt, Unavailable."""
        name = _recent.name_of(self.user.storage_id, oid)
        mail = self.env.recent.get(name)
        if mail is None:
            mail = await _reader.whole(self, key, oid, expunged=expunged)
            self.env.recent.put(name, mail)
        return mail

    async def fetch(self, key: str, start: int = 0, end: int | None = None, *, expunged: bool = False) -> bytes:
        """GET one mail's object, or a part of it. Raises NotFound when it is lost.

        expunged: the mail is, so that its object may have been deleted: then Expunged, and nothing for the operator.
        """
        data = await self.env.get(key, kind="mail", start=start, end=end)
        if data is None:
            if expunged:
                raise Expunged("the mail has been expunged")
            log.error("mail lost", key=key, user=self.user.name, next_step="restore it, or oboxadm force-resync")
            raise NotFound("the mail is lost from the storage")
        return data

    def decode(self, key: str, oid: bytes, data: bytes) -> bytes:
        """The mail in an object; never another one's. Raises Corrupt."""
        return self.checked(key, oid, self.env.codec.decode_many([data], [owner_of(key)])[0])

    def checked(self, key: str, oid: bytes, decoded: Decoded | StoreError) -> bytes:
        """The same of an object that has been decoded, or of why it could not be."""
        if isinstance(decoded, StoreError):
            log.error("mail damaged", key=key, user=self.user.name, error=str(decoded))
            raise Corrupt("the mail is damaged in the storage") from decoded
        self.check_oid(key, oid, decoded.oid)
        if decoded.major == OLD_MAJOR:
            self.check_owner(key, decoded.meta)
        return decoded.payload

    def check_owner(self, key: str, meta: bytes) -> None:
        """Raises Corrupt when a mail of version 1 says that it is of another mailbox or UID."""
        try:
            check_meta(MailMeta.decode(meta), key)
        except Corrupt as exc:
            log.error("another mail under this key", key=key, user=self.user.name, error=str(exc))
            raise Corrupt("the mail is damaged in the storage") from exc

    def check_oid(self, key: str, oid: bytes, found: bytes) -> None:
        """Raises Corrupt when the object under a mail's key is another one than the index says."""
        if found != oid:
            log.error("another mail under this key", key=key, user=self.user.name)
            raise Corrupt("the mail is damaged in the storage")

    def mails(
        self, uids: Sequence[int], *, autofix: bool | None = None
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        return _reader.mails(self, uids, autofix=self.mends(autofix))

    async def part(self, uid: int, start: int, end: int, *, autofix: bool | None = None) -> bytes:
        try:
            return await _reader.part(self, uid, start, end)
        except NotFound:
            position = self.state.position(uid)
            if position is None or not self.mends(autofix):
                raise
            home, home_uid = self.state.home_of(position)
            key = mail_key(self.user.storage_id, home, Uid(home_uid))
        await _lost.look_again(self, {uid: key}, end=1)
        return await _reader.part(self, uid, start, end)

    async def search(self, query: Query, uids: UidArray, *, autofix: bool | None = None) -> UidArray:
        env = self.env
        return await search(self, query, uids, now=env.now(), autofix=self.mends(autofix), clock=env.clock)

    # -- upkeep ----------------------------------------------------------------------------------------------------

    async def flush(self, *, everything: bool = False) -> bool:
        """Upload what the bucket's bundles lack; `everything`: unimportant changes and cached fields too."""
        return await _flush.flush(self, everything=everything)

    async def carry(self) -> None:
        """What has long been in the journal and is worth no bundle yet goes into a newer object. Raises Unavailable."""
        await _flush.carry(self)

    async def sweep(self) -> None:
        """Delete objects whose time has come, without waiting for a change to be flushed. Raises Unavailable."""
        await _flush.sweep(self)

    def is_behind(self) -> bool:
        """It wants a bundle; a few new mails do not, they are in the journal and the local copy."""
        return self.change is Change.IMPORTANT or self.due_at is not None

    def is_due(self) -> bool:
        """The time for an upload has come."""
        return self.due_at is not None and self.env.clock() >= self.due_at

    def save(self) -> None:
        """Make the local copy one base of the whole state, under the present stamp."""
        data, stamp = self.state.extract().encode(), self.known.encode()
        sid, guid, change, priority = self.user.storage_id, self.guid, self.change, self.priority
        self.env.keep(sid, guid, lambda cache: cache.replace(sid, guid, data, stamp, change=change, priority=priority))
        self.local_deltas = 0

    def save_stamp(self) -> None:
        """Note the bundles and the change mark with the local copy; fold it when it has many deltas."""
        if self.local_deltas > LOCAL_DELTAS_MAX:
            self.save()
        else:
            sid, guid, change, stamp = self.user.storage_id, self.guid, self.change, self.known.encode()
            self.env.keep(sid, guid, lambda cache: cache.mark(sid, guid, change, stamp))

    def put_fields(self, items: list[tuple[int, bytes]]) -> None:
        """Keep ready fields by UID."""
        sid, guid = self.user.storage_id, self.guid
        self.env.keep(sid, guid, lambda cache: cache.put_fields(sid, guid, items))

    def drop_fields(self, count: int) -> None:
        """Drop the ready fields of the first `count` in `fields_left`; not sooner: a MOVE copies them afterwards, and a
        session that was not told yet may ask."""
        if count:
            sid, guid, gone = self.user.storage_id, self.guid, self.fields_left[:count]
            del self.fields_left[:count]
            self.env.keep(sid, guid, lambda cache: cache.drop_fields(sid, guid, gone))

    def count_between(self, low: int, high: int) -> int:
        """Live mails with low <= UID <= high."""
        uids = self.state.uids
        return int(np.searchsorted(uids, high, side="right")) - int(np.searchsorted(uids, low))

    def busy(self) -> bool:
        return bool(self.sessions or self.slots.pending or self._watchers or self.flushing.locked())
