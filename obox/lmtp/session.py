"""A session: the mail that arrives, and its delivery to each recipient.

A large mail waits in a file (`obox.spool`), and is read back when there is memory for
it. A recipient is checked at RCPT, and gets the mail after its last byte has arrived.

Diagnostics: a line `lmtp delivery` is logged for each recipient of each mail. A failure
that is not one of `obox.errors` is a bug: its traceback is logged, and the client gets
451 4.3.0. This module knows no transports and no timers.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final, cast

import structlog

from obox.auth import LinkOwner, Referred
from obox.errors import Elsewhere, OboxError
from obox.lmtp.context import Context
from obox.lmtp.deliverer import Envelope, Recipient
from obox.lmtp.events import MailReceived, RecipientAsked
from obox.lmtp.machine import Machine
from obox.lmtp.replies import INTERNAL, LOOP, SAVED, Reply, reply_for
from obox.lmtp.settings import Settings
from obox.lmtp.trace import HEADER_BYTES_MAX, Inspected, inspect, trace_fields
from obox.spool import Spool

log = structlog.get_logger("obox.lmtp")

TRACED_INLINE_BYTES: Final = 1 << 20
"""A mail of at most 1 MiB is copied behind its trace fields on the loop, which takes a
millisecond. A thread copies a larger mail, without the interpreter's lock."""
_RECIPIENT_OK = Reply(250, "2.1.5", "OK")
_MOVED = Reply(451, "4.3.2", "The recipient moves to another backend, try again later")
_SPOOL_FAILED = Reply(451, "4.3.0", "Temporary failure, try again later")


