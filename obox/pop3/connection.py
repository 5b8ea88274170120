"""The driver: it hands the client's bytes to the input, and lines to the machine, one
at a time.

What is not specific to POP3 is in `obox.login.connection`. When the timer is due, the
connection ends without an answer, as RFC 1939 §3 asks for: the client has not logged
in, or has been quiet for too long. This module knows no commands.
"""

from __future__ import annotations

import asyncio

from obox import login
from obox.net import Why
from obox.pop3.context import Context
from obox.pop3.lines import Input
from obox.pop3.machine import Machine
from obox.pop3.replies import err
from obox.pop3.session import Session
from obox.pop3.settings import Pop3Settings


class Connection(login.Connection[Pop3Settings]):
    """See the module's text."""

    __slots__ = ("input", "machine")

    context: Context
    session: Session

    def __init__(self, context: Context, machine: Machine, *, tls: bool, remote: str | None) -> None:
        super().__init__(context, tls=tls, remote=remote)
        self.machine = machine
        self.input = Input()
        self.session = Session(context, self)

    # -- what the engine asks --------------------------------------------------------------------------------------

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
                self.splice()
                return
            await session.pause()  # many small commands may have come at once
        self.quiet_since = asyncio.get_running_loop().time()

    def last_words(self, why: Why, text: str) -> bytes:
        return b"" if why is Why.TIMEOUT else err(text, "SYS/TEMP").wire()

    def take_input(self) -> bytes:
        return self.input.clear()

    # -- the session's side ----------------------------------------------------------------------------------------

    def logged_in(self) -> None:
        self.arm(self.settings.idle_timeout_s)

    # -- time ------------------------------------------------------------------------------------------------------

    def user_timer_due(self, quiet_s: float) -> float | None:
        if self.working:
            return self.settings.idle_timeout_s
        if (left_s := self.settings.idle_timeout_s - quiet_s) > 0:
            return left_s
        self.ended = "autologout"
        self.bye(Why.TIMEOUT, "")
        return None
