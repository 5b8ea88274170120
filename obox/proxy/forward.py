"""Forwarding: it finds the backend that serves a user, and connects the client to it.

Theory of operation. `Router` says who owns a user. If that backend does not answer, the
row is read again. Then the same backend is tried again, or the backend that the row
names by then, for as long as a client waits (`waiting`). A backend that does not own
the user any more answers with a referral, which is followed once. If no backend can be
reached, the error is Unavailable, which is no failed login. An attempt or a splice at a
backend that does not own the user any more is cut (`moves`).

The same object is the owner's end. It accepts forwards of other members, and never
forwards them again (docs/cluster.md, "Forwarding").

Diagnostics: a warning in the log names a backend that does not answer, or that does not
have the secret of this member. A forged forward is logged with the peer's address. This
module does not know mailboxes, or what goes over a splice.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import structlog

from obox.accounts import Account
from obox.auth import (
    Authenticator,
    Forward,
    LinkOwner,
    LinkRefused,
    LinkSender,
    Referred,
)
from obox.auth.link import NONCE_BYTES
from obox.auth.token import PREFIX, UsedTokens
from obox.cluster import Assigned, Changes, Router, There, newer
from obox.errors import NoPerm, OboxError, Unavailable
from obox.net.dialogue import Dialogue
from obox.net.splice import Leg
from obox.types import StorageId

from .dial import dial, place_of
from .link import Answer, LoginDialect, forward_of, login
from .moves import Moves
from .waiting import Wait, Waiting

log = structlog.get_logger("obox.proxy")

NO_BACKEND: Final = "The backend of this user does not answer, try again later"

Done = TypeVar("Done")


def _imap() -> LoginDialect:
    from .imap import Imap

    return Imap()


def _pop3() -> LoginDialect:
    from .pop3 import Pop3  # most clusters have no [pop3]

    return Pop3()


DIALECTS: Final[Mapping[str, Callable[[], LoginDialect]]] = {"imap": _imap, "pop3": _pop3}
"""How clients are logged in at their backends, by the name of the listener."""


class Counters(Protocol):
    """The counters of forwarding. `obox.backend` makes metrics of them."""

    def forward(self, listener: str, result: str) -> None:
        """Count a forward. result: ok, unavailable, refused (the link), referred,
        accepted, forged."""

    def splices(self, change: int) -> None:
        """Count a splice that has begun (+1) or ended (-1)."""

    def spliced(self, from_client: int, to_client: int) -> None:
        """Count the bytes of a splice that has ended."""


class NoCounters:
    def forward(self, listener: str, result: str) -> None:
        pass

    def splices(self, change: int) -> None:
        pass

    def spliced(self, from_client: int, to_client: int) -> None:
        pass


class Forwarder:
    """See the module's text; the `Forwarding` of IMAP and of LMTP."""

    def __init__(
        self,
        router: Router,
        secrets: Sequence[bytes],
        authenticator: Authenticator,
        *,
        member: str,
        certificate: Callable[[], bytes] = bytes,
        counters: Counters | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """secrets: the first signs, and all are accepted. member: the name of this
        member.

        certificate: SHA-256 of the certificate that a client without a name is shown;
        b"" if there is none. sleep, clock: for pauses between attempts.
        """
        self.router = router
        self.secrets = tuple(secrets)
        self.member = member
        self.authenticator = authenticator
        self.counters = counters or NoCounters()
        self.certificate = certificate
        self._tokens = UsedTokens()
        self.moves = Moves(router.known)
        self.waiting = Waiting(router, self.moves, sleep, clock)
        self.random_bytes = random_bytes

    # -- the owner's end -------------------------------------------------------------------------------------------

    async def exchange(self, *, remote: str, local: bool, tls: bool) -> LinkOwner:
        """See `obox.login.needs.Forwarding`."""
        if not self.secrets:
            raise NoPerm("There is no trusted link here")
        if not tls and not local:
            raise NoPerm("The trusted link needs TLS here")
        await self.authenticator.admit(remote)
        binding = self.certificate() if tls else b""
        return LinkOwner(
            self.secrets, nonce=self.random_bytes(NONCE_BYTES), unknown=self.random_bytes(NONCE_BYTES), binding=binding
        )

    def redeem(self, user: str, token: str) -> Forward | None:
        """See `obox.login.needs.Forwarding`."""
        if not token.startswith(PREFIX):
            return None
        return self._tokens.read(self.secrets, token, user=user, now=time.time())

    async def proven(self, forward: Forward) -> Account:
        """See `obox.login.needs.Forwarding`."""
        if forward.backend != self.member:
            raise LinkRefused("a token for another member")
        account = await self.authenticator.forwarded(forward.user, forward.storage_id)
        self.counters.forward(forward.listener, "accepted")
        return account

    async def accept(self, forward: Forward) -> Account:
        """See `obox.login.needs.Forwarding`."""
        account = await self.authenticator.forwarded(forward.user, forward.storage_id)
        await self.confirm(account.storage_id, _claim(forward))
        self.counters.forward(forward.listener, "accepted")
        return account

    async def confirm(self, sid: StorageId, claim: Assigned) -> None:
        """Check that this backend owns a user whom another member has forwarded to it.
        claim: the assignment that the member knows. Raises: Referred, Unavailable."""
        route = await self.router.route(sid)
        if isinstance(route, There) or newer(route.assigned, claim) or _is_tie(route.assigned, claim):
            route = await self.router.reread(sid, claim)
        if isinstance(route, There):
            raise Referred(route.assigned.backend, route.assigned.number, route.assigned.token)

    def forged(self, why: str, *, remote: str, listener: str) -> None:
        """See `obox.login.needs.Forwarding`."""
        log.warning("trusted link refused", remote=remote, listener=listener, reason=why)
        self.authenticator.forged(remote)
        self.counters.forward(listener, "forged")

    # -- the sender's end ------------------------------------------------------------------------------------------

    async def connect(self, account: Account, *, listener: str, remote: str, tls: bool) -> Leg | None:
        """See `obox.login.needs.Forwarding`."""
        dialect = DIALECTS[listener]()

        async def at(there: There) -> Leg:
            forward = self.forward_of(there, account, listener=listener, remote=remote, tls=tls)
            dialogue = await dial(place_of(there, listener))
            try:
                answer = await login(dialogue, dialect, lambda binding: self.sender(forward, binding))
                return self._leg(dialogue, answer, there, account, remote)
            except BaseException:
                dialogue.abort()
                raise

        return await self.at_owner(account.storage_id, listener, at)

    async def at_owner(self, sid: StorageId, listener: str, work: Callable[[There], Awaitable[Done]]) -> Done | None:
        """Run `work` at the backend that owns a user. Return None if this backend owns
        the user itself.

        work: it raises OSError if the backend does not answer, and is then repeated.
        Raises: what `work` raises; Unavailable.
        """
        referred = False
        with Wait(self.waiting) as wait:
            route = await wait.route(sid)
            while isinstance(route, There):
                try:
                    return await self._once(route, sid, listener, work)
                except Referred as found:
                    if referred:
                        raise Unavailable(NO_BACKEND) from found
                    referred = True
                    route = await self.router.reread(sid, Assigned(found.backend, found.number, found.token))
                except (OSError, Unavailable) as error:
                    before, route = route, await wait.after(sid, route)
                    if route != before:
                        continue
                    if isinstance(error, Unavailable):
                        raise  # the backend has answered that it is unavailable
                    if not await wait.pause(route, (sid,)):
                        log.warning(
                            "backend does not answer", backend=before.backend, listener=listener, error=str(error)
                        )
                        raise Unavailable(NO_BACKEND) from error
                    route = await wait.route(sid)
        return None

    async def _once(
        self, there: There, sid: StorageId, listener: str, work: Callable[[There], Awaitable[Done]]
    ) -> Done:
        """Make one attempt, and count it. Raises TimeoutError if the user gets another
        backend meanwhile."""
        count = self.counters.forward
        try:
            async with self.moves.until_moved(there, (sid,)):
                done = await work(there)
        except LinkRefused as refused:
            self.no_common_secret(there, listener, refused)
            raise Unavailable(NO_BACKEND) from refused
        except Referred:
            count(listener, "referred")
            raise
        except (OboxError, OSError):
            count(listener, "unavailable")
            raise
        count(listener, "ok")
        return done

    def no_common_secret(self, there: There, listener: str, refused: LinkRefused) -> None:
        """Count and log that this member and a backend have no common secret."""
        self.counters.forward(listener, "refused")
        log.warning(
            "trusted link failed",
            backend=there.backend,
            address=there.address,
            error=str(refused),
            next_step="give both the same cluster.secret_file, and reload",
        )

    def secret(self) -> bytes:
        """Return the secret that signs. Raises: LinkRefused, there is none."""
        if not self.secrets:
            raise LinkRefused("there is no cluster.secret_file")
        return self.secrets[0]

    def sender(self, forward: Forward, binding: bytes) -> LinkSender:
        """Return this member's side of the link. Raises: LinkRefused, it has no
        secret."""
        return LinkSender(self.secret(), forward, nonce=self.random_bytes(NONCE_BYTES), binding=binding)

    def forward_of(self, there: There, account: Account | None, *, listener: str, remote: str, tls: bool) -> Forward:
        """Return what a backend learns about a client. account: None in LMTP."""
        return forward_of(there, account, member=self.member, listener=listener, remote=remote, tls=tls)

    # -- splices ---------------------------------------------------------------------------------------------------

    def changed(self, changes: Changes) -> None:
        """Compare all splices and attempts with the directory. `View.listen` calls this
        after each change."""
        if changes.groups or changes.pins or changes.members:
            self.moves.look()

    def _leg(self, dialogue: Dialogue, answer: Answer, there: There, account: Account, remote: str) -> Leg:
        transport, ahead = dialogue.take()
        watch = self.moves.watch(there, (account.storage_id,), transport.abort, finishes=True)
        self.counters.splices(+1)

        def ended(from_client: int, to_client: int, reason: str) -> None:
            self.moves.forget(watch)
            self.counters.splices(-1)
            self.counters.spliced(from_client, to_client)
            log.info(
                "forwarded session ended",
                user=account.name,
                remote=remote,
                backend=there.backend,
                reason=reason,
                bytes_in=from_client,
                bytes_out=to_client,
            )

        return Leg(transport, ahead, answer.text, answer.code, there.backend, ended, account.storage_id)


def _is_tie(ours: Assigned, claim: Assigned) -> bool:
    """Return whether two members have assigned the user with the same number."""
    return ours.number == claim.number and ours.token != claim.token


def _claim(forward: Forward) -> Assigned:
    return Assigned(forward.backend, forward.number, forward.token)
