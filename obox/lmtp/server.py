"""Drives the LMTP machine on TCP and unix sockets: reads, time-outs, deliveries, replies, an orderly end.

The invariants:
- One task per connection works through its events in order; only the recipients of one mail are delivered side by side.
- What the client does not read stops what we read from it: replies above the transport's high-water mark wait, and
while a
  delivery runs at most `READ_AHEAD_BYTES` and one read of pipelined input are taken.
- A mail whose last byte has come is delivered even if its client is gone; one that has not come whole never is.
- Idle connections keep nobody out: where all places are taken the longest idle one gets 421.
- `close` lets transactions under way finish, for a time that its caller sets.

Diagnostics: one line `lmtp_delivery` for each recipient of each mail; a failure that is no kind of `obox.errors` is a
bug, its traceback goes to the log and 451 4.3.0 to the client.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import cast

import structlog

from obox.addresses import counted, parsed
from obox.errors import OboxError
from obox.lmtp.deliverer import Deliverer, Envelope, Recipient
from obox.lmtp.machine import (
    BodyChunk,
    BodyDropped,
    Machine,
    MailReceived,
    Pause,
    RecipientAsked,
    TlsAsked,
)
from obox.lmtp.replies import INTERNAL, LOOP, SAVED, Reply, reply_for
from obox.lmtp.settings import Settings
from obox.lmtp.trace import Inspected, inspect, trace_fields
from obox.spool import ByteBudget, Spool
from obox.store.turn import Turn

log = structlog.get_logger("obox.lmtp")

READ_AHEAD_BYTES = 256 << 10
"""Input kept while the machine is busy; the transport's reads are of this size as well."""

WRITE_BUFFER_BYTES = 64 << 10
"""Replies that the client has not read: beyond, its next command waits."""

TLS_HANDSHAKE_S = 30.0

_STOPPING = Reply(421, "4.3.2", "Shutting down, try again later")
_TIMED_OUT = Reply(421, "4.4.2", "Timeout, closing")
_TOO_MANY = Reply(421, "4.3.2", "Too many connections, try again later")
_UNTRUSTED = Reply(554, "5.7.1", "Client is not in a trusted network")
_RECIPIENT_OK = Reply(250, "2.1.5", "OK")
_SPOOL_FAILED = Reply(451, "4.3.0", "Temporary failure, try again later")


