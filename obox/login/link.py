"""A login that a member of the cluster has checked: by a token of its front end, or
over the trusted link. It is imported where users are forwarded."""

from __future__ import annotations

from obox.auth import NO_OWNER, AuthFailed, Forward, LinkOwner, LinkRefused, Referred
from obox.errors import Elsewhere, OboxError
from obox.login.context import S
from obox.login.login import Entered, Login


async def by_token(login: Login[S], user: str, token: str) -> Entered | None:
    """Log in a user who comes with a token. None: it is a password. Raises:
    OboxError."""
    forwarding = login.shared.forwarding
    assert forwarding is not None
    try:
        forward = forwarding.redeem(user, token)
        if forward is not None and forward.number == NO_OWNER:
            return await _forwarded(login, forward)
    except LinkRefused as refused:
        forged(login, str(refused))
        raise AuthFailed from None
    return None if forward is None else await by_link(login, forward)


async def by_link(login: Login[S], forward: Forward) -> Entered:
    """Serve a user without a password, because a member has checked it. Raises:
    Referred, OboxError."""
    shared, forwarding = login.shared, login.shared.forwarding
    assert forwarding is not None
    try:
        account = await forwarding.accept(forward)
        login.peer.speak_for(forward.remote, tls=forward.tls)
        try:
            return await login.here(account)
        except Elsewhere:  # handed over while the login waited
            await forwarding.accept(forward)
            raise
    except Referred:
        raise
    except OboxError:
        shared.counters.login("unavailable")
        raise


async def exchange(login: Login[S]) -> LinkOwner:
    """Begin X-OBOX-LINK. Raises: NoPerm."""
    peer, forwarding = login.peer, login.shared.forwarding
    assert forwarding is not None
    return await forwarding.exchange(remote=peer.remote, local=peer.is_local, tls=peer.tls)


def forged(login: Login[S], why: str) -> None:
    """Count and log a peer that has no proof."""
    shared = login.shared
    assert shared.forwarding is not None
    shared.counters.login("failed")
    shared.forwarding.forged(why, remote=login.peer.remote, listener=shared.listener)


async def _forwarded(login: Login[S], forward: Forward) -> Entered:
    """Serve or forward a user whose password this member has checked for a front
    end."""
    forwarding = login.shared.forwarding
    assert forwarding is not None
    try:
        account = await forwarding.proven(forward)
        login.peer.speak_for(forward.remote, tls=forward.tls)
        return await login.enter(account)
    except OboxError:
        login.shared.counters.login("unavailable")
        raise
