"""The driver: it hands the client's bytes to the machine, the machine's events to the
session, and replies to the client.

What is not specific to LMTP is in the engine, `obox.net.connection`.

Invariants:
- Events are handled in order. Only the recipients of a single mail are delivered in
  parallel.
- If the client does not read its replies, we stop reading from it. Replies above the
  transport's high-water mark wait. While a delivery runs, at most `READ_AHEAD_BYTES`
  and a single read of pipelined input are taken.
- A mail whose last byte has arrived is delivered even if its client is gone. An
  incomplete mail is never delivered.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

import structlog

from obox.errors import NoPerm
from obox.lmtp.context import Context
from obox.lmtp.events import (
    BodyChunk,
    BodyDropped,
    LinkAsked,
    MailReceived,
    Pause,
    RecipientAsked,
    TlsAsked,
)
from obox.lmtp.machine import COMMANDS_TURN, Machine
from obox.lmtp.replies import SAVED, Reply
from obox.lmtp.session import Session
from obox.net import Connection as Engine
from obox.net import Flow, NoRoom, Who, Why, client_tls, starttls

log = structlog.get_logger("obox.lmtp")

TLS_HANDSHAKE_S = 30.0
LINK_S: Final = 10.0
"""A client outside `trusted_networks` must prove within it that it is a member."""

_TIMED_OUT = Reply(421, "4.4.2", "Timeout, closing")
_TOO_MANY = Reply(421, "4.3.2", "Too many connections, try again later")
_UNTRUSTED = Reply(554, "5.7.1", "Client is not in a trusted network")
_LAST = {Why.REFUSED: _UNTRUSTED, Why.LIMIT: _TOO_MANY, Why.TIMEOUT: _TIMED_OUT}


class Connection(Engine):
    """See the module's text."""

    __slots__ = ("context", "machine", "session", "settings")

    outlives_client = True

    def __init__(self, context: Context, remote: str | None = None, *, tls: bool = False) -> None:
        super().__init__(context.hub, tls=tls, remote=remote)
        self.context = context
        self.settings = context.settings
        self.machine = Machine(context.settings)
        self.session = Session(context, self.settings, self.machine)

    # -- what the engine asks --------------------------------------------------------------------------------------

    def configure(self) -> Flow:
        self.machine.secure = self.tls
        self.session.remote, self.session.tls = self.remote or "unix", self.tls
        return self.settings.flow

    def admit(self) -> None:
        remote = self.session.remote
        machine = self.machine
        machine.links = self.context.forwarding is not None and self.context.forwarding.linked
        machine.trusted = not self.remote or self.context.trusts(self.remote)
        if not machine.trusted and not machine.links:
            log.warning("lmtp client refused", remote=remote)
            raise NoPerm("Client is not in a trusted network")
        try:
            super().admit()
        except NoRoom as error:
            log.warning("lmtp connection refused", remote=remote, limit=error.limit)
            raise

    def opened(self) -> None:
        self.machine.greet()
        self._reply()
        self.send()
        self.arm(self._look_s)

    def received(self, data: bytes) -> bool:
        self.machine.feed(data)
        return True

    def discard_input(self) -> None:
        self.machine.tls_started()
        self.session.tls = True

    @property
    def may_stop(self) -> bool:
        return self.machine.idle

    async def work(self) -> None:
        machine, session = self.machine, self.session
        self.rested()  # the client's data came in a turn of the loop
        asked = 0
        while True:
            event = machine.next_event()
            kind = type(event)
            if kind is BodyChunk:
                await session.take(cast(BodyChunk, event).data)
                await self.yield_if_due()  # a read may bring thousands of BDATs
            elif kind is RecipientAsked:
                machine.answer_recipient(*await session.ask(cast(RecipientAsked, event)))
                asked += 1
                await (self.yield_if_due() if asked % COMMANDS_TURN else self._let_others_run())
            elif kind is MailReceived:
                self._reply()
                self.send()  # replies that are ready do not wait for this mail
                replies = await session.deliver(cast(MailReceived, event))
                if replies[0].code == SAVED.code:
                    self.rested()  # other tasks ran while the bucket stored the mail
                machine.answer_mail(replies)
                await session.drop()
                if self.stop_asked:
                    break
            elif kind is BodyDropped:
                await session.drop()
                await self.yield_if_due()
            elif kind is TlsAsked:
                await self._start_tls()
            elif kind is LinkAsked:
                from obox.lmtp import link  # loaded if users are forwarded

                await link.step(self, machine, session, cast(LinkAsked, event))
            elif event is Pause.TURN:
                await self._let_others_run()
            else:
                break
        self._reply()
        self.quiet_since = asyncio.get_running_loop().time()
        if event is Pause.CLOSED:
            self.close()

    async def _let_others_run(self) -> None:
        """Pause between many pipelined commands: hand over the replies, let others run,
        and wait for a client that does not read. If the client is gone, it does not
        wait, because a complete mail is still delivered.
        """
        self._reply()
        try:
            await self.flush()
        except ConnectionResetError:
            await asyncio.sleep(0)

    def last_words(self, why: Why, text: str) -> bytes:
        self.machine.close(_LAST.get(why) or Reply(421, "4.3.2", text))
        return self.machine.take_output()

    async def finish(self) -> None:
        self.session.close()

    def who(self) -> Who:
        machine = self.machine
        return Who(self.id, "", self.remote, client_tls(self), machine.state.name.lower(), "", machine.idle, self.since)

    def log_bug(self, what: str) -> None:
        log.exception(f"lmtp {what}", session=self.session.id, remote=self.session.remote)

    # -- time ------------------------------------------------------------------------------------------------------

    @property
    def _look_s(self) -> float:
        if not self.machine.trusted:
            return LINK_S
        return min(self.settings.command_timeout_s, self.settings.data_timeout_s)

    def timer_due(self, quiet_s: float) -> float | None:
        if self.working:
            return self._look_s
        machine, settings = self.machine, self.settings
        if not (machine.trusted or machine.member):
            log.info("lmtp client refused", remote=self.session.remote, link=False)
            self.bye(Why.REFUSED, "")
            return None
        left_s = (settings.data_timeout_s if machine.in_body else settings.command_timeout_s) - quiet_s
        if left_s > 0:
            return min(left_s, self._look_s)
        log.info("lmtp timeout", session=self.session.id, remote=self.session.remote, in_body=machine.in_body)
        self.bye(Why.TIMEOUT, "")
        return None

    # -- replies and TLS -------------------------------------------------------------------------------------------

    def _reply(self) -> None:
        output = self.machine.take_output()
        if output:
            self.write(output)

    async def _start_tls(self) -> None:
        assert self.settings.tls is not None
        self._reply()
        try:
            await self.handshake(starttls(self.settings.tls, TLS_HANDSHAKE_S))
        except OSError as error:
            log.info("lmtp TLS failed", session=self.session.id, remote=self.session.remote, error=str(error))
            raise
