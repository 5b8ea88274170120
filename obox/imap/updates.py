"""Untagged lines about what has changed: FLAGS, EXPUNGE or VANISHED, EXISTS, RECENT, FETCH. RFC 9051 §7.3 to §7.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from obox.imap import wire
from obox.imap.rows import flag_lines, flag_rows
from obox.imap.sets import format_set
from obox.mailbox import State
from obox.mailbox._uidset import UidArray
from obox.mailbox.view import Updates

if TYPE_CHECKING:
    from obox.imap.session import Session

CHUNK_ROWS: Final = 1000
"""Flag lines made at a time: about 64 KiB, half a millisecond."""
SYSTEM_FLAGS: Final = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")


def write_names(session: Session, state: State) -> None:
    """FLAGS and PERMANENTFLAGS: what there is, and what may be changed for good (`\\*`: new keywords too)."""
    names = (*SYSTEM_FLAGS, *state.keywords)
    session.write(wire.line(b"FLAGS", wire.flags(names)))
    permanent = () if session.read_only else (*names, "\\*")
    text = "Read-only mailbox" if session.read_only else "Flags permitted"
    session.write(wire.status(None, "OK", text, b"PERMANENTFLAGS " + wire.flags(permanent)))


def write_expunged(session: Session, expunged: list[int], vanished: UidArray) -> None:
    """What is gone. expunged: sequence numbers, descending. RFC 7162 §3.2.10."""
    if session.qresync:
        session.write(wire.line(b"VANISHED", format_set(vanished)))
        return
    session.write((b"* %d EXPUNGE\r\n" * len(expunged)) % tuple(expunged))


async def write_flags(session: Session, uids: UidArray, *, uid: bool, flags: bool = True) -> None:
    """FETCH lines for mails whose flags have changed, in chunks that wait for a slow client."""
    at = 0
    while at < len(uids):
        mailbox, view = session.need_mailbox()
        rows = flag_rows(mailbox.state, CHUNK_ROWS)
        part = uids[at : at + rows]
        at += rows
        data = flag_lines(mailbox.state, view, part, uid=uid or session.qresync, modseq=session.condstore, flags=flags)
        if data:
            session.write(data)
        await session.go_on()


async def send_updates(session: Session, updates: Updates, *, uid: bool) -> None:
    """Say what a poll of the view returned."""
    mailbox, _ = session.need_mailbox()
    if updates.names:
        write_names(session, mailbox.state)
    if updates.expunged:
        write_expunged(session, updates.expunged, updates.vanished)
    if updates.exists is not None:
        session.write(b"* %d EXISTS\r\n" % updates.exists)
    if updates.recent is not None:
        session.write(b"* %d RECENT\r\n" % updates.recent)
    if len(updates.changed):
        await write_flags(session, updates.changed, uid=uid)
