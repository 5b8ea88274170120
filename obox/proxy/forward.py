"""Who serves a user, and how a client gets there.

Theory of operation. `Router` says who owns a user. A backend that does not answer is
tried again within seconds; then the row is read anew, and its new owner is tried. A
backend that owns the user no longer answers with a referral, which is followed once.
What cannot be reached is Unavailable, which is no failed login. The same object is the
owner's end: it takes forwards of other members, and never forwards them again
(docs/cluster.md, "Forwarding").

Diagnostics: warnings in the log name a backend that does not answer or has no common
secret with us, and a forged forward, with the peer's address. It refuses
to know mailboxes, and what goes over a splice.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
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
from obox.cluster import Assigned, Router, There, newer
from obox.errors import NoPerm, OboxError, Unavailable
from obox.net.dialogue import Dialogue
from obox.net.splice import Leg
from obox.types import StorageId

from . import imap
from .dial import dial, place_of

log = structlog.get_logger("obox.proxy")

RETRIES_S: Final = (0.2, 0.5, 1.0)
"""Before the next attempt at a backend that does not answer: it may be starting."""
SAME_BACKEND_S: Final = 10.0
"""After which a backend that does not answer is not tried again."""
NO_BACKEND: Final = "The backend of this user does not answer, try again later"

Done = TypeVar("Done")


class Counters(Protocol):
    """What is counted; `obox.backend` makes metrics of it."""

    def forward(self, listener: str, result: str) -> None:
        """result: ok, unavailable, refused (the link), referred, accepted, forged."""

    def splices(self, change: int) -> None:
        """A splice began (+1) or ended (-1)."""

    def spliced(self, from_client: int, to_client: int) -> None:
        """Bytes that went over a splice that has ended."""


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
    ) -> None:
        """secrets: the first signs, all are accepted. member: our name.

        certificate: SHA-256 of the certificate that a client without a name is shown;
        b"": none.
        """
        self.router = router
        self.secrets = tuple(secrets)
        self.member = member
        self.authenticator = authenticator
        self.counters = counters or NoCounters()
        self._certificate = certificate
        self._tokens = UsedTokens()
        self._legs: dict[str, dict[asyncio.Transport, StorageId]] = {}
        self.random_bytes = random_bytes
        self.sleep = sleep

    # -- the owner's end -------------------------------------------------------------------------------------------

    async def exchange(self, *, remote: str, local: bool, tls: bool) -> LinkOwner:
        """See `obox.imap.context.Forwarding`."""
        if not self.secrets:
            raise NoPerm("There is no trusted link here")
        if not tls and not local:
            raise NoPerm("The trusted link needs TLS here")
        await self.authenticator.admit(remote)
        binding = self._certificate() if tls else b""
        return LinkOwner(
            self.secrets, nonce=self.random_bytes(NONCE_BYTES), unknown=self.random_bytes(NONCE_BYTES), binding=binding
        )

    def redeem(self, user: str, token: str) -> Forward | None:
        """See `obox.imap.context.Forwarding`."""
        if not token.startswith(PREFIX):
            return None
        return self._tokens.read(self.secrets, token, user=user, now=time.time())

    async def vouched(self, forward: Forward) -> Account:
        """See `obox.imap.context.Forwarding`."""
        if forward.backend != self.member:
            raise LinkRefused("a token for another member")
        account = await self.authenticator.forwarded(forward.user, forward.storage_id)
        self.counters.forward(forward.listener, "accepted")
        return account

    async def accept(self, forward: Forward) -> Account:
        """See `obox.imap.context.Forwarding`."""
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
        """See `obox.imap.context.Forwarding`."""
        log.warning("trusted link refused", remote=remote, listener=listener, reason=why)
        self.authenticator.forged(remote)
        self.counters.forward(listener, "forged")

    # -- the sender's end ------------------------------------------------------------------------------------------

    async def connect(self, account: Account, *, listener: str, remote: str, tls: bool) -> Leg | None:
        """See `obox.imap.context.Forwarding`."""

        async def at(there: There) -> Leg:
            forward = self.forward_of(there, account, listener=listener, remote=remote, tls=tls)
            dialogue = await dial(place_of(there, listener))
            try:
                answer = await imap.login(dialogue, lambda binding: self.sender(forward, binding))
                return self._leg(dialogue, answer, there.backend, account, remote)
            except BaseException:
                dialogue.abort()
                raise

        return await self.at_owner(account.storage_id, listener, at)

    async def at_owner(self, sid: StorageId, listener: str, work: Callable[[There], Awaitable[Done]]) -> Done | None:
        """Do something at the backend that owns a user; None: it is us.

        work: raises OSError where the backend does not answer, and is then tried again.
        Raises: what `work` raises; Unavailable.
        """
        route = await self.router.route(sid)
        tries = _Tries()
        while isinstance(route, There):
            try:
                return await self._once(route, listener, work)
            except Referred as found:
                if not tries.refer():
                    raise Unavailable(NO_BACKEND) from found
                route = await self.router.reread(sid, Assigned(found.backend, found.number, found.token))
            except OSError as error:
                if (delay_s := tries.delay_s()) is not None:
                    await self.sleep(delay_s)
                    continue
                before, route = route, await self.router.reread(sid, later(route.assigned))
                if route == before or not tries.renew():
                    log.warning("backend does not answer", backend=before.backend, listener=listener, error=str(error))
                    raise Unavailable(NO_BACKEND) from error
        return None

    async def _once(self, there: There, listener: str, work: Callable[[There], Awaitable[Done]]) -> Done:
        """One attempt, counted."""
        count = self.counters.forward
        try:
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
        """Count and log that a backend and we could not prove ourselves."""
        self.counters.forward(listener, "refused")
        log.warning(
            "trusted link failed",
            backend=there.backend,
            address=there.address,
            error=str(refused),
            next_step="give both the same cluster.secret_file, and reload",
        )

    def secret(self) -> bytes:
        """The secret that signs. Raises: LinkRefused, we have none."""
        if not self.secrets:
            raise LinkRefused("there is no cluster.secret_file")
        return self.secrets[0]

    def sender(self, forward: Forward, binding: bytes) -> LinkSender:
        """Our side of the link. Raises: LinkRefused, we have no secret."""
        return LinkSender(self.secret(), forward, nonce=self.random_bytes(NONCE_BYTES), binding=binding)

    def forward_of(self, there: There, account: Account | None, *, listener: str, remote: str, tls: bool) -> Forward:
        """What a backend hears of a client. account: None in LMTP."""
        assigned = there.assigned
        return Forward(
            user=account.name if account is not None else "",
            storage_id=account.storage_id if account is not None else "",
            remote=remote,
            listener=listener,
            tls=tls,
            member=self.member,
            backend=assigned.backend,
            number=assigned.number,
            token=assigned.token,
        )

    # -- splices ---------------------------------------------------------------------------------------------------

    def drop(self, backend: str) -> int:
        """Close what goes on at a backend that is dead or fenced; returns how many."""
        legs = tuple(self._legs.get(backend, ()))
        for transport in legs:
            transport.abort()
        return len(legs)

    def drop_moved(self, owner: Callable[[StorageId], str | None]) -> int:
        """Close splices whose backend owns the user no longer; returns how many.

        A backend that lives closes these sessions itself; it may have died. owner: the
        backend of a user; None: not known.
        """
        moved = [
            transport
            for backend, legs in self._legs.items()
            for transport, sid in legs.items()
            if owner(sid) not in (None, backend)
        ]
        for transport in moved:
            transport.abort()
        return len(moved)

    def _leg(self, dialogue: Dialogue, answer: imap.Answer, backend: str, account: Account, remote: str) -> Leg:
        transport, ahead = dialogue.take()
        legs = self._legs.setdefault(backend, {})
        legs[transport] = account.storage_id
        self.counters.splices(+1)

        def ended(from_client: int, to_client: int, reason: str) -> None:
            legs.pop(transport, None)
            if not legs and self._legs.get(backend) is legs:
                del self._legs[backend]
            self.counters.splices(-1)
            self.counters.spliced(from_client, to_client)
            log.info(
                "forwarded session ended",
                user=account.name,
                remote=remote,
                backend=backend,
                reason=reason,
                bytes_in=from_client,
                bytes_out=to_client,
            )

        return Leg(transport, ahead, answer.text, answer.code, backend, ended)


class _Tries:
    """How often one client has been sent somewhere."""

    def __init__(self) -> None:
        self._delays = list(RETRIES_S)
        self._renewed = self._referred = False
        self._since = asyncio.get_running_loop().time()

    def delay_s(self) -> float | None:
        """Before the next attempt at the same backend; None: there is none."""
        if asyncio.get_running_loop().time() - self._since > SAME_BACKEND_S:
            return None
        return self._delays.pop(0) if self._delays else None

    def renew(self) -> bool:
        """There is another backend. Whether it may be tried: one may."""
        self._delays = list(RETRIES_S)
        self._since = asyncio.get_running_loop().time()
        first, self._renewed = not self._renewed, True
        return first

    def refer(self) -> bool:
        """Whether a referral may be followed: one may."""
        first, self._referred = not self._referred, True
        return first


def _is_tie(ours: Assigned, claim: Assigned) -> bool:
    """Whether two members have assigned the user with the same number."""
    return ours.number == claim.number and ours.token != claim.token


def _claim(forward: Forward) -> Assigned:
    return Assigned(forward.backend, forward.number, forward.token)


def later(assigned: Assigned) -> Assigned:
    """An assignment that is newer than one: so `reread` reads the row."""
    return Assigned("", assigned.number + 1, 0)