class Session:
    """See the module's text. remote: the client's address, or "unix". tls: whether the
    client uses TLS."""

    __slots__ = ("_machine", "_settings", "_spool", "_transactions", "context", "id", "link", "remote", "tls")

    def __init__(self, context: Context, settings: Settings, machine: Machine) -> None:
        self.id = secrets.token_hex(6)
        self.remote = "unix"
        self.tls = False
        self.link: LinkOwner | None = None
        """The exchange with a member that is under way."""
        self.context = context
        self._settings = settings
        self._machine = machine
        self._spool = Spool(settings.spool_dir, settings.spool_memory_bytes)
        self._transactions = 0

    async def take(self, data: bytes) -> None:
        """Keep bytes of the mail that arrives."""
        if self._spool.add(data):
            await self._spool.flush()

    async def drop(self) -> None:
        """Forget the mail."""
        await self._spool.reset()

    def close(self) -> None:
        """Release what the session holds."""
        self._spool.close()

    async def ask(self, asked: RecipientAsked) -> tuple[Reply, Recipient | None]:
        try:
            async with asyncio.timeout(self._settings.delivery_timeout_s):
                recipient = await self._recipient(asked)
        except Referred as referred:
            return Reply(451, "4.3.2", referred.wire), None
        except Exception as error:
            reply = self._reply_for(error, asked.address)
            log.info(
                "lmtp recipient refused",
                session=self.id,
                remote=self.remote,
                recipient=asked.address,
                result=f"{reply.code} {reply.enhanced}",
                text=reply.text,
            )
            return Reply(reply.code, reply.enhanced, f"<{asked.address}> {reply.text}"), None
        return _RECIPIENT_OK, recipient

    async def _recipient(self, asked: RecipientAsked) -> Recipient:
        deliverer, forwarding = self.context.deliverer, self.context.forwarding
        if forwarding is not None:
            return await forwarding.recipient(asked, deliverer)
        return await deliverer.recipient(asked.address, asked.user, asked.detail, asked.size)

    async def deliver(self, mail: MailReceived) -> list[Reply]:
        """Deliver the mail that has arrived.

        Returns a reply for each recipient, in order.
        """
        self._transactions += 1
        session = f"{self.id}-{self._transactions}"
        recipients = cast("tuple[Recipient, ...]", mail.recipients)
        if self._spool.failed:
            return [_SPOOL_FAILED] * len(recipients)
        if any(recipient.owner for recipient in recipients):
            return await self._split(mail, recipients, session)
        return await self._deliver_here(mail, recipients, session)

    async def _split(self, mail: MailReceived, recipients: Sequence[Recipient], session: str) -> list[Reply]:
        """Send the mail to each owner at the same time. Deliver to the recipients of
        this backend."""
        by_owner: dict[str, list[int]] = {}
        for index, recipient in enumerate(recipients):
            by_owner.setdefault(recipient.owner, []).append(index)
        if not self._spool.in_memory:
            await self._spool.flush()
        head = await self._spool.head(HEADER_BYTES_MAX) if not self._spool.failed else None
        if head is None:
            return [_SPOOL_FAILED] * len(recipients)
        envelope = self._envelope(mail, inspect(head), session)

        async def one(owner: str, indexes: Sequence[int]) -> list[Reply]:
            chosen = tuple(recipients[index] for index in indexes)
            if not owner:
                return await self._deliver_here(mail, chosen, session)
            replies = await self._relay(owner, chosen, envelope)
            return [
                await self._deliver_moved(mail, recipient, session) if reply is None else reply
                for recipient, reply in zip(chosen, replies, strict=True)
            ]

        async with asyncio.TaskGroup() as group:
            tasks = {owner: group.create_task(one(owner, indexes)) for owner, indexes in by_owner.items()}
        replies = [_SPOOL_FAILED] * len(recipients)
        for owner, indexes in by_owner.items():
            for index, reply in zip(indexes, tasks[owner].result(), strict=True):
                replies[index] = reply
        return replies

    async def _deliver_moved(self, mail: MailReceived, recipient: Recipient, session: str) -> Reply:
        """Deliver to a recipient whom this backend owns since RCPT."""
        asked = RecipientAsked(recipient.address, recipient.user, recipient.detail, mail.size)
        reply, here = await self.ask(asked)
        if here is None:
            return reply
        if here.owner:
            return _MOVED
        (reply,) = await self._deliver_here(mail, (here,), session)
        return reply

    async def _relay(self, owner: str, recipients: Sequence[Recipient], envelope: Envelope) -> list[Reply | None]:
        """Return a reply for each recipient; None: this backend owns it by now."""
        from obox.lmtp.forwarding import Relayed  # loaded if users are forwarded

        forwarding, loop = self.context.forwarding, asyncio.get_running_loop()
        assert forwarding is not None
        started = loop.time()
        mail = Relayed(recipients, envelope, self._spool.pieces, self.tls, self._settings.delivery_timeout_s)
        try:
            replies = await forwarding.relay(mail)
        except Exception as error:
            replies = [self._reply_for(error, recipient.address) for recipient in recipients]
        seconds = loop.time() - started
        for recipient, reply in zip(recipients, replies, strict=True):
            if reply is not None:
                self._log(recipient, envelope, reply, seconds, backend=owner)
        return replies

    async def _deliver_here(self, mail: MailReceived, recipients: Sequence[Recipient], session: str) -> list[Reply]:
        parallel = min(len(recipients), self._settings.deliveries_parallel_max)
        if self._spool.in_memory:
            return await self._deliver_source(self._spool.take_memory(), mail, recipients, session, parallel)
        # All connections share the memory for large mails. A large mail needs its own
        # bytes, and a copy for each delivery that runs.
        copies = max(1, min(parallel, self.context.budget.bytes_max // mail.size - 1))
        async with self.context.budget.hold(mail.size * (1 + copies)):
            try:
                source = await self._spool.take()
            except OSError as error:
                log.error("lmtp spool failed", session=session, error=str(error))
                return [_SPOOL_FAILED] * len(recipients)
            return await self._deliver_source(source, mail, recipients, session, copies)

    def _envelope(self, mail: MailReceived, inspected: Inspected, session: str) -> Envelope:
        return Envelope(
            reverse_path=mail.reverse_path,
            lhlo=self._machine.lhlo,
            remote=self.remote,
            session_id=session,
            size=mail.size,
            body=mail.body,
            smtputf8=mail.smtputf8,
            message_id=inspected.message_id,
            queue_id=inspected.queue_id,
        )

    async def _deliver_source(
        self, source: bytes, mail: MailReceived, recipients: Sequence[Recipient], session: str, parallel: int
    ) -> list[Reply]:
        inspected = inspect(source)
        envelope = self._envelope(mail, inspected, session)
        if len(recipients) == 1:
            return [await self._deliver(recipients[0], envelope, inspected)]
        gate = asyncio.Semaphore(parallel)

        async def deliver_to(recipient: Recipient) -> Reply:
            async with gate:
                return await self._deliver(recipient, envelope, inspected)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(deliver_to(recipient)) for recipient in recipients]
        return [task.result() for task in tasks]

    async def _deliver(self, recipient: Recipient, envelope: Envelope, mail: Inspected) -> Reply:
        loop = asyncio.get_running_loop()
        started = loop.time()
        reply = SAVED
        if mail.loops(recipient.address):
            reply = LOOP
        else:
            protocol = ("UTF8LMTP" if envelope.smtputf8 else "LMTP") + ("S" if self.tls else "")
            fields = trace_fields(
                reverse_path=envelope.reverse_path,
                recipient=recipient.address,
                lhlo=envelope.lhlo,
                remote=envelope.remote,
                hostname=self._settings.hostname,
                session_id=envelope.session_id,
                protocol=protocol,
                unix_s=int(self.context.wall_clock()),
            )
            try:
                async with asyncio.timeout(self._settings.delivery_timeout_s):
                    await self.context.deliverer.deliver(recipient, envelope, await _with_trace(fields, mail.source))
            except Elsewhere as error:  # the user left since RCPT, without the mail
                moved = await self._forward_moved(recipient, envelope)
                if moved is not None:
                    return moved
                reply = self._reply_for(error, recipient.address)
            except Exception as error:
                reply = self._reply_for(error, recipient.address)
        self._log(recipient, envelope, reply, loop.time() - started)
        text = f"<{recipient.address}> {envelope.session_id} {reply.text}"
        return Reply(reply.code, reply.enhanced, text)

    async def _forward_moved(self, recipient: Recipient, envelope: Envelope) -> Reply | None:
        """Send a mail to the backend that owns a recipient since RCPT. None: there is
        none. A forwarded mail is not forwarded again."""
        if self.context.forwarding is None or self._machine.member:
            return None
        _, there = await self.ask(RecipientAsked(recipient.address, recipient.user, recipient.detail, envelope.size))
        if there is None or not there.owner:
            return None
        if not self._spool.in_memory:
            await self._spool.flush()
        (reply,) = await self._relay(there.owner, (there,), envelope)
        return reply

    def _log(self, recipient: Recipient, envelope: Envelope, reply: Reply, seconds: float, **more: str) -> None:
        log.info(
            "lmtp delivery",
            recipient=recipient.address,
            user=recipient.user,
            session=envelope.session_id,
            queue_id=envelope.queue_id,
            message_id=envelope.message_id,
            reverse_path=envelope.reverse_path,
            bytes=envelope.size,
            ms=round(seconds * 1000, 1),
            result=f"{reply.code} {reply.enhanced}",
            text=reply.text,
            **more,
        )
        if self.context.observe is not None:
            self.context.observe(str(reply.code), seconds)

    def _reply_for(self, error: Exception, recipient: str) -> Reply:
        if not isinstance(error, OboxError | TimeoutError):
            log.error("lmtp delivery failed by a bug", session=self.id, recipient=recipient, exc_info=error)
            return INTERNAL
        return reply_for(error, quota_full_tempfail=self._settings.quota_full_tempfail)


async def _with_trace(fields: bytes, source: bytes) -> bytes:
    """Return a mail behind its trace fields."""
    if len(source) <= TRACED_INLINE_BYTES:
        return fields + source
    return await asyncio.to_thread(_join, (fields, source))


def _join(parts: tuple[bytes, bytes]) -> bytes:
    # bytes.join gives the interpreter's lock up for a large result, `+` does not.
    return b"".join(parts)
