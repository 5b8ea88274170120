"""Deliveries to users of other backends, over LMTP and the trusted link.

Theory of operation. RCPT finds out who owns the recipient. After the last byte of the
mail, all recipients of an owner go to it in one transaction. BDAT sends the mail
without a change. If an owner does not answer, or refers to another backend, the
delivery waits as `Forwarder.at_owner` does. If the client has waited for long enough,
the recipients that are left get a temporary error. A recipient whom this backend owns
by then is delivered here.

Invariant: once the last byte was sent to a backend, no other backend is tried for the
recipients that it has accepted. They get the replies of this backend, or 451. If the
directory says that the backend was taken over, it will not reply, and they get 451 at
once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, Protocol, cast

import structlog

from obox.accounts import Account
from obox.auth import LinkOwner, LinkRefused, Referred
from obox.cluster import Assigned, Here, There
from obox.errors import Elsewhere, NoPerm, NotFound, Unavailable
from obox.lmtp import Deliverer, Envelope, Recipient, Reply
from obox.lmtp.events import RecipientAsked
from obox.lmtp.forwarding import Relayed
from obox.net.dialogue import Dialogue

from .dial import dial, place_of
from .forward import Forwarder
from .link import Dialect, prove
from .moves import Watch
from .waiting import Wait

log = structlog.get_logger("obox.proxy")

REPLY_LINES_MAX: Final = 32
"""A reply has at most 32 lines. The reply to LHLO has ten."""
ANSWER_S: Final = 15.0
"""The time for a reply before the mail. The backend itself waits 10 s for the
bucket."""
NO_BACKEND: Final = Reply(451, "4.3.0", "The backend of this user does not answer, try again later")
_CLAIM: Final = re.compile(r"([A-Za-z0-9._-]{0,64}):(\d{1,18}):(\d{1,20})")
_LINE: Final = re.compile(rb"(\d{3})([ -])(?:(\d\.\d{1,3}\.\d{1,3}) )?(.*)")


class Users(Protocol):
    """The user database."""

    async def account(self, user: str) -> Account | None:
        """Return the account of a user, None if there is none.

        Raises: Unavailable, Invalid.
        """


class Nowhere:
    """The `Deliverer` of a proxy: it has no mail itself."""

    async def recipient(self, address: str, user: str, detail: str, size: int | None) -> Recipient:
        raise Unavailable("No backend serves this user")

    async def deliver(self, recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        raise Unavailable("No backend serves this user")


class _Remote(NamedTuple):
    """The owner of a recipient. `Recipient.context` has it."""

    account: Account
    there: There


class _Group:
    """Recipients of a mail that go to one backend, by their index in the mail."""

    def __init__(self, mail: Relayed, there: There, members: Mapping[int, _Remote]) -> None:
        self.mail = mail
        self.there = there
        self.members = members
        self.replies: dict[int, Reply] = {}
        self.moved: dict[int, Assigned] = {}
        """Recipients that the backend has referred, with the assignment that it
        named."""
        self.error: OSError | None = None
        """Why some recipients have no answer, if they may be tried again."""
        self.sent = False
        """Whether the last byte was sent."""

    @property
    def open(self) -> list[int]:
        """Return the recipients that have no answer yet."""
        return [index for index in self.members if index not in self.replies and index not in self.moved]

    def rest(self, reply: Reply) -> None:
        """Give the same answer to all recipients that have none."""
        for index in self.open:
            self.replies[index] = reply


class LmtpForwarder:
    """See the module's text; the `Forwarding` of LMTP."""

    def __init__(self, forwarder: Forwarder, users: Callable[[], Users]) -> None:
        """users: the user database that is in use."""
        self._forwarder = forwarder
        self._users = users

    @property
    def linked(self) -> bool:
        return bool(self._forwarder.secrets)

    async def exchange(self, *, remote: str, local: bool, tls: bool) -> LinkOwner:
        return await self._forwarder.exchange(remote=remote, local=local, tls=tls)

    def forged(self, why: str, *, remote: str, listener: str) -> None:
        self._forwarder.forged(why, remote=remote, listener=listener)

    async def recipient(self, asked: RecipientAsked, deliverer: Deliverer) -> Recipient:
        """See `obox.lmtp.forwarding.Forwarding`."""
        account = await self._users().account(asked.user)
        if account is None:
            raise NotFound(f"no user {asked.user!r}")
        if account.disabled:
            raise NoPerm("the user is disabled")
        for last in (False, True):
            if asked.claim:
                match = _CLAIM.fullmatch(asked.claim)
                claim = Assigned(match[1], int(match[2]), int(match[3])) if match else Assigned("", 0, 0)
                await self._forwarder.confirm(account.storage_id, claim)
            else:
                with Wait(self._forwarder.waiting) as wait:
                    route = await wait.route(account.storage_id)
                if isinstance(route, There):
                    return Recipient(asked.address, account.name, asked.detail, _Remote(account, route), route.backend)
            try:
                found = await deliverer.recipient(asked.address, asked.user, asked.detail, asked.size)
                break
            except Elsewhere:  # the user was released meanwhile
                if last:
                    raise
        if asked.claim:
            self._forwarder.counters.forward("lmtp", "accepted")
        return found

    async def relay(self, mail: Relayed) -> list[Reply | None]:
        """See `obox.lmtp.forwarding.Forwarding`."""
        replies: dict[int, Reply | None] = {}
        waiting = {index: cast(_Remote, one.context) for index, one in enumerate(mail.recipients)}
        referred: set[int] = set()
        with Wait(self._forwarder.waiting) as wait:
            while waiting:
                routes: dict[int, Here | There | None] = {}
                for group in _grouped(mail, waiting):
                    await self._send(group)
                    replies |= group.replies
                    routes |= await self._next(group, wait, referred)
                replies |= {index: None for index, route in routes.items() if isinstance(route, Here)}
                waiting = {
                    index: _Remote(waiting[index].account, route)
                    for index, route in routes.items()
                    if isinstance(route, There)
                }
        return [replies.get(index, NO_BACKEND) for index in range(len(mail.recipients))]

    async def _next(self, group: _Group, wait: Wait, referred: set[int]) -> dict[int, Here | There | None]:
        """Return where the recipients of a group are tried next. A recipient that is
        left out, or has None, gets a temporary error."""
        found: dict[int, Here | There | None] = {}
        for index, seen in group.moved.items():
            if index not in referred:
                referred.add(index)
                with suppress(Unavailable):
                    found[index] = await self._forwarder.router.reread(group.members[index].account.storage_id, seen)
        if group.error is None or not group.open:
            return found
        asked = {index: group.members[index] for index in group.open}
        users = {index: remote.account.storage_id for index, remote in asked.items()}
        try:
            again = {index: await wait.after(users[index], remote.there) for index, remote in asked.items()}
            if all(again[index] == remote.there for index, remote in asked.items()):
                if not await wait.pause(group.there, users.values()):
                    raise Unavailable(str(group.error))
                again = {index: await wait.route(sid) for index, sid in users.items()}
        except Unavailable as error:
            log.warning("backend does not answer", backend=group.there.backend, listener="lmtp", error=str(error))
            return found
        return found | again

    async def _send(self, group: _Group) -> None:
        """Send the mail to one backend, once. Afterwards each recipient has a reply or
        was referred, or there is an error after which it is tried again."""
        count, there = self._forwarder.counters.forward, group.there
        users = [remote.account.storage_id for remote in group.members.values()]
        try:
            async with asyncio.timeout(group.mail.timeout_s), self._forwarder.moves.until_moved(there, users) as watch:
                await self._attempt(group, watch)
        except LinkRefused as refused:
            self._forwarder.no_common_secret(there, "lmtp", refused)
        except OSError as error:
            count("lmtp", "unavailable")
            if not group.sent:
                group.error = error
                return
        else:
            count("lmtp", "referred" if group.moved else "ok")
        group.rest(NO_BACKEND)

    async def _attempt(self, group: _Group, watch: Watch) -> None:
        """Connect and do the transaction. Raises: OSError, LinkRefused."""
        dialogue = await dial(place_of(group.there, "lmtp"))
        try:
            await self._link(dialogue, group)
            accepted = await _envelope(dialogue, group)
            if accepted:
                await _mail(dialogue, group, accepted, watch)
        except BaseException:
            dialogue.abort()
            raise
        dialogue.close()

    async def _link(self, dialogue: Dialogue, group: _Group) -> None:
        """Greet, start TLS if it is needed, and exchange the proofs."""
        mail = group.mail
        remote = mail.envelope.remote
        forward = self._forwarder.forward_of(
            group.there,
            None,
            listener="lmtp",
            remote="" if remote == "unix" else remote,
            tls=mail.tls,
        )
        dialect = _Lmtp(mail.envelope.lhlo)
        reply = await prove(dialogue, dialect, lambda binding: self._forwarder.sender(forward, binding))
        if reply.code != 235:
            raise LinkRefused("the backend does not accept our proof")


