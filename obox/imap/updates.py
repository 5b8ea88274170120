"""Untagged lines about what has changed. RFC 9051 §7.3 to §7.5.

These are FLAGS, EXPUNGE or VANISHED, EXISTS, RECENT and FETCH.

Invariant: no client gets a keyword before a FLAGS line has named it. Another session
may add a keyword between any two commands, or while a command waits. So only `flags_of`
makes lists of flags, and it first writes FLAGS if names are new.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from obox.imap import wire
from obox.imap.rows import Where, flag_column, flag_lines, flag_rows
from obox.imap.session import Session
from obox.imap.sets import format_set
from obox.mailbox import Table, UidArray
from obox.mailbox.rights import flag_right
from obox.mailbox.view import Updates, View
from obox.store.api import Mailbox

CHUNK_ROWS: Final = 1000
"""Flag lines made at a time: about 64 KiB, half a millisecond."""
EXPUNGED_AT_ONCE: Final = 20_000
"""Expunged mails that are reported before other sessions run: 5 ms, 400 KiB of EXPUNGE
lines."""
SYSTEM_FLAGS: Final = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")


def write_names(session: Session, *, besides: Sequence[str] = ()) -> None:
    """Write FLAGS and PERMANENTFLAGS: the flags that exist, and the flags that can be
    changed permanently.

    `\\*` allows new keywords. It is left out if there is no room for another keyword.
    besides: names that are reported again.
    """
    mailbox, view = session.need_mailbox()
    state = mailbox.state
    names = list(dict.fromkeys((*SYSTEM_FLAGS, *state.flags.keywords, *besides)))
    session.write(wire.line(b"FLAGS", wire.flags(names)))
    more = () if state.full else ("\\*",)
    rights = mailbox.rights
    permanent = () if session.read_only else tuple(name for name in (*names, *more) if flag_right(name) in rights)
    text = "Read-only mailbox" if session.read_only else "Flags permitted"
    session.write(wire.status(None, "OK", text, b"PERMANENTFLAGS " + wire.flags(permanent)))
    view.note_names(state, names)


def write_name(session: Session, name: str, given: str = "", *, attributes: Sequence[str] = ()) -> None:
    """Write LIST for the mailbox of a command, as IMAP4rev2 has it. given: the name as
    the client knows it, if it is another. RFC 9051 §6.3.2, §6.3.9.7."""
    words = [b"LIST", wire.flags(attributes), b'"/"', wire.mailbox(name, utf8=session.utf8)]
    if given:
        words.append(b'("OLDNAME" (%b))' % wire.mailbox(given, utf8=session.utf8))
    session.write(wire.line(*words))


def flags_of(session: Session, table: Table, where: Where) -> list[bytes]:
    """Return the flag lists of rows. Names that are new to the client are written at
    once.

    Lines with these lists are written later, for a FETCH of bodies much later. So a
    name that the mailbox does not have any more stays valid until the next poll.
    """
    mailbox, view = session.need_mailbox()
    state = mailbox.state
    if view.has_new_names(state):
        write_names(session, besides=view.names)
    recent = None if session.rev2 else view.is_recent(table.uids[where])
    return flag_column(state.flags.names, table, where, recent)


async def write_expunged(session: Session, expunged: list[int], vanished: UidArray) -> None:
    """Write EXPUNGE or VANISHED lines, some at a time. expunged: descending sequence
    numbers. RFC 7162 §3.2.10."""
    for at in range(0, len(expunged), EXPUNGED_AT_ONCE):
        if at:
            await session.pause()
        part = slice(at, at + EXPUNGED_AT_ONCE)
        if session.qresync or session.uidonly:
            session.write(wire.line(b"VANISHED", format_set(vanished[part])))
        else:
            numbers = expunged[part]
            session.write((b"* %d EXPUNGE\r\n" * len(numbers)) % tuple(numbers))


async def write_flags(session: Session, uids: UidArray, *, uid: bool, flags: bool = True) -> None:
    """FETCH lines for mails whose flags have changed, in chunks that wait for a slow
    client."""
    made = partial(flags_of, session) if flags else None
    at = 0
    while at < len(uids):
        mailbox, view = session.need_mailbox()
        rows = flag_rows(mailbox.state, CHUNK_ROWS)
        part = uids[at : at + rows]
        at += rows
        data = flag_lines(
            mailbox.state,
            view,
            part,
            uid=(uid or session.qresync or session.rev2) and not session.uidonly,
            modseq=session.condstore,
            flags=made,
            uidonly=session.uidonly,
        )
        if data:
            session.write(data)
        await session.pause()


async def send_updates(session: Session, updates: Updates, *, uid: bool) -> None:
    """Write the lines for the result of a poll of the view."""
    if updates.names:
        write_names(session)
    if updates.expunged:
        await write_expunged(session, updates.expunged, updates.vanished)
    if updates.exists is not None:
        session.write(b"* %d EXISTS\r\n" % updates.exists)
    if updates.recent is not None and not session.rev2:
        session.write(b"* %d RECENT\r\n" % updates.recent)
    if len(updates.changed):
        await write_flags(session, updates.changed, uid=uid)


async def report(session: Session, *, expunge: bool = True, uid: bool = False) -> None:
    """Write what has changed since the last report to the client.

    expunge: sequence numbers may change. uid: the command counts in UIDs, so the
    answers name them.
    """
    session.changed = False
    if session.mailbox is not None and session.view is not None:
        await _report_mailbox(session, session.mailbox, session.view, expunge=expunge, uid=uid)
    if session.notify is not None:
        await session.notify.report()


async def _report_mailbox(session: Session, mailbox: Mailbox, view: View, *, expunge: bool, uid: bool) -> None:
    if mailbox.deleted:
        if session.idling:
            await session.leave(closed="Mailbox was deleted")
        return
    claim = None if session.read_only or session.rev2 else mailbox.take_recent
    known = len(view)
    updates = view.poll(mailbox.state, expunge=expunge, take_recent=claim)
    contexts = session.contexts
    if updates is not None:
        if contexts is not None and updates.expunged:
            contexts.expunged(updates)
        named = session.notify is not None and session.notify.pushes  # RFC 5465 §5.1
        await send_updates(session, updates, uid=uid or named)
        if session.notify is not None and updates.exists is not None:
            await session.notify.fetch(view.uids[known - len(updates.expunged) :])
    if contexts is not None:
        await contexts.report()
