"""APPEND, also of several mails at once. RFC 9051 §6.3.12, RFC 3502, RFC 4315 §3 (APPENDUID), RFC 7889."""

from __future__ import annotations

from obox.errors import NotFound
from obox.imap import ast
from obox.imap.replies import Reply, of_error
from obox.imap.session import Session
from obox.imap.sets import format_set
from obox.store.api import NewMail


async def append(session: Session, command: ast.Append) -> Reply:
    mails = [
        NewMail(
            message.data,
            message.flags,
            None if message.date is None else message.date.seconds,
            0 if message.date is None else message.date.zone_minutes,
        )
        for message in command.messages
    ]
    try:
        done = await session.need_user().append(command.mailbox, mails)
    except NotFound as error:
        return of_error(error, target=True)
    return Reply("Append completed", b"APPENDUID %d %b" % (done.uidvalidity, format_set([int(u) for u in done.uids])))
