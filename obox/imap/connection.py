"""The driver: it hands bytes to the parser, and the parser's events to the machine, one
at a time.

What is not specific to IMAP is in the engine, `obox.net.connection`. When the timer is
due, the state decides what it means: a client that does not log in, a command that is
not complete, a client that is idle for too long, or a line for a client in IDLE.

This module knows no commands and no mailboxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from obox.errors import OboxError
from obox.imap import wire
from obox.imap.context import Context
from obox.imap.events import NEED_DATA
from obox.imap.machine import Machine
from obox.imap.parser import Parser
from obox.imap.session import Session
from obox.imap.states import BEFORE_LOGIN
from obox.imap.updates import report
from obox.net import Connection as Engine
from obox.net import Flow, Who, Why, client_tls, speak_for, spoken_for

if TYPE_CHECKING:
    from obox.net.deflate import Deflated, Inflater
    from obox.net.splice import Leg

KEEPALIVE: Final = b"* OK Still here\r\n"
CODES: Final = {Why.LIMIT: "LIMIT", Why.NOT_SERVING: "UNAVAILABLE"}
"""Response codes of BYE. RFC 5530 §3."""


class Connection(Engine):
    """See the module's text."""

    __slots__ = ("_deflated", "_inflater", "context", "machine", "parser", "session", "settings")

    def __init__(self, context: Context, machine: Machine, *, tls: bool, remote: str | None) -> None:
        super().__init__(context.hub, tls=tls, remote=remote)
        self.context = context
        self.machine = machine
        self.settings = context.settings
        self.parser = Parser(self.settings.anonymous_limits)
        self.parser.allowed = BEFORE_LOGIN
        self.session = Session(context, self)
        self._inflater: Inflater | None = None
        self._deflated: Deflated | None = None

    # -- what the engine asks --------------------------------------------------------------------------------------

    def configure(self) -> Flow:
        self.settings = self.context.settings_of(self.remote)
        return self.settings.flow

    def admit(self) -> None:
        try:
            super().admit()
        except OboxError as error:
            self.context.log.warning("imap connection refused", remote=self.remote, reason=str(error))
            raise

    def opened(self) -> None:
        self.write(self.session.greeting())
        self.send()
        self.arm(self.settings.login_timeout_s)

    def received(self, data: bytes) -> bool:
        if self._inflater is None:
            self.parser.feed(data)
        else:
            self._inflater.add(data)
        return True

    def discard_input(self) -> None:
        """RFC 9051 §6.2.1, §11.1."""
        self.parser.discard_buffer()

    async def work(self) -> None:
        session = self.session
        if session.idling:
            # One change of a mailbox wakes all sessions that have it selected.
            await self.pause()
            await report(session)
        while not self.must_stop:
            event = self.parser.next()
            if event is NEED_DATA:
                if self._inflater is None or not (data := self._inflater.read()):
                    return
                self.parser.feed(data)
                await self.yield_if_due()
                continue
            await self.machine.handle(session, event)
            if session.leg is not None:
                self._splice(*session.leg)
                return
            await session.pause()  # many small commands may have come at once

    @property
    def pending(self) -> bool:
        return self.session.idling and self.session.changed

    @property
    def may_cancel(self) -> bool:
        return self.session.may_cancel

    @property
    def user(self) -> str:
        return self.session.user_name

    def last_words(self, why: Why, text: str) -> bytes:
        return wire.status(None, "BYE", text, CODES.get(why))

    async def finish(self) -> None:
        session = self.session
        if session.idling:
            self.context.counters.idle(-1)
        try:
            await session.finish()
        finally:
            self.parser.close()
            self._inflater = self._deflated = None
            session.break_cycles()

    def who(self) -> Who:
        session = self.session
        return Who(
            self.id,
            session.user_name,
            self.remote,
            self.client_tls,
            session.state.value,
            session.mailbox_name,
            session.idling,
            self.since,
            session.user.storage_id if session.user is not None else "",
            "imap",
        )

    def log_bug(self, what: str) -> None:
        self.context.log.exception(f"imap {what}", session=self.id, user=self.session.user_name)

    def _splice(self, leg: Leg, user: str) -> None:
        """Pass the connection to the owner, which answers from here on. The tagged OK
        is gathered."""
        from obox.net.splice import Splice  # where users are forwarded

        Splice(self, leg, user, self.parser.take())
        self.session.leg = None

    # -- the session's side ----------------------------------------------------------------------------------------

    async def start_tls(self) -> None:
        upgrade = self.context.upgrade
        if upgrade is None:
            raise ConnectionResetError("TLS is not available")
        await self.handshake(upgrade)

    def start_compression(self) -> None:
        from obox.net.deflate import begin

        self._inflater, self._deflated = begin(self)
        self._inflater.add(self.parser.take())

    @property
    def compressed(self) -> bool:
        return self._inflater is not None

    @property
    def client_tls(self) -> bool:
        return client_tls(self)

    @property
    def duration_s(self) -> float:
        return self.hub.now() - self.since

    @property
    def spoken_for(self) -> bool:
        return spoken_for(self)

    def speak_for(self, remote: str, *, tls: bool) -> None:
        speak_for(self, remote, tls=tls)
        self.flow = self.configure()

    def logged_in(self) -> None:
        self.parser.limits = self.settings.limits
        self.parser.allowed = None
        self.arm(self._look_s)

    def user_left(self) -> None:
        self.parser.limits = self.settings.anonymous_limits
        self.parser.allowed = BEFORE_LOGIN
        self.parser.intake = None
        self.arm(self.settings.login_timeout_s)

    def idle_changed(self) -> None:
        settings, idling = self.settings, self.session.idling
        self.context.counters.idle(+1 if idling else -1)
        self.arm(settings.keepalive_s if idling and settings.keepalive_s else self._look_s)

    # -- time ------------------------------------------------------------------------------------------------------

    @property
    def _look_s(self) -> float:
        """Return the seconds until the timer is due: the client may be in the middle of
        a command, or idle for too long."""
        return min(self.settings.idle_timeout_s, self.settings.read_timeout_s)

    def timer_due(self, quiet_s: float) -> float | None:
        session, settings = self.session, self.settings
        if self._deflated is not None and not self.working:
            self._deflated.rest()
        if not session.user_name:
            self.ended = "login timeout"
            # Before login, work need not complete.
            self.cut(Why.TIMEOUT, "Login timeout")
        elif session.idling and settings.keepalive_s:
            if not self.working and not self.congested:
                self.write(KEEPALIVE)
                self.send()
            return settings.keepalive_s
        elif not self.working and self.parser.in_command and quiet_s >= settings.read_timeout_s:
            self.ended = "read timeout"
            self.bye(Why.TIMEOUT, "Timeout in the middle of a command")
        elif self.working or quiet_s < settings.idle_timeout_s:
            return max(min(settings.idle_timeout_s - quiet_s, settings.read_timeout_s), 1.0)
        else:
            self.ended = "autologout"
            self.bye(Why.TIMEOUT, "Autologout: no command for too long")
        return None
