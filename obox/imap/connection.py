"""One client's connection: bytes to the parser, its events to the session one at a time, answers to the transport.

Theory of operation. `data_received` feeds the parser. If nobody works, one task is started (`_run`) that takes events
until the parser wants more bytes, and ends: an idle connection has no task, no timer but one, no buffer.

    quiet --bytes, a change while IDLE--> running --all events handled, output handed over--> quiet
    any --stop, lost--> closing: the running command ends at its next write, then what the session held is given back

A connection that is lost is freed by its reference counts alone: the collector of cycles runs too seldom for what an
APPEND holds. `_finish` gives up the buffers and cuts the session off.

Flow. While a command runs, a few lines are read ahead, then reading stops. Output is gathered to `chunk_bytes`; beyond
the transport's high-water mark the command waits for the client to read, holding nothing, and is cut off after
`write_timeout_s`. The loop is yielded to every YIELD_S of work.

Timers: one handle at a time; what it means follows from the state when it fires (login, a command that does not end,
autologout, keepalive in IDLE).
Refuses to know: commands, mailboxes.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from obox.errors import Limit
from obox.imap import wire
from obox.imap.context import Context
from obox.imap.events import NEED_DATA
from obox.imap.machine import Machine
from obox.imap.parser import Parser
from obox.imap.registry import Who
from obox.imap.session import Session
from obox.imap.states import BEFORE_LOGIN
from obox.imap.updates import tell

YIELD_S: Final = 0.01
"""Work between two looks at the loop: half of what a chunk may take, well below the 50 ms of the design."""
CLOSE_TIMEOUT_S: Final = 10.0
"""For the last bytes to go; then the connection is cut."""
KEEPALIVE: Final = b"* OK Still here\r\n"


class Connection(asyncio.Protocol):
    """See the module's text."""

    __slots__ = (
        "__weakref__",
        "_ahead_bytes",
        "_ahead_lines",
        "_closing",
        "_context",
        "_drained",
        "_entered",
        "_eof",
        "_fed",
        "_forced_remote",
        "_last_input",
        "_last_yield",
        "_lost",
        "_machine",
        "_out",
        "_out_bytes",
        "_reading_paused",
        "_session",
        "_since",
        "_stop_reason",
        "_task",
        "_timer",
        "_transport",
        "_write_paused",
        "bytes_in",
        "bytes_out",
        "ended",
        "id",
        "parser",
        "remote",
        "settings",
        "tls",
    )

    def __init__(self, context: Context, machine: Machine, *, tls: bool, remote: str | None) -> None:
        self._context = context
        self._machine = machine
        self._forced_remote = remote
        self.tls = tls
        self.remote = remote or ""
        self.settings = context.settings
        self.id = context.next_id()
        self.parser = Parser(self.settings.anonymous_limits)
        self.parser.allowed = BEFORE_LOGIN
        self.bytes_in = 0
        self.bytes_out = 0
        self.ended = ""
        self._transport: asyncio.Transport | None = None
        self._session = Session(context, self)
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._fed = self._eof = self._entered = False
        self._ahead_bytes = self._ahead_lines = 0
        self._reading_paused = self._write_paused = False
        self._closing = self._lost = False
        self._stop_reason = ""
        self._last_input = self._last_yield = self._since = 0.0

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        context = self._context
        self._transport = cast(asyncio.Transport, transport)
        if self._forced_remote is None:
            peer = transport.get_extra_info("peername")
            self.remote = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        self.settings = context.settings_of(self.remote)
        self._transport.set_write_buffer_limits(high=self.settings.write_buffer_max)
        self._since = context.now()
        self._last_input = asyncio.get_running_loop().time()
        try:
            context.registry.enter(self, self.remote, most=self.settings.address_sessions_max)
        except Limit as error:
            context.log.warning("imap connection refused", remote=self.remote, reason=str(error))
            self._say_bye(str(error), "LIMIT")
            return
        self._entered = True
        context.counters.session(+1)
        if context.stopping:
            self._say_bye(context.stopping, "UNAVAILABLE")
            return
        self._transport.write(self._session.greeting())
        self._arm(self.settings.login_timeout_s)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self.bytes_in += len(data)
        self._last_input = asyncio.get_running_loop().time()
        self.parser.feed(data)
        self._fed = True
        if self._task is None:
            self._start()
            return
        settings = self.settings
        self._ahead_bytes += len(data)
        self._ahead_lines += data.count(b"\n")
        if self._ahead_bytes > settings.pipelined_bytes_max or self._ahead_lines > settings.pipelined_lines_max:
            self._pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more: what it asked for is still answered where the transport can."""
        self._eof = True
        return self._task is not None and not self.tls

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._closing = True
        self._disarm()
        self._out = []
        self._wake_writer()
        if self._task is None:
            self._start()
        elif self._session.may_cancel:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake_writer()

    # -- the session's side ----------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Gather output; it goes out in order, at the latest when the command ends."""
        self._out.append(data)
        self._out_bytes += len(data)

    @property
    def full(self) -> bool:
        """Enough is gathered that it should be flushed."""
        return self._out_bytes >= self.settings.chunk_bytes

    async def flush(self) -> None:
        """Hand over what was gathered, wait while the client is slow, give others a turn.

        Raises: ConnectionResetError when nobody listens any more.
        """
        if self._lost:
            raise ConnectionResetError("the client is gone")
        if self._out and self._transport is not None:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out = []
            self._out_bytes = 0
            self.bytes_out += len(data)
            self._transport.write(data)
            del data
        if self._write_paused:
            await self._drain()
        await self.breathe()

    async def breathe(self) -> None:
        """Let the loop run others, if this task has had its time."""
        now = self._context.clock()
        if now - self._last_yield > YIELD_S:
            await asyncio.sleep(0)
            self._last_yield = self._context.clock()

    async def start_tls(self) -> None:
        """Go on under TLS. What came in clear behind the command is thrown away (RFC 9051 §6.2.1, §11.1)."""
        upgrade, transport = self._context.upgrade, self._transport
        if upgrade is None or transport is None:
            raise ConnectionResetError("no TLS")
        await self.flush()
        transport.pause_reading()
        self.parser.discard_buffer()
        self._transport = await upgrade(transport, self)
        self._transport.set_write_buffer_limits(high=self.settings.write_buffer_max)
        self._reading_paused = self._write_paused = False
        self.tls = True

    def wake(self) -> None:
        """Something has changed that the session wants to tell now."""
        if self._task is None and not self._closing:
            self._start()

    def logged_in(self) -> None:
        self.parser.limits = self.settings.limits
        self.parser.allowed = None
        self._arm(self._look_s)

    def idle_changed(self) -> None:
        settings = self.settings
        self._context.counters.idle(+1 if self._session.idling else -1)
        self._arm(settings.keepalive_s if self._session.idling and settings.keepalive_s else self._look_s)

    def close(self) -> None:
        """Send what is gathered and close; nothing more is read."""
        if self._closing or self._transport is None:
            return
        self._closing = True
        if self._out:
            self._transport.write(b"".join(self._out))
            self.bytes_out += self._out_bytes
            self._out = []
        self._transport.close()
        self._arm(CLOSE_TIMEOUT_S)

    def abort(self) -> None:
        """Cut the connection; what is gathered is lost."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # -- registry.Member -------------------------------------------------------------------------------------------

    def who(self) -> Who:
        session = self._session
        mailbox = session.mailbox_name
        state = session.state.value
        return Who(self.id, session.user_name, self.remote, self.tls, state, mailbox, session.idling, self._since)

    def stop(self, reason: str) -> None:
        if self._closing:
            return
        self._stop_reason = reason
        if self._task is None:
            self._say_bye(reason)

    def _say_bye(self, reason: str, code: str | None = None) -> None:
        self.write(wire.status(None, "BYE", reason, code))
        self.close()

    # -- the task --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._task = self._context.spawn(self._run())

    async def _run(self) -> None:
        session = self._session
        try:
            while not self._closing:
                self._fed = False
                if session.idling:
                    await tell(session)
                while not self._closing and not self._stop_reason:
                    event = self.parser.next()
                    if event is NEED_DATA:
                        break
                    await self._machine.handle(session, event)
                    await session.go_on()  # many small commands may have come at once
                if self._stop_reason and not self._closing:
                    self._say_bye(self._stop_reason)
                    break
                self._resume_reading()
                if self._out:
                    await self.flush()
                if self._eof:
                    self.close()
                if not (self._fed or (session.idling and session.changed)):
                    break
        except (ConnectionError, TimeoutError, OSError) as error:
            self.ended = self.ended or str(error)
            self.abort()
        except asyncio.CancelledError:
            self.ended = self.ended or "cut off"
            self.abort()
            if not self._lost:
                raise
        except Exception:
            self._context.log.exception("imap session failed", session=self.id, user=session.user_name)
            self.abort()
        finally:
            if self._lost:
                await self._finish()
            self._task = None
            if self._lost and self._entered:  # cut while it gave back
                self._start()

    async def _finish(self) -> None:
        """Give back what the session held. Once: the session forgets what it gives back."""
        session = self._session
        if session.idling:
            self._context.counters.idle(-1)
        try:
            await session.finish(self._context.now() - self._since)
        except Exception:
            self._context.log.exception("imap session did not end well", session=self.id, user=session.user_name)
        finally:
            if self._entered:
                self._entered = False
                self._context.registry.leave(self, self.remote, session.user_name)
                self._context.counters.session(-1)
            self.parser.close()
            self._out = []
            self._transport = None
            session.sever()

    # -- flow ------------------------------------------------------------------------------------------------------

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None and not self._closing:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._ahead_bytes = self._ahead_lines = 0
        if self._reading_paused and self._transport is not None and not self._closing:
            self._reading_paused = False
            self._transport.resume_reading()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        handle = loop.call_later(self.settings.write_timeout_s, self._stalled)
        try:
            while self._write_paused and not self._lost:
                self._drained = loop.create_future()
                await self._drained
        finally:
            self._drained = None
            handle.cancel()
        if self._lost:
            raise ConnectionResetError("the client is gone")

    def _stalled(self) -> None:
        self.ended = "client does not read"
        self.abort()

    def _wake_writer(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- time ------------------------------------------------------------------------------------------------------

    def _arm(self, delay_s: float) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._due)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _look_s(self) -> float:
        """When to look again: a client may be in the middle of a command, or quiet for too long."""
        return min(self.settings.idle_timeout_s, self.settings.read_timeout_s)

    def _due(self) -> None:
        self._timer = None
        session, settings = self._session, self.settings
        quiet_s = asyncio.get_running_loop().time() - self._last_input
        if self._closing:
            self.abort()
        elif not session.user_name:
            self.ended = "login timeout"
            self._stop_or_cut("Login timeout")
        elif session.idling and settings.keepalive_s:
            if self._task is None and not self._write_paused and self._transport is not None:
                self._transport.write(KEEPALIVE)
                self.bytes_out += len(KEEPALIVE)
            self._arm(settings.keepalive_s)
        elif self._task is None and self.parser.in_command and quiet_s >= settings.read_timeout_s:
            self.ended = "read timeout"
            self._say_bye("Timeout in the middle of a command")
        elif self._task is not None or quiet_s < settings.idle_timeout_s:
            self._arm(max(min(settings.idle_timeout_s - quiet_s, settings.read_timeout_s), 1.0))
        else:
            self.ended = "autologout"
            self._say_bye("Autologout: no command for too long")

    def _stop_or_cut(self, reason: str) -> None:
        """Before login nothing that runs is worth waiting for."""
        if self._task is not None:
            self._task.cancel()
        else:
            self._say_bye(reason)
