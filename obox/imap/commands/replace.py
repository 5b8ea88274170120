"""REPLACE and UID REPLACE: a mail is stored, and then another is expunged. RFC 8508.

Order: the new mail is in the bucket, then the old mail goes. A crash in between leaves
both. If the old mail cannot be expunged, the new mail is expunged again, so that the
client may repeat the command.
"""

from __future__ import annotations

from obox.errors import OboxError
from obox.imap import ast, wire
from obox.imap.commands.append import appenduid, store
from obox.imap.commands.expunge import READ_ONLY
from obox.imap.replies import Reply, no
from obox.imap.session import Session
from obox.imap.updates import report
from obox.mailbox import uid_array
from obox.sharing import GuestMailbox
from obox.store.api import Appended


async def replace(session: Session, command: ast.Replace) -> Reply:
    mailbox, _ = session.need_mailbox()
    if session.read_only:
        return READ_ONLY
    uids = session.resolve(command.sequence, uid=command.uid)
    where, there = mailbox.state.positions(uids)
    if not there.any():
        return no("The mail to be replaced does not exist", "NONEXISTENT")
    size = int(mailbox.state.column("size")[where][0])
    freed = {"freed_bytes": size, "freed_mails": 1}
    if isinstance(mailbox, GuestMailbox):
        mailbox.need("te")
        freed = {}  # It is freed in the owner's quota.
    done = await store(session, command.append, **freed)
    if isinstance(done, Reply):
        return done
    try:
        gone = await mailbox.expunge(uids)
    except OboxError:
        await _undo(session, command.append.mailbox, done)
        raise
    # This precedes EXPUNGE: the client knows the new mail first. RFC 8508 §4.3.
    session.write(wire.status(None, "OK", "Replacement is stored", appenduid(done)))
    await report(session, uid=command.uid)
    # RFC 7162 §3.2.7, as after UID EXPUNGE.
    if len(gone) and session.condstore:
        return Reply("Replace completed", f"HIGHESTMODSEQ {mailbox.state.highestmodseq}")
    return Reply("Replace completed")


async def _undo(session: Session, name: str, done: Appended) -> None:
    target = await session.need_user().select(name)
    try:
        await target.expunge(uid_array(done.uids))
    finally:
        await target.release()
