"""A session: the mail that arrives, and its delivery to each recipient.

A large mail waits in a file (`obox.spool`), and is read back when there is memory for
it. A recipient is checked at RCPT, and gets the mail after its last byte has arrived.

Diagnostics: a line `lmtp_delivery` is logged for each recipient of each mail. A failure
that is not one of `obox.errors` is a bug: its traceback is logged, and the client gets
451 4.3.0. This module knows no transports and no timers.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import cast

import structlog

from obox.errors import OboxError
from obox.lmtp.context import Context
from obox.lmtp.deliverer import Envelope, Recipient
from obox.lmtp.machine import Machine, MailReceived, RecipientAsked
from obox.lmtp.replies import INTERNAL, LOOP, SAVED, Reply, reply_for
from obox.lmtp.settings import Settings
from obox.lmtp.trace import Inspected, inspect, trace_fields
from obox.spool import Spool

log = structlog.get_logger("obox.lmtp")

_RECIPIENT_OK = Reply(250, "2.1.5", "OK")
_SPOOL_FAILED = Reply(451, "4.3.0", "Temporary failure, try again later")


class Session:
    """See the module's text. remote: the client's address, or "unix"."""

    __slots__ = ("_context", "_machine", "_settings", "_spool", "_transactions", "id", "remote")

    def __init__(self, context: Context, settings: Settings, machine: Machine) -> None:
        self.id = secrets.token_hex(6)
        self.remote = "unix"
        self._context = context
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
                recipient = await self._context.deliverer.recipient(asked.address, asked.user, asked.detail, asked.size)
        except Exception as error:
            reply = self._reply_for(error, asked.address)
            log.info(
                "lmtp_recipient_refused",
                session=self.id,
                remote=self.remote,
                recipient=asked.address,
                result=f"{reply.code} {reply.enhanced}",
                text=reply.text,
            )
            return Reply(reply.code, reply.enhanced, f"<{asked.address}> {reply.text}"), None
        return _RECIPIENT_OK, recipient

    async def deliver(self, mail: MailReceived) -> list[Reply]:
        """Deliver the mail that has arrived.

        Returns a reply for each recipient, in order.
        """
        self._transactions += 1
        session = f"{self.id}-{self._transactions}"
        recipients = cast("tuple[Recipient, ...]", mail.recipients)
        if self._spool.failed:
            return [_SPOOL_FAILED] * len(recipients)
        parallel = min(len(recipients), self._settings.deliveries_parallel_max)
        if self._spool.in_memory:
            return await self._deliver_source(self._spool.take_memory(), mail, session, parallel)
        # All connections share the memory for large mails. A large mail needs its own
        # bytes, and a copy for each delivery that runs.
        copies = max(1, min(parallel, self._context.budget.bytes_max // mail.size - 1))
        async with self._context.budget.hold(mail.size * (1 + copies)):
            try:
                source = await self._spool.take()
            except OSError as error:
                log.error("lmtp_spool_failed", session=session, problem=str(error))
                return [_SPOOL_FAILED] * len(recipients)
            return await self._deliver_source(source, mail, session, copies)

    async def _deliver_source(self, source: bytes, mail: MailReceived, session: str, parallel: int) -> list[Reply]:
        inspected = inspect(source)
        envelope = Envelope(
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
        recipients = cast("tuple[Recipient, ...]", mail.recipients)
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
            protocol = ("UTF8LMTP" if envelope.smtputf8 else "LMTP") + ("S" if self._machine.secure else "")
            fields = trace_fields(
                reverse_path=envelope.reverse_path,
                recipient=recipient.address,
                lhlo=envelope.lhlo,
                remote=envelope.remote,
                hostname=self._settings.hostname,
                session_id=envelope.session_id,
                protocol=protocol,
                unix_s=int(self._context.wall_clock()),
            )
            try:
                async with asyncio.timeout(self._settings.delivery_timeout_s):
                    await self._context.deliverer.deliver(recipient, envelope, fields + mail.source)
            except Exception as error:
                reply = self._reply_for(error, recipient.address)
        seconds = loop.time() - started
        log.info(
            "lmtp_delivery",
            recipient=recipient.address,
            user=recipient.user,
            session=envelope.session_id,
            queue_id=envelope.queue_id,
            message_id=envelope.message_id,
            reverse_path=envelope.reverse_path,
            size=envelope.size,
            ms=round(seconds * 1000, 1),
            result=f"{reply.code} {reply.enhanced}",
            text=reply.text,
        )
        if self._context.observe is not None:
            self._context.observe(str(reply.code), seconds)
        text = f"<{recipient.address}> {envelope.session_id} {reply.text}"
        return Reply(reply.code, reply.enhanced, text)

    def _reply_for(self, error: Exception, recipient: str) -> Reply:
        if not isinstance(error, OboxError | TimeoutError):
            log.error("lmtp_bug", session=self.id, recipient=recipient, exc_info=error)
            return INTERNAL
        return reply_for(error, quota_full_tempfail=self._settings.quota_full_tempfail)
