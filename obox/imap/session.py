"""A session: its state, and what the handlers of the commands may use of it.

A session has a user after login and a mailbox after SELECT. Its state follows from
that. `finish` releases what it holds, when the connection is gone.

This module does not know the table of commands (`obox.imap.states`), what is done with
an event (`obox.imap.machine`), transports or timers (it sees only `Channel`).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from obox.accounts import Account
from obox.auth import LinkOwner, SaslServer
from obox.errors import Invalid
from obox.imap import wire
from obox.imap.capabilities import capabilities
from obox.imap.context import Context
from obox.imap.intake import Incoming
from obox.imap.parser import Parser
from obox.imap.replies import Reply
from obox.imap.sets import SequenceSet
from obox.imap.settings import ImapSettings
from obox.mailbox import UidArray
from obox.mailbox.search import UidSet
from obox.mailbox.view import View
from obox.net import is_loopback
from obox.store.api import Mailbox, User

if TYPE_CHECKING:
    from obox.net.splice import Leg

NO_UIDS: Final[UidArray] = np.empty(0, dtype=np.uint32)


BAD_LOGIN: Final = ("AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED")
"""Response codes of a login that counts as failed. RFC 5530 §3."""


class State(enum.Enum):
    """RFC 9051 §3."""

    NOT_AUTHENTICATED = "not authenticated"
    AUTHENTICATED = "authenticated"
    SELECTED = "selected"
    LOGOUT = "logout"


class Channel(Protocol):
    """What a session and its handlers may use of the connection.

    ended: why the connection ends, for the log. full: whether enough output is gathered
    that it should be flushed. tls, client_tls: whether this connection uses TLS, and
    whether the client does; they differ when a member forwards the client. spoken_for:
    whether a member does. compressed: whether COMPRESS is active. duration_s: seconds
    since the client connected.
    """

    id: int
    tls: bool
    remote: str
    ended: str
    settings: ImapSettings
    parser: Parser
    bytes_in: int
    bytes_out: int

    @property
    def full(self) -> bool: ...

    @property
    def due(self) -> bool: ...

    @property
    def is_local(self) -> bool: ...

    @property
    def client_tls(self) -> bool: ...

    @property
    def spoken_for(self) -> bool: ...

    @property
    def compressed(self) -> bool: ...

    @property
    def duration_s(self) -> float: ...

    def speak_for(self, remote: str, *, tls: bool) -> None:
        """Note that the peer is a member of the cluster, that its client is at
        `remote`, and whether the client uses TLS."""

    def write(self, data: bytes) -> None:
        """Gather output. It goes out in order, at the latest when the command ends."""

    async def flush(self) -> None:
        """Hand over the output, wait for a slow client.

        Raises: ConnectionResetError.
        """

    async def yield_if_due(self) -> None:
        """Let other tasks run if this task has used its time."""

    async def start_tls(self) -> None:
        """Continue under TLS."""

    def start_compression(self) -> None:
        """Compress what is written from now on, and inflate what the client sends.

        `obox.net.deflate` is imported already.
        """

    def close(self) -> None:
        """Send what is gathered and close."""

    def wake(self) -> None:
        """Start the task, because there is something to send to the client."""

    def logged_in(self) -> None:
        """Apply the limits and times of a logged-in user from now on."""

    def user_left(self) -> None:
        """Apply the limits and times of a client that has not logged in."""

    def idle_changed(self) -> None:
        """Note that the session has entered or left IDLE."""


class Session:
    """See the module's text. `out` is the connection."""

    __slots__ = (
        "_bad_in_row",
        "_bad_logins",
        "_earlier",
        "_unwatch",
        "changed",
        "client_id",
        "commands",
        "condstore",
        "context",
        "emptied",
        "idling",
        "leg",
        "logged_out",
        "mailbox",
        "mailbox_name",
        "may_cancel",
        "out",
        "qresync",
        "read_only",
        "sasl",
        "saved",
        "user",
        "user_name",
        "view",
        "waiting_tag",
    )

    def __init__(self, context: Context, out: Channel) -> None:
        self.context = context
        self.out = out
        self.user: User | None = None
        self.user_name = ""
        self.mailbox: Mailbox | None = None
        self.mailbox_name = ""
        self.view: View | None = None
        self.read_only = False
        self.condstore = False
        self.qresync = False
        self.saved: UidArray = NO_UIDS
        """What SEARCH RETURN (SAVE) left for `$`. RFC 5182."""
        self.idling = False
        self.changed = False
        """Whether the mailbox has changed since the last poll."""
        self.sasl: SaslServer | LinkOwner | None = None
        self.leg: tuple[Leg, str] | None = None
        """The owner's connection and the user, from the login until both connections
        are joined."""
        self.waiting_tag = b""
        """The tag of the command that waits for the client's next line."""
        self.may_cancel = False
        """Whether the command in progress changes nothing, so that it is pointless
        without a client."""
        self.logged_out = False
        self.client_id = ""
        self.commands = 0
        self.emptied: dict[str, None] | None = None
        """Levels above mailboxes that this session has deleted. See
        `commands.mailboxes.delete`."""
        self._bad_in_row = self._bad_logins = 0
        self._earlier = (0.0, 0, 0)
        """The seconds and bytes of users that have left this connection."""
        self._unwatch: Any = None

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        if self.logged_out:
            return State.LOGOUT
        if self.user is None:
            return State.NOT_AUTHENTICATED
        return State.AUTHENTICATED if self.mailbox is None else State.SELECTED

    @property
    def secure(self) -> bool:
        """Whether passwords are accepted over this connection."""
        return self.out.tls or self.settings.plaintext_login or is_loopback(self.out.remote)

    @property
    def settings(self) -> ImapSettings:
        """The settings for this client's address."""
        return self.out.settings

    def capability(self) -> bytes:
        """Return the present capabilities, without the word CAPABILITY."""
        return capabilities(
            logged_in=self.user is not None,
            secure=self.secure,
            starttls=self.context.upgrade is not None and not self.out.tls,
            append_limit=self.settings.mail_bytes_max,
            forwarded=self.out.spoken_for,
            compressed=self.out.compressed,
        )

    def greeting(self) -> bytes:
        return wire.status(None, "OK", f"{self.settings.name} ready.", b"CAPABILITY " + self.capability())

    def need_user(self) -> User:
        if self.user is None:
            raise AssertionError("the table lets no such command through before login")
        return self.user

    def need_mailbox(self) -> tuple[Mailbox, View]:
        if self.mailbox is None or self.view is None:
            raise AssertionError("the table lets no such command through without a mailbox")
        return self.mailbox, self.view

    def end_with_bye(self, reason: str, code: str | None = None) -> None:
        """Send BYE, and nothing after it."""
        self.out.ended = reason
        self.write(wire.status(None, "BYE", reason, code))
        self.out.close()

    def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.out.write(piece)

    async def flush(self) -> None:
        await self.out.flush()

    async def pause(self) -> None:
        """Pause between two steps of a long command: flush if enough is gathered, and
        let other tasks run in time."""
        if self.out.full:
            await self.out.flush()
        else:
            await self.out.yield_if_due()

    # -- answers ---------------------------------------------------------------------------------------------------

    def finish_command(self, tag: bytes, name: str, reply: Reply) -> None:
        self.write(wire.status(tag, reply.condition, reply.text, reply.code))
        self.count(name, reply.condition)
        if reply.code in BAD_LOGIN:
            self._bad_logins += 1
            if self._bad_logins >= self.settings.bad_logins_max:
                self.end_with_bye("Too many failed logins")

    def count(self, name: str, condition: str) -> None:
        """Count an answer.

        Too many BAD in a row end the session, because this is not an IMAP client.
        """
        self.context.counters.command(name, condition)
        if condition != "BAD":
            self._bad_in_row = 0
            return
        self._bad_in_row += 1
        if self._bad_in_row >= self.settings.bad_commands_max:
            self.end_with_bye("Too many bad commands")

    def log_bug(self, name: str) -> None:
        """Log the exception that is being handled."""
        self.context.log.exception(
            "imap command failed", command=name, session=self.out.id, user=self.user_name, mailbox=self.mailbox_name
        )

    # -- what has changed ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Report that the mailbox has changed: now in IDLE, otherwise with the next
        command."""
        self.changed = True
        if self.idling:
            self.out.wake()

    # -- mailbox ---------------------------------------------------------------------------------------------------

    def enter(self, name: str, mailbox: Mailbox, view: View, *, read_only: bool) -> None:
        self.mailbox, self.mailbox_name, self.view, self.read_only = mailbox, name, view, read_only
        self.saved = NO_UIDS
        self._unwatch = mailbox.watch(self.wake)

    async def leave(self, *, closed: str = "") -> None:
        """Return to the authenticated state. RFC 9051 §7.1 (CLOSED).

        closed: text of the CLOSED response for the client.
        """
        mailbox = self.mailbox
        if mailbox is None:
            return
        if self.view is not None:
            self.view.close()
        if self._unwatch is not None:
            self._unwatch()
        self.mailbox = self.view = self._unwatch = None
        self.mailbox_name = ""
        self.saved = NO_UIDS
        if closed:
            self.write(wire.status(None, "OK", closed, "CLOSED"))
        await mailbox.release()

    def resolve(self, sequence: SequenceSet, *, uid: bool) -> UidArray:
        """Return the UIDs of the mails that a set names. UIDs that do not exist are
        ignored.

        Raises: BadSet. RFC 9051 §9 (seq-number).
        """
        _, view = self.need_mailbox()
        if sequence.saved:
            return self.saved[np.isin(self.saved, view.uids, assume_unique=True)]
        if uid:
            largest = int(view.uids[-1]) if len(view) else 0
            return view.by_uid(sequence.resolve(largest))
        if not len(view) and sequence.is_all:
            return NO_UIDS  # clients ask for all mails of an empty mailbox, too
        if sequence.highest > len(view) or (sequence.has_star and not len(view)):
            raise BadSet(f"No such mail: the mailbox has {len(view)}, the set goes up to {sequence.highest or '*'}")
        return view.by_seq(sequence.resolve(len(view)))

    def uid_ranges(self, sequence: SequenceSet, *, uid: bool) -> tuple[tuple[int, int], ...]:
        """Return the UIDs that a set names, for a search among the mails of the view.

        `$` is not allowed. The result has no more ranges than the client has written.
        UIDs that do not exist are ignored.
        """
        _, view = self.need_mailbox()
        if uid:
            return sequence.resolve(int(view.uids[-1]) if len(view) else 0)
        return view.uid_ranges(sequence.resolve(len(view)))

    def saved_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return `$` as ranges of UIDs."""
        return UidSet.of(self.saved).ranges

    # -- life ------------------------------------------------------------------------------------------------------

    async def login(self, account: Account) -> None:
        """Take a verified user's mail. Raises: Limit, Unavailable."""
        registry = self.context.registry
        registry.login(account.name, most=self.settings.user_sessions_max)
        try:
            self.user = await self.context.open_user(account)
        finally:
            if self.user is None:
                registry.logout(account.name)
        self.user_name = account.name
        self.out.logged_in()
        self.out.parser.intake = self._incoming
        self.context.log.info(
            "imap login", user=account.name, remote=self.out.remote, session=self.out.id, tls=self.out.client_tls
        )

    def _incoming(self) -> Incoming:
        return self.context.intake.incoming(self.user_name)

    def forward(self, account: Account, leg: Leg) -> None:
        """Note that the session is forwarded to the owner. No limit of sessions applies
        here, because the owner limits them."""
        self.context.registry.login(account.name, most=0)
        self.leg = (leg, account.name)
        self.context.log.info(
            "imap forwarded",
            user=account.name,
            remote=self.out.remote,
            session=self.out.id,
            tls=self.out.client_tls,
            backend=leg.backend,
        )

    async def leave_user(self, reason: str) -> None:
        """Release the mailbox and the user, and log it."""
        user, self.user = self.user, None
        try:
            await self.leave()
        finally:
            if user is not None:
                await user.release()
        seconds, bytes_in, bytes_out = self._earlier
        out = self.out
        self._earlier = (out.duration_s, out.bytes_in, out.bytes_out)
        self.context.log.info(
            "imap logout",
            user=self.user_name,
            remote=out.remote,
            session=out.id,
            client=self.client_id,
            reason=reason,
            commands=self.commands,
            bytes_in=out.bytes_in - bytes_in,
            bytes_out=out.bytes_out - bytes_out,
            duration_s=round(out.duration_s - seconds, 3),
        )

    async def finish(self) -> None:
        """Release what is held, and log a line, after the connection is gone."""
        if self.leg is not None:  # the client left just then
            leg, name = self.leg
            self.context.registry.logout(name)
            leg.abort()
            self.leg = None
        self.idling = False
        if self.user_name:
            await self.leave_user(self.out.ended or "disconnected")
        else:
            self.context.log.debug(
                "imap disconnect", remote=self.out.remote, session=self.out.id, reason=self.out.ended
            )

    def break_cycles(self) -> None:
        """Break cycles of references, so that the memory is freed at once."""
        del self.out
        self.sasl = None
        self._unwatch = None


class BadSet(Invalid):
    """A sequence number beyond the last. It is the client's mistake, and is answered
    BAD."""
