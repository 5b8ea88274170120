"""Mails that APPEND makes of literals and of parts of the user's mails. RFC 4469.

A URL names a mail of this user, and no other server or user. Everything is checked
before the first octet is copied. A mail that is made so waits in memory or in the file
of its command, as a mail that arrives (`obox.imap.intake`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from msgspec.structs import replace

from obox.errors import Expunged, Invalid, Limit, NotFound
from obox.imap import ast
from obox.imap.intake import TRY_LATER, Incoming
from obox.imap.parser import parse_section
from obox.imap.replies import Reply, no
from obox.imap.session import Session
from obox.imap.sets import NUMBER_MAX
from obox.mailbox import uid_array
from obox.mailbox.names import canonical
from obox.store.api import Mailbox, Source
from obox.store.content import Part, Section, parse, section

PIECE_BYTES: Final = 1 << 18
"""Octets that are copied at a time: a frame of the stored object."""

# imessagepart = enc-mailbox [uidvalidity] iuid [isection] [ipartial], relative.
# RFC 5092 §11.
_URL: Final = re.compile(
    rb"(?:/([^;/]*(?:/[^;/]+)*))?(?:;UIDVALIDITY=([1-9][0-9]{0,9}))?/?;UID=([1-9][0-9]{0,9})"
    rb"(?:/;SECTION=([^;/?#]+))?(?:/;PARTIAL=([0-9]{1,18})(?:\.([1-9][0-9]{0,17}))?)?",
    re.IGNORECASE,
)


class _BadUrl(Exception):
    """A URL that names nothing. url: as the client sent it."""

    def __init__(self, url: bytes) -> None:
        super().__init__()
        self.url = url


class _Range(NamedTuple):
    """Octets of a stored mail."""

    url: bytes
    mailbox: Mailbox
    uid: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


_Piece = bytes | Source | _Range


async def assembled(session: Session, command: ast.Append) -> ast.Append | Reply:
    """Return the command with whole mails, or a refusal. Raises: Limit, Temporary,
    Unavailable."""
    incoming = command.incoming
    if incoming is None:
        incoming = session.context.intake.incoming(session.user_name)
    messages = []
    limits = session.settings
    together = 0
    async with AsyncExitStack() as stack:
        urls = _Urls(session, stack)
        for message in command.messages:
            if not message.pieces:
                together += len(message.data)
                messages.append(message)
                continue
            try:
                pieces: list[_Piece] = []
                size = 0
                for one in message.pieces:
                    pieces.append(await urls.find(one.url) if isinstance(one, ast.Url) else one)
                    size += len(pieces[-1])
                    # This is done now, because pieces of headers are in memory.
                    if size > limits.mail_bytes_max:
                        return no("The mail would be too big", "TOOBIG")
                    # As the parser counts literals: all mails are stored, or none.
                    if together + size > limits.multiappend_bytes_max:
                        return no("The mails would be too big together", "TOOBIG")
                together += size
                if not size:
                    return no("An empty mail cannot be stored")
                messages.append(replace(message, data=await _joined(incoming, pieces, size), pieces=()))
            except _BadUrl as bad:
                return no("There is no such mail or part", b"BADURL " + bad.url if bad.url else None)
    return replace(command, messages=tuple(messages), incoming=incoming)


async def _joined(incoming: Incoming, pieces: list[_Piece], size: int) -> bytes | Source:
    async with incoming.reading():
        if not incoming.admit(size):
            raise Limit(TRY_LATER)
        if not incoming.spooling:
            return b"".join([octets async for octets in _octets(pieces)])
        async for octets in _octets(pieces):
            if incoming.add(octets):
                await incoming.flush()
        return incoming.end()


async def _octets(pieces: list[_Piece]) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        elif isinstance(piece, _Range):
            for at in range(piece.start, piece.end, PIECE_BYTES):
                end = min(at + PIECE_BYTES, piece.end)
                try:
                    octets = await piece.mailbox.part(piece.uid, at, end)
                except (Expunged, NotFound):
                    raise _BadUrl(piece.url) from None
                yield octets
        else:
            async with piece.open() as data:
                for at in range(0, len(data), PIECE_BYTES):
                    yield data[at : at + PIECE_BYTES]


class _Urls:
    """Finds what URLs name. Mailboxes stay open until the end of the command, and the
    structure of the last mail is kept."""

    def __init__(self, session: Session, stack: AsyncExitStack) -> None:
        self._session = session
        self._stack = stack
        self._opened: dict[str, Mailbox] = {}
        self._last: tuple[Mailbox, int, bytes, Part] | None = None

    async def find(self, url: bytes) -> bytes | _Range:
        """Raises: _BadUrl, Unavailable."""
        shown = re.sub(rb"[\x00-\x20\x7f-\xff\]]", lambda found: b"%%%02X" % found[0][0], url)
        try:
            return await self._find(url, shown)
        except (Invalid, NotFound, Expunged, UnicodeDecodeError):
            raise _BadUrl(shown) from None

    async def _find(self, url: bytes, shown: bytes) -> bytes | _Range:
        match = _URL.fullmatch(url)
        if match is None:
            raise _BadUrl(shown)
        name, validity, number, spec, first, count = match.groups()
        mailbox = await self._mailbox(unquote_to_bytes(name or b"").decode())
        uid = int(number)
        if uid > NUMBER_MAX or (validity is not None and int(validity) != mailbox.uidvalidity):
            raise _BadUrl(shown)
        where, there = mailbox.state.positions(uid_array([uid]))
        if not there.all():
            raise _BadUrl(shown)
        if spec is None:
            found: tuple[int, int] | bytes | None = (0, int(mailbox.state.column("size")[where][0]))
        else:
            found = await self._section(mailbox, uid, unquote_to_bytes(spec))
        if found is None:
            raise _BadUrl(shown)
        start, end = (0, len(found)) if isinstance(found, bytes) else found
        if first is not None:
            start = min(start + int(first), end)
            end = end if count is None else min(start + int(count), end)
        return found[start:end] if isinstance(found, bytes) else _Range(shown, mailbox, uid, start, end)

    async def _mailbox(self, name: str) -> Mailbox:
        session = self._session
        if session.mailbox is not None and (not name or canonical(name) == session.mailbox_name):
            return session.mailbox
        mailbox = self._opened.get(name)
        if mailbox is None:
            mailbox = self._opened[name] = await session.need_user().select(canonical(name))
            self._stack.push_async_callback(mailbox.release)
        return mailbox

    async def _section(self, mailbox: Mailbox, uid: int, spec: bytes) -> tuple[int, int] | bytes | None:
        """Return where the octets of a section are, or the lines of a header that a
        client has chosen."""
        item = parse_section(spec)
        if self._last is None or self._last[:2] != (mailbox, uid):
            mail = await mailbox.mail(uid)
            self._last = (mailbox, uid, mail, await asyncio.to_thread(parse, mail))
        mail, root = self._last[2:]
        return await asyncio.to_thread(section, mail, root, Section(item.part, item.text.value, item.fields))
