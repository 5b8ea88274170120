"""The login of a client, for each protocol that has a login.

A password is checked, or a member of the cluster proves that it has checked it. Then
the client is served here, or its connection is passed on to the backend that owns the
user. The protocol decides how a user is served, and what the answer to the client is.

Diagnostics: each refusal is an OboxError, which the protocol's table gives a form. A
refused login is logged and counted here, whichever protocol it came by.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from obox.accounts import Account
from obox.auth import NO_OWNER, AuthFailed, Forward, LinkOwner, LinkRefused, Referred
from obox.errors import Elsewhere, Limit, NoPerm, OboxError, Unavailable
from obox.store.api import Store, User

if TYPE_CHECKING:
    from obox.net.splice import Leg

USER_CHARS_MAX = 200
"""Characters of a refused name that are logged."""


class TooSoon(Limit):
    """A login comes too soon after the last of the user. RFC 2449 §8.1.1."""


class Authenticator(Protocol):
    """`obox.auth.Authenticator`."""

    async def verify(self, user: str, password: str, *, remote: str) -> Account:
        """Raises: AuthFailed, Disabled, AuthUnavailable."""


class Forwarding(Protocol):
    """What a member of a cluster does with users of other members. `obox.proxy`
    implements it."""

    async def connect(self, account: Account, *, listener: str, remote: str, tls: bool) -> Leg | None:
        """Return a connection to the backend that owns the user, after the login. None
        if this backend is the owner.

        remote: the client's address. Raises: Unavailable, Limit, NoPerm.
        """

    async def exchange(self, *, remote: str, local: bool, tls: bool) -> LinkOwner:
        """Return the owner's side of X-OBOX-LINK, for a peer at `remote`.

        Raises: NoPerm, if no link is allowed over such a connection.
        """

    def redeem(self, user: str, token: str) -> Forward | None:
        """Return what a member states about a client whose front end logs in with a
        token.

        None if the secret is a password. Raises: LinkRefused.
        """

    async def vouched(self, forward: Forward) -> Account:
        """Return the account of a user who comes with a token that names no owner.

        Raises: LinkRefused, if it is for another member; Disabled, Unavailable.
        """

    async def accept(self, forward: Forward) -> Account:
        """Return the account of a user that a member forwards to this backend.

        Raises: Referred; Disabled, Unavailable.
        """

    def forged(self, why: str, *, remote: str, listener: str) -> None:
        """Log a peer that has no proof, and count a failed login of its address."""


class LoginCounters(Protocol):
    """The part of a server's counters that a login needs."""

    def login(self, result: str) -> None:
        """result: ok, failed, unavailable."""


class Shared(Protocol):
    """What a login needs of its server's context."""

    @property
    def authenticator(self) -> Authenticator: ...

    @property
    def forwarding(self) -> Forwarding | None: ...

    @property
    def counters(self) -> LoginCounters: ...

    @property
    def log(self) -> Any: ...


class Peer(Protocol):
    """What a login needs of the client's connection."""

    @property
    def remote(self) -> str: ...

    @property
    def is_local(self) -> bool: ...

    @property
    def tls(self) -> bool: ...

    @property
    def client_tls(self) -> bool: ...

    def speak_for(self, remote: str, *, tls: bool) -> None:
        """Note that the peer is a member, and where its client is."""


class Entered(NamedTuple):
    """A login that succeeded. leg: the connection to the owner; None: the user is
    served here."""

    account: Account
    leg: Leg | None = None


