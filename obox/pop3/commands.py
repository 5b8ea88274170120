"""The table of commands, and the commands after the login. RFC 1939 §5, §6, §7.

docs/pop3.md, "Order of steps at QUIT", has what QUIT does.
"""

from __future__ import annotations

from typing import Final

from obox.errors import OboxError
from obox.pop3 import access
from obox.pop3.lines import Output
from obox.pop3.machine import Table
from obox.pop3.maildrop import Maildrop
from obox.pop3.replies import Bad, Reply, err, of_error
from obox.pop3.session import LEFT, Session

PIECE_BYTES: Final = 1 << 18
"""Octets of a mail that are read and sent at a time. The next piece waits until the
client has read enough, so that a mail needs no more memory however large it is."""
LINES_MAX: Final = 2**31
"""More lines in TOP mean the whole mail."""


def _maildrop(session: Session) -> Maildrop:
    if session.maildrop is None:
        raise AssertionError("the table lets no such command through before the login")
    return session.maildrop


async def noop(session: Session, _: bytes) -> Reply | None:
    return Reply("")


async def stat(session: Session, _: bytes) -> Reply | None:
    maildrop = _maildrop(session)
    return Reply(f"{maildrop.left} {maildrop.left_bytes}")


async def scan(session: Session, rest: bytes) -> Reply | None:
    """LIST."""
    maildrop = _maildrop(session)
    if rest:
        place = maildrop.at(rest)
        return Reply(f"{place + 1} {maildrop.size(place)}")
    session.answer("LIST", Reply(f"{maildrop.left} mails of {maildrop.left_bytes} octets"))
    for places in maildrop.slices():
        session.write(maildrop.scan(places))
        await session.pause()
    session.write(b".\r\n")
    return None


async def uidl(session: Session, rest: bytes) -> Reply | None:
    maildrop, settings = _maildrop(session), session.settings
    if rest:
        place = maildrop.at(rest)
        async for number, one in maildrop.unique_ids(settings, session.pause, place):
            reply = Reply(f"{number + 1} {one.decode()}")
        return reply
    session.answer("UIDL", Reply("Unique ids"))
    async for number, one in maildrop.unique_ids(settings, session.pause):
        session.write(b"%d %b\r\n" % (number + 1, one))
    session.write(b".\r\n")
    return None


async def retr(session: Session, rest: bytes) -> Reply | None:
    maildrop = _maildrop(session)
    place = maildrop.at(rest)
    await maildrop.read_ahead(place)
    await _send(session, "RETR", place, Output())
    session.retrieved += 1
    maildrop.read.add(place)
    maildrop.last = max(maildrop.last, place + 1)
    return None


async def top(session: Session, rest: bytes) -> Reply | None:
    number, _, lines = rest.strip().partition(b" ")
    place = _maildrop(session).at(number)
    lines = lines.strip()
    if not lines.isdigit():
        raise Bad("The number of lines is missing")
    await _send(session, "TOP", place, Output(min(int(lines[:20]), LINES_MAX)))
    return None


async def _send(session: Session, name: str, place: int, output: Output) -> None:
    """Send a mail at the client's pace. Raises: OboxError, if nothing was sent yet."""
    maildrop = _maildrop(session)
    uid, size = int(maildrop.uids[place]), maildrop.size(place)
    data = await maildrop.mailbox.part(uid, 0, min(size, PIECE_BYTES))
    session.answer(name, Reply(f"{size} octets"))
    sent = 0
    while True:
        session.write(output.piece(data))
        sent += len(data)
        await session.out.flush()
        if sent >= size or output.complete or not data:
            break
        try:
            data = await maildrop.mailbox.part(uid, sent, min(sent + PIECE_BYTES, size))
        except OboxError as error:
            # The client must not take what it has for the whole mail.
            session.out.ended = f"a mail could not be read to its end: {error}"
            session.out.abort()
            raise ConnectionResetError(session.out.ended) from error
    session.write(output.end())


async def dele(session: Session, rest: bytes) -> Reply | None:
    maildrop = _maildrop(session)
    maildrop.delete(maildrop.at(rest))
    return Reply("Marked")


async def rset(session: Session, _: bytes) -> Reply | None:
    maildrop = _maildrop(session)
    maildrop.reset()
    return Reply(f"{maildrop.left} mails of {maildrop.left_bytes} octets")


async def last(session: Session, _: bytes) -> Reply | None:
    if not session.settings.enable_last:
        raise Bad("LAST is not offered")
    return Reply(str(_maildrop(session).last))


async def leave(session: Session, _: bytes) -> Reply | None:
    """Handle QUIT before the login."""
    session.out.ended = LEFT
    return Reply("Logging out")


async def quit_(session: Session, _: bytes) -> Reply | None:
    maildrop, settings = _maildrop(session), session.settings
    session.out.ended = LEFT
    marked = maildrop.marked()
    try:
        if session.user is not None:
            await session.user.current()
        await session.mark_seen()
        if len(marked) and settings.deleted_flag:
            await maildrop.mailbox.store_flags(marked, "add", [settings.deleted_flag])
        elif len(marked):
            await maildrop.mailbox.expunge(marked)
    except OboxError as error:
        session.context.log.warning("mails not deleted", user=session.user_name, count=len(marked), error=str(error))
        found = of_error(error)
        return err(f"Some mails were not deleted: {found.text}", found.code)
    session.deleted = len(marked)
    return Reply(f"Logging out, {len(marked)} mails deleted" if len(marked) else "Logging out")


TABLE: Final = Table(
    before={
        b"CAPA": access.capa,
        b"STLS": access.stls,
        b"UTF8": access.utf8,
        b"USER": access.user,
        b"PASS": access.password,
        b"AUTH": access.auth,
        b"QUIT": leave,
    },
    after={
        b"CAPA": access.capa,
        b"STAT": stat,
        b"LIST": scan,
        b"UIDL": uidl,
        b"RETR": retr,
        b"TOP": top,
        b"DELE": dele,
        b"NOOP": noop,
        b"RSET": rset,
        b"LAST": last,
        b"QUIT": quit_,
    },
    respond=access.respond,
    cancellable=frozenset((b"LIST", b"UIDL", b"RETR", b"TOP")),
)
