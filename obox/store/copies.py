"""The store as owner of the local copies: what of them is in use, must be uploaded, and may go (metacache.Owner).

Invariant: a copy whose mailbox is in memory goes only in the same turn of the loop in which the memory lets go of it; a
mailbox that a task or a session may still hold is never let go of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metacache import Change, Copy

from ..objectstore.keys import ROOT
from ..types import Guid, StorageId
from .stamp import Stamp

if TYPE_CHECKING:
    from .store import MailStore
    from .user import User

LONG_AGO: Final = float("-inf")

FIELDS_UNSAVED_MAX: Final = 10
"""Mails whose ready fields no segment holds: so many may be read again, one GET each, before an upload is cheaper."""


class Copies:
    """See `metacache.Owner`. close_delay_s: what was used so lately is in use."""

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
            return not self._quiet(found) or any(self._holds(found, guid) for guid in found.boxes)
        return self._holds(found, Guid(box))

    def _quiet(self, user: User) -> bool:
        """No session, no task, and none just now."""
        busy = user.sessions or user.working or user.opening() or user.pending
        return not busy and user.used_at <= self._store.env.clock() - self.close_delay_s

    def _holds(self, user: User, guid: Guid) -> bool:
        """Somebody may have this mailbox in hand. Beside sessions and tasks it must be as idle as for leaving
        memory."""
        mailbox = user.boxes.get(guid)
        if mailbox is None:
            return user.opening()
        env = self._store.env
        delay_s = self.close_delay_s if self._quiet(user) else max(self.close_delay_s, env.settings.idle_s)
        return mailbox.busy() or mailbox.used_at > env.clock() - delay_s

    def must_upload(self, user: str, box: str, copy: Copy | None) -> bool:
        """Changes; of a root exact totals too, of a mailbox ready fields, without which a later open costs more."""
        stamp = None if copy is None else Stamp.decode(copy.stamp)
        if copy is None or stamp is None:
            return False  # without a stamp nobody can read it
        if copy.change is not Change.IMPORTANT and not self._store.env.assignment(user).covers(stamp):
            return False  # from before a takeover: the bucket is asked again in any case
        if copy.change is not Change.NONE:
            return True
        if box == ROOT:
            return not stamp.clean
        cache = self._store.env.metacache
        return len(cache.iter_fields(user, box, stamp.cached_uid + 1, 0xFFFFFFFF)) > FIELDS_UNSAVED_MAX

    async def flush(self, user: str, box: str) -> None:
        """The use that this is itself does not count as one."""
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
                    (await opened.box(Guid(name))).used_at = LONG_AGO  # what an earlier process did not upload
            await opened.flush(everything=True)
        elif box in opened.root.entries:
            mailbox = await opened.box(Guid(box))
            mailbox.used_at = used_at.get(Guid(box), LONG_AGO)
            await mailbox.flush(everything=True)
        else:
            store.env.metacache.mark(user, box, Change.NONE)  # cleared: no list knows it any more
        if not opened.sessions:
            opened.used_at = user_used_at

    def let_go(self, user: str, box: str) -> bool:
        if self.in_use(user, box):
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
            found.sync_totals()
            del found.boxes[Guid(box)]
        return True
