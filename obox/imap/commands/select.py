"""SELECT and EXAMINE, with CONDSTORE and QRESYNC. RFC 3501 §6.3.1, RFC 7162 §3.1.8,
§3.2.5.

A failed SELECT leaves no mailbox selected (RFC 9051 §6.3.2).
"""

from __future__ import annotations

import numpy as np

from obox.imap import ast, wire
from obox.imap.objectid import mailbox_id
from obox.imap.progress import in_progress
from obox.imap.replies import Reply, bad
from obox.imap.session import Session, UidRequired
from obox.imap.updates import write_name, write_names
from obox.loading import loaded
from obox.mailbox import SEEN
from obox.mailbox.view import View
from obox.store.api import Mailbox


async def select(session: Session, command: ast.Select) -> Reply:
    if command.qresync is not None and not session.qresync:
        return bad("QRESYNC must be enabled first")  # RFC 7162 §3.2.5
    if session.uidonly and command.qresync is not None and command.qresync.seq_match is not None:
        raise UidRequired
    user = session.need_user()
    await session.leave(closed="Previous mailbox was closed")
    with in_progress(session, command):
        mailbox = await user.select(command.mailbox)
    state = mailbox.state
    view = View(state)
    # RFC 4314 §5.2: without a right to change anything, the mailbox is READ-ONLY.
    read_only = command.read_only or not set(mailbox.rights) & set("swtei")
    session.enter(command.mailbox, mailbox, view, read_only=read_only)
    # A client of IMAP4rev2 does not see \\Recent, so others still do.
    shown = read_only or session.rev2
    view.add_recent(state.recent if shown else mailbox.take_recent(), state.uidnext)
    _describe(session, mailbox, view)
    if session.rev2:
        write_name(session, command.mailbox, command.given)
    if command.condstore:
        session.condstore = True  # HIGHESTMODSEQ has already been sent
    if command.qresync is not None and command.qresync.uidvalidity == mailbox.uidvalidity:
        await loaded("obox.imap.earlier")
        from obox.imap.earlier import resync

        await resync(session, state, view, command.qresync)
    done = "Examine completed" if command.read_only else "Select completed"
    return Reply(done, "READ-ONLY" if read_only else "READ-WRITE")


def _describe(session: Session, mailbox: Mailbox, view: View) -> None:
    state = mailbox.state
    write_names(session)
    session.write(b"* %d EXISTS\r\n" % len(view))
    recent = view.recent_count()
    if not session.rev2:
        session.write(b"* %d RECENT\r\n" % recent)
    if state.unseen and not (session.uidonly or session.rev2):
        unseen = np.flatnonzero((state.bits & np.uint64(SEEN)) == 0)
        if len(unseen):
            session.write(wire.status(None, "OK", "First unseen", f"UNSEEN {int(unseen[0]) + 1}"))
    session.write(
        wire.status(None, "OK", "UIDs valid", f"UIDVALIDITY {mailbox.uidvalidity}"),
        wire.status(None, "OK", "Predicted next UID", f"UIDNEXT {state.uidnext}"),
        wire.status(None, "OK", "Highest", f"HIGHESTMODSEQ {state.highestmodseq}"),
        wire.status(None, "OK", "Mailbox ID", f"MAILBOXID ({mailbox_id(mailbox.guid)})"),
    )
