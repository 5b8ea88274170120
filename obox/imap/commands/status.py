"""STATUS. RFC 9051 §6.3.11, RFC 7162 §3.1.7, RFC 8438, RFC 7889 §3."""

from __future__ import annotations

from collections.abc import Sequence

from obox.imap import ast, wire
from obox.imap.ast import StatusItem
from obox.imap.commands.auth import enable_condstore
from obox.imap.replies import Reply
from obox.imap.session import Session


async def status(session: Session, command: ast.Status) -> Reply:
    await write_status(session, command.mailbox, command.items)
    return Reply("Status completed")


async def write_status(session: Session, name: str, items: Sequence[StatusItem]) -> None:
    """Write a STATUS line. Raises: NotFound."""
    found = await session.need_user().status(name)
    if StatusItem.HIGHESTMODSEQ in items:
        enable_condstore(session)
    values = {
        StatusItem.MESSAGES: found.messages,
        StatusItem.UIDNEXT: found.uidnext,
        StatusItem.UIDVALIDITY: found.uidvalidity,
        StatusItem.UNSEEN: found.unseen,
        StatusItem.RECENT: found.recent,
        StatusItem.HIGHESTMODSEQ: found.highestmodseq,
        StatusItem.SIZE: found.size,
        StatusItem.DELETED: found.deleted,
        StatusItem.APPENDLIMIT: session.settings.mail_bytes_max,
    }
    words = " ".join(f"{item.value} {values[item]}" for item in items)
    session.write(wire.line(b"STATUS", wire.mailbox(name), b"(" + words.encode() + b")"))
