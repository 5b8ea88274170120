"""Untagged lines about what has changed: FLAGS, EXPUNGE or VANISHED, EXISTS, RECENT, FETCH. RFC 9051 §7.3 to §7.5.

Invariant: no client hears of a keyword before a FLAGS line has named it. Another session may bring one between any two
commands, or while one waits; so `flags_of` alone makes lists of flags, and says first what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from obox.imap import wire
from obox.imap.rows import Where, flag_column, flag_lines, flag_rows
from obox.imap.sets import format_set
from obox.mailbox import Table, UidArray
from obox.mailbox.view import Updates

if TYPE_CHECKING:
    from obox.imap.session import Session

CHUNK_ROWS: Final = 1000
"""Flag lines made at a time: about 64 KiB, half a millisecond."""
SYSTEM_FLAGS: Final = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")


def write_names(session: Session, *, besides: Sequence[str] = ()) -> None:
    """FLAGS and PERMANENTFLAGS: what there is, and what may be changed for good.

    `\\*`, for new keywords too, is left out where none would fit. besides: names that are told once more.
    """
    mailbox, view = session.need_mailbox()
    state = mailbox.state
    names = list(dict.fromkeys((*SYSTEM_FLAGS, *state.keywords, *besides)))
    session.write(wire.line(b"FLAGS", wire.flags(names)))
    more = () if state.full else ("\\*",)
    permanent = () if session.read_only else (*names, *more)
    text = "Read-only mailbox" if session.read_only else "Flags permitted"
    session.write(wire.status(None, "OK", text, b"PERMANENTFLAGS " + wire.flags(permanent)))
    view.note_names(state, names)


def flags_of(session: Session, table: Table, where: Where) -> list[bytes]:
    """The flag lists of rows, for lines that are written after what this writes: names that are new to the client.

    Lines of which the flags were listed a while ago, in a FETCH of bodies, may still be to come: names that the mailbox
    has no more stay told until the next poll.
    """
    mailbox, view = session.need_mailbox()
    state = mailbox.state
    if view.untold_names(state):
        write_names(session, besides=view.names)
    return flag_column(state.flag_names, table, where, view.recent_uids())


def write_expunged(session: Session, expunged: list[int], vanished: UidArray) -> None:
    """What is gone. expunged: sequence numbers, descending. RFC 7162 §3.2.10."""
    if session.qresync:
        session.write(wire.line(b"VANISHED", format_set(vanished)))
        return
    session.write((b"* %d EXPUNGE\r\n" * len(expunged)) % tuple(expunged))


async def write_flags(session: Session, uids: UidArray, *, uid: bool, flags: bool = True) -> None:
    """FETCH lines for mails whose flags have changed, in chunks that wait for a slow client."""
    made = partial(flags_of, session) if flags else None
    at = 0
    while at < len(uids):
        mailbox, view = session.need_mailbox()
        rows = flag_rows(mailbox.state, CHUNK_ROWS)
        part = uids[at : at + rows]
        at += rows
        data = flag_lines(mailbox.state, view, part, uid=uid or session.qresync, modseq=session.condstore, flags=made)
        if data:
            session.write(data)
        await session.go_on()


async def send_updates(session: Session, updates: Updates, *, uid: bool) -> None:
    """Say what a poll of the view returned."""
    if updates.names:
        write_names(session)
    if updates.expunged:
        write_expunged(session, updates.expunged, updates.vanished)
    if updates.exists is not None:
        session.write(b"* %d EXISTS\r\n" % updates.exists)
    if updates.recent is not None:
        session.write(b"* %d RECENT\r\n" % updates.recent)
    if len(updates.changed):
        await write_flags(session, updates.changed, uid=uid)
