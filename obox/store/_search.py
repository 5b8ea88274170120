"""SEARCH over a mailbox: columns first, then cached header blocks, then whole mails, each only for what is left.

Invariant: the answer is the same whatever happens to be cached. A mail that is gone, lost or damaged when its text is
wanted does not match. Nothing here holds the loop: it is given up after each chunk of headers and each SLICE_BYTES of
mail; a mail larger than that is looked through in a thread.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from ..mailbox import State
from ..mailbox._uidset import UidArray
from ..mailbox.search import Mask, Needle, Query, TextSource, evaluate, needs_header, normalise
from ..mime import Part, addresses, decode_header, header_end, header_values, parse, parse_date, text_of
from ._fields import Fields

if TYPE_CHECKING:
    from .api import Unreadable

CHUNK: Final = 500
"""Mails whose cached fields are asked for at once: about 5 ms of work."""
SLICE_BYTES: Final = 256 * 1024
"""Octets of mails looked through before the loop is given up: at most 20 ms of work."""
MEMO_BYTES_MAX: Final = 32 * 1024 * 1024
"""Memory of this process for normalised header fields: one field of some 150,000 mails."""
_MEMO_VALUE_MAX: Final = 4000
"""Longer values are decoded each time: lists of recipients, a few in a mailbox."""
_MEMO_ENTRY_BYTES: Final = 150
"""What an entry costs beside its characters: a string's head, a number, a slot of the table."""

_ADDRESS_FIELDS: Final = frozenset(("from", "to", "cc", "bcc", "sender", "reply-to"))
_ODD_ADDRESS: Final = re.compile(rb'[(\\]|"\s*@|\s[@.]|[@.]\s')
"""An address whose characters are not those of its plain form."""
_EPOCH: Final = dt.date(1970, 1, 1).toordinal()
_ASCII_OTHERWISE: Final = (b"base64", b"quoted-printable", b"=?", b"\x1b", b"\x00", b"utf-7", b"hz-gb")
"""Marks of a mail that may spell ASCII letters in other bytes: encodings, encoded words, charsets with shifts."""


class Searchable(Protocol):
    """What of a mailbox a search needs; `obox.store.api.Mailbox` has it."""

    @property
    def state(self) -> State: ...

    async def fields(self, uids: Sequence[int], *, autofix: bool | None = None) -> list[Fields | Unreadable | None]: ...

    def mails(
        self, uids: Sequence[int], *, autofix: bool | None = None
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]: ...


async def search(
    mailbox: Searchable,
    query: Query,
    uids: UidArray,
    *,
    now: float,
    autofix: bool | None = None,
    memo: Memo | None = None,
) -> UidArray:
    """Those of `uids` (sorted) that match, in order. now: unix seconds, for OLDER and YOUNGER.

    autofix: see `api.Mailbox`. memo: remembered header fields, by default those of the process.
    Raises Unavailable when mails have to be read and the bucket does not answer.
    """
    state = mailbox.state
    where, there = state.positions(uids)
    uids = uids[there]
    evaluation = evaluate(query, state, slice(None) if len(uids) == len(state) else where[there], now)
    rest: list[int] = np.flatnonzero(evaluation.unknown).tolist()
    found = evaluation.yes.copy()
    if rest:
        memo = MEMO if memo is None else memo
        run = _Run(mailbox, uids, evaluation.matches, found, memo=memo, autofix=autofix)
        if needs_header(query):
            rest = await run.by_memo(rest)
            rest = await run.by_headers(rest)
        await run.by_mails(rest)
    return uids[found]


_Matches = Callable[[int, TextSource], "bool | None"]


class _Run:
    """One search of text. Each step marks in `found` the rows that match and returns those that it cannot decide."""

    def __init__(
        self, mailbox: Searchable, uids: UidArray, matches: _Matches, found: Mask, *, memo: Memo, autofix: bool | None
    ) -> None:
        self.mailbox = mailbox
        self.autofix = autofix
        self.uids = uids
        self.matches = matches
        self.found = found
        self.memo = memo
        self.guid = mailbox.state.guid

    def decide(self, row: int, source: TextSource, left: list[int]) -> None:
        answer = self.matches(row, source)
        if answer is None:
            left.append(row)
        else:
            self.found[row] = answer

    async def by_memo(self, rows: list[int]) -> list[int]:
        left: list[int] = []
        source = _Remembering(self.memo, self.guid)
        for start in range(0, len(rows), 10 * CHUNK):
            if start:
                await asyncio.sleep(0)
            chunk = rows[start : start + 10 * CHUNK]
            for row, source.uid in zip(chunk, self.uids[chunk].tolist(), strict=True):
                self.decide(row, source, left)
        return left

    async def by_headers(self, rows: list[int]) -> list[int]:
        left: list[int] = []
        source = _Remembering(self.memo, self.guid)
        for start in range(0, len(rows), CHUNK):
            if start:
                await asyncio.sleep(0)
            chunk = rows[start : start + CHUNK]
            uids = self.uids[chunk].tolist()
            ready = await self.mailbox.fields(uids, autofix=self.autofix)
            for row, source.uid, fields in zip(chunk, uids, ready, strict=True):
                if isinstance(fields, Fields):
                    source.inner = None if fields.header is None else HeaderSource(fields.header)
                    self.decide(row, source, left)
            self.memo.trim()
        return left

    async def by_mails(self, rows: list[int]) -> None:
        if not rows:
            return
        row_of = dict(zip(self.uids[rows].tolist(), rows, strict=True))
        done = 0
        left: list[int] = []
        async for uid, mail in self.mailbox.mails(list(row_of), autofix=self.autofix):
            if not isinstance(mail, bytes):
                continue
            source = _Remembering(self.memo, self.guid)
            source.uid = uid
            source.inner = MailSource(mail)
            if len(mail) > SLICE_BYTES:
                await asyncio.to_thread(self.decide, row_of[uid], source, left)
                continue
            self.decide(row_of[uid], source, left)
            done += len(mail)
            if done >= SLICE_BYTES:
                done = 0
                await asyncio.sleep(0)
        self.memo.trim()
        assert not left, "a whole mail decides"


