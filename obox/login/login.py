"""The login of a client.

A password is checked, or a member of the cluster proves that it has checked it. Then
the client is served here, or its connection is passed on to the backend that owns the
user. The protocol decides how a user is served, and what the answer to the client is.

Diagnostics: each refusal is an OboxError, which the protocol's table gives a form. A
refused login is logged and counted here, whichever protocol it came by.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, NamedTuple

from obox.accounts import Account
from obox.auth import AuthFailed
from obox.errors import Elsewhere, Limit, NoPerm, OboxError
from obox.login.context import Context, S

if TYPE_CHECKING:
    from obox.login.needs import Channel
    from obox.net.splice import Leg

USER_CHARS_MAX = 200
"""Characters of a refused name that are logged."""


class TooSoon(Limit):
    """A login comes too soon after the last of the user. RFC 2449 §8.1.1."""


class NeedsTls(NoPerm):
    """A password may not be sent over this connection."""


class Forged(AuthFailed):
    """A peer that says that it is a member has no proof."""


class Entered(NamedTuple):
    """A login that succeeded. leg: the connection to the owner; None: the user is
    served here."""

    account: Account
    leg: Leg | None = None


class Login(Generic[S]):
    """A login of one client.

    serve: opens the user's mail for the client; it raises Elsewhere if another backend
    has the user by now.
    """

    __slots__ = ("_serve", "peer", "shared")

    def __init__(self, shared: Context[S], peer: Channel[S], serve: Callable[[Account], Awaitable[None]]) -> None:
        self.shared, self.peer, self._serve = shared, peer, serve

    async def by_password(self, user: str, password: str) -> Entered:
        """Check a password. Raises: OboxError."""
        shared, peer = self.shared, self.peer
        try:
            account = await shared.authenticator.verify(user, password, remote=peer.remote)
        except OboxError as error:
            shared.counters.login("failed" if isinstance(error, NoPerm) else "unavailable")
            if isinstance(error, NoPerm) and not isinstance(error, AuthFailed):
                shared.log.info(
                    f"{shared.listener} login refused",
                    user=user[:USER_CHARS_MAX],
                    remote=peer.remote,
                    reason=str(error),
                )
            raise
        try:
            return await self.enter(account)
        except OboxError:
            shared.counters.login("unavailable")
            raise

    async def enter(self, account: Account) -> Entered:
        """Serve a user whose password was right, or connect to the owner."""
        leg = await self._leg(account)
        if leg is None:
            try:
                return await self.here(account)
            except Elsewhere:  # handed over while the login waited
                leg = await self._leg(account)
                if leg is None:
                    raise
        self.shared.counters.login("ok")
        return Entered(account, leg)

    async def here(self, account: Account) -> Entered:
        """Serve a user here. Raises: Elsewhere."""
        await self._serve(account)
        self.shared.counters.login("ok")
        return Entered(account)

    async def _leg(self, account: Account) -> Leg | None:
        """Connect to the owner of a user. None: it is this backend. Raises
        Unavailable."""
        peer, shared, forwarding = self.peer, self.shared, self.shared.forwarding
        if forwarding is None:
            return None
        return await forwarding.connect(account, listener=shared.listener, remote=peer.remote, tls=peer.client_tls)
