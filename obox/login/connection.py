"""The connection of a client that logs in, with what all such drivers have in common.

A driver is a subclass. It hands the client's bytes to its parser (`received`), and what
the parser returns to its machine (`work`). Once a login has found the owner of the user
(`Session.leg`), `splice` passes the connection on to the owner.

This module knows no commands.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic

from obox import net
from obox.errors import OboxError
from obox.login.context import Context, S
from obox.login.session import Session
from obox.net import Flow, Who, Why


class Connection(net.Connection, Generic[S]):
    """See the module's text. A driver makes `session`."""

    __slots__ = ("context", "session", "settings")

    context: Context[S]
    session: Session[S]

    def __init__(self, context: Context[S], *, tls: bool, remote: str | None) -> None:
        super().__init__(context.hub, tls=tls, remote=remote)
        self.context = context
        self.settings: S = context.settings

    # -- what a driver implements ----------------------------------------------------------------------------------

    @abstractmethod
    def take_input(self) -> bytes:
        """Return the input that has not been used, and forget it."""

    @abstractmethod
    def logged_in(self) -> None:
        """Apply the limits and times of a logged-in user from now on."""

    @abstractmethod
    def user_timer_due(self, quiet_s: float) -> float | None:
        """Handle the timer after the login, as `timer_due` does."""

    def release(self) -> None:
        """Drop what the driver holds beside the session."""
        self.take_input()

    @property
    def idle(self) -> bool:
        """Return whether the client waits, for `oboxadm who`."""
        return not self.working

    # -- what the engine asks --------------------------------------------------------------------------------------

    def configure(self) -> Flow:
        self.settings = self.context.settings_of(self.remote)
        return self.settings.flow

    def admit(self) -> None:
        try:
            super().admit()
        except OboxError as error:
            context = self.context
            context.log.warning(f"{context.listener} connection refused", remote=self.remote, reason=str(error))
            raise

    def opened(self) -> None:
        self.write(self.session.greeting())
        self.send()
        self.arm(self.settings.login_timeout_s)

    @property
    def may_cancel(self) -> bool:
        return self.session.may_cancel

    @property
    def user(self) -> str:
        return self.session.user_name

    async def finish(self) -> None:
        try:
            await self.session.finish()
        finally:
            self.release()
            self.session.break_cycles()

    def who(self) -> Who:
        session = self.session
        state, mailbox = session.shown()
        mail = session.user.storage_id if session.user is not None else ""
        return Who(
            self.id,
            session.user_name,
            self.remote,
            self.client_tls,
            state,
            mailbox,
            self.idle,
            self.since,
            mail,
            self.context.listener,
        )

    def log_bug(self, what: str) -> None:
        context = self.context
        context.log.exception(f"{context.listener} {what}", session=self.id, user=self.session.user_name)

    def timer_due(self, quiet_s: float) -> float | None:
        if self.session.user_name:
            return self.user_timer_due(quiet_s)
        self.ended = "login timeout"
        # Before the login, work need not complete.
        self.cut(Why.TIMEOUT, "Login timeout")
        return None

    # -- the session's side ----------------------------------------------------------------------------------------

    def splice(self) -> None:
        """Pass the connection to the owner, which answers from here on. The answer to
        the login is gathered."""
        from obox.net.splice import Splice  # loaded if users are forwarded

        session = self.session
        assert session.leg is not None
        leg, user = session.leg
        Splice(self, leg, user, self.take_input())
        session.leg = None

    async def start_tls(self) -> None:
        upgrade = self.context.upgrade
        if upgrade is None:
            raise ConnectionResetError("TLS is not available")
        await self.handshake(upgrade)

    @property
    def client_tls(self) -> bool:
        return net.client_tls(self)

    @property
    def duration_s(self) -> float:
        return self.hub.now() - self.since

    @property
    def spoken_for(self) -> bool:
        """Return whether a member of the cluster speaks for the client."""
        return net.spoken_for(self)

    def speak_for(self, remote: str, *, tls: bool) -> None:
        net.speak_for(self, remote, tls=tls)
        self.flow = self.configure()
