"""SEARCH over a mailbox: columns first, then cached header blocks, then whole mails, each only for what is left.

Invariant: the answer is the same whatever happens to be cached. A mail that is gone or lost when its text is wanted
does not match. Nothing here holds the loop: it is given up after each chunk of headers and each SLICE_BYTES of mail; a
mail larger than that is looked through in a thread.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from ..mailbox import State
from ..mailbox._uidset import UidArray
from ..mailbox.search import Mask, Needle, Query, TextSource, evaluate, needs_header, normalise
from ..mime import Part, decode_header, header_end, header_values, parse, parse_date, text_of

if TYPE_CHECKING:
    from .api import Fields

CHUNK: Final = 500
"""Mails whose cached fields are asked for at once: about 5 ms of work."""
SLICE_BYTES: Final = 256 * 1024
"""Octets of mails looked through before the loop is given up: at most 20 ms of work."""
MEMO_BYTES_MAX: Final = 8 * 1024 * 1024
"""Memory for decoded header values of this process: those of some 15,000 mails."""
_MEMO_VALUE_MAX: Final = 2000
"""Longer values are decoded each time: lists of recipients, seldom searched."""
_MEMO_ENTRY_BYTES: Final = 200
"""What an entry costs beside its characters: two objects' heads and a slot of the table."""

_EPOCH: Final = dt.date(1970, 1, 1).toordinal()
_ASCII_OTHERWISE: Final = (b"base64", b"quoted-printable", b"=?", b"\x1b", b"\x00", b"utf-7", b"hz-gb")
"""Marks of a mail that may spell ASCII letters in other bytes: encodings, encoded words, charsets with shifts."""


class Searchable(Protocol):
    """What of a mailbox a search needs; `obox.store.api.Mailbox` has it."""

    @property
    def state(self) -> State: ...

    async def fields(self, uids: Sequence[int]) -> list[Fields | None]: ...

    def mails(self, uids: Sequence[int]) -> AsyncIterator[tuple[int, bytes | None]]: ...


async def search(mailbox: Searchable, query: Query, uids: UidArray, *, now: float) -> UidArray:
    """Those of `uids` (sorted) that match, in order. now: unix seconds, for OLDER and YOUNGER.

    Raises Unavailable when mails have to be read and the bucket does not answer.
    """
    state = mailbox.state
    where, there = state.positions(uids)
    uids = uids[there]
    evaluation = evaluate(query, state, slice(None) if len(uids) == len(state) else where[there], now)
    found = evaluation.yes
    rest: list[int] = np.flatnonzero(evaluation.unknown).tolist()
    if not rest:
        return uids[found]
    matches = evaluation.matches
    if needs_header(query):
        rest = await _by_headers(mailbox, uids, rest, matches, found)
    if rest:
        await _by_mails(mailbox, uids, rest, matches, found)
    return uids[found]


_Matches = Callable[[int, TextSource], "bool | None"]


async def _by_headers(
    mailbox: Searchable, uids: UidArray, rows: list[int], matches: _Matches, found: Mask
) -> list[int]:
    """Mark in `found` what header blocks decide; returns the rows that they do not."""
    left: list[int] = []
    for start in range(0, len(rows), CHUNK):
        if start:
            await asyncio.sleep(0)
        chunk = rows[start : start + CHUNK]
        for row, fields in zip(chunk, await mailbox.fields(uids[chunk].tolist()), strict=True):
            if fields is None:
                continue
            answer = None if fields.header is None else matches(row, HeaderSource(fields.header))
            if answer:
                found[row] = True
            elif answer is None:
                left.append(row)
    return left


async def _by_mails(mailbox: Searchable, uids: UidArray, rows: list[int], matches: _Matches, found: Mask) -> None:
    row_of = dict(zip(uids[rows].tolist(), rows, strict=True))
    done = 0
    async for uid, mail in mailbox.mails(list(row_of)):
        if mail is None:
            continue
        row = row_of[uid]
        source = MailSource(mail)
        if len(mail) > SLICE_BYTES:
            answer = await asyncio.to_thread(matches, row, source)
        else:
            answer = matches(row, source)
            done += len(mail)
            if done >= SLICE_BYTES:
                done = 0
                await asyncio.sleep(0)
        assert answer is not None, "a whole mail decides"
        found[row] = answer


