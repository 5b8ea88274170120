"""EXPUNGE, UID EXPUNGE, CLOSE, UNSELECT.

RFC 9051 §6.4.1, §6.4.2, §6.4.3; RFC 4315 §2.1; RFC 7162 §3.2.7.
"""

from __future__ import annotations

import numpy as np

from obox.imap import ast
from obox.imap.replies import Reply, no
from obox.imap.session import Session
from obox.imap.updates import report
from obox.mailbox import DELETED, UidArray

READ_ONLY = no("Mailbox was opened for reading only", "READ-ONLY")


def deleted_uids(session: Session) -> UidArray:
    """Return the UIDs of mails with \\Deleted that the client knows."""
    mailbox, view = session.need_mailbox()
    state = mailbox.state
    uids: UidArray = state.uids[(state.bits & np.uint64(DELETED)) != 0]
    return uids[np.isin(uids, view.uids, assume_unique=True)]


async def expunge(session: Session, command: ast.Expunge) -> Reply:
    if session.read_only:
        return READ_ONLY
    mailbox, _ = session.need_mailbox()
    uids = deleted_uids(session)
    if command.uids is not None:
        uids = uids[np.isin(uids, session.resolve(command.uids, uid=True), assume_unique=True)]
    gone = await mailbox.expunge(uids) if len(uids) else uids
    await report(session, uid=command.uids is not None)
    # RFC 7162 §3.2.7: the client can then advance its MODSEQ.
    if len(gone) and session.condstore:
        return Reply("Expunge completed", f"HIGHESTMODSEQ {mailbox.state.highestmodseq}")
    return Reply("Expunge completed")


async def close(session: Session, _: ast.Close) -> Reply:
    """Expunge mails without EXPUNGE lines. A mailbox opened with EXAMINE keeps them."""
    mailbox, _view = session.need_mailbox()
    if not session.read_only and "e" in mailbox.rights:  # RFC 4314 §4
        uids = deleted_uids(session)
        if len(uids):
            await mailbox.expunge(uids)
    await session.leave()
    return Reply("Close completed")


async def unselect(session: Session, _: ast.Unselect) -> Reply:
    await session.leave()
    return Reply("Unselect completed")