class _Lmtp(Dialect[Reply]):
    STARTTLS = b"STARTTLS"
    AUTH = b"AUTH"

    def __init__(self, lhlo: str) -> None:
        self._lhlo = b"LHLO %b\r\n" % lhlo.encode()

    async def greeted(self, dialogue: Dialogue) -> None:
        _expect(await _reply(dialogue), 220)
        await self.secured(dialogue)

    async def secured(self, dialogue: Dialogue) -> None:
        await dialogue.send(self._lhlo)
        _expect(await _reply(dialogue), 250)

    async def answer(self, dialogue: Dialogue) -> Reply:
        return await _reply(dialogue)

    def check_tls(self, answer: Reply) -> None:
        _expect(answer, 220)

    def challenge(self, answer: Reply) -> bytes | None:
        """Return the challenge. Raises: ConnectionRefusedError, there is none."""
        return _expect(answer, 334).text.encode()


def _grouped(mail: Relayed, waiting: Mapping[int, _Remote]) -> list[_Group]:
    by_backend: dict[str, dict[int, _Remote]] = {}
    for index, remote in waiting.items():
        by_backend.setdefault(remote.there.backend, {})[index] = remote
    return [_Group(mail, next(iter(members.values())).there, members) for members in by_backend.values()]


async def _envelope(dialogue: Dialogue, group: _Group) -> list[int]:
    """Send MAIL and RCPT together. Return the recipients that the backend accepts."""
    envelope = group.mail.envelope
    parameters = f" SIZE={envelope.size} BODY={envelope.body}" + (" SMTPUTF8" if envelope.smtputf8 else "")
    asked = group.open
    lines = [f"MAIL FROM:<{envelope.reverse_path}>{parameters}\r\n"]
    for index in asked:
        of = group.members[index].there.assigned
        claim = f"XOBOX={of.backend}:{of.number}:{of.token}"
        lines.append(f"RCPT TO:<{group.mail.recipients[index].address}> {claim}\r\n")
    await dialogue.send("".join(lines).encode())
    mail = await _reply(dialogue)
    accepted = []
    for index in asked:
        reply = await _reply(dialogue)
        if (referred := Referred.read(reply.text)) is not None:
            group.moved[index] = Assigned(referred.backend, referred.number, referred.token)
        elif reply.accepted:
            accepted.append(index)
        else:
            group.replies[index] = reply if mail.accepted else mail
    return accepted


