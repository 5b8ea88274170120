"""The store as owner of the local copies (metacache.Owner). It says which copies are in
use, must be uploaded, and may be dropped.

Invariant: a copy whose mailbox is in memory is dropped only in the turn of the loop in
which the mailbox is unloaded. A mailbox that a task or a session may still use is never
unloaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metacache import Change, Copy, changed

from ...objectstore.keys import ROOT
from ...types import Guid, StorageId
from ..stamp import Stamp

if TYPE_CHECKING:
    from ..user.user import User
    from .store import MailStore

LONG_AGO: Final = float("-inf")

FIELDS_UNSAVED_MAX: Final = 10
"""If at most ten mails have their ready fields in no segment, it is cheaper to read
these mails again, with a GET each, than to upload the fields."""


class Copies:
    """See `metacache.Owner`. close_delay_s: a copy counts as in use for this time after
    its last use."""

    def __init__(self, store: MailStore, *, close_delay_s: float = 2.0) -> None:
        self._store = store
        self.close_delay_s = close_delay_s

    def in_use(self, user: str, box: str) -> bool:
        store, sid = self._store, StorageId(user)
        if store.opening(sid) is not None or store.awaits_takeover(sid):
            return True
        found = store.users.get(sid)
        if found is None:
            return False
        if box == ROOT:
            uploading = found.rootbox.flushing.locked()
            return uploading or not self._quiet(found) or any(self._holds(found, guid) for guid in found.boxes)
        return self._holds(found, Guid(box))

    def _quiet(self, user: User) -> bool:
        """Return whether the user has no session and no task, and had none a moment
        ago."""
        busy = user.sessions or user.working or user.opening() or user.pending
        return not busy and user.used_at <= self._store.env.clock() - self.close_delay_s

    def _holds(self, user: User, guid: Guid) -> bool:
        """Return whether a session or a task may use this mailbox. Otherwise it must be
        as idle as for being unloaded."""
        mailbox = user.boxes.get(guid)
        if mailbox is None:
            return user.opening()
        env = self._store.env
        delay_s = self.close_delay_s if self._quiet(user) else max(self.close_delay_s, env.settings.idle_s)
        return mailbox.busy() or mailbox.used_at > env.clock() - delay_s

    def must_upload(self, user: str, box: str, copy: Copy | None) -> bool:
        """Return whether the bucket lacks changes, a root's exact totals, or a
        mailbox's ready fields, without which a later open costs more."""
        stamp = None if copy is None else Stamp.decode(copy.stamp)
        if copy is None or stamp is None:
            return False  # without a stamp it cannot be used
        if copy.change is not Change.IMPORTANT and not self._store.env.assignment(user).covers(stamp):
            # From before a takeover: it will be compared with the bucket in any case.
            return False
        if copy.change is not Change.NONE:
            return True
        cache = self._store.env.metacache
        if box == ROOT:
            # Its totals are not exact without what the copies of mailboxes have.
            return not stamp.clean or changed(cache, user)
        return len(cache.iter_fields(user, box, stamp.cached_uid + 1, 0xFFFFFFFF)) > FIELDS_UNSAVED_MAX

    async def flush(self, user: str, box: str) -> None:
        """Upload what the bucket lacks of a copy.

        Flushing must not refresh `used_at`; otherwise the cleaner would keep the copy
        that it is about to drop.
        """
        store, sid = self._store, StorageId(user)
        before = store.users.get(sid)
        used_at = {} if before is None else {guid: one.used_at for guid, one in before.boxes.items()}
        user_used_at = LONG_AGO if before is None else before.used_at
        opened = await store.load_user(store.name_of(sid), sid)
        if box == ROOT:
            for name in store.env.metacache.boxes(user):
                copy = store.env.metacache.peek(user, name)
                missing = Guid(name) not in opened.boxes and name in opened.root.entries
                if missing and copy is not None and copy.change is not Change.NONE:
                    # An earlier process did not upload it.
                    (await opened.box(Guid(name))).used_at = LONG_AGO
            await opened.flush(everything=True)
        elif box in opened.root.entries:
            mailbox = await opened.box(Guid(box))
            mailbox.used_at = used_at.get(Guid(box), LONG_AGO)
            await mailbox.flush(everything=True)
        else:
            # cleared: it is in no list any more.
            store.env.metacache.mark(user, box, Change.NONE)
        if not opened.sessions:
            opened.used_at = user_used_at

    def unload(self, user: str, box: str) -> bool:
        if self.in_use(user, box):
            return False
        if box == ROOT and changed(self._store.env.metacache, user):
            # The bucket's root has old totals, and may call them exact.
            return False
        sid = StorageId(user)
        found = self._store.users.get(sid)
        if found is None:
            return True
        if box == ROOT:
            if found.rootbox.change is not Change.NONE or any(
                one.change is not Change.NONE for one in found.boxes.values()
            ):
                return False
            del self._store.users[sid]
            return True
        mailbox = found.boxes.get(Guid(box))
        if mailbox is not None:
            if mailbox.change is not Change.NONE:
                return False
            found.sync_totals({mailbox.guid: mailbox})
            if found.uncounted:
                return False
            del found.boxes[Guid(box)]
        return True