class Login:
    """A login of one client.

    listener: the name of the protocol, "imap" or "pop3". serve: opens the user's mail
    for the client; it raises Elsewhere if another backend has the user by now.
    """

    __slots__ = ("_listener", "_peer", "_serve", "_shared")

    def __init__(self, listener: str, shared: Shared, peer: Peer, serve: Callable[[Account], Awaitable[None]]) -> None:
        self._listener, self._shared, self._peer, self._serve = listener, shared, peer, serve

    async def by_password(self, user: str, password: str) -> Entered:
        """Check a password, or the token of a front end. Raises: OboxError."""
        shared, peer = self._shared, self._peer
        if shared.forwarding is not None:
            try:
                forward = shared.forwarding.redeem(user, password)
                if forward is not None and forward.number == NO_OWNER:
                    return await self._vouched(shared.forwarding, forward)
            except LinkRefused as refused:
                self.forged(str(refused))
                raise AuthFailed from None
            if forward is not None:
                return await self.by_link(forward)
        try:
            account = await shared.authenticator.verify(user, password, remote=peer.remote)
        except OboxError as error:
            shared.counters.login("failed" if isinstance(error, NoPerm) else "unavailable")
            if isinstance(error, NoPerm) and not isinstance(error, AuthFailed):
                shared.log.info(
                    f"{self._listener} login refused",
                    user=user[:USER_CHARS_MAX],
                    remote=peer.remote,
                    reason=str(error),
                )
            raise
        try:
            return await self._enter(account)
        except OboxError:
            shared.counters.login("unavailable")
            raise

    async def by_link(self, forward: Forward) -> Entered:
        """Serve a user without a password, because a member has checked it. Raises:
        Referred, OboxError."""
        shared, forwarding = self._shared, self._shared.forwarding
        assert forwarding is not None
        try:
            account = await forwarding.accept(forward)
            self._peer.speak_for(forward.remote, tls=forward.tls)
            try:
                return await self._here(account)
            except Elsewhere:  # handed over while the login waited
                await forwarding.accept(forward)
                raise
        except Referred:
            raise
        except OboxError:
            shared.counters.login("unavailable")
            raise

    async def exchange(self) -> LinkOwner:
        """Begin X-OBOX-LINK. Raises: NoPerm."""
        peer, forwarding = self._peer, self._shared.forwarding
        assert forwarding is not None
        return await forwarding.exchange(remote=peer.remote, local=peer.is_local, tls=peer.tls)

    def forged(self, why: str) -> None:
        """Count and log a peer that has no proof."""
        shared = self._shared
        assert shared.forwarding is not None
        shared.counters.login("failed")
        shared.forwarding.forged(why, remote=self._peer.remote, listener=self._listener)

    async def _vouched(self, forwarding: Forwarding, forward: Forward) -> Entered:
        """Serve or forward a user whose password this member has checked for a front
        end."""
        try:
            account = await forwarding.vouched(forward)
            self._peer.speak_for(forward.remote, tls=forward.tls)
            return await self._enter(account)
        except OboxError:
            self._shared.counters.login("unavailable")
            raise

    async def _enter(self, account: Account) -> Entered:
        """Serve a user whose password was right, or connect to the owner."""
        leg = await self._leg(account)
        if leg is None:
            try:
                return await self._here(account)
            except Elsewhere:  # handed over while the login waited
                leg = await self._leg(account)
                if leg is None:
                    raise
        self._shared.counters.login("ok")
        return Entered(account, leg)

    async def _here(self, account: Account) -> Entered:
        await self._serve(account)
        self._shared.counters.login("ok")
        return Entered(account)

    async def _leg(self, account: Account) -> Leg | None:
        """Connect to the owner of a user. None: it is this backend. Raises
        Unavailable."""
        peer, forwarding = self._peer, self._shared.forwarding
        if forwarding is None:
            return None
        return await forwarding.connect(account, listener=self._listener, remote=peer.remote, tls=peer.client_tls)


def opener(store: Store | None) -> Callable[[Account], Awaitable[User]]:
    """Return a function that opens the mail of an account. store: None in a proxy,
    which forwards every user."""

    async def open_user(account: Account) -> User:
        if store is None:
            raise Unavailable("No backend serves this user")
        quota = account.quota
        return await store.open_user(
            account.name, account.storage_id, quota_bytes=quota.storage_bytes, quota_messages=quota.messages
        )

    return open_user