# -- text sources ------------------------------------------------------------------------------------------------------


class HeaderSource:
    """A TextSource that has the whole header block of a mail and nothing of its body."""

    __slots__ = ("_lower", "_plain", "block")

    def __init__(self, block: bytes) -> None:
        self.block = block
        self._lower: bytes | None = None
        self._plain = False

    def _without(self, needle: Needle) -> bool:
        """Whether a look at the bytes shows that no field has the needle; most mails of a search end here."""
        if self._lower is None:
            self._lower = self.block.lower()
            self._plain = self.block.isascii() and b"=?" not in self.block
        return self._plain and (needle.raw is None or needle.raw not in self._lower)

    def header(self, name: str, needle: Needle) -> bool | None:
        if self._without(needle):
            return False
        for value in header_values(self.block, name.encode()):
            if needle.whole and b"=?" not in value and value.isascii():
                assert needle.raw is not None
                if needle.raw in value.lower():
                    return True
            elif needle.inside(normalised_value(value)):
                return True
        return False

    def sent_day(self) -> dt.date | bool | None:
        values = header_values(self.block, b"date")
        found = parse_date(values[-1]) if values else None
        if found is None:
            return False
        days = (found.seconds + 60 * found.zone_min) // 86_400
        return dt.date.fromordinal(_EPOCH + days)

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        if body_only:
            return None
        return True if self.in_header(needle) else None

    def in_header(self, needle: Needle) -> bool:
        """Whether the header, names of fields included, has the needle anywhere."""
        return not self._without(needle) and needle.inside(normalise(decode_header(self.block)))


class MailSource:
    """A TextSource that has the whole mail: it always decides.

    Body means the text parts, decoded, and the headers of parts (names of attachments), also in embedded messages.
    """

    def __init__(self, mail: bytes) -> None:
        self.mail = mail
        self.top = HeaderSource(mail[: header_end(mail)])
        self._lower: bytes | None = None
        self._plain = False
        self._body: list[str] | None = None

    def header(self, name: str, needle: Needle) -> bool | None:
        return self.top.header(name, needle)

    def sent_day(self) -> dt.date | bool | None:
        return self.top.sent_day()

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        if self._without(needle):
            return False
        if not body_only and self.top.in_header(needle):
            return True
        if self._body is None:
            self._body = [normalise(text) for text in _body_texts(self.mail)]
        return any(needle.inside(text) for text in self._body)

    def _without(self, needle: Needle) -> bool:
        if self._lower is None:
            self._lower = self.mail.lower()
            self._plain = self.mail.isascii() and not any(mark in self._lower for mark in _ASCII_OTHERWISE)
        return self._plain and (needle.raw is None or needle.raw not in self._lower)


def _body_texts(mail: bytes) -> list[str]:
    root = parse(mail)
    headers: list[str] = []
    rest: list[Part] = [*root.children] if root.message is None else [root.message]
    while rest:
        part = rest.pop()
        headers.append(decode_header(mail[part.header_start : part.body_start]))
        rest.extend(part.children)
        if part.message is not None:
            rest.append(part.message)
    return [*text_of(mail, root), *headers]


_memo: dict[bytes, str] = {}
_memo_bytes = 0


def normalised_value(value: bytes) -> str:
    """A header value decoded and normalised. Remembered where that was work: the same searches come again."""
    global _memo_bytes  # noqa: PLW0603 - a pure function's memo, bounded
    if b"=?" not in value and value.isascii():
        return normalise(value.decode("ascii"))
    text = _memo.get(value)
    if text is None:
        text = normalise(decode_header(value))
        if len(value) <= _MEMO_VALUE_MAX:
            _memo_bytes += _MEMO_ENTRY_BYTES + len(value) + 2 * len(text)
            if _memo_bytes > MEMO_BYTES_MAX:
                # A search walks through all mails: throwing out the oldest would forget each just before its turn.
                _memo.clear()
                _memo_bytes = 0
            _memo[value] = text
    return text
