"""A user's mail together with what other users share with this user.

Names that begin with `shared/` are mailboxes of others: `shared/<owner>/<mailbox>`,
with the owner's login name. All other names go to the user's own mail. A mailbox of the
user's own that has had such a name before keeps it. See docs/sharing.md.

Each method that reaches another user's mail first asks the owner's ACL, and nothing is
waited for between the answer and the use of the name. Without the right to look up, the
answer is that the mailbox does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, NamedTuple

import structlog

from ..accounts import Accounts
from ..errors import Invalid, Limit, NoPerm, NotFound, OboxError
from ..mailbox import UidArray
from ..mailbox.names import INBOX, SEPARATOR, canonical, is_below, parents
from ..mailbox.rights import ALL, EVERYBODY, OWNER, changed, flag_right
from ..store import api
from ..store.api import Appended, Copied, Mailbox, MailboxInfo, NewMail, Status, Store, Usage, User
from ..types import Guid, StorageId
from . import across
from .guest import DENIED, GuestMailbox

log = structlog.get_logger()

ROOT: Final = "shared"
_PREFIX: Final = ROOT + SEPARATOR


class Sharing:
    """What all visitors of a process have in common."""

    def __init__(self, accounts: Accounts, store: Store) -> None:
        self.accounts = accounts
        self._store = store
        self.reading = asyncio.Semaphore(across.READING_MAX)

    def visitor(self, user: User, who: str) -> Visitor:
        """Return a user's mail with what others share. who: the login name."""
        return Visitor(self, user, who)

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[tuple[User, str]]:
        """Open another user's mail; also yields the normalised login name. Raises
        NotFound if there is no such user, or the user has no mail; Unavailable."""
        try:
            account = await self.accounts.account(name)
        except Invalid:
            account = None
        if account is None:
            raise NotFound("no such user")
        quota = account.quota
        user = await self._store.open_user(
            account.name,
            account.storage_id,
            quota_bytes=quota.storage_bytes,
            quota_messages=quota.messages,
            make=False,
        )
        try:
            yield user, account.name
        finally:
            await user.release()


class _Visit(NamedTuple):
    """Where a shared name leads. full: the whole name."""

    owner: User
    login: str
    name: str
    full: str


def _missing(full: str) -> NotFound:
    """Return the one answer for what is not there and what may not be looked up."""
    return NotFound(f"no mailbox {full!r}")


def _check(rights: str, needed: str, full: str) -> None:
    """Raises NoPerm, or NotFound where the name may not be looked up. RFC 4314 §6."""
    if not set(needed) <= set(rights):
        raise NoPerm(DENIED) if "l" in rights else _missing(full)


