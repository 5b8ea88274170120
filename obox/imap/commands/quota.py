"""GETQUOTA, GETQUOTAROOT, SETQUOTA. RFC 9208.

A user has a single quota root, which counts all of the user's mailboxes. It has a
resource for each limit; a user without a limit has no root. The administrator sets
limits, so SETQUOTA is refused, and QUOTASET is not advertised.
"""

from __future__ import annotations

from typing import Final

from obox.imap import ast, wire
from obox.imap.replies import Reply, no
from obox.imap.session import Session
from obox.store.api import Usage

ROOT: Final = "user"
_UNIT: Final = 1024
"""Octets that STORAGE counts as 1. RFC 9208 §5.1."""


async def getquota(session: Session, command: ast.GetQuota) -> Reply:
    usage = session.need_user().usage()
    if command.root != ROOT or not _limited(usage):
        return no("No such quota root", "NONEXISTENT")
    _write(session, usage)
    return Reply("Getquota completed")


async def getquotaroot(session: Session, command: ast.GetQuotaRoot) -> Reply:
    user = session.need_user()
    if all(info.name != command.mailbox for info in user.mailboxes()):
        return no("No such mailbox", "NONEXISTENT")
    usage = user.usage()
    words = [b"QUOTAROOT", wire.mailbox(command.mailbox, utf8=session.utf8)]
    if _limited(usage):
        words.append(wire.astring(ROOT.encode()))
    session.write(wire.line(*words))
    if _limited(usage):
        _write(session, usage)
    return Reply("Getquotaroot completed")


async def setquota(_: Session, _command: ast.SetQuota) -> Reply:
    return no("The administrator sets limits", "NOPERM")


def _limited(usage: Usage) -> bool:
    return usage.storage_bytes_max is not None or usage.messages_max is not None


def _write(session: Session, usage: Usage) -> None:
    """Write QUOTA. What is used is rounded up, and a limit is rounded down."""
    resources = []
    if usage.storage_bytes_max is not None:
        resources.append(b"STORAGE %d %d" % (-(-usage.storage_bytes // _UNIT), usage.storage_bytes_max // _UNIT))
    if usage.messages_max is not None:
        resources.append(b"MESSAGE %d %d" % (usage.messages, usage.messages_max))
    session.write(wire.line(b"QUOTA", wire.astring(ROOT.encode()), b"(" + b" ".join(resources) + b")"))
