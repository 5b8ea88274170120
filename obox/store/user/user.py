"""A user's mail: the list of mailboxes, and operations that concern several mailboxes.

`boxes.Boxes` has what is in memory of a user, and loads it. Creating, renaming and
deleting mailboxes changes names. These changes are in the bucket before they are
acknowledged.

This module knows no protocols and no other users.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ...errors import NotFound, TooBig
from ...mailbox import MailboxEntry, Root, RootDelta, Totals, UidArray
from ...mailbox.names import canonical, check_name
from ...types import Guid, StorageId
from .. import api
from ..api import Appended, Copied, MailboxInfo, NewMail, Status, Usage
from ..box.arrivals import Draft
from ..env import ANSWER_S, Env, answer_within
from ..mails.quota import Reservations
from ..mails.write import PUTS_AT_ONCE, write_mails
from . import copy as _copy
from . import mailboxes as _mailboxes
from .boxes import Backend, Boxes
from .mailbox import Mailbox


class User(Boxes):
    """See `api.User`."""

    def __init__(self, store: Backend, env: Env, name: str, storage_id: StorageId) -> None:
        super().__init__(store, env, name, storage_id)
        self.quota = Reservations(self)
        self._counting = False

    def limit(self, quota_bytes: int | None, quota_messages: int | None) -> None:
        """Set the quota. After an unclean end, mailboxes are loaded in the
        background."""
        self.quota.bytes_max, self.quota.messages_max = quota_bytes, quota_messages
        if not self._counted and not self._counting and (quota_bytes is not None or quota_messages is not None):
            self._counting = True
            self.spawn(self._count_all())

    async def _count_all(self) -> None:
        """Make all totals exact. Failures are tried again at the next login or
        delivery."""
        try:
            await self._load_inexact()
            self._counted = True
        finally:
            self._counting = False

    async def _load_inexact(self) -> None:
        for entry in list(self.root.names().values()):
            if Guid(entry.guid) not in self._exact:
                await self.box(Guid(entry.guid))

    @cached_property
    def annotations(self) -> api.Annotations:
        """See `api.User.annotations`."""
        from ..annotations import Annotations

        return Annotations(lambda: self.root, self.env.now_ms, self.change_root, self.journal.sync)

    @cached_property
    def rights(self) -> api.Rights:
        """See `api.User.rights`."""
        from ..rights import FORM, Rights

        return Rights(
            lambda: Root() if self.deleted else self.root,
            self.env.now_ms,
            self.change_root,
            self.journal.sync,
            lambda: self.env.forms.writes(FORM) >= 1,
        )

    async def current(self) -> None:
        """See `api.User.current`."""
        if not self.journal.sure():
            await self.journal.confirm()
        self._require_ours()

    async def release(self) -> None:
        self.sessions -= 1
        self.used_at = self.env.clock()

    # -- the list of mailboxes ----------------------------------------------------------------------------------------

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
        return Status.of(totals, entry.uidvalidity, guid)

    async def select(self, name: str) -> Mailbox:
        box = await self.box(Guid(self.entry(name).guid))
        box.sessions += 1
        return box

    # -- mails --------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        self.sync_totals()
        size, messages = self.root.usage()
        return Usage(size, messages, self.quota.bytes_max, self.quota.messages_max)

    def _check_size(self, size: int) -> None:
        """Raises TooBig."""
        if size > self.env.settings.max_mail_size:
            raise TooBig(f"a mail of {size} bytes; allowed: {self.env.settings.max_mail_size}")

    async def append(
        self, name: str, mails: Sequence[NewMail], *, freed_bytes: int = 0, freed_mails: int = 0
    ) -> Appended:
        entry = self.entry(name)
        for mail in mails:
            self._check_size(len(mail.source))
        size = sum(len(mail.source) for mail in mails)
        room = self.quota.take(size, len(mails), freed_bytes, freed_mails)
        try:
            async with answer_within(ANSWER_S * (1 + len(mails) // PUTS_AT_ONCE)):
                box = await self.box(Guid(entry.guid))
                box.require_live()
                box.require_room(len(mails))
                if len(mails) > 1:  # the keywords of all mails are checked together
                    box.state.spell(flag for mail in mails for flag in mail.flags)
                drafts = [
                    Draft(mail.source, tuple(box.state.spell(mail.flags)), mail.internaldate, mail.zone)
                    for mail in mails
                ]
                uids = await write_mails(box, drafts, room)
                if self.env.until_heard is not None:
                    await self.env.until_heard()
                return Appended(entry.uidvalidity, uids)
        finally:
            room.end()

    async def copy(self, source: api.Mailbox, uids: UidArray, name: str, *, move: bool = False) -> Copied:
        if not isinstance(source, Mailbox):
            raise TypeError("a mailbox of another store")
        return await (_copy.move if move else _copy.copy)(self, source, uids, name)
