"""The driver: it hands the client's bytes to the input, and lines to the machine, one
at a time.

What is not specific to POP3 is in the engine, `obox.net.connection`. When the timer is
due, the connection ends without an answer, as RFC 1939 §3 asks for: the client has not
logged in, or has been quiet for too long. This module knows no commands.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from obox.errors import OboxError
from obox.net import Connection as Engine
from obox.net import Flow, Who, Why, client_tls, speak_for
from obox.pop3.context import Context
from obox.pop3.lines import Input
from obox.pop3.machine import Machine
from obox.pop3.replies import Reply, err
from obox.pop3.session import Session

if TYPE_CHECKING:
    from obox.net.splice import Leg


class Connection(Engine):
    """See the module's text."""

    __slots__ = ("context", "input", "machine", "session", "settings")

    def __init__(self, context: Context, machine: Machine, *, tls: bool, remote: str | None) -> None:
        super().__init__(context.hub, tls=tls, remote=remote)
        self.context = context
        self.machine = machine
        self.settings = context.settings
        self.input = Input()
        self.session = Session(context, self)

    # -- what the engine asks --------------------------------------------------------------------------------------

    def configure(self) -> Flow:
        self.settings = self.context.settings_of(self.remote)
        return self.settings.flow

    def admit(self) -> None:
        try:
            super().admit()
        except OboxError as error:
            self.context.log.warning("pop3 connection refused", remote=self.remote, reason=str(error))
            raise

    def opened(self) -> None:
        self.write(Reply(f"{self.settings.name} ready").wire())
        self.send()
        self.arm(self.settings.login_timeout_s)

    def received(self, data: bytes) -> bool:
        self.input.feed(data)
        return True

    def discard_input(self) -> None:
        """RFC 2595 §4."""
        self.input.clear()

    async def work(self) -> None:
        session = self.session
        while not self.must_stop and (line := self.input.next()) is not None:
            await self.machine.handle(session, line)
            if session.leg is not None:
                self._splice(*session.leg)
                return
            await session.pause()  # many small commands may have come at once
        self.quiet_since = asyncio.get_running_loop().time()

    @property
    def may_cancel(self) -> bool:
        return self.session.may_cancel

    @property
    def user(self) -> str:
        return self.session.user_name

    def last_words(self, why: Why, text: str) -> bytes:
        return b"" if why is Why.TIMEOUT else err(text, "SYS/TEMP").wire()

    async def finish(self) -> None:
        try:
            await self.session.finish()
        finally:
            self.input.clear()
            self.session.break_cycles()

    def who(self) -> Who:
        session = self.session
        state, mailbox, mail = "authorization", "", ""
        if session.user is not None:
            state, mailbox, mail = "transaction", "INBOX", session.user.storage_id
        idle = not self.working
        return Who(
            self.id, session.user_name, self.remote, self.client_tls, state, mailbox, idle, self.since, mail, "pop3"
        )

    def log_bug(self, what: str) -> None:
        self.context.log.exception(f"pop3 {what}", session=self.id, user=self.session.user_name)

    def _splice(self, leg: Leg, user: str) -> None:
        """Pass the connection to the owner, which answers from here on. The +OK is
        gathered."""
        from obox.net.splice import Splice  # where users are forwarded

        Splice(self, leg, user, self.input.clear())
        self.session.leg = None

    # -- the session's side ----------------------------------------------------------------------------------------

    async def start_tls(self) -> None:
        upgrade = self.context.upgrade
        if upgrade is None:
            raise ConnectionResetError("TLS is not available")
        await self.handshake(upgrade)

    @property
    def client_tls(self) -> bool:
        return client_tls(self)

    @property
    def duration_s(self) -> float:
        return self.hub.now() - self.since

    def speak_for(self, remote: str, *, tls: bool) -> None:
        speak_for(self, remote, tls=tls)
        self.flow = self.configure()

    def logged_in(self) -> None:
        self.arm(self.settings.idle_timeout_s)

    # -- time ------------------------------------------------------------------------------------------------------

    def timer_due(self, quiet_s: float) -> float | None:
        if not self.session.user_name:
            self.ended = "login timeout"
            self.cut(Why.TIMEOUT, "")  # before the login, work need not complete
            return None
        if self.working:
            return self.settings.idle_timeout_s
        if (left_s := self.settings.idle_timeout_s - quiet_s) > 0:
            return left_s
        self.ended = "autologout"
        self.bye(Why.TIMEOUT, "")
        return None
