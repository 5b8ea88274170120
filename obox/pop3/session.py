"""A session: its state, and how it begins and ends.

A session has a user and a maildrop after the login. `finish` releases what it holds,
when the connection is gone. Then nothing is deleted, whatever was marked: only QUIT
deletes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from obox.accounts import Account
from obox.auth import LINK, LinkOwner, SaslServer
from obox.errors import OboxError
from obox.mailbox.names import INBOX
from obox.net import is_loopback
from obox.pop3.context import Context
from obox.pop3.maildrop import Maildrop
from obox.pop3.replies import Reply
from obox.pop3.settings import Pop3Settings
from obox.store.api import User
from obox.types import StorageId

if TYPE_CHECKING:
    from obox.net.splice import Leg

BAD_LOGIN: Final = ("AUTH", LINK)
"""Response codes of a login that counts as failed. The second is for a member of the
cluster alone, which thus knows that its own proof is meant, and not the user's."""
LEFT: Final = "logout"
"""Why a connection ends after QUIT, for the log."""


class Channel(Protocol):
    """What a session and its handlers may use of the connection: see
    `obox.pop3.connection`."""

    id: int
    tls: bool
    remote: str
    ended: str
    settings: Pop3Settings
    bytes_in: int
    bytes_out: int

    @property
    def full(self) -> bool: ...
    @property
    def is_local(self) -> bool: ...
    @property
    def client_tls(self) -> bool: ...
    @property
    def duration_s(self) -> float: ...
    def speak_for(self, remote: str, *, tls: bool) -> None: ...
    def write(self, data: bytes) -> None: ...
    async def flush(self) -> None: ...
    async def yield_if_due(self) -> None: ...
    async def start_tls(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def logged_in(self) -> None: ...


class Session:
    """See the module's text. `out` is the connection."""

    __slots__ = (
        "_bad_in_row",
        "_bad_logins",
        "_locked",
        "commands",
        "context",
        "deleted",
        "leg",
        "maildrop",
        "may_cancel",
        "name",
        "out",
        "retrieved",
        "sasl",
        "user",
        "user_name",
    )

    def __init__(self, context: Context, out: Channel) -> None:
        self.context = context
        self.out = out
        self.user: User | None = None
        self.user_name = ""
        self.name = ""
        """What the client has sent with USER."""
        self.maildrop: Maildrop | None = None
        self.sasl: SaslServer | LinkOwner | None = None
        self.leg: tuple[Leg, str] | None = None
        """The owner's connection and the user, from the login until both connections
        are joined."""
        self.may_cancel = False
        """Whether the command in progress changes nothing, so that it is pointless
        without a client."""
        self.commands = self.retrieved = self.deleted = 0
        self._bad_in_row = self._bad_logins = 0
        self._locked: StorageId | None = None

    @property
    def secure(self) -> bool:
        """Whether passwords are accepted over this connection."""
        return self.out.tls or self.settings.plaintext_login or is_loopback(self.out.remote)

    @property
    def settings(self) -> Pop3Settings:
        """The settings for this client's address."""
        return self.out.settings

    def write(self, data: bytes) -> None:
        self.out.write(data)

    async def pause(self) -> None:
        """Pause between two steps: flush if enough is gathered, and let other tasks run
        in time."""
        await (self.out.flush() if self.out.full else self.out.yield_if_due())

    # -- answers ---------------------------------------------------------------------------------------------------

    def answer(self, name: str, reply: Reply, *, bad: bool = False) -> None:
        """Write the first line of an answer, and count it.

        Too many failed logins, or bad commands in a row, end the session.
        """
        self.write(reply.wire())
        self.context.counters.command(name, "OK" if reply.ok else "ERR")
        self._bad_in_row = self._bad_in_row + 1 if bad else 0
        self._bad_logins += reply.code in BAD_LOGIN
        if self._bad_logins >= self.settings.bad_logins_max:
            self.end("Too many failed logins")
        elif self._bad_in_row >= self.settings.bad_commands_max:
            self.end("Too many bad commands")

    def end(self, reason: str) -> None:
        """Send what is gathered, and close."""
        self.out.ended = reason
        self.out.close()

    def log_bug(self, name: str) -> None:
        """Log the exception that is being handled."""
        self.context.log.exception("pop3 command failed", command=name, session=self.out.id, user=self.user_name)

    # -- life ------------------------------------------------------------------------------------------------------

    async def login(self, account: Account) -> None:
        """Take a verified user's mail. Raises: InUse, TooSoon, Limit, Unavailable."""
        context, settings, user = self.context, self.settings, None
        context.hub.registry.login(account.name, most=settings.user_sessions_max)
        try:
            if settings.lock_session:
                context.lock(account.storage_id)
                self._locked = account.storage_id
            if settings.login_delay_s:
                context.check_delay(account.storage_id, settings.login_delay_s)
            user = await context.open_user(account)
            mailbox = await user.select(INBOX)
            try:
                self.maildrop = Maildrop(mailbox, settings)
            except BaseException:
                await mailbox.release()
                raise
            self.user = user
            if settings.login_delay_s:
                context.note_login(account.storage_id)
        finally:
            if self.maildrop is None:
                context.hub.registry.logout(account.name)
                self._unlock()
                if user is not None:
                    await user.release()
        self.user_name = account.name
        self.out.logged_in()
        out = self.out
        context.log.info("pop3 login", user=account.name, remote=out.remote, session=out.id, tls=out.client_tls)

    def forward(self, account: Account, leg: Leg) -> None:
        """Note that the session is forwarded to the owner, which limits sessions."""
        self.context.hub.registry.login(account.name, most=0)
        self.leg = (leg, account.name)
        self.context.log.info(
            "pop3 forwarded",
            user=account.name,
            remote=self.out.remote,
            session=self.out.id,
            tls=self.out.client_tls,
            backend=leg.backend,
        )

    async def mark_seen(self) -> None:
        """Make mails \\Seen that RETR has read. A failure is only logged: the mails
        matter more than their flag."""
        maildrop = self.maildrop
        if maildrop is None or not maildrop.read or not self.settings.mark_seen:
            return
        uids = maildrop.read_uids()
        maildrop.read.clear()
        try:
            await maildrop.mailbox.store_flags(uids, "add", ["\\Seen"])
        except OboxError as error:
            self.context.log.warning("\\Seen not set", user=self.user_name, error=str(error))

    async def finish(self) -> None:
        """Release what is held, and log a line, after the connection is gone."""
        if self.leg is not None:  # the client left just then
            leg, name = self.leg
            self.context.hub.registry.logout(name)
            leg.abort()
            self.leg = None
        if not self.user_name:
            self.context.log.debug(
                "pop3 disconnect", remote=self.out.remote, session=self.out.id, reason=self.out.ended
            )
            return
        maildrop, user = self.maildrop, self.user
        assert maildrop is not None
        assert user is not None
        try:
            await self.mark_seen()
        finally:
            self.maildrop = self.user = None
            self._unlock()
            maildrop.close()
            await maildrop.mailbox.release()
            await user.release()
            out = self.out
            self.context.log.info(
                "pop3 logout",
                user=self.user_name,
                remote=out.remote,
                session=out.id,
                reason=out.ended or "disconnected",
                commands=self.commands,
                retrieved=self.retrieved,
                deleted=self.deleted,
                bytes_in=out.bytes_in,
                bytes_out=out.bytes_out,
                duration_s=round(out.duration_s, 3),
            )

    def break_cycles(self) -> None:
        """Break cycles of references, so that the memory is freed at once."""
        del self.out
        self.sasl = None

    def _unlock(self) -> None:
        if self._locked is not None:
            self.context.locked.discard(self._locked)
            self._locked = None
