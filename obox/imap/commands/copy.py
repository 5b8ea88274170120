"""COPY, MOVE and their UID forms. RFC 9051 §6.4.7, §6.4.8; RFC 6851; COPYUID: RFC 4315
§3.

All or nothing: if a COPY by sequence numbers has a mail that is expunged, and the
client does not know that, it copies nothing (RFC 2180 §4.4.1).
"""

from __future__ import annotations

from obox.errors import NotFound
from obox.imap import ast, wire
from obox.imap.commands.expunge import READ_ONLY
from obox.imap.progress import in_progress
from obox.imap.replies import Reply, no, of_error
from obox.imap.session import Session
from obox.imap.sets import format_set
from obox.imap.updates import report
from obox.store.api import Copied


async def copy(session: Session, command: ast.Copy) -> Reply:
    done = await _copied(session, command, move=False)
    if isinstance(done, Reply):
        return done
    return Reply("Copy completed", _copyuid(done))


async def move(session: Session, command: ast.Move) -> Reply:
    """Send COPYUID untagged and first, because the client must know the UIDs before the
    mails are gone. RFC 6851 §4.3."""
    if session.read_only:
        return READ_ONLY
    done = await _copied(session, command, move=True)
    if isinstance(done, Reply):
        return done
    session.write(wire.status(None, "OK", "Moved", _copyuid(done)))
    mailbox, _ = session.need_mailbox()
    await report(session, uid=command.uid)
    if done.failure is not None:  # RFC 6851 §3.3: each mail is in one of the two
        return of_error(done.failure, target=True)
    code = f"HIGHESTMODSEQ {mailbox.state.highestmodseq}" if session.condstore else None
    return Reply("Move completed", code)


async def _copied(session: Session, command: ast.Copy | ast.Move, *, move: bool) -> Copied | Reply:
    mailbox, _ = session.need_mailbox()
    uids = session.resolve(command.sequence, uid=command.uid)
    if not command.uid and not mailbox.state.positions(uids)[1].all():
        return no("Some of the mails no longer exist", "EXPUNGEISSUED")
    if len(uids) == 0:
        return Reply(f"{command.NAME.capitalize()} completed: no mails")
    try:
        with in_progress(session, command):
            done = await session.need_user().copy(mailbox, uids, command.mailbox, move=move)
    except NotFound as error:
        return of_error(error, target=True)
    if len(done.target) == 0:
        return Reply(f"{command.NAME.capitalize()} completed: no mails")
    return done


def _copyuid(done: Copied) -> bytes:
    return b"COPYUID %d %b %b" % (done.uidvalidity, format_set(done.source), format_set(done.target))