class LmtpServer:
    """The sessions of one process. `protocol` is the factory for `create_server` and `create_unix_server`."""

    def __init__(
        self,
        deliverer: Deliverer,
        settings: Settings,
        *,
        wall_clock: Callable[[], float] = time.time,
        observe: Callable[[str, float], None] | None = None,
    ) -> None:
        """observe: called with the result ("250", "451", …) and seconds of each delivery, for metrics."""
        self.use(deliverer, settings)
        self.wall_clock = wall_clock
        self.observe = observe
        self.budget = ByteBudget(settings.delivery_bytes_max)
        self.stopping = False
        self.connections: set[Connection] = set()
        self.addresses: Counter[str] = Counter()

    def use(self, deliverer: Deliverer, settings: Settings) -> None:
        """Other settings for connections that come from now on; the deliverer is everybody's at once. The memory of all
        deliveries together stays what it was."""
        self.deliverer = deliverer
        self.settings = settings
        self._trusted = [ipaddress.ip_network(network) for network in settings.trusted_networks]

    def protocol(self, remote: str | None = None) -> asyncio.Protocol:
        """A new connection's protocol.

        remote: the client's address where a PROXY header gave it; None: the transport's peer. It decides about trust.
        """
        return Connection(self, remote)

    def trusts(self, remote: str) -> bool:
        """May this TCP client speak to us?"""
        address = parsed(remote)
        return address is not None and any(address in network for network in self._trusted)

    def admit(self, remote: str, settings: Settings) -> bool:
        """Is there room for one more connection from there? The longest idle one gives way if need be."""
        address = counted(remote)
        if address and self.addresses[address] >= settings.address_connections_max:
            log.warning("lmtp_too_many_connections", remote=remote, limit=settings.address_connections_max)
            return False
        if len(self.connections) >= settings.connections_max:
            idle = [connection for connection in self.connections if connection.idle_since is not None]
            if not idle:
                log.warning("lmtp_too_many_connections", remote=remote, limit=settings.connections_max)
                return False
            min(idle, key=lambda connection: connection.idle_since or 0.0).give_way()
        self.addresses[address] += 1
        return True

    def left(self, remote: str) -> None:
        """A connection that was admitted has ended."""
        address = counted(remote)
        self.addresses[address] -= 1
        if not self.addresses[address]:
            del self.addresses[address]

    async def close(self, grace_s: float = 30.0) -> None:
        """End every session: idle ones now, others after their transaction, all after `grace_s`.

        Close the listeners first. A delivery that is cut off has no reply, so its sender tries again.
        """
        self.stopping = True
        for connection in list(self.connections):
            connection.wake()
        tasks = {connection.task for connection in self.connections if connection.task is not None}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: LmtpServer, remote: str | None = None) -> None:
        self.server = server
        self.settings = server.settings
        self.task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._turn = Turn()
        self._machine = Machine(server.settings, over=self._turn.over)
        self._spool = Spool(server.settings.spool_dir, server.settings.spool_memory_bytes)
        self._remote = remote or "unix"
        self._session = ""
        self._transactions = 0
        self._wakeup: asyncio.Future[None] | None = None
        self._waiting_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timed_out = False
        self._timer_s = min(server.settings.command_timeout_s, server.settings.data_timeout_s)
        self._reading_paused = False
        self._writing_paused = False
        self._lost = False
        self._eof = False
        self._in_handshake = False
        self._gives_way = False

    @property
    def idle_since(self) -> float | None:
        """In the loop's time; None while a transaction or a command is under way, or it is being closed."""
        waits = self._wakeup is not None and not self._gives_way and self._machine.idle
        return self._waiting_since if waits else None

    def give_way(self) -> None:
        """An idle connection ends, because another one wants its place."""
        self._gives_way = True
        self.wake()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client, or the same one again after STARTTLS."""
        self._transport = cast(asyncio.Transport, transport)
        if self.task is not None:
            return
        transport = self._transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and self._remote == "unix":
            self._remote = str(peer[0])
        refusal: Reply | None = None
        if self._remote != "unix" and not self.server.trusts(self._remote):
            log.warning("lmtp_untrusted", remote=self._remote)
            refusal = _UNTRUSTED
        elif self.server.stopping:
            refusal = _STOPPING
        elif not self.server.admit(self._remote, self.settings):
            refusal = _TOO_MANY
        if refusal is not None:
            transport.write(refusal.wire())
            transport.close()
            self._lost = True
            return
        self._machine.secure = transport.get_extra_info("sslcontext") is not None
        self._session = secrets.token_hex(6)
        self.server.connections.add(self)
        self.task = self._loop.create_task(self._run(), name=f"lmtp-{self._session}")

    def data_received(self, data: bytes) -> None:
        """Feed the machine; stop reading when it has enough."""
        if self._in_handshake:
            return  # plain bytes behind STARTTLS: not ours to trust
        self._machine.feed(data)
        if not self._reading_paused and self._machine.buffered_bytes > READ_AHEAD_BYTES:
            self._reading_paused = True
            assert self._transport is not None
            self._transport.pause_reading()
        self.wake()

    def eof_received(self) -> bool:
        """The client sends no more; on a plain socket it may still read."""
        self._eof = True
        self.wake()
        return not self._machine.secure

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody there any more; a delivery under way goes on."""
        self._lost = True
        self._writing_paused = False
        self.wake()

    def pause_writing(self) -> None:
        """The client does not read its replies."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._writing_paused = False
        self.wake()

    def wake(self) -> None:
        """Something has changed: look again."""
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    # The task.

    async def _run(self) -> None:
        try:
            await self._serve()
            self._send()
        except Exception:
            log.exception("lmtp_session_failed", session=self._session, remote=self._remote)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._spool.close()
            self.server.connections.discard(self)
            self.server.left(self._remote)
            if self._transport is not None:
                self._transport.close()
                if self._timed_out or self._writing_paused:
                    self._transport.abort()

    async def _serve(self) -> None:
        machine, spool, turn = self._machine, self._spool, self._turn
        machine.greet()
        while True:
            if turn.over() and not await self._breathe():
                return
            event = machine.next_event()
            kind = type(event)
            if kind is BodyChunk:
                if spool.add(cast(BodyChunk, event).data):
                    await spool.flush()
            elif kind is RecipientAsked:
                machine.answer_recipient(*await self._ask(cast(RecipientAsked, event)))
            elif kind is MailReceived:
                self._send()  # what is acknowledged already does not wait for this mail
                machine.answer_mail(await self._deliver_all(cast(MailReceived, event)))
                await spool.reset()
                if self.server.stopping:
                    machine.close(_STOPPING)
            elif kind is BodyDropped:
                await spool.reset()
            elif kind is TlsAsked:
                await self._start_tls()
            elif event is Pause.CLOSED:
                return
            elif event is not Pause.TURN:
                self._send()
                if not await self._more():
                    return
                turn.begin()

    async def _breathe(self) -> bool:
        """Many commands may have come at once: hand over their replies, and let others run; False at the end."""
        self._send()
        await self._turn.end()
        return not self._writing_paused or await self._until_taken()

    async def _more(self) -> bool:
        """Wait until there is input for the machine, and its replies have somewhere to go; False at the end."""
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        return await self._wait(self._machine.buffered_bytes)

    async def _until_taken(self) -> bool:
        """Wait until the client has taken its replies; False at the end."""
        going_on = await self._wait(None)
        self._turn.begin()
        return going_on

    async def _wait(self, before: int | None) -> bool:
        """before: bytes that the machine had, where more have to come."""
        machine = self._machine
        while True:
            if self._lost:
                return False
            if not self._writing_paused:
                if machine.buffered_bytes != before:
                    return True
                if self.server.stopping and machine.idle:
                    machine.close(_STOPPING)
                    return True
                if self._gives_way and machine.idle:
                    machine.close(_TOO_MANY)
                    return True
                if self._eof:
                    return False
            if self._timed_out:
                log.info("lmtp_timeout", session=self._session, remote=self._remote, in_body=machine.in_body)
                machine.close(_TIMED_OUT)
                self._send()
                return False
            self._waiting_since = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_later(self._timer_s, self._check_timeout)
            self._wakeup = self._loop.create_future()
            await self._wakeup
            self._wakeup = None

    def _timeout_s(self) -> float:
        return self.settings.data_timeout_s if self._machine.in_body else self.settings.command_timeout_s

    def _check_timeout(self) -> None:
        """One timer for the whole session, set anew when it finds that the client was not silent for long."""
        self._timer = None
        if self._wakeup is None:  # busy: the next wait sets a timer
            return
        left_s = self._waiting_since + self._timeout_s() - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(min(left_s, self._timer_s), self._check_timeout)
        else:
            self._timed_out = True
            self.wake()

    def _send(self) -> None:
        output = self._machine.take_output()
        if output and not self._lost and self._transport is not None:
            self._transport.write(output)

    async def _start_tls(self) -> None:
        assert self.settings.tls is not None
        assert self._transport is not None
        transport = self._transport
        # Nothing may be read between 220 and the handshake but the handshake.
        transport.pause_reading()
        self._in_handshake = True
        self._send()
        try:
            secured = await self._loop.start_tls(
                transport, self, self.settings.tls(), server_side=True, ssl_handshake_timeout=TLS_HANDSHAKE_S
            )
        except (OSError, ssl.SSLError) as error:
            log.info("lmtp_tls_failed", session=self._session, remote=self._remote, problem=str(error))
            self._machine.close(Reply(454, "4.7.0", "TLS failed"))
            self._machine.take_output()
            self._lost = True
            return
        if secured is None:  # the client went away in the middle
            self._lost = True
            return
        self._in_handshake = False
        self._reading_paused = False
        self._transport = secured
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._machine.tls_started()

    async def _ask(self, asked: RecipientAsked) -> tuple[Reply, Recipient | None]:
        try:
            async with asyncio.timeout(self.settings.delivery_timeout_s):
                recipient = await self.server.deliverer.recipient(asked.address, asked.user, asked.detail, asked.size)
        except Exception as error:
            reply = self._reply_for(error, asked.address)
            log.info(
                "lmtp_recipient_refused",
                session=self._session,
                remote=self._remote,
                recipient=asked.address,
                result=f"{reply.code} {reply.enhanced}",
                text=reply.text,
            )
            return Reply(reply.code, reply.enhanced, f"<{asked.address}> {reply.text}"), None
        return _RECIPIENT_OK, recipient

    async def _deliver_all(self, mail: MailReceived) -> list[Reply]:
        """One reply for each recipient, in order."""
        self._transactions += 1
        session = f"{self._session}-{self._transactions}"
        recipients = cast("tuple[Recipient, ...]", mail.recipients)
        if self._spool.failed:
            return [_SPOOL_FAILED] * len(recipients)
        parallel = min(len(recipients), self.settings.deliveries_parallel_max)
        if self._spool.in_memory:
            return await self._deliver_source(self._spool.take_memory(), mail, session, parallel)
        # A large mail: its bytes and one copy for each delivery that runs, out of what all connections share.
        copies = max(1, min(parallel, self.server.budget.bytes_max // mail.size - 1))
        async with self.server.budget.hold(mail.size * (1 + copies)):
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
            remote=self._remote,
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

        async def one(recipient: Recipient) -> Reply:
            async with gate:
                return await self._deliver(recipient, envelope, inspected)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(recipient)) for recipient in recipients]
        return [task.result() for task in tasks]

    async def _deliver(self, recipient: Recipient, envelope: Envelope, mail: Inspected) -> Reply:
        started = self._loop.time()
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
                hostname=self.settings.hostname,
                session_id=envelope.session_id,
                protocol=protocol,
                unix_s=int(self.server.wall_clock()),
            )
            try:
                async with asyncio.timeout(self.settings.delivery_timeout_s):
                    await self.server.deliverer.deliver(recipient, envelope, fields + mail.source)
            except Exception as error:
                reply = self._reply_for(error, recipient.address)
        seconds = self._loop.time() - started
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
        if self.server.observe is not None:
            self.server.observe(str(reply.code), seconds)
        text = f"<{recipient.address}> {envelope.session_id} {reply.text}"
        return Reply(reply.code, reply.enhanced, text)

    def _reply_for(self, error: Exception, recipient: str) -> Reply:
        if not isinstance(error, OboxError | TimeoutError):
            log.error("lmtp_bug", session=self._session, recipient=recipient, exc_info=error)
            return INTERNAL
        return reply_for(error, quota_full_tempfail=self.settings.quota_full_tempfail)
