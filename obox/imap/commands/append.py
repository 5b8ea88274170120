"""APPEND, also of several mails at once. RFC 9051 §6.3.12, RFC 3502, RFC 4315 §3
(APPENDUID), RFC 7889.

Large mails wait in a file (`obox.imap.intake`). A single mail is read back before a UID
is taken for it, so that no UID waits for memory. Several mails are read by the store,
one after the other.
"""

from __future__ import annotations

from obox.errors import NotFound
from obox.imap import ast
from obox.imap.intake import Incoming
from obox.imap.replies import Reply, of_error
from obox.imap.session import Session
from obox.imap.sets import format_set
from obox.store.api import NewMail, Source


async def append(session: Session, command: ast.Append) -> Reply:
    incoming: Incoming | None = command.incoming
    if incoming is None:
        return await _append(session, command)
    async with incoming.reading():
        reply = await _append(session, command)
    # Not after a failure: a PUT that was abandoned may still read from the file.
    await incoming.discard()
    return reply


async def _append(session: Session, command: ast.Append) -> Reply:
    first = command.messages[0]
    if len(command.messages) > 1 or isinstance(first.data, bytes):
        return await _store(session, command, [_mail(message, message.data) for message in command.messages])
    async with first.data.open() as data:
        return await _store(session, command, [_mail(first, data)])


def _mail(message: ast.AppendMessage, data: bytes | Source) -> NewMail:
    date = message.date
    return NewMail(
        data, message.flags, None if date is None else date.seconds, 0 if date is None else date.zone_minutes
    )


async def _store(session: Session, command: ast.Append, mails: list[NewMail]) -> Reply:
    try:
        done = await session.need_user().append(command.mailbox, mails)
    except NotFound as error:
        return of_error(error, target=True)
    return Reply("Append completed", b"APPENDUID %d %b" % (done.uidvalidity, format_set([int(u) for u in done.uids])))
