"""The machine: what a session does with each event of the parser.

Theory of operation. The driver passes a single event at a time. A command is looked up
in the row of the table for the session's state. Its handler writes the untagged lines
and returns the tagged line. Before the tagged line, lines about changes of other
sessions in the mailbox are written. EXPUNGE waits while FETCH, STORE or SEARCH run (RFC
9051 §7.5.1). Each command of a user waits until the store may answer, which matters
after a pause of the process. AUTHENTICATE and IDLE return None, because their tagged
line follows the client's next line.

STORE commands that a client sends without waiting for answers share a commit. Their
tagged lines wait, in order, until `commit` has committed the changes. The driver calls
it once no other STORE is there, and the machine before any other command.

Every exception of a handler becomes a tagged line. `replies.ERRORS` has the line for
each OboxError. Any other exception is a bug: it is answered SERVERBUG, its traceback is
logged, and the session continues. If the selected mailbox is deleted, the session
leaves it. The client gets `* OK [CLOSED]` with its next command, or at once in IDLE.
Commands that need a mailbox are then answered NO [NONEXISTENT].

APPEND commands that a client sends without waiting for answers run side by side
(`obox.imap.together`).

The machine gets the table (`obox.imap.states`). It knows no transports and no timers,
and does not know how a command works. A server has a single machine for all of its
sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from obox.errors import OboxError
from obox.imap import ast, events, together, wire
from obox.imap.replies import SERVER_BUG, Reply, bad, no, of_error
from obox.imap.session import NO_UIDS, BadSet, Session, State, UidRequired
from obox.imap.updates import report, write_flags
from obox.mailbox import united

SHARED_COMMIT_MAX: Final = 256
"""STORE commands that share a commit. Each costs its session some 100 bytes."""

WITHOUT_ANSWER: Final = (events.NeedFlush, events.NeedParse, events.NeedContinuation)
"""Events of a command that is not complete."""

Handler = Callable[[Any, Any], Awaitable[Reply | None]]
"""Takes the session and the parsed command."""
Row = Mapping[type[ast.Command], Handler]
"""The commands that are allowed in a state."""


class Table(NamedTuple):
    """The commands. respond: handles the client's answer to a SASL challenge.
    without_expunge: no EXPUNGE is sent while these run, except in their UID form.
    cancellable: these are cancelled when the client is gone; any other command is
    completed.
    """

    rows: Mapping[State, Row]
    without_expunge: frozenset[type[ast.Command]]
    cancellable: frozenset[type[ast.Command]]
    respond: Callable[[Session, bytes | None], Awaitable[Reply | None]]


class Machine:
    """See the module's text."""

    __slots__ = ("_table",)

    def __init__(self, table: Table) -> None:
        self._table = table

    async def handle(self, session: Session, event: events.Event, *, more: bool = False) -> None:
        """Answer an event of the parser. more: the next command has begun to arrive."""
        beside = (more or session.appending) and not session.committing
        if beside and type(event) is ast.Append and together.may_share(session, event):
            handler = self._table.rows[session.state][ast.Append]
            if together.begin(session, event, _current(session, event, handler)):
                await self.answer_appends(session)
            return
        if session.appending and not isinstance(event, WITHOUT_ANSWER):
            await self.answer_appends(session)
        if session.committing and (type(event) is not ast.Store or len(session.committing) >= SHARED_COMMIT_MAX):
            await self.commit(session)
        if isinstance(event, ast.Command):
            await self._command(session, event)
        elif isinstance(event, events.NeedFlush):
            await event.incoming.flush()
        elif isinstance(event, events.NeedParse):
            await asyncio.to_thread(event.parse)
        elif isinstance(event, events.NeedContinuation):
            session.write(wire.continuation("OK"))
        elif isinstance(event, events.SaslResponse):
            await self._sasl(session, event.data)
        elif isinstance(event, events.IdleDone):
            refusal = await _answered(session, "IDLE", session.user.current()) if session.user else None
            await _end_idle(session, refusal or Reply("Idle completed"))
        elif isinstance(event, events.BadLine):
            await _bad_line(session, event.reason)
        elif isinstance(event, events.TooBig | events.BadCommand):
            await _refused(session, event)

    async def answer_appends(self, session: Session) -> None:
        """Wait for APPEND commands that run side by side, and write their tagged
        lines."""
        replies = await together.ended(session)
        try:
            await report(session)
        except ConnectionError:
            raise
        except Exception:
            session.log_bug(ast.Append.NAME)
        for command, reply in replies:
            session.finish_command(command.tag, command.NAME, reply)

    async def commit(self, session: Session) -> None:
        """Commit what STORE commands have changed, and write their tagged lines. Also
        those of APPEND commands.

        If that fails the flags are changed all the same, and may be lost with this
        machine. A client may take NO for "nothing has changed", so it gets the flags.
        """
        if session.appending:
            await self.answer_appends(session)
        if not (waiting := session.committing):
            return
        changed, session.committing, session.uncommitted = session.uncommitted, (), ()
        failed = None
        if changed and session.user is not None:
            failed = await _answered(session, ast.Store.NAME, session.user.commit())
            if failed is not None and session.mailbox is not None:
                await write_flags(session, united(*changed), uid=False)
        for tag, name, reply in waiting:
            session.finish_command(tag, name, failed if failed and reply.condition == "OK" else reply)

    async def _command(self, session: Session, command: ast.Command) -> None:
        table, kind = self._table, type(command)
        session.commands += 1
        lost = False
        if session.mailbox is not None and session.mailbox.deleted:
            await session.leave(closed="Mailbox was deleted")
            lost = True
        handler = table.rows[session.state].get(kind)
        if session.user is not None and kind not in (ast.Logout, ast.Unauthenticate):
            refusal = await _answered(session, command.NAME, session.user.current())
            if refusal is not None:
                _finish(session, command, refusal)
                return
        if handler is None:
            if lost and kind in table.rows[State.SELECTED]:
                reply = no("Mailbox was deleted", "NONEXISTENT")
            else:
                reply = self._refusal(session, command)
            _finish(session, command, reply)
            return
        session.may_cancel = kind in table.cancellable
        numbered = session.uidonly and not getattr(command, "uid", True)
        work = _uid_required() if numbered else handler(session, command)
        try:
            answer = await _answered(session, command.NAME, work)
        finally:
            session.may_cancel = False
        if answer is None:
            return
        try:
            uid = bool(getattr(command, "uid", False))
            await report(session, expunge=uid or kind not in table.without_expunge, uid=uid)
        except ConnectionError:
            raise
        except Exception:
            session.log_bug(command.NAME)
        _finish(session, command, answer)
        if session.logged_out:
            session.out.close()

    def _refusal(self, session: Session, command: ast.Command) -> Reply:
        """Return why the command is not allowed in this state."""
        states = [state for state in State if type(command) in self._table.rows[state]]
        if not states:
            return bad(f"{command.NAME} is not supported")
        if session.user is None:
            return bad(f"{command.NAME} needs a login first")
        if states == [State.SELECTED]:
            return bad(f"{command.NAME} needs a selected mailbox")
        return bad(f"{command.NAME} is not allowed in {session.state.value} state")

    async def _sasl(self, session: Session, data: bytes | None) -> None:
        tag = session.waiting_tag
        reply = await _answered(session, "AUTHENTICATE", self._table.respond(session, data))
        if reply is not None:
            session.sasl = None
            session.finish_command(tag, "AUTHENTICATE", reply)


