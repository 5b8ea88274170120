"""XLIST: LIST with the special uses of an old extension that has no RFC. Old clients
know it from the server that introduced it."""

from __future__ import annotations

from typing import Final

from obox.imap import ast, wire
from obox.imap.commands.list import attributes_of, compiled, entries_of, matching_of
from obox.imap.replies import Reply
from obox.imap.session import Session
from obox.mailbox.names import INBOX

_OLD: Final = {"\\Junk": "\\Spam", "\\Flagged": "\\Starred"}


async def xlist(session: Session, command: ast.Xlist) -> Reply:
    entries = await entries_of(session, session.need_user())
    patterns = await compiled(session, command.reference, (command.pattern,))
    matching = await matching_of(session, patterns, (entry.name for entry in entries))
    for entry in entries:
        if entry.name not in matching or not (entry.exists or entry.level):
            continue
        attributes = [_OLD.get(one, one) for one in attributes_of(entry, subscribed=False)]
        if entry.name == INBOX:
            attributes.append("\\Inbox")
        name = wire.mailbox(entry.name, utf8=session.utf8)
        session.write(wire.line(b"XLIST", wire.flags(attributes), b'"/"', name))
        await session.pause()
    return Reply("Xlist completed")
