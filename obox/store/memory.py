"""A store in memory: the second implementation of `api`, for tests and for programs
that embed a protocol.

It keeps the contract with little code: no bucket, no journal, no cache. It shares with
`MailStore` the index model (`obox.mailbox`) and the search.
`tests/store/test_contract.py` runs on both.

Invariant: a method makes its change between two awaits, so that all sessions see whole
changes.

Nothing is durable: everything is lost with the process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from ..errors import Exists, Expunged, Invalid, NoPerm, NotFound, OverQuota, TooBig
from ..mailbox import (
    DELETED,
    Delta,
    FlagOp,
    MailboxEntry,
    Root,
    RootDelta,
    Rows,
    State,
    Totals,
    UidArray,
    expunge_delta,
    flag_delta,
)
from ..mailbox.names import INBOX, canonical, check_name
from ..mailbox.rights import ALL
from ..mailbox.search import Query
from ..types import Guid, Oid, StorageId, Uid
from . import api
from .annotations import Annotations
from .api import Appended, Copied, MailboxInfo, NewMail, Source, Status, Stored, Unreadable, Usage
from .fields import Fields
from .mails.meta import make_fields
from .rights import Rights
from .user.mailboxes import check_count, infos
from .user.search import search
from .watchers import Watchers

DEFAULT_MAILBOXES = (("INBOX", ""), ("Drafts", "\\Drafts"), ("Sent", "\\Sent"), ("Trash", "\\Trash"))


class MemoryMailbox:
    """See `api.Mailbox`."""

    rights = ALL

    def __init__(self, store: MemoryStore, guid: Guid, uidvalidity: int, changes: Watchers) -> None:
        self.guid = guid
        self._changes = changes
        self.uidvalidity = uidvalidity
        self.state = State(guid)
        self.deleted = False
        self._store = store
        self.watchers: list[Callable[[], None]] = []

    def apply(self, delta: Delta) -> None:
        """Join a change and wake the sessions."""
        altered = self.state.join(delta)
        for wake in tuple(self.watchers):
            wake()
        if altered:
            self._changes.notify(self.guid)

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        self.watchers.append(wake)
        return lambda: self.watchers.remove(wake) if wake in self.watchers else None

    def take_recent(self) -> int:
        first = self.state.recent
        self.apply(Delta(recent=self.state.uidnext))
        return first

    def add(self, rows: Rows) -> list[Uid]:
        """Give records the next UIDs and a new MODSEQ. Returns the UIDs."""
        state = self.state
        first, count = state.uidnext, len(rows)
        modseq = state.next_modseq(self._store.now_ms())
        rows.uid = np.arange(first, first + count, dtype=np.uint32)
        rows.home = np.full(count, -1, dtype=np.int32)
        rows.home_uid = rows.uid
        rows.homes = []
        rows.savedate = np.full(count, self._store.now_ms(), dtype=np.int64)
        rows.modseq = np.full(count, modseq, dtype=np.uint64)
        on = np.uint64(modseq * 2 + 1)
        rows.stamps = {flag: np.where(stamps & np.uint64(1), on, np.uint64(0)) for flag, stamps in rows.stamps.items()}
        self.apply(Delta(rows=rows, uidnext=first + count, highestmodseq=modseq))
        return [Uid(uid) for uid in rows.uid.tolist()]

    def source(self, uid: int) -> bytes | None:
        """Return a mail, also an expunged mail that some session still counts. None if
        it is gone."""
        table, where, _ = self.state.records(np.array([uid], dtype=np.uint32))
        return self._store.mails[Oid(table.column("oid")[where[0]].tobytes())] if len(where) else None

    async def fields(
        self, uids: Sequence[int], *, autofix: bool | None = None, bytes_max: int = sys.maxsize
    ) -> list[Fields | Unreadable | None]:
        found: list[Fields | Unreadable | None] = []
        for uid in uids:
            source = self.source(uid)
            one = None if source is None else make_fields(source)
            found.append(one)
            bytes_max -= 0 if one is None else len(one.packed)
            if bytes_max < 0:
                break
        return found

    async def mail(self, uid: int, *, autofix: bool | None = None) -> bytes:
        source = self.source(uid)
        if source is None:
            raise Expunged("the mail has been expunged")
        return source

    async def mails(
        self, uids: Sequence[int], *, autofix: bool | None = None
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        for uid in uids:
            yield uid, self.source(uid)

    async def part(self, uid: int, start: int, end: int, *, autofix: bool | None = None) -> bytes:
        return (await self.mail(uid))[start:end]

    async def search(self, query: Query, uids: UidArray, *, autofix: bool | None = None) -> UidArray:
        return await search(self, query, uids, now=self._store.now())

    def require_there(self) -> None:
        """Raises NotFound when the mailbox has been deleted."""
        if self.deleted:
            raise NotFound("the mailbox has been deleted")

    async def store_flags(
        self,
        uids: UidArray,
        op: FlagOp,
        flags: Iterable[str],
        unchanged_since: int | None = None,
        *,
        committed: bool = True,
    ) -> Stored:
        self.require_there()
        refused = np.empty(0, dtype=np.uint32)
        if unchanged_since is not None:
            where, there = self.state.positions(uids)
            stale = self.state.modseqs[where[there]] > np.uint64(unchanged_since)
            refused, uids = uids[there][stale], uids[there][~stale]
        delta, changed = flag_delta(self.state, uids, op, flags, self._store.now_ms())
        if delta is None:
            return Stored(changed, refused, 0)
        self.apply(delta)
        return Stored(changed, refused, delta.highestmodseq)

    async def expunge(self, uids: UidArray) -> UidArray:
        self.require_there()
        delta, gone = expunge_delta(self.state, uids, self._store.now_ms())
        if delta is not None:
            self.apply(delta)
        return gone

    async def release(self) -> None:
        """Nothing is held for a session."""

    def totals(self) -> Totals:
        """Return what STATUS says."""
        state = self.state
        recent = int(np.count_nonzero(state.uids >= np.uint32(state.recent)))
        deleted = int(np.count_nonzero(state.bits & np.uint64(DELETED)))
        return Totals(state.highestmodseq, len(state), state.unseen, state.bytes, state.uidnext, recent, deleted)


class MemoryUser:
    """See `api.User`."""

    def __init__(self, store: MemoryStore, name: str, storage_id: StorageId) -> None:
        self.name = name
        self.storage_id = storage_id
        self.quota_bytes: int | None = None
        self.quota_messages: int | None = None
        self.root = Root()
        self.boxes: dict[Guid, MemoryMailbox] = {}
        self.changes = Watchers({}, storage_id)
        self.annotations = Annotations(lambda: self.root, store.now_ms, self._change_root, self.current)
        self.rights = Rights(lambda: self.root, store.now_ms, self._change_root, self.current, lambda: True)
        self._store = store
        for mailbox, use in store.mailboxes:
            self._make(mailbox, use)
            self._join(RootDelta(subscriptions={mailbox: self.root.next_modseq(store.now_ms()) * 2 + 1}))

    def _join(self, delta: RootDelta) -> None:
        self.root.join(delta)
        self.changes.notify("")

    async def _change_root(self, delta: RootDelta) -> None:
        self._join(delta)

    def _make(self, name: str, special_use: str) -> Guid:
        now_ms = self._store.now_ms()
        guid = Guid(self._store.random_bytes(16).hex())
        validity = self.root.next_uidvalidity(now_ms // 1000)
        stamp = self.root.next_modseq(now_ms)
        self._join(RootDelta([MailboxEntry(guid, name, stamp, stamp, validity, special_use)]))
        self.boxes[guid] = MemoryMailbox(self._store, guid, validity, self.changes)
        return guid

    def _entry(self, name: str) -> MailboxEntry:
        entry = self.root.names().get(canonical(name))
        if entry is None:
            raise NotFound(f"no mailbox {name!r}")
        return entry

    def _box(self, name: str) -> MemoryMailbox:
        return self.boxes[Guid(self._entry(name).guid)]

    async def commit(self) -> None:
        """Return at once, because a process that ends loses all that is here."""

    async def current(self) -> None:
        """No other backend has this memory."""

    def mailboxes(self) -> list[MailboxInfo]:
        return infos(self.root)

    def subscriptions(self) -> list[str]:
        return self.root.subscribed_names()

    async def create(self, name: str, special_use: str = "") -> Guid:
        name = check_name(name)
        names = self.root.names()
        if name in names:
            raise Exists(f"mailbox {name!r} exists already")
        check_count([*names, name])
        if special_use and any(entry.special_use == special_use for entry in names.values()):
            raise Exists(f"there is a mailbox for {special_use} already")
        return self._make(name, special_use)

    async def delete(self, name: str) -> None:
        if canonical(name) == INBOX:
            raise NoPerm("INBOX cannot be deleted")
        entry = self._entry(name)
        box = self._box(name)
        await box.expunge(box.state.uids)
        box.deleted = True
        modseq = self.root.next_modseq(self._store.now_ms())
        self._join(RootDelta([msgspec.structs.replace(entry, deleted=modseq)]))
        box.apply(Delta())

    async def rename(self, old: str, new: str) -> None:
        old, new = canonical(old), check_name(new)
        if old == INBOX:  # its mails move and the mailbox stays: RFC 3501 §6.3.5
            await self.create(new)
            inbox = self._box(old)
            await self.copy(inbox, inbox.state.uids, new, move=True)
            return
        names = self.root.names()
        moved = {name: entry for name, entry in names.items() if name == old or name.startswith(old + "/")}
        if not moved:
            raise NotFound(f"no mailbox {old!r}")
        if new == old or new.startswith(old + "/"):
            raise Invalid(f"{old!r} cannot be renamed into itself")
        targets = {check_name(new + name[len(old) :]): entry for name, entry in moved.items()}
        for target in targets:
            if target in names:
                raise Exists(f"mailbox {target!r} exists already")
        check_count([*(name for name in names if name not in moved), *targets])
        modseq = self.root.next_modseq(self._store.now_ms())
        renamed = [msgspec.structs.replace(entry, name=name, stamp=modseq) for name, entry in targets.items()]
        self._join(RootDelta(renamed))

    async def subscribe(self, name: str, on: bool) -> None:
        name = check_name(name)
        if self.root.subscribed(name) != on:
            modseq = self.root.next_modseq(self._store.now_ms())
            self._join(RootDelta(subscriptions={name: modseq * 2 + on}))

    async def status(self, name: str) -> Status:
        box = self._box(name)
        return Status.of(box.totals(), box.uidvalidity, box.guid)

    async def select(self, name: str) -> MemoryMailbox:
        return self._box(name)

    async def append(
        self, name: str, mails: Sequence[NewMail], *, freed_bytes: int = 0, freed_mails: int = 0
    ) -> Appended:
        box = self._box(name)
        for mail in mails:
            if len(mail.source) > self._store.mail_bytes_max:
                raise TooBig(f"a mail of {len(mail.source)} bytes; allowed: {self._store.mail_bytes_max}")
        self._check_quota(sum(len(mail.source) for mail in mails) - freed_bytes, len(mails) - freed_mails)
        sources = [await _bytes_of(mail.source) for mail in mails]
        spelled = [tuple(box.state.spell(mail.flags)) for mail in mails]
        uids = []
        for mail, source, flags in zip(mails, sources, spelled, strict=True):
            oid = Oid(self._store.random_bytes(16))
            self._store.mails[oid] = source
            when = int(self._store.now()) if mail.internaldate is None else mail.internaldate
            uids += box.add(
                Rows.one(
                    0,
                    size=len(source),
                    internaldate=when,
                    zone=mail.zone,
                    savedate=0,
                    modseq=1,
                    oid=oid,
                    flags=flags,
                )
            )
        return Appended(box.uidvalidity, uids)

    async def copy(self, source: api.Mailbox, uids: UidArray, name: str, *, move: bool = False) -> Copied:
        target = self._box(name)
        if not isinstance(source, MemoryMailbox):
            raise TypeError("a mailbox of another store")
        source.require_there()
        uids = uids[source.state.positions(uids)[1]]
        if len(uids) == 0:
            return Copied(target.uidvalidity, uids, uids)
        rows = source.state.rows(np.isin(source.state.uids, uids, assume_unique=True))
        if not move:
            self._check_quota(int(rows.size.sum(dtype=np.uint64)), len(uids))
        stamps = {flag: column for flag, column in rows.stamps.items() if (column & np.uint64(1)).any()}
        names = target.state.spell(stamps)
        rows.stamps = dict(zip(names, stamps.values(), strict=True))
        new = np.array(target.add(rows), dtype=np.uint32)
        if move:
            await source.expunge(uids)
        return Copied(target.uidvalidity, uids, new)

    def usage(self) -> Usage:
        live = [box for box in self.boxes.values() if not box.deleted]
        size, messages = sum(box.state.bytes for box in live), sum(len(box.state) for box in live)
        return Usage(size, messages, self.quota_bytes, self.quota_messages)

    def _check_quota(self, size: int, messages: int) -> None:
        usage = self.usage()
        if self.quota_bytes is not None and usage.storage_bytes + size > self.quota_bytes:
            raise OverQuota(f"quota exceeded: {usage.storage_bytes} of {self.quota_bytes} bytes are in use")
        if self.quota_messages is not None and usage.messages + messages > self.quota_messages:
            raise OverQuota(f"quota exceeded: {usage.messages} of {self.quota_messages} mails are stored")

    async def release(self) -> None:
        """Nothing is held for a session."""


class MemoryStore:
    """See `api.Store`. mailboxes: (name, special use) that each user begins with."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
        mailboxes: tuple[tuple[str, str], ...] = DEFAULT_MAILBOXES,
        mail_bytes_max: int = 50 << 20,
    ) -> None:
        self.now = now
        self.random_bytes = random_bytes
        self.mailboxes = mailboxes
        self.mail_bytes_max = mail_bytes_max
        self.mails: dict[Oid, bytes] = {}
        self.users: dict[StorageId, MemoryUser] = {}

    def now_ms(self) -> int:
        """Return unix milliseconds."""
        return int(self.now() * 1000)

    async def admit(self, storage_id: StorageId) -> None:
        """See `api.Store`: all users are ours."""

    async def open_user(
        self,
        name: str,
        storage_id: StorageId,
        *,
        quota_bytes: int | None = None,
        quota_messages: int | None = None,
        make: bool = True,
    ) -> MemoryUser:
        user = self.users.get(storage_id)
        if user is None:
            if not make:
                raise NotFound("the user has no mail")
            user = self.users[storage_id] = MemoryUser(self, name, storage_id)
        user.name, user.quota_bytes, user.quota_messages = name, quota_bytes, quota_messages
        return user

    def metadata(self) -> Mapping[str, object]:
        return {"users": len(self.users), "mailboxes": sum(len(user.boxes) for user in self.users.values())}


async def _bytes_of(source: bytes | Source) -> bytes:
    """Raises Temporary."""
    if isinstance(source, bytes):
        return source
    async with source.open() as data:
        return data
