"""GETMETADATA, SETMETADATA, and METADATA in LIST. RFC 5464, RFC 9590.

A user's mail is the user's own, so `/private` and `/shared` entries of mailboxes are
kept alike. Of the server, `/private` entries are the user's; `/shared` entries would be
the same for all users, so there are none, and they cannot be set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from obox.errors import Limit, NotFound, TooBig
from obox.imap import ast, wire
from obox.imap.replies import Reply, no
from obox.imap.session import Session
from obox.store.annotations import VALUE_BYTES_MAX


async def getmetadata(session: Session, command: ast.GetMetadata) -> Reply:
    values = session.need_user().annotations.of(command.mailbox)
    wanted = {entry: value for entry, value in sorted(values.items()) if _asked(entry, command)}
    most = command.size_max
    found = {entry: value for entry, value in wanted.items() if most is None or len(value) <= most}
    if found:
        _write(session, command.mailbox, found)
    if len(found) < len(wanted):
        longest = max(map(len, wanted.values()))
        return Reply("Getmetadata completed", f"METADATA LONGENTRIES {longest}")
    return Reply("Getmetadata completed")


def _asked(entry: str, command: ast.GetMetadata) -> bool:
    if entry in command.entries:
        return True
    for one in command.entries if command.depth != 0 else ():
        below = entry.removeprefix(one + "/")
        if below != entry and (command.depth is None or "/" not in below):
            return True
    return False


async def setmetadata(session: Session, command: ast.SetMetadata) -> Reply:
    if not command.mailbox and any(entry.startswith("/shared/") for entry, _ in command.values):
        return no("Entries that all users share are the administrator's", "NOPERM")
    try:
        await session.need_user().annotations.change(command.mailbox, dict(command.values))
    except TooBig as error:
        return no(str(error), f"METADATA MAXSIZE {VALUE_BYTES_MAX}")
    except Limit as error:
        return no(str(error), "METADATA TOOMANY")
    return Reply("Setmetadata completed")


def write_listed(session: Session, name: str, entries: Iterable[str]) -> None:
    """Write METADATA of a mailbox that LIST has shown, with NIL for entries that it
    does not have. RFC 9590 §3."""
    try:
        values = session.need_user().annotations.of(name)
    except NotFound:
        return  # It was deleted meanwhile.
    _write(session, name, {entry: values.get(entry) for entry in entries})


def _write(session: Session, name: str, values: Mapping[str, bytes | None]) -> None:
    words = []
    for entry, value in values.items():
        words.append(wire.astring(entry.encode()))
        words.append(wire.literal8(value) if value is not None and b"\0" in value else wire.nstring(value, utf8=False))
    mailbox = wire.mailbox(name, utf8=session.utf8) if name else b'""'
    session.write(wire.line(b"METADATA", mailbox, b"(" + b" ".join(words) + b")"))
