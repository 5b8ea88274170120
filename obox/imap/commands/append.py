"""APPEND, also of several mails at once. RFC 9051 §6.3.12, RFC 3502, RFC 4315 §3
(APPENDUID), RFC 7889, RFC 3516 §4.4 (literal8), RFC 4469 (CATENATE).

Large mails wait in a file (`obox.imap.intake`). A single mail is read back before a UID
is taken for it, so that no UID waits for memory. Several mails are read by the store,
one after the other.
"""

from __future__ import annotations

import asyncio

from obox.errors import NotFound
from obox.imap import ast
from obox.imap.intake import Incoming
from obox.imap.replies import Reply, no, of_error
from obox.imap.session import Session
from obox.imap.sets import format_set
from obox.loading import loaded
from obox.store.api import Appended, NewMail, Source


async def append(session: Session, command: ast.Append) -> Reply:
    done = await store(session, command)
    if isinstance(done, Reply):
        return done
    session.appended = command.mailbox, asyncio.get_running_loop().time()
    return Reply("Append completed", appenduid(done))


def appenduid(done: Appended) -> bytes:
    return b"APPENDUID %d %b" % (done.uidvalidity, format_set([int(u) for u in done.uids]))


async def store(session: Session, command: ast.Append, **freed: int) -> Appended | Reply:
    """Store the mails of a command. Returns a refusal if they cannot be stored.

    freed: what the caller expunges afterwards (`User.append`).
    """
    if any(message.pieces for message in command.messages):
        await loaded("obox.imap.commands.catenate")
        from obox.imap.commands.catenate import assembled

        try:
            # A client that gets TRYCREATE sends the URLs again, so this comes first.
            await session.need_user().status(command.mailbox)
        except NotFound as error:
            return of_error(error, target=True)
        made = await assembled(session, command)
        if isinstance(made, Reply):
            return made
        command = made
    incoming: Incoming | None = command.incoming
    if any(message.binary for message in command.messages):
        await loaded("obox.imap.commands.literal8")
        from obox.imap.commands.literal8 import encoded

        without_nul = await encoded(command)
        if without_nul is None:
            return no("A mail has NUL outside of its binary parts", "UNKNOWN-CTE")
        command = without_nul
    if incoming is None:
        return await _read(session, command, freed)
    async with incoming.reading():
        done = await _read(session, command, freed)
    # Not after a failure: a PUT that was abandoned may still read from the file.
    await incoming.discard()
    return done


async def _read(session: Session, command: ast.Append, freed: dict[str, int]) -> Appended | Reply:
    first = command.messages[0]
    if len(command.messages) > 1 or isinstance(first.data, bytes):
        return await _store(session, command, [_mail(message, message.data) for message in command.messages], freed)
    async with first.data.open() as data:
        return await _store(session, command, [_mail(first, data)], freed)


def _mail(message: ast.AppendMessage, data: bytes | Source) -> NewMail:
    date = message.date
    return NewMail(
        data, message.flags, None if date is None else date.seconds, 0 if date is None else date.zone_minutes
    )


async def _store(
    session: Session, command: ast.Append, mails: list[NewMail], freed: dict[str, int]
) -> Appended | Reply:
    try:
        return await session.need_user().append(command.mailbox, mails, **freed)
    except NotFound as error:
        return of_error(error, target=True)
