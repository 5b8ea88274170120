"""CREATE, DELETE, RENAME, SUBSCRIBE, UNSUBSCRIBE.

RFC 9051 §6.3.4 to §6.3.8, RFC 6154 §3 (USE).
"""

from __future__ import annotations

from typing import Final

from obox.errors import Exists, Invalid, NotFound
from obox.imap import ast
from obox.imap.objectid import mailbox_id
from obox.imap.replies import Reply, no
from obox.imap.session import Session
from obox.imap.updates import write_name
from obox.mailbox import names

SPECIAL_USES: Final = ("\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash")
"""RFC 6154 §2; not \\All, which no mailbox of ours is."""

EMPTIED_MAX: Final = 200
"""Levels that a session remembers as emptied. A name has 1,000 bytes."""


async def create(session: Session, command: ast.Create) -> Reply:
    """Make a mailbox.

    A separator at the end of the name, which announces children, is dropped: the
    mailbox is made. A special use that another mailbox has is refused with USEATTR. RFC
    6154 §3.
    """
    use = ""
    if command.special_use:
        known = {word.lower(): word for word in SPECIAL_USES}
        use = known.get(command.special_use[0].lower(), "")
        if not use or len(command.special_use) > 1:
            return no(f"One of {' '.join(SPECIAL_USES)} can be given to a mailbox", "USEATTR")
    name = names.check_name(command.mailbox)
    if name == names.INBOX:
        raise Exists("INBOX exists always")
    user = session.need_user()
    try:
        guid = await user.create(name, use)
    except Exists:
        if not use or any(info.guid is not None and info.name == name for info in user.mailboxes()):
            raise
        return no(f"There is a mailbox for {use} already", "USEATTR")
    _write_renamed(session, name, command.given)
    return Reply("Create completed", f"MAILBOXID ({mailbox_id(guid)})")


async def delete(session: Session, command: ast.Delete) -> Reply:
    """Delete a mailbox. Its children stay, and the name becomes \\Noselect; such a name
    cannot be deleted. RFC 9051 §6.3.5.

    A level above mailboxes exists as long as the mailboxes do. A client that deletes a
    whole tree deletes the mailboxes first, and then each level that LIST has shown. So
    DELETE is OK for levels that have no mailboxes any more after the session's own
    DELETEs.
    """
    user, name = session.need_user(), command.mailbox
    try:
        await user.delete(name)
    except NotFound:
        if any(info.name == name for info in user.mailboxes()):
            return no("There are mailboxes below: delete them first", "HASCHILDREN")
        if session.emptied is None or name not in session.emptied:
            raise
        del session.emptied[name]
        return Reply("Delete completed")
    if session.visitor is None or not session.visitor.foreign(name):
        _note_emptied(session, name)
    _write_renamed(session, name, command.given, "\\NonExistent")
    if session.mailbox is not None and session.mailbox.deleted:
        await session.leave(closed="Mailbox was deleted")
    return Reply("Delete completed")


def _note_emptied(session: Session, name: str) -> None:
    """Remember the levels above a deleted mailbox: those that were noted last."""
    emptied = session.emptied if session.emptied is not None else {}
    emptied.pop(name, None)
    while (name := name.rpartition(names.SEPARATOR)[0]) and name not in emptied:
        emptied[name] = None
    while len(emptied) > EMPTIED_MAX:
        del emptied[next(iter(emptied))]
    session.emptied = emptied or None


async def rename(session: Session, command: ast.Rename) -> Reply:
    source, target = command.source, names.check_name(command.target)
    if names.is_below(target, source) and source != names.INBOX:
        raise Invalid("A mailbox cannot be moved below itself")
    await session.need_user().rename(source, target)
    session.emptied = None
    _write_renamed(session, target, command.given)
    return Reply("Rename completed")


def _write_renamed(session: Session, name: str, given: str, *attributes: str) -> None:
    """Write LIST with OLDNAME for a client of IMAP4rev2 if the mailbox has another name
    than the client has sent. RFC 9051 §6.3.9.7."""
    if session.rev2 and given:
        write_name(session, name, given, attributes=attributes)


async def subscribe(session: Session, command: ast.Subscribe) -> Reply:
    """RFC 9051 §6.3.7 lets a server ask that the name is there; once subscribed it
    stays so when the mailbox goes."""
    user, name = session.need_user(), command.mailbox
    foreign = session.visitor is not None and session.visitor.foreign(name)
    if not foreign and all(info.name != name for info in user.mailboxes()):
        raise NotFound(f"No mailbox {name!r}")
    await user.subscribe(name, True)
    return Reply("Subscribe completed")


async def unsubscribe(session: Session, command: ast.Unsubscribe) -> Reply:
    await session.need_user().subscribe(command.mailbox, False)
    return Reply("Unsubscribe completed")
