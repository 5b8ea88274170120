"""A session: its state, and what the handlers of the commands may use of it.

A session has a user after login and a mailbox after SELECT. Its state follows from
that. `obox.login.session` has what is not specific to IMAP.

This module does not know the table of commands (`obox.imap.states`), what is done with
an event (`obox.imap.machine`), transports or timers (it sees only `Channel`).
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from obox import login
from obox.errors import Invalid
from obox.imap import ast, wire
from obox.imap.capabilities import capabilities
from obox.imap.context import Context
from obox.imap.intake import Incoming
from obox.imap.replies import Reply
from obox.imap.sets import SequenceSet
from obox.imap.settings import ImapSettings
from obox.mailbox import UidArray
from obox.mailbox.search import UidSet
from obox.mailbox.view import View
from obox.sharing import Visitor
from obox.store.api import Mailbox, User

if TYPE_CHECKING:
    from obox.imap.channel import Channel, Contexts, Notifier

NO_UIDS: Final[UidArray] = np.empty(0, dtype=np.uint32)


BAD_LOGIN: Final = ("AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED")
"""Response codes of a login that counts as failed. RFC 5530 §3."""


class State(enum.Enum):
    """RFC 9051 §3."""

    NOT_AUTHENTICATED = "not authenticated"
    AUTHENTICATED = "authenticated"
    SELECTED = "selected"
    LOGOUT = "logout"


class Session(login.Session[ImapSettings]):
    """See the module's text. `out` is the connection."""

    __slots__ = (
        "_earlier",
        "_unwatch",
        "appended",
        "appending",
        "changed",
        "client_id",
        "committing",
        "condstore",
        "contexts",
        "emptied",
        "idling",
        "logged_out",
        "mailbox",
        "mailbox_name",
        "notify",
        "qresync",
        "read_only",
        "rev2",
        "saved",
        "uidonly",
        "uncommitted",
        "utf8",
        "view",
        "waiting_tag",
    )

    context: Context
    out: Channel

    def __init__(self, context: Context, out: Channel) -> None:
        super().__init__(context, out)
        self.mailbox: Mailbox | None = None
        self.mailbox_name = ""
        self.view: View | None = None
        self.read_only = False
        self.condstore = False
        self.qresync = False
        self.rev2 = False
        """Whether the client speaks IMAP4rev2. RFC 9051 §6.3.1."""
        self.utf8 = False
        """Whether strings to the client may be UTF-8, and names of mailboxes are. RFC
        6855, RFC 9051."""
        self.uidonly = False
        """Whether no sequence numbers are sent or read. RFC 9586."""
        self.saved: UidArray = NO_UIDS
        """What SEARCH RETURN (SAVE) left for `$`. RFC 5182."""
        self.contexts: Contexts | None = None
        """Searches that are kept up to date."""
        self.notify: Notifier | None = None
        """What the client asked to hear without a command."""
        self.uncommitted: tuple[UidArray, ...] = ()
        """For each STORE that is not committed yet, the mails that it has changed."""
        self.committing: tuple[tuple[bytes, str, Reply], ...] = ()
        """Tags, names and replies of STORE commands that wait for the commit."""
        self.appended = ("", 0.0)
        """The mailbox and the time of the last APPEND."""
        self.appending: tuple[tuple[ast.Append, asyncio.Task[Reply | None]], ...] = ()
        """APPEND commands that run side by side (`imap.together`)."""
        self.idling = False
        self.changed = False
        """Whether the mailbox has changed since the last poll."""
        self.waiting_tag = b""
        """The tag of the command that waits for the client's next line."""
        self.logged_out = False
        self.client_id = ""
        self.emptied: dict[str, None] | None = None
        """Levels above mailboxes that this session has deleted. See
        `commands.mailboxes.delete`."""
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

    def shown(self) -> tuple[str, str]:
        return self.state.value, self.mailbox_name

    def capability(self) -> bytes:
        """Return the present capabilities, without the word CAPABILITY."""
        return capabilities(
            logged_in=self.user is not None,
            secure=self.secure,
            starttls=self.context.upgrade is not None and not self.out.tls,
            append_limit=self.settings.mail_bytes_max,
            forwarded=self.out.spoken_for,
            compressed=self.out.compressed,
            shared=self.context.sharing is not None,
        )

    def greeting(self) -> bytes:
        return wire.status(None, "OK", f"{self.settings.name} ready.", b"CAPABILITY " + self.capability())

    def need_user(self) -> User:
        if self.user is None:
            raise AssertionError("the table lets no such command through before login")
        return self.visitor or self.user

    @property
    def visitor(self) -> Visitor | None:
        """Return the user's mail with what others share, if users share mailboxes here.
        It is made for each command, so that idle sessions have none."""
        sharing = self.context.sharing
        return None if sharing is None or self.user is None else sharing.visitor(self.user, self.user_name)

    def need_mailbox(self) -> tuple[Mailbox, View]:
        if self.mailbox is None or self.view is None:
            raise AssertionError("the table lets no such command through without a mailbox")
        return self.mailbox, self.view

    def end(self, reason: str, code: str | None = None) -> None:
        """Send BYE, and nothing after it."""
        self.out.ended = reason
        self.write(wire.status(None, "BYE", reason, code))
        self.out.close()

    async def flush(self) -> None:
        await self.out.flush()

    # -- answers ---------------------------------------------------------------------------------------------------

    def finish_command(self, tag: bytes, name: str, reply: Reply) -> None:
        self.write(wire.status(tag, reply.condition, reply.text, reply.code, utf8=self.utf8))
        self.count(name, reply.condition, bad=reply.condition == "BAD")
        if reply.code in BAD_LOGIN:
            self.count_failed_login()

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
        if self.idling if self.notify is None else self.notify.pushes:
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
        self.mailbox = self.view = self._unwatch = self.contexts = None
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

    def incoming(self) -> Incoming:
        """Return where the mails of an APPEND go."""
        return self.context.intake.incoming(self.user_name)

    async def leave_user(self, reason: str) -> None:
        """Release the mailbox and the user, and log it."""
        if self.notify is not None:
            self.notify.close()
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
        self.idling = False
        await super().finish()

    def break_cycles(self) -> None:
        super().break_cycles()
        self._unwatch = None


class BadSet(Invalid):
    """A sequence number that must not be used. It is the client's mistake, and is
    answered BAD."""

    def __init__(self, reason: str, code: str | None = None) -> None:
        super().__init__(reason)
        self.code = code


class UidRequired(BadSet):
    """A sequence number although UIDONLY is enabled. RFC 9586 §3."""

    def __init__(self) -> None:
        super().__init__("UIDONLY is enabled: use UIDs", "UIDREQUIRED")
