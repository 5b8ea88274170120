"""SETACL, DELETEACL, GETACL, LISTRIGHTS, MYRIGHTS, and MYRIGHTS in LIST. RFC 4314, RFC
8440.

`obox.sharing` decides everything. Where users share nothing (`imap.acl`,
docs/sharing.md) the commands are refused.
"""

from __future__ import annotations

from obox.errors import Unavailable
from obox.imap import ast, wire
from obox.imap.replies import Reply
from obox.imap.session import Session
from obox.mailbox.rights import ALL, OLD, shown
from obox.sharing import Visitor


def _visitor(session: Session) -> Visitor:
    """Raises Unavailable."""
    if session.visitor is None:
        raise Unavailable("Mailboxes are not shared here")
    return session.visitor


def _text(rights: str) -> bytes:
    return shown(rights).encode() or b'""'


def _name(session: Session, name: str) -> bytes:
    return wire.mailbox(name, utf8=session.utf8)


def _identifier(session: Session, name: str) -> bytes:
    return wire.astring(name.encode())


async def getacl(session: Session, command: ast.GetAcl) -> Reply:
    words = [b"ACL", _name(session, command.mailbox)]
    for identifier, rights in (await _visitor(session).acl(command.mailbox)).items():
        words += _identifier(session, identifier), _text(rights)
    session.write(wire.line(*words))
    return Reply("Getacl completed")


async def myrights(session: Session, command: ast.MyRights) -> Reply:
    rights = await _visitor(session).my_rights(command.mailbox)
    write_rights(session, command.mailbox, rights)
    return Reply("Myrights completed")


def write_rights(session: Session, name: str, rights: str) -> None:
    """Write MYRIGHTS of a mailbox."""
    session.write(wire.line(b"MYRIGHTS", _name(session, name), _text(rights)))


async def listrights(session: Session, command: ast.ListRights) -> Reply:
    always, each = await _visitor(session).grantable(command.mailbox, command.identifier)
    words = [b"LISTRIGHTS", _name(session, command.mailbox), _identifier(session, command.identifier), _text(always)]
    words += [right.encode() for right in (ALL + "".join(OLD) if each else "")]
    session.write(wire.line(*words))
    return Reply("Listrights completed")


async def setacl(session: Session, command: ast.SetAcl) -> Reply:
    await _visitor(session).change_acl(command.mailbox, command.identifier, command.how, command.rights)
    return Reply("Setacl completed")


async def deleteacl(session: Session, command: ast.DeleteAcl) -> Reply:
    await _visitor(session).change_acl(command.mailbox, command.identifier, "", "")
    return Reply("Deleteacl completed")
