"""APPEND commands that a client sends without waiting for answers. They run side by
side, so that their mails share a PUT.

A command begins when the next one has begun to arrive. Its tagged line is written, in
the order of the commands, before any other command runs, and before the session waits
for its client. The mails get their UIDs in that order too, since each command comes to
the store in one turn of the loop. So commands run side by side only if their mails are
in memory, and if the session has just appended to the mailbox, which is then loaded.

Invariant: a command that has begun is completed, whatever becomes of its client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from obox.imap import ast
from obox.imap.replies import Reply
from obox.imap.session import Session

COMMANDS_MAX: Final = 256
"""Commands that run side by side, as many as a batch may have mails."""

BYTES_MAX: Final = 4 << 20
"""Octets of their mails, as a batch may have. They are in memory."""


RECENT_S: Final = 1.0
"""How long a mailbox counts as loaded after an APPEND. An index stays in memory for
longer."""


def may_share(session: Session, command: ast.Append) -> bool:
    """Return whether a command may run beside others of its session."""
    deleted = session.mailbox is not None and session.mailbox.deleted
    name, at = session.appended
    recent = name == command.mailbox and asyncio.get_running_loop().time() - at <= RECENT_S
    return (
        session.user is not None
        and not deleted
        and recent
        and all(isinstance(one.data, bytes) and not one.binary and not one.pieces for one in command.messages)
    )


def begin(session: Session, command: ast.Append, work: Awaitable[Reply | None]) -> bool:
    """Run a command. Returns whether no more may run beside those that do."""
    session.commands += 1
    session.appending = (*session.appending, (command, asyncio.ensure_future(work)))
    octets = sum(len(message.data) for waiting, _ in session.appending for message in waiting.messages)
    return len(session.appending) >= COMMANDS_MAX or octets >= BYTES_MAX


async def ended(session: Session) -> list[tuple[ast.Append, Reply]]:
    """Return the commands with their replies, when all have ended."""
    waiting = session.appending
    await asyncio.wait([task for _, task in waiting])
    session.appending = ()
    replies = [(command, task.result()) for command, task in waiting]
    return [(command, reply) for command, reply in replies if reply is not None]
