"""What verbs use: the rooms of a backend, which `obox.wiring` passes in, and the users
of a request.

Invariant: a user is opened here with the limits of the user database. So a verb never
changes the quota of a session of that user.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..accounts import Account, storage_id
from ..errors import ConfigError, Invalid, NotFound, Unavailable
from ..escaping import unescape
from ..types import StorageId
from .exits import NoUser
from .params import Selection

if TYPE_CHECKING:
    from metacache import Cleaner

    from ..auth import Authenticator, PasswdFile
    from ..cluster import Assigned, Directory, Member
    from ..events import Events
    from ..mailbox.search import Query
    from ..store import MailStore
    from ..store.user.mailbox import Mailbox
    from ..store.user.user import User
    from .peers import Kick, Sources


NAMES_S: Final = 5.0
"""How old the table of names by storage id may be. To make it for a million users takes
a second."""


class Session(Protocol):
    """A connection of a client."""

    @property
    def id(self) -> int: ...
    @property
    def user(self) -> str: ...
    @property
    def remote(self) -> str: ...
    @property
    def tls(self) -> bool: ...
    @property
    def state(self) -> str: ...
    @property
    def mailbox(self) -> str: ...
    @property
    def idle(self) -> bool: ...
    @property
    def since(self) -> float: ...
    @property
    def mail(self) -> str:
        """The storage id of the user, whom several names may have."""

    @property
    def service(self) -> str:
        """Return the protocol."""


class Server(Protocol):
    """The running process, as far as verbs control it."""

    def sessions(self) -> Sequence[Session]:
        """Return all connections, the oldest first."""

    def kick(self, sessions: Sequence[Session], reason: str) -> None:
        """End these sessions with BYE, each as soon as its command is done."""

    async def reload(self) -> tuple[Sequence[str], Sequence[str]]:
        """Read the configuration again. Returns the settings that are used from now on,
        and those that need a restart.

        Raises ConfigError; then the old configuration stays. Raises Unavailable if the
        process ends.
        """

    def stop_logins(self) -> None:
        """Accept no more mail clients and deliveries. This API continues."""

    def stop(self) -> None:
        """End the process as SIGTERM does."""


@dataclass(frozen=True, slots=True)
class OwnHttp:
    """How this backend's own admin API is reached. Other backends of a cluster are
    reached in the same way, unless a request says otherwise."""

    key: str = field(default="", repr=False)
    port: int = 8080
    tls: bool = False


@dataclass(frozen=True, slots=True)
class ClusterParts:
    """The cluster as verbs see it.

    name: of its directory, without a password; backend: the name in the configuration;
    reads: formats that this code can read; serves: the units that this backend serves,
    None if no backend runs here; probe, kick: None without a secret.
    """

    directory: Directory
    name: str
    backend: str
    dead_after_s: float
    reads: Mapping[str, int]
    serves: Callable[[], Mapping[str, Assigned]] | None = None
    probe: Probe | None = None
    kick: Kick | None = None


class Probe(Protocol):
    """Tries a login at a backend, as other members do it."""

    async def __call__(self, backend: str, member: Member, account: Account, assigned: Assigned) -> tuple[bool, str]:
        """Return whether it works, and what was seen."""


class FindCluster(Protocol):
    """Opens the directory for the time of a verb."""

    def __call__(self, *, make: bool = False) -> AbstractAsyncContextManager[ClusterParts]:
        """make: the file of the directory need not exist. Raises ConfigError and
        Unavailable."""


Evaluate = Callable[["Mailbox"], "Query"]
"""A parsed search, resolved for a single mailbox, because sequence numbers depend on
it."""


@dataclass(slots=True)
class Admin:
    """The parts. store: None if there is only a configuration. server: None if no
    backend runs. claims: asks other backends which units they serve; None if there is
    no way to ask. connections: asks all backends how many sessions each mail has, by
    storage id; None as well. sources: None outside of a cluster. events: None without a
    listener.
    """

    users: PasswdFile
    authenticator: Callable[[], Authenticator]
    parse_search: Callable[[bytes], Evaluate]
    find_store: MailStore | None = None
    find_cleaner: Cleaner | None = None
    server: Server | None = None
    recent: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    describe_bucket: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    own_http: OwnHttp = OwnHttp()
    find_cluster: FindCluster | None = None
    claims: Callable[[], Awaitable[Mapping[str, Mapping[str, Assigned]]]] | None = None
    connections: Callable[[], Awaitable[Mapping[str, int]]] | None = None
    sources: Sources | None = None
    events: Events | None = None
    known_names: tuple[float, dict[StorageId, str]] = (float("-inf"), {})

    @property
    def store(self) -> MailStore:
        """Raises Unavailable."""
        if self.find_store is None:
            raise Unavailable("no backend runs here")
        return self.find_store

    @property
    def cleaner(self) -> Cleaner:
        """Raises Unavailable."""
        if self.find_cleaner is None:
            raise Unavailable("no backend runs here")
        return self.find_cleaner

    @property
    def backend(self) -> Server:
        """Raises Unavailable."""
        if self.server is None:
            raise Unavailable("no backend runs here")
        return self.server

    @asynccontextmanager
    async def cluster(self, *, make: bool = False) -> AsyncIterator[ClusterParts]:
        """Open the cluster's directory for the time of the context. Raises
        ConfigError; Unavailable, with the reason, which clients do not see."""
        if self.find_cluster is None:
            raise ConfigError('cluster.directory = "local": this backend serves all users, and there is no cluster')
        try:
            async with self.find_cluster(make=make) as found:
                yield found
        except Unavailable as error:
            notes = getattr(error, "__notes__", ())
            if type(error) is not Unavailable or not notes:
                raise
            raise Unavailable(f"{error}: {'; '.join(notes)}") from error

    # -- users -----------------------------------------------------------------------------------------------------

    def named(self, name: str) -> Account:
        """Return the account of a name that the user database need not have. Raises
        Invalid."""
        name = self.users.normalise(name)
        return Account(name, storage_id(name), known=False)

    def name_of(self, sid: str) -> str:
        """Return the name of the user with a storage id, if it is known."""
        return self.names().get(StorageId(sid)) or _unescaped(sid)

    def names(self) -> dict[StorageId, str]:
        """Return users by storage id. The table is at most NAMES_S old. If a mail has
        several names, the table has the name that is the storage id, or the first."""
        at, names = self.known_names
        if time.monotonic() - at >= NAMES_S:
            names = {}
            try:
                for entry in self.users.users():
                    sid = entry.sid
                    if sid not in names or storage_id(entry.user) == sid:
                        names[sid] = entry.user
            except Unavailable:
                pass
            self.known_names = time.monotonic(), names
        return names

    def forget_names(self) -> None:
        """Forget the table of names, because a user was renamed."""
        self.known_names = float("-inf"), {}

    async def select(self, selection: Selection) -> list[Account]:
        """Return the users of a request, by name. Raises NoUser, Invalid,
        Unavailable."""
        from .masks import entries_that_match, masked  # loaded with the verbs

        given = (selection.user is not None) + bool(selection.users) + selection.all_users
        if given != 1:
            raise Invalid("users must be named in one way; allowed: one of user, users, allUsers")
        if selection.no_userdb_lookup:
            if selection.all_users or masked(selection.user or ""):
                raise Invalid("noUserdbLookup takes names; allowed: no mask, not allUsers")
            return [self.named(name) for name in selection.users or [selection.user or ""]]
        self.users.expect_change()  # the file may have been changed a moment ago
        await self.users.refresh()
        if selection.all_users or masked(selection.user or ""):
            mask = "*" if selection.all_users else (selection.user or "").lower()
            found = await entries_that_match(self.users.users(), mask, lambda entry: entry.user)
            if not found:
                raise NoUser(f"no user matches {selection.user or '*'}")
            return [entry.account for entry in found]
        return [self._known(name) for name in selection.users or [selection.user or ""]]

    def _known(self, name: str) -> Account:
        entry = self.users.lookup(name)
        if entry is None:
            raise NoUser(f"no user {name}")
        return entry.account

    @asynccontextmanager
    async def open(self, account: Account) -> AsyncIterator[User]:
        """Open a user's mail for the time of the context. A user that the user database
        does not have is not created. Raises NoUser, Unavailable, Corrupt."""
        if not account.known:
            try:
                user = await self.store.load_user(account.name, account.storage_id)
            except NotFound as error:
                raise NoUser(f"neither the user database nor the bucket knows {account.name}") from error
            yield user
            return
        quota = account.quota
        user = await self.store.open_user(
            account.name, account.storage_id, quota_bytes=quota.storage_bytes, quota_messages=quota.messages
        )
        try:
            yield user
        finally:
            await user.release()

    @asynccontextmanager
    async def mailbox(self, user: User, name: str) -> AsyncIterator[Mailbox]:
        """Open a mailbox of an open user. Raises NotFound."""
        box = await user.select(name)
        try:
            yield box
        finally:
            await box.release()


def _unescaped(sid: str) -> str:
    try:
        return unescape(sid)
    except ValueError:
        return sid


__all__ = [
    "Admin",
    "ClusterParts",
    "Evaluate",
    "FindCluster",
    "Server",
    "Session",
]