async def _mail(dialogue: Dialogue, group: _Group, accepted: list[int], watch: Watch) -> None:
    """Send BDAT, and read a reply for each recipient."""
    size = group.mail.envelope.size
    await dialogue.send(b"BDAT %d LAST\r\n" % size)
    left = size
    group.sent = watch.finishes = not size
    async for piece in group.mail.pieces():
        left -= len(piece)
        # It is set before the last byte is sent: an error does not say what has
        # arrived.
        group.sent = watch.finishes = not left
        await dialogue.send(piece)
    for index in accepted:
        group.replies[index] = await _reply(dialogue, group.mail.timeout_s)


async def _reply(dialogue: Dialogue, within_s: float = ANSWER_S) -> Reply:
    """Read a reply, and return its last line. Raises: OSError."""
    async with asyncio.timeout(within_s):
        for _ in range(REPLY_LINES_MAX):
            match = _LINE.fullmatch(await dialogue.line())
            if match is None:
                break
            if match[2] == b" ":
                text = match[4].decode("utf-8", "replace")
                return Reply(int(match[1]), (match[3] or b"").decode("ascii"), text)
    raise ConnectionResetError("the backend's answer is not LMTP")


def _expect(reply: Reply, code: int) -> Reply:
    """Check the code of a reply. Raises: ConnectionRefusedError, it has another
    code."""
    if reply.code != code:
        raise ConnectionRefusedError(f"{reply.code} {reply.enhanced} {reply.text}")
    return reply
