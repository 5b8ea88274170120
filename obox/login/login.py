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
from obox.auth import NO_OWNER, AuthFailed, Forward, LinkOwner, LinkRefused, Referred
from obox.errors import Elsewhere, Limit, NoPerm, OboxError
from obox.login.context import Context, S

if TYPE_CHECKING:
    from obox.login.needs import Channel, Forwarding
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

    __slots__ = ("_peer", "_serve", "_shared")

    def __init__(self, shared: Context[S], peer: Channel[S], serve: Callable[[Account], Awaitable[None]]) -> None:
        self._shared, self._peer, self._serve = shared, peer, serve

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
                    f"{shared.listener} login refused",
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
        shared.forwarding.forged(why, remote=self._peer.remote, listener=shared.listener)

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
        peer, shared, forwarding = self._peer, self._shared, self._shared.forwarding
        if forwarding is None:
            return None
        return await forwarding.connect(account, listener=shared.listener, remote=peer.remote, tls=peer.client_tls)