# -- memo --------------------------------------------------------------------------------------------------------------


class Memo:
    """Header fields of mails as they compare, by (mailbox, field) and UID; bounded, the least recently used go first.

    A mail never changes and a UID is never given twice, so nothing here grows stale. A search that has been made once
    costs less than a microsecond a mail the next time, and no read of the cached header.
    """

    def __init__(self, bytes_max: int = MEMO_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._columns: OrderedDict[tuple[str, str], MemoColumn] = OrderedDict()

    def column(self, guid: str, name: str) -> MemoColumn:
        column = self._columns.setdefault((guid, name), MemoColumn())
        self._columns.move_to_end((guid, name))
        return column

    def trim(self) -> None:
        """Drop what is too much."""
        total = sum(column.bytes for column in self._columns.values())
        while total > self.bytes_max:
            _, column = self._columns.popitem(last=False)
            total -= column.bytes
            column.clear()  # a search may hold it


class MemoColumn(dict[int, "str | dt.date | bool"]):
    """By UID: the values of a field, normalised, a line each; False where the mail has none."""

    bytes = 0

    def put(self, uid: int, value: str | dt.date | bool) -> None:
        length = len(value) * (1 if value.isascii() else 2) if isinstance(value, str) else 0
        if length <= _MEMO_VALUE_MAX:
            self[uid] = value
            self.bytes += _MEMO_ENTRY_BYTES + length

    def clear(self) -> None:
        super().clear()
        self.bytes = 0


MEMO: Final = Memo()


class _Remembering:
    """A TextSource before another one, or before none yet: what it has been asked once, it knows."""

    _SENT = ":sent"  # no field has this name

    def __init__(self, memo: Memo, guid: str) -> None:
        self.uid = 0
        self.inner: HeaderSource | MailSource | None = None
        self._memo = memo
        self._guid = guid
        self._columns: dict[str, MemoColumn] = {}

    def _column(self, name: str) -> MemoColumn:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._memo.column(self._guid, name)
        return column

    def header(self, name: str, needle: Needle) -> bool | None:
        column = self._columns.get(name) or self._column(name)
        value = column.get(self.uid)
        if value is None:
            if self.inner is None:
                return None
            value = self.inner.value(name)
            column.put(self.uid, value)
        return isinstance(value, str) and needle.text in value

    def sent_day(self) -> dt.date | bool | None:
        column = self._column(self._SENT)
        day = column.get(self.uid)
        if day is None and self.inner is not None:
            day = self.inner.sent_day()
            column.put(self.uid, day)
        return None if isinstance(day, str) else day

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        return None if self.inner is None else self.inner.contains(needle, body_only)


# -- text sources ------------------------------------------------------------------------------------------------------


class HeaderSource:
    """The whole header block of a mail and nothing of its body."""

    __slots__ = ("_lower", "_plain", "block")

    def __init__(self, block: bytes) -> None:
        self.block = block
        self._lower: bytes | None = None
        self._plain = False

    def value(self, name: str) -> str | bool:
        """The values of the fields `name`, decoded and normalised, a line each; False if there is none."""
        values = header_values(self.block, name.encode())
        if name in _ADDRESS_FIELDS and any(map(_ODD_ADDRESS.search, values)):
            values = [*values, *(_plain_addresses(value) for value in values)]
        return "\n".join(map(_normalised, values)) if values else False

    def sent_day(self) -> dt.date | bool:
        values = header_values(self.block, b"date")
        found = parse_date(values[-1]) if values else None
        if found is None:
            return False
        return dt.date.fromordinal(_EPOCH + (found.seconds + 60 * found.zone_min) // 86_400)

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        if body_only:
            return None
        return True if self.in_header(needle) else None

    def in_header(self, needle: Needle) -> bool:
        """Whether the header, names of fields included, has the needle anywhere."""
        if self._lower is None:
            self._lower = self.block.lower()
            self._plain = self.block.isascii() and b"=?" not in self.block
        if self._plain and (needle.raw is None or needle.raw not in self._lower):
            return False
        return needle.inside(normalise(decode_header(self.block)))


class MailSource:
    """The whole mail: it always decides.

    Body means the text parts, decoded, and the headers of parts (names of attachments), also in embedded messages.
    """

    def __init__(self, mail: bytes) -> None:
        self.mail = mail
        self.top = HeaderSource(mail[: header_end(mail)])
        self._lower: bytes | None = None
        self._plain = False
        self._body: list[str] | None = None

    def value(self, name: str) -> str | bool:
        return self.top.value(name)

    def sent_day(self) -> dt.date | bool:
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


def _plain_addresses(value: bytes) -> bytes:
    """The addresses without comments, quotes and white space around `@` and `.`: what the reader sees."""
    found = addresses(value)
    return b", ".join(b"@".join(part for part in (one.mailbox, one.host) if part) for one in found)


def _normalised(value: bytes) -> str:
    return normalise(decode_header(value) if b"=?" in value or not value.isascii() else value.decode("ascii"))
