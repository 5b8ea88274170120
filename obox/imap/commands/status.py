"""STATUS. RFC 9051 §6.3.11, RFC 7162 §3.1.7, RFC 8438, RFC 7889 §3, RFC 8474
§4.3, RFC 9208 §4.1.4."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from obox.imap import ast, wire
from obox.imap.ast import StatusItem
from obox.imap.commands.auth import enable_condstore
from obox.imap.objectid import mailbox_id
from obox.imap.replies import Reply
from obox.imap.session import Session
from obox.mailbox import DELETED


async def status(session: Session, command: ast.Status) -> Reply:
    await write_status(session, command.mailbox, command.items)
    return Reply("Status completed")


async def write_status(session: Session, name: str, items: Sequence[StatusItem]) -> None:
    """Write a STATUS line. Raises: NotFound."""
    found = await session.need_user().status(name)
    deleted_bytes = 0
    if StatusItem.DELETED_STORAGE in items and found.deleted:
        deleted_bytes = await _deleted_bytes(session, name)
    if StatusItem.HIGHESTMODSEQ in items:
        enable_condstore(session)
    values: dict[StatusItem, int | str] = {
        StatusItem.MESSAGES: found.messages,
        StatusItem.UIDNEXT: found.uidnext,
        StatusItem.UIDVALIDITY: found.uidvalidity,
        StatusItem.UNSEEN: found.unseen,
        StatusItem.RECENT: found.recent,
        StatusItem.HIGHESTMODSEQ: found.highestmodseq,
        StatusItem.SIZE: found.size,
        StatusItem.DELETED: found.deleted,
        StatusItem.DELETED_STORAGE: deleted_bytes,
        StatusItem.APPENDLIMIT: session.settings.mail_bytes_max,
        StatusItem.MAILBOXID: f"({mailbox_id(found.guid)})",
    }
    words = " ".join(f"{item.value} {values[item]}" for item in items)
    session.write(wire.line(b"STATUS", wire.mailbox(name, utf8=session.utf8), b"(" + words.encode() + b")"))


async def _deleted_bytes(session: Session, name: str) -> int:
    """Return the octets of mails with \\Deleted, which have to be counted. Raises:
    NotFound."""
    mailbox = await session.need_user().select(name)
    try:
        state = mailbox.state
        return int(state.column("size")[(state.bits & np.uint64(DELETED)) != 0].sum())
    finally:
        await mailbox.release()
