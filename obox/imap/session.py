"""One session: which state it is in, one command after the other, and what the client is told beside the answers.

Theory of operation. The connection hands over one event at a time. A command is looked up in the table of its state
(`states.TABLE`); its handler writes untagged lines and returns the tagged one. Before the tagged line the view is
polled, so that a client hears of others' changes with each command: everything, but for EXPUNGE during FETCH, STORE and
SEARCH (RFC 9051 §7.5.1). AUTHENTICATE and IDLE return None: their answer follows the client's next line.

Whatever a handler raises ends in a tagged line: an OboxError by `replies.ERRORS`, anything else as SERVERBUG with a
traceback in the log; the session lives. A selected mailbox that someone deletes is left: `* OK [CLOSED]` comes with the
next command (at once in IDLE), and commands that need a mailbox are answered NO [NONEXISTENT].

Refuses to know: transports, timers; how a command works.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from obox.accounts import Account
from obox.auth import SaslServer
from obox.errors import Invalid, OboxError
from obox.imap import ast, events, wire
from obox.imap.capabilities import capabilities
from obox.imap.context import Context
from obox.imap.registry import is_loopback
from obox.imap.replies import SERVER_BUG, Reply, bad, no, of_error
from obox.imap.sets import SequenceSet
from obox.imap.settings import ImapSettings
from obox.mailbox import UidArray
from obox.mailbox.view import View
from obox.store.api import Mailbox, User

if TYPE_CHECKING:
    from obox.imap.connection import Connection

NO_UIDS: Final[UidArray] = np.empty(0, dtype=np.uint32)


class State(enum.Enum):
    """RFC 9051 §3."""

    NOT_AUTHENTICATED = "not authenticated"
    AUTHENTICATED = "authenticated"
    SELECTED = "selected"
    LOGOUT = "logout"


class Session:
    """See the module's text. `out` is the connection."""

    __slots__ = (
        "_bad_in_row",
        "_unwatch",
        "changed",
        "client_id",
        "commands",
        "condstore",
        "context",
        "ended",
        "idling",
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

    def __init__(self, context: Context, out: Connection) -> None:
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
        """The mailbox has changed since the last look."""
        self.sasl: SaslServer | None = None
        self.waiting_tag = b""
        """Of the command that waits for the client's next line."""
        self.may_cancel = False
        """The command in progress changes nothing: pointless once the client is gone."""
        self.logged_out = False
        self.client_id = ""
        self.commands = 0
        self.ended = ""
        """Why, for the log."""
        self._bad_in_row = 0
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
        """May a password come over this line?"""
        return self.out.tls or self.settings.plaintext_login or is_loopback(self.out.remote)

    @property
    def settings(self) -> ImapSettings:
        """Those for this client's address."""
        return self.out.settings

    def capability(self) -> bytes:
        """The capabilities that hold now, without the word CAPABILITY."""
        return capabilities(
            logged_in=self.user is not None,
            secure=self.secure,
            starttls=self.context.upgrade is not None and not self.out.tls,
            append_limit=self.settings.mail_bytes_max,
        )

    def greeting(self) -> bytes:
        line = wire.status(None, "OK", f"{self.settings.name} ready.", b"CAPABILITY " + self.capability())
        self.out.bytes_out += len(line)
        return line

    def need_user(self) -> User:
        if self.user is None:
            raise AssertionError("the table lets no such command through before login")
        return self.user

    def need_mailbox(self) -> tuple[Mailbox, View]:
        if self.mailbox is None or self.view is None:
            raise AssertionError("the table lets no such command through without a mailbox")
        return self.mailbox, self.view

    def hang_up(self, reason: str, code: str | None = None) -> None:
        """Say BYE, and nothing after it."""
        self.ended = reason
        self.write(wire.status(None, "BYE", reason, code))
        self.out.close()

    def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.out.write(piece)

    async def flush(self) -> None:
        await self.out.flush()

    async def go_on(self) -> None:
        """Between two steps of a long command: hand over what is enough for that, and let others run in time."""
        if self.out.full:
            await self.out.flush()
        else:
            await self.out.breathe()

    # -- events ----------------------------------------------------------------------------------------------------

    async def handle(self, event: events.Event) -> None:
        """Answer one event of the parser."""
        if isinstance(event, ast.Command):
            await self._command(event)
        elif isinstance(event, events.NeedFlush):
            await event.incoming.flush()
        elif isinstance(event, events.NeedContinuation):
            self.write(wire.continuation("OK"))
        elif isinstance(event, events.SaslResponse):
            await self._sasl(event.data)
        elif isinstance(event, events.IdleDone):
            await self._end_idle(Reply("Idle completed"))
        elif isinstance(event, events.BadLine):
            await self._bad_line(event.reason)
        elif isinstance(event, events.TooBig | events.BadCommand):
            await self._reset(event.resets)
            self.write(wire.refusal(event))
            if isinstance(event, events.TooBig) and event.fatal:
                self.ended = "literal beyond all limits"
                self.out.close()
            elif isinstance(event, events.TooBig):
                self._count(event.command, "NO")
            else:
                self._count("", event.status)

    async def _reset(self, resets: events.Resets) -> None:
        """Take from the session what a command that the parser has refused takes by failing."""
        if resets is events.Resets.MAILBOX:
            await self.leave(closed="Previous mailbox was closed")
        elif resets is events.Resets.SAVED:
            self.saved = NO_UIDS

    async def _command(self, command: ast.Command) -> None:
        from obox.imap.states import CANCELLABLE, EXPUNGE_FORBIDDEN, TABLE

        self.commands += 1
        lost = False
        if self.mailbox is not None and self.mailbox.deleted:
            await self.leave(closed="Mailbox was deleted")
            lost = True
        handler = TABLE[self.state].get(type(command))
        if handler is None:
            if lost and type(command) in TABLE[State.SELECTED]:
                self.finish_command(command.tag, command.NAME, no("Mailbox was deleted", "NONEXISTENT"))
            else:
                self.finish_command(command.tag, command.NAME, self._refusal(command))
            return
        self.may_cancel = type(command) in CANCELLABLE
        reply: Reply | None
        try:
            reply = await handler(self, command)
        except BadSet as error:
            reply = bad(str(error))
        except OboxError as error:
            reply = of_error(error)
        except ConnectionError:
            raise
        except Exception:
            self._bug(command.NAME)
            reply = SERVER_BUG
        finally:
            self.may_cancel = False
        if reply is None:
            return
        try:
            uid = bool(getattr(command, "uid", False))
            await self.tell(expunge=uid or type(command) not in EXPUNGE_FORBIDDEN, uid=uid)
        except ConnectionError:
            raise
        except Exception:
            self._bug(command.NAME)
        self.finish_command(command.tag, command.NAME, reply)
        if self.logged_out:
            self.out.close()

    def finish_command(self, tag: bytes, name: str, reply: Reply) -> None:
        self.write(wire.status(tag, reply.condition, reply.text, reply.code))
        self._count(name, reply.condition)

    def _count(self, name: str, condition: str) -> None:
        self.context.counters.command(name, condition)
        if condition != "BAD":
            self._bad_in_row = 0
            return
        self._bad_in_row += 1
        if self._bad_in_row >= self.settings.bad_commands_max:
            self.hang_up("Too many bad commands")

    def _refusal(self, command: ast.Command) -> Reply:
        from obox.imap.states import TABLE

        states = [state for state in State if type(command) in TABLE[state]]
        if not states:
            return bad(f"{command.NAME} is not supported")
        if self.user is None:
            return bad(f"{command.NAME} needs a login first")
        if states == [State.SELECTED]:
            return bad(f"{command.NAME} needs a selected mailbox")
        return bad(f"{command.NAME} is not allowed in {self.state.value} state")

    def _bug(self, name: str) -> None:
        self.context.log.exception(
            "imap command failed", command=name, session=self.out.id, user=self.user_name, mailbox=self.mailbox_name
        )

    # -- answers of the client -------------------------------------------------------------------------------------

    async def _sasl(self, data: bytes | None) -> None:
        from obox.imap.commands.auth import respond

        tag = self.waiting_tag
        try:
            reply = await respond(self, data)
        except OboxError as error:
            reply = of_error(error)
        except ConnectionError:
            raise
        except Exception:
            self._bug("AUTHENTICATE")
            reply = SERVER_BUG
        if reply is not None:
            self.sasl = None
            self.finish_command(tag, "AUTHENTICATE", reply)

    async def _bad_line(self, reason: str) -> None:
        if self.idling:
            await self._end_idle(bad(reason))
            return
        self.sasl = None
        self.finish_command(self.waiting_tag, "AUTHENTICATE", bad(reason))

    async def _end_idle(self, reply: Reply) -> None:
        await self.tell()
        self.idling = False
        self.out.idle_changed()
        self.finish_command(self.waiting_tag, "IDLE", reply)

    # -- what has changed ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """The mailbox has changed: tell now if in IDLE, else with the next command."""
        self.changed = True
        if self.idling:
            self.out.wake()

    async def tell(self, *, expunge: bool = True, uid: bool = False) -> None:
        """Tell the client what it does not know yet. uid: its command counts in UIDs, so the answers name them."""
        from obox.imap.updates import send_updates

        self.changed = False
        if self.mailbox is None or self.view is None:
            return
        if self.mailbox.deleted:
            if self.idling:
                await self.leave(closed="Mailbox was deleted")
            return
        claim = None if self.read_only else self.mailbox.take_recent
        updates = self.view.poll(self.mailbox.state, expunge=expunge, take_recent=claim)
        if updates is not None:
            await send_updates(self, updates, uid=uid)

    # -- mailbox ---------------------------------------------------------------------------------------------------

    def enter(self, name: str, mailbox: Mailbox, view: View, *, read_only: bool) -> None:
        self.mailbox, self.mailbox_name, self.view, self.read_only = mailbox, name, view, read_only
        self.saved = NO_UIDS
        self._unwatch = mailbox.watch(self.wake)

    async def leave(self, *, closed: str = "") -> None:
        """Back to the authenticated state. closed: say so with this text. RFC 9051 §7.1 (CLOSED)."""
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

    def resolve(self, sequence: SequenceSet, *, uid: bool, lenient: bool = False) -> UidArray:
        """The mails that a set names, as UIDs; UIDs that are not there are ignored.

        lenient: sequence numbers beyond the last are ignored too. Raises: BadSet. RFC 9051 §9 (seq-number).
        """
        _, view = self.need_mailbox()
        if sequence.saved:
            return self.saved[np.isin(self.saved, view.uids, assume_unique=True)]
        if uid:
            largest = int(view.uids[-1]) if len(view) else 0
            return view.by_uid(sequence.resolve(largest))
        if not lenient and (sequence.highest > len(view) or (sequence.has_star and not len(view))):
            raise BadSet(f"No such mail: the mailbox has {len(view)}, the set goes up to {sequence.highest or '*'}")
        return view.by_seq(sequence.resolve(len(view)))

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
        self.out.parser.intake = partial(self.context.intake.incoming, account.name)
        self.context.log.info(
            "imap login", user=account.name, remote=self.out.remote, session=self.out.id, tls=self.out.tls
        )

    async def finish(self, duration_s: float) -> None:
        """Give back what is held; one line to the log. The connection is gone."""
        self.idling = False
        user, self.user = self.user, None
        try:
            await self.leave()
        finally:
            if user is not None:
                await user.release()
        if not self.user_name:
            self.context.log.debug("imap disconnect", remote=self.out.remote, session=self.out.id, reason=self.ended)
            return
        self.context.log.info(
            "imap logout",
            user=self.user_name,
            remote=self.out.remote,
            session=self.out.id,
            client=self.client_id,
            reason=self.ended or "disconnected",
            commands=self.commands,
            bytes_in=self.out.bytes_in,
            bytes_out=self.out.bytes_out,
            duration_s=round(duration_s, 3),
        )

    def sever(self) -> None:
        """The last that is done with a session: no cycle is left, so that its memory is free at once."""
        del self.out
        self.sasl = None
        self._unwatch = None


class BadSet(Invalid):
    """A sequence number beyond the last: the client's mistake, BAD."""
