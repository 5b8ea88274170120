"""The session of a client that logs in, with what all such protocols have in common:
the login, the mechanisms of SASL, counts of failures, and the end.

A protocol adds its commands and its answers. Each answer is passed to `count` or
`count_failed_login`, so that a client that only guesses, or that speaks another
protocol, is disconnected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic

from obox.accounts import Account
from obox.auth import LINK, Challenge, Credentials, Forward, LinkOwner, LinkRefused, SaslError, SaslServer
from obox.login.context import Context, S
from obox.login.login import Entered, Forged, Login, NeedsTls
from obox.net import is_loopback
from obox.store.api import User

if TYPE_CHECKING:
    from obox.login.needs import Channel
    from obox.net.splice import Leg


class Session(ABC, Generic[S]):
    """See the module's text. `out` is the connection."""

    __slots__ = (
        "_bad_in_row",
        "_bad_logins",
        "commands",
        "context",
        "leg",
        "may_cancel",
        "out",
        "sasl",
        "user",
        "user_name",
    )

    context: Context[S]
    out: Channel[S]

    def __init__(self, context: Context[S], out: Channel[S]) -> None:
        self.context = context
        self.out = out
        self.user: User | None = None
        self.user_name = ""
        self.sasl: SaslServer | LinkOwner | None = None
        self.leg: tuple[Leg, str] | None = None
        """The owner's connection and the user, from the login until both connections
        are joined."""
        self.may_cancel = False
        """Whether the command in progress changes nothing, so that it is pointless
        without a client."""
        self.commands = 0
        self._bad_in_row = self._bad_logins = 0

    # -- what a protocol implements --------------------------------------------------------------------------------

    @abstractmethod
    def greeting(self) -> bytes:
        """Return the first line for the client."""

    @abstractmethod
    def shown(self) -> tuple[str, str]:
        """Return the state and the selected mailbox, for `oboxadm who`."""

    @abstractmethod
    def end(self, reason: str) -> None:
        """Send what is gathered, and the reason if the protocol has a line for it, and
        close."""

    @abstractmethod
    async def leave_user(self, reason: str) -> None:
        """Release what the session has of its user, and log it."""

    async def open(self, account: Account) -> User:
        """Take a verified user's mail. Raises: OboxError; nothing is held then."""
        return await self.context.open_user(account)

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def secure(self) -> bool:
        """Return whether passwords are accepted over this connection."""
        return self.out.tls or self.settings.plaintext_login or is_loopback(self.out.remote)

    @property
    def settings(self) -> S:
        """Return the settings for this client's address."""
        return self.out.settings

    # -- output ----------------------------------------------------------------------------------------------------

    def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.out.write(piece)

    async def pause(self) -> None:
        """Pause between two steps of a long command, or between commands: flush if
        enough is gathered, and let other tasks run in time.

        Output that is not enough leaves when this task next waits for something.
        """
        if self.out.full:
            await self.out.flush()
        else:
            await self.out.yield_if_due()

    # -- counts ----------------------------------------------------------------------------------------------------

    def count(self, name: str, result: str, *, bad: bool) -> None:
        """Count an answer. Too many bad commands in a row end the session."""
        self.context.counters.command(name, result)
        if not bad:
            self._bad_in_row = 0
            return
        self._bad_in_row += 1
        if self._bad_in_row >= self.settings.bad_commands_max:
            self.end("Too many bad commands")

    def count_failed_login(self) -> None:
        """Count a login that failed. Too many of them end the session."""
        self._bad_logins += 1
        if self._bad_logins >= self.settings.bad_logins_max:
            self.end("Too many failed logins")

    def log_bug(self, name: str) -> None:
        """Log the exception that is being handled."""
        context = self.context
        context.log.exception(
            f"{context.listener} command failed", command=name, session=self.out.id, user=self.user_name
        )

    # -- the login -------------------------------------------------------------------------------------------------

    def need_tls(self) -> None:
        """Raises: NeedsTls, if a password may not be sent over this connection."""
        if not self.secure:
            raise NeedsTls("Passwords need TLS here")

    async def by_password(self, user: str, password: str) -> Entered:
        """Log the client in with a password, or with the token of a front end. Raises:
        OboxError."""
        login, entered = self._login(), None
        if self.context.forwarding is not None:
            from obox.login import link

            entered = await link.by_token(login, user, password)
        return self._entered(entered or await login.by_password(user, password))

    async def authenticate(self, mechanism: str, initial: bytes | None) -> Challenge | Entered:
        """Begin with a mechanism of SASL. The answer to the challenge is for `respond`.

        initial: the initial response in base64; None: there is none. Raises: SaslError,
        a mistake of the client; OboxError.
        """
        sasl: SaslServer | LinkOwner
        if self.context.forwarding is not None and mechanism.upper() == LINK:
            from obox.login import link

            sasl = await link.exchange(self._login())
        else:
            self.need_tls()
            sasl = SaslServer()
        return await self._after(sasl, sasl.start(mechanism, initial))

    async def respond(self, line: bytes) -> Challenge | Entered:
        """Go on with the mechanism. line: the client's answer, in base64. Raises: as
        `authenticate`."""
        sasl, self.sasl = self.sasl, None
        if sasl is None:
            raise SaslError("No authentication is under way")
        try:
            step = sasl.step(line)
        except LinkRefused as refused:
            from obox.login import link

            link.forged(self._login(), str(refused))
            raise Forged from None
        return await self._after(sasl, step)

    async def _after(
        self, sasl: SaslServer | LinkOwner, step: Challenge | Credentials | Forward
    ) -> Challenge | Entered:
        if isinstance(step, Challenge):
            self.sasl = sasl
            return step
        if isinstance(step, Forward):
            from obox.login import link

            return await link.by_link(self._login(), step)
        return await self.by_password(step.user, step.password)

    def _login(self) -> Login[S]:
        return Login(self.context, self.out, self.login)

    def _entered(self, entered: Entered) -> Entered:
        """Note the connection to the owner, who limits the sessions of the user."""
        leg, name = entered.leg, entered.account.name
        if leg is not None:
            self.context.registry.login(name, most=0)
            self.leg = (leg, name)
            self._log("forwarded", name, backend=leg.backend)
        return entered

    async def login(self, account: Account) -> None:
        """Take a verified user's mail. Raises: Limit, and what `open` raises."""
        registry = self.context.registry
        registry.login(account.name, most=self.settings.user_sessions_max)
        try:
            self.user = await self.open(account)
        finally:
            if self.user is None:
                registry.logout(account.name)
        self.user_name = account.name
        self.out.logged_in()
        self._log("login", account.name)

    def _log(self, what: str, user: str, **more: str) -> None:
        out, context = self.out, self.context
        context.log.info(
            f"{context.listener} {what}", user=user, remote=out.remote, session=out.id, tls=out.client_tls, **more
        )

    # -- the end ---------------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Release what is held, and log a line, after the connection is gone."""
        out, context = self.out, self.context
        if self.leg is not None:  # the client left just then
            leg, name = self.leg
            context.registry.logout(name)
            leg.abort()
            self.leg = None
        if self.user_name:
            await self.leave_user(out.ended or "disconnected")
        else:
            context.log.debug(f"{context.listener} disconnect", remote=out.remote, session=out.id, reason=out.ended)

    def break_cycles(self) -> None:
        """Break cycles of references, so that the memory is freed at once."""
        del self.out
        self.sasl = None


def decoded(data: bytes) -> str:
    """Return a name or password as text. Every stored name and password is UTF-8, so
    another fails as any wrong password."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""