def _finish(session: Session, command: ast.Command, reply: Reply) -> None:
    """Write the tagged line. It waits in order if a commit is awaited before it."""
    if session.uncommitted or session.committing:
        session.committing = (*session.committing, (command.tag, command.NAME, reply))
    else:
        session.finish_command(command.tag, command.NAME, reply)


async def _current(session: Session, command: ast.Append, handler: Handler) -> Reply | None:
    """Return the reply to a command that runs beside others."""
    assert session.user is not None
    refusal = await _answered(session, command.NAME, session.user.current())
    return refusal or await _answered(session, command.NAME, handler(session, command))


async def _uid_required() -> Reply:
    """Refuse a command that reads or returns sequence numbers."""
    raise UidRequired


async def _answered(session: Session, name: str, work: Awaitable[Reply | None]) -> Reply | None:
    """Return the handler's reply, or the reply to its exception.

    Raises: ConnectionError.
    """
    try:
        return await work
    except BadSet as error:
        return bad(str(error), error.code)
    except OboxError as error:
        return of_error(error)
    except ConnectionError:
        raise
    except Exception:
        session.log_bug(name)
        return SERVER_BUG


async def _refused(session: Session, event: events.TooBig | events.BadCommand) -> None:
    """Answer a command that the parser has refused, and undo what its failure
    undoes."""
    if event.resets is events.Resets.MAILBOX:
        await session.leave(closed="Previous mailbox was closed")
    elif event.resets is events.Resets.SAVED:
        session.saved = NO_UIDS
    session.write(wire.refusal(event))
    if isinstance(event, events.BadCommand):
        session.count("", event.status, bad=event.status == "BAD")
    elif event.fatal:
        session.out.ended = "literal beyond all limits"
        session.out.close()
    else:
        session.count(event.command, "NO", bad=False)


async def _bad_line(session: Session, reason: str) -> None:
    """Answer a line that is neither a SASL response nor DONE."""
    if session.idling:
        await _end_idle(session, bad(reason))
        return
    session.sasl = None
    session.finish_command(session.waiting_tag, "AUTHENTICATE", bad(reason))


async def _end_idle(session: Session, reply: Reply) -> None:
    await report(session)
    session.idling = False
    session.out.idle_changed()
    session.finish_command(session.waiting_tag, "IDLE", reply)
