"""The driver: it hands bytes to the parser, and the parser's events to the machine, one
at a time.

What is not specific to IMAP is in `obox.login.connection`. When the timer is due after
the login, the state decides what it means: a command that is not complete, a client
that is idle for too long, or a line for a client in IDLE.

This module knows no commands and no mailboxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from obox import login
from obox.imap import wire
from obox.imap.context import Context
from obox.imap.events import NEED_DATA
from obox.imap.machine import Machine
from obox.imap.parser import Parser
from obox.imap.session import Session
from obox.imap.settings import ImapSettings
from obox.imap.states import BEFORE_LOGIN
from obox.imap.together import ended
from obox.imap.updates import report
from obox.net import Why

if TYPE_CHECKING:
    from obox.net.deflate import Deflated, Inflater

KEEPALIVE: Final = b"* OK Still here\r\n"
CODES: Final = {Why.LIMIT: "LIMIT", Why.NOT_SERVING: "UNAVAILABLE"}
"""Response codes of BYE. RFC 5530 §3."""


class Connection(login.Connection[ImapSettings]):
    """See the module's text."""

    __slots__ = ("_inflater", "deflated", "machine", "parser")

    context: Context
    session: Session

    def __init__(self, context: Context, machine: Machine, *, tls: bool, remote: str | None) -> None:
        super().__init__(context, tls=tls, remote=remote)
        self.machine = machine
        self.parser = Parser(self.settings.anonymous_limits)
        self.parser.allowed = BEFORE_LOGIN
        self.session = Session(context, self)
        self._inflater: Inflater | None = None
        self.deflated: Deflated | None = None

    # -- what the engine asks --------------------------------------------------------------------------------------

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
        if session.notify is not None:
            await session.notify.push()
        elif session.idling:
            # One change of a mailbox wakes all sessions that have it selected.
            await self.pause()
            await report(session)
        while not self.must_stop:
            event = self.parser.next()
            if event is NEED_DATA:
                await self.machine.commit(session)
                if self._inflater is None or not (data := self._inflater.read()):
                    return
                self.parser.feed(data)
                await self.yield_if_due()
                continue
            await self.machine.handle(session, event, more=self.parser.in_command)
            if session.leg is not None:
                self.splice()
                return
            await session.pause()  # many small commands may have come at once
        await self.machine.commit(session)

    @property
    def pending(self) -> bool:
        session = self.session
        return session.idling and session.changed if session.notify is None else session.notify.due

    def last_words(self, why: Why, text: str) -> bytes:
        return wire.status(None, "BYE", text, CODES.get(why))

    async def finish(self) -> None:
        if self.session.appending:  # the connection failed meanwhile
            await ended(self.session)
        if self.session.idling:
            self.context.counters.idle(-1)
        await super().finish()

    def release(self) -> None:
        self.parser.close()
        self._inflater = self.deflated = None

    def take_input(self) -> bytes:
        return self.parser.take()

    @property
    def idle(self) -> bool:
        return self.session.idling

    # -- the session's side ----------------------------------------------------------------------------------------

    def start_compression(self) -> None:
        from obox.net.deflate import begin

        self._inflater, self.deflated = begin(self)
        self._inflater.add(self.parser.take())

    @property
    def compressed(self) -> bool:
        return self._inflater is not None

    def logged_in(self) -> None:
        self.parser.limits = self.settings.limits
        self.parser.allowed = None
        self.parser.intake = self.session.incoming
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

    def user_timer_due(self, quiet_s: float) -> float | None:
        session, settings = self.session, self.settings
        if self.deflated is not None and not self.working:
            self.deflated.rest()
        if session.idling and settings.keepalive_s:
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