class Visitor:
    """See the module's text and `api.User`."""

    __slots__ = ("_own", "_sharing", "who")

    def __init__(self, sharing: Sharing, own: User, who: str) -> None:
        self._sharing, self._own, self.who = sharing, own, who

    # -- what is the user's own ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._own.name

    @property
    def storage_id(self) -> StorageId:
        return self._own.storage_id

    @property
    def changes(self) -> api.Changes:
        return self._own.changes

    @property
    def annotations(self) -> api.Annotations:
        return self._own.annotations

    @property
    def rights(self) -> api.Rights:
        return self._own.rights

    async def commit(self) -> None:
        await self._own.commit()

    async def current(self) -> None:
        await self._own.current()

    def mailboxes(self) -> list[MailboxInfo]:
        return self._own.mailboxes()

    def subscriptions(self) -> list[str]:
        return self._own.subscriptions()

    def usage(self) -> Usage:
        return self._own.usage()

    async def release(self) -> None:
        await self._own.release()

    # -- names ---------------------------------------------------------------------------------------------------------

    def foreign(self, name: str) -> bool:
        """Return whether a name is in the namespace of other users' mailboxes."""
        if name != ROOT and not name.startswith(_PREFIX):
            return False
        return all(info.name != name or info.guid is None for info in self._own.mailboxes())

    @asynccontextmanager
    async def _visit(self, full: str) -> AsyncIterator[_Visit]:
        """Open the owner of a name. Raises NotFound, Unavailable."""
        login, _, name = full.removeprefix(_PREFIX).partition(SEPARATOR)
        if full == ROOT or not login or not name:
            raise _missing(full)
        async with self._entered(login, full) as (owner, known):
            yield _Visit(owner, known, canonical(name), full)

    @asynccontextmanager
    async def _entered(self, login: str, full: str) -> AsyncIterator[tuple[User, str]]:
        """Open another user's mail. Raises NotFound, also for the user's own name."""
        async with AsyncExitStack() as stack:
            try:
                owner, known = await stack.enter_async_context(self._sharing.opened(login))
            except (Limit, asyncio.CancelledError):
                raise
            except OboxError as error:
                # A failure would show that the user exists.
                if not isinstance(error, NotFound):
                    log.warning("mail of another user cannot be opened", user=self.who, owner=login, error=str(error))
                raise _missing(full) from None
            if owner.storage_id == self.storage_id:
                raise _missing(full)
            yield owner, known

    def _granted(self, visit: _Visit, needed: str) -> str:
        """Return the rights in a mailbox. Raises NotFound, NoPerm."""
        rights = visit.owner.rights.granted(visit.name, self.who)
        _check(rights, needed, visit.full)
        return rights

    @contextmanager
    def _as_named(self, visit: _Visit) -> Iterator[None]:
        """Let errors name the mailbox as the visitor does."""
        try:
            yield
        except NotFound:
            raise _missing(visit.full) from None

    # -- the list of mailboxes -----------------------------------------------------------------------------------------

    async def shared(self) -> dict[str, str]:
        """Return what others share: rights by name, of mailboxes that LIST may show.

        Owners who do not answer are left out. Owners who share nothing are forgotten.
        """
        found = {}
        for login in self.rights.owners():
            try:
                async with self._entered(login, _PREFIX + login) as (owner, known):
                    theirs = self._shared_by(owner, known)
                    if not theirs:
                        await self.rights.note_owner(login, on=False)
            except OboxError as error:
                log.debug("mailboxes of an owner are not listed", user=self.who, owner=login, error=str(error))
                continue
            found.update(theirs)
        return found

    def _shared_by(self, owner: User, login: str) -> dict[str, str]:
        found = {}
        for name in owner.rights.shared():
            rights = owner.rights.granted(name, self.who)
            if "l" in rights:
                found[f"{_PREFIX}{login}{SEPARATOR}{name}"] = rights
        return found

    async def _learn(self, login: str) -> None:
        """Note an owner whose mailbox the user has opened by its name. Only LIST needs
        the note, so a failure is logged."""
        if login not in self.rights.owners():
            try:
                await self.rights.note_owner(login, on=True)
            except OboxError as error:
                log.info("owner of a shared mailbox not noted", user=self.who, owner=login, error=str(error))

    async def create(self, name: str, special_use: str = "") -> Guid:
        """See `api.User`. A mailbox below another user's gets the ACL of the mailbox
        above it, so that those who work there see it. It is created first: a crash
        leaves a mailbox that only its owner sees."""
        if not self.foreign(name):
            return await self._own.create(name, special_use)
        async with self._visit(name) as visit:
            above = self._above(visit)
            if special_use:
                raise Invalid("another user's mailbox has no special use")
            entries = visit.owner.rights.of(above)
            guid = await visit.owner.create(visit.name)
            await visit.owner.rights.change(visit.name, entries)
            return guid

    def _above(self, visit: _Visit) -> str:
        """Return the nearest mailbox above a name, in which the user may create. Raises
        NotFound, NoPerm."""
        there = {info.name for info in visit.owner.mailboxes() if info.guid is not None}
        for name in sorted(parents(visit.name), key=len, reverse=True):
            if name in there:
                _check(visit.owner.rights.granted(name, self.who), "k", visit.full)
                return name
        raise _missing(visit.full)

    async def delete(self, name: str) -> None:
        if not self.foreign(name):
            await self._own.delete(name)
            return
        async with self._visit(name) as visit:
            self._granted(visit, "x")
            with self._as_named(visit):
                await visit.owner.delete(visit.name)

    async def rename(self, old: str, new: str) -> None:
        """See `api.User`. Another user's mailbox stays with its owner. The user must be
        allowed to delete it and all mailboxes below, which move with it."""
        source, target = self.foreign(old), self.foreign(new)
        if not source and not target:
            await self._own.rename(old, new)
            return
        if not source or not target:
            raise Invalid("a mailbox cannot be renamed to another user")
        async with self._visit(old) as visit:
            self._granted(visit, "x")
            login, _, name = new.removeprefix(_PREFIX).partition(SEPARATOR)
            # Another login name is not looked up, because the answer would show whether
            # such a user exists. A second name of the owner is refused as well.
            if self._sharing.accounts.normalise(login) != visit.login or not name:
                raise Invalid("a mailbox cannot be renamed to another user")
            there = _Visit(visit.owner, visit.login, canonical(name), new)
            self._above(there)
            below = (one.name for one in visit.owner.mailboxes() if one.guid and is_below(one.name, visit.name))
            if visit.name == INBOX or not all("x" in visit.owner.rights.granted(one, self.who) for one in below):
                raise NoPerm(DENIED)
            with self._as_named(visit):
                await visit.owner.rename(visit.name, there.name)

    async def subscribe(self, name: str, on: bool) -> None:
        if on and self.foreign(name):
            async with self._visit(name) as visit:
                self._granted(visit, "l")
                await self._learn(visit.login)
        await self._own.subscribe(name, on)

    async def status(self, name: str) -> Status:
        if not self.foreign(name):
            return await self._own.status(name)
        async with self._visit(name) as visit:
            self._granted(visit, "r")
            with self._as_named(visit):
                status = await visit.owner.status(visit.name)
            self._granted(visit, "r")  # it may have been taken away meanwhile
            return status

    async def select(self, name: str) -> Mailbox:
        if not self.foreign(name):
            return await self._own.select(name)
        async with self._visit(name) as visit:
            self._granted(visit, "r")
            with self._as_named(visit):
                mailbox = GuestMailbox(await visit.owner.select(visit.name), visit.owner, self.who)
            try:
                await self._learn(visit.login)
                self._granted(visit, "r")  # it may have been taken away meanwhile
            except BaseException:
                await mailbox.release()
                raise
            return mailbox

    # -- mails ---------------------------------------------------------------------------------------------------------

    async def append(
        self, name: str, mails: Sequence[NewMail], *, freed_bytes: int = 0, freed_mails: int = 0
    ) -> Appended:
        """See `api.User`. In another user's mailbox flags without their right are
        dropped (RFC 4314 §4), and nothing that is freed elsewhere counts."""
        if not self.foreign(name):
            return await self._own.append(name, mails, freed_bytes=freed_bytes, freed_mails=freed_mails)
        async with self._visit(name) as visit:
            rights = self._granted(visit, "i")
            made = [
                NewMail(
                    mail.source,
                    tuple(flag for flag in mail.flags if flag_right(flag) in rights),
                    mail.internaldate,
                    mail.zone,
                )
                for mail in mails
            ]
            with self._as_named(visit):
                return await visit.owner.append(visit.name, made)

    async def copy(self, source: Mailbox, uids: UidArray, name: str, *, move: bool = False) -> Copied:
        """See `api.User`. Between mailboxes of one user the bucket copies nothing;
        between two users mails are read and appended (`across`)."""
        guest = source if isinstance(source, GuestMailbox) else None
        if guest is not None:
            guest.need("te" if move else "")
        if not self.foreign(name):
            if guest is None:
                return await self._own.copy(source, uids, name, move=move)

            def all_here() -> str:
                self.rights.of(name)
                return ALL

            return await self._across(source, uids, across.Target(self._own, name, all_here), move=move)
        async with self._visit(name) as visit:

            def granted() -> str:
                return self._granted(visit, "i")

            same = guest is not None and guest.owner.storage_id == visit.owner.storage_id
            with self._as_named(visit):
                if guest is not None and same and set("swt") <= set(granted()):
                    return await visit.owner.copy(guest.inner, uids, visit.name, move=move)
                target = across.Target(visit.owner, visit.name, granted)
                return await self._across(source, uids, target, move=move)

    async def _across(self, source: Mailbox, uids: UidArray, target: across.Target, *, move: bool) -> Copied:
        return await across.copy(source, uids, target, move=move, reading=self._sharing.reading)

    # -- rights --------------------------------------------------------------------------------------------------------

    async def my_rights(self, name: str) -> str:
        """Return the user's rights in a mailbox. Raises NotFound: also without any
        right that MYRIGHTS needs (RFC 4314 §4)."""
        if not self.foreign(name):
            self.rights.of(name)
            return ALL
        async with self._visit(name) as visit:
            rights = visit.owner.rights.granted(visit.name, self.who)
            if not set(rights) & set("lrikxa"):
                raise _missing(name)
            return rights

    @asynccontextmanager
    async def _administered(self, name: str) -> AsyncIterator[tuple[User, str, str]]:
        """Open the owner of a mailbox whose ACL the user may read and change. Yields
        the owner, the owner's login name, and the mailbox's name there. Raises
        NotFound, NoPerm."""
        if not self.foreign(name):
            self.rights.of(name)
            yield self._own, self.who, name
            return
        async with self._visit(name) as visit:
            self._granted(visit, "a")
            yield visit.owner, visit.login, visit.name

    async def acl(self, name: str) -> Mapping[str, str]:
        """Return the ACL of a mailbox, with the owner first. Raises NotFound,
        NoPerm."""
        async with self._administered(name) as (owner, login, there):
            return {login: ALL, **dict(sorted(owner.rights.of(there).items()))}

    async def change_acl(self, name: str, identifier: str, how: str, rights: str) -> None:
        """Change the rights of an identifier; see `mailbox.rights.changed`. The change
        is in the bucket on return. Raises NotFound, NoPerm, Invalid, Limit."""
        async with self._administered(name) as (owner, login, there):
            who = self._identified(identifier, login)
            if who == login:
                if changed(ALL, how, rights) != ALL:
                    raise Invalid("the owner has all rights, and they cannot be taken away")
                return
            if who.removeprefix("-") == login:
                raise Invalid("the owner has all rights, and they cannot be taken away")
            before = owner.rights.of(there).get(who, "")
            after = changed(before, how, rights)
            await owner.rights.change(there, {who: after})
            if after and not who.startswith("-") and who not in EVERYBODY:
                await self._note_at(who, login)

    async def grantable(self, name: str, identifier: str) -> tuple[str, str]:
        """Return the rights that an identifier always has in a mailbox, and those that
        it may get, each by itself. Raises NotFound, NoPerm, Invalid."""
        async with self._administered(name) as (_, login, _there):
            who = self._identified(identifier, login)
            return (ALL, "") if who == login else ("", ALL)

    def _identified(self, identifier: str, login: str) -> str:
        """Return the normal form of an identifier. login: the owner's name. Raises
        Invalid."""
        sign = "-" if identifier.startswith("-") else ""
        bare = identifier.removeprefix(sign)
        if bare in EVERYBODY:
            return sign + bare
        if bare == OWNER:
            return sign + login
        return sign + self._sharing.accounts.normalise(bare)

    async def _note_at(self, grantee: str, login: str) -> None:
        """Note the owner at a user who has got rights, so that LIST finds the mailbox.
        A user who has no mail yet finds it by its name. Only LIST needs the note, so
        a failure is logged."""
        try:
            async with self._sharing.opened(grantee) as (user, _):
                if login not in user.rights.owners():
                    await user.rights.note_owner(login, on=True)
        except NotFound:
            return
        except OboxError as error:
            log.info("owner of a shared mailbox not noted", user=grantee, owner=login, error=str(error))
