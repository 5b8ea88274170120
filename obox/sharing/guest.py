"""Another user's mailbox, as a session uses it with the rights that it has now.

A mailbox that the session may not read any more counts as deleted: the protocol then
leaves it, and the client learns no more than of a mailbox that is gone.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from ..errors import NoPerm
from ..mailbox import FlagOp, State, UidArray, united, within
from ..mailbox.rights import flag_right
from ..mailbox.search import Query
from ..store.api import Fields, Mailbox, Stored, Unreadable, User

DENIED = "You have no right to do this in the mailbox"


class GuestMailbox:
    """See the module's text and `api.Mailbox`. owner: the user who has the mailbox.
    who: the login name of the user who visits it."""

    __slots__ = ("_who", "guid", "inner", "owner", "uidvalidity")

    def __init__(self, inner: Mailbox, owner: User, who: str) -> None:
        self.inner, self.owner, self._who = inner, owner, who
        self.guid, self.uidvalidity = inner.guid, inner.uidvalidity

    @property
    def rights(self) -> str:
        """Return the rights that are in force now."""
        return self.owner.rights.held(self.guid, self._who)

    def need(self, rights: str) -> None:
        """Raises NoPerm without these rights, or without the right to read."""
        if not {"r", *rights} <= set(self.rights):
            raise NoPerm(DENIED)

    @property
    def state(self) -> State:
        return self.inner.state

    @property
    def deleted(self) -> bool:
        return self.inner.deleted or "r" not in self.rights

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """See `api.Mailbox`. Changes of rights wake the session, too."""
        ends = self.inner.watch(wake), self.owner.changes.watch(lambda box: None if box else wake())

        def end() -> None:
            for one in ends:
                one()

        return end

    def take_recent(self) -> int:
        """Return what is \\Recent. It stays so: the owner has not seen it."""
        return self.inner.state.recent

    async def fields(
        self, uids: Sequence[int], *, autofix: bool | None = None, bytes_max: int = sys.maxsize
    ) -> list[Fields | Unreadable | None]:
        self.need("r")
        return await self.inner.fields(uids, autofix=autofix, bytes_max=bytes_max)

    async def mail(self, uid: int, *, autofix: bool | None = None) -> bytes:
        self.need("r")
        return await self.inner.mail(uid, autofix=autofix)

    async def mails(
        self, uids: Sequence[int], *, autofix: bool | None = None
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        self.need("r")
        async for found in self.inner.mails(uids, autofix=autofix):
            self.need("r")
            yield found

    async def part(self, uid: int, start: int, end: int, *, autofix: bool | None = None) -> bytes:
        self.need("r")
        return await self.inner.part(uid, start, end, autofix=autofix)

    async def search(self, query: Query, uids: UidArray, *, autofix: bool | None = None) -> UidArray:
        self.need("r")
        found = await self.inner.search(query, uids, autofix=autofix)
        self.need("r")
        return found

    async def store_flags(
        self,
        uids: UidArray,
        op: FlagOp,
        flags: Iterable[str],
        unchanged_since: int | None = None,
        *,
        committed: bool = True,
    ) -> Stored:
        """Change the flags that the rights allow, and leave the others as they are.
        Raises NoPerm if none may be changed. RFC 4314 §4 (STORE).

        The change is committed in any case: `User.commit` is the visitor's.
        """
        flags, rights = list(flags), set(self.rights)
        self.need("r")
        allowed = [flag for flag in flags if flag_right(flag) in rights]
        mine = rights & set("swt")
        if not mine or (op != "replace" and flags and not allowed):
            raise NoPerm(DENIED)
        if op != "replace" or len(mine) == len("swt"):
            return await self.inner.store_flags(uids, op, allowed, unchanged_since)
        # No other task runs between these two, because nothing is waited for.
        kept = {flag.lower() for flag in allowed}
        added = await self.inner.store_flags(uids, "add", allowed, unchanged_since, committed=False)
        others = [name for name in self.state.flags.names if flag_right(name) in rights and name.lower() not in kept]
        left = uids[~within(uids, added.refused)]
        removed = await self.inner.store_flags(left, "remove", others, committed=False)
        await self.owner.commit()
        return Stored(united(added.changed, removed.changed), added.refused, max(added.modseq, removed.modseq))

    async def expunge(self, uids: UidArray) -> UidArray:
        self.need("e")
        return await self.inner.expunge(uids)

    async def release(self) -> None:
        await self.inner.release()
