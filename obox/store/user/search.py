"""SEARCH in a mailbox: first columns, then cached header blocks, then whole mails, each
only for mails that are undecided.

Invariant: the answer does not depend on what is cached. A mail that is gone, lost or
damaged when its text is needed does not match. Each mail's header and bodies are
decoded at most once for all keys. Work never blocks the loop: other tasks run every 5
ms (`Turn`). A mail above INLINE_BYTES, and a query above INLINE_CELLS or INLINE_CHARS,
is handled in a thread.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from ...mailbox import Finder, Needle, State, UidArray, normalise
from ...mailbox.search import (
    Evaluation,
    Mask,
    Query,
    Table,
    TextSource,
    evaluate,
    leaves,
    needs_header,
    strings_of,
)
from ...mime import (
    Part,
    addresses,
    all_values,
    bounded,
    file_names,
    header_end,
    header_values,
    parse,
    parse_date,
)
from ...mime.collating import searched_header, searched_texts
from ...turn import Turn
from ..fields import Fields

if TYPE_CHECKING:
    from ..api import Unreadable

CHUNK: Final = 500
"""Mails whose cached fields are read at a time, which takes about 5 ms."""
CHUNK_BYTES: Final = 4 << 20
"""A SEARCH has at most 4 MiB of ready fields in memory. 500 mails have 500 kB; a
hostile mail has megabytes."""
INLINE_BYTES: Final = 16 * 1024
"""A mail of at most 16 KiB is searched on the loop. Most mails take 0.1 ms, and the
most expensive mail takes 20 ms."""
INLINE_CHARS: Final = 8 * 1024
"""Search strings of at most 8,192 characters are normalised on the loop, which takes at
most 5 ms."""
INLINE_CELLS: Final = 4_000_000
"""Keys times mails whose columns are compared on the loop: 10 ms."""
_KEY_CELLS: Final = 10_000
"""The cost of a key without any mail, as a number of mails."""
STEPS: Final = 500
"""Keys times mails that are decided from memory before the clock is read again: less
than 1 ms."""
_LOWER_BYTES: Final = 256 * 1024
"""Octets of a mail that a single call converts to lower case."""
MEMO_BYTES_MAX: Final = 32 * 1024 * 1024
"""Memory of this process for normalised header fields: one field of some 150,000
mails."""
_MEMO_VALUE_MAX: Final = 4000
"""Longer values are not remembered. They are lists of recipients, of which a mailbox
has few."""
_MEMO_ENTRY_BYTES: Final = 150
"""Memory of an entry beside its characters: the head of a string, a number, a slot of
the table."""
MEMO_COLUMN_BYTES: Final = 500
"""Memory of an empty column."""
_MEMO_COLUMNS_MAX: Final = 32
"""Fields that a single search remembers. Further fields are read each time."""
_FEW: Final = 16
"""More strings than this are searched with a `Finder`. Fewer are first searched in the
raw bytes, each by itself."""

_ADDRESS_FIELDS: Final = frozenset(("from", "to", "cc", "bcc", "sender", "reply-to"))
_ODD_ADDRESS: Final = re.compile(rb'[(\\]|"\s*@|\s[@.]|[@.]\s')
"""An address whose characters are not those of its plain form."""
_EPOCH: Final = dt.date(1970, 1, 1).toordinal()
_ASCII_OTHERWISE: Final = (b"base64", b"quoted-printable", b"\x1b", b"\x00", b"utf-7", b"hz-gb")
"""Signs that a mail may encode ASCII letters in other bytes: encodings, charsets with
shifts. Encoded words (`=?`) are such a sign too, and so are names of attachments in
sections (`name*`, RFC 2231)."""
_MARK_BYTES_MAX: Final = max(map(len, _ASCII_OTHERWISE))
_QUESTION_MARKS: Final = 32
"""Question marks that are looked at one by one: the search for a byte is 50 times as
quick as the search for two."""


class Searchable(Protocol):
    """What a search needs of a mailbox. `obox.store.api.Mailbox` provides it."""

    @property
    def state(self) -> State: ...

    async def fields(
        self, uids: Sequence[int], *, autofix: bool | None = None, bytes_max: int = ...
    ) -> list[Fields | Unreadable | None]: ...

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
    turn: Turn | None = None,
) -> UidArray:
    """Return those of the sorted `uids` that match, in order. now: unix seconds, for
    OLDER and YOUNGER. autofix: see `api.Mailbox`. memo: remembered header fields, by
    default those of the process. turn: see `Env.turn`. Raises Unavailable if mails have
    to be read and the bucket does not answer.
    """
    state = mailbox.state
    where, there = state.positions(uids)
    uids = uids[there]
    table = Table(state, slice(None) if len(uids) == len(state) else where[there])
    keys = sum(1 for _ in leaves(query))
    evaluation = await _evaluated(query, table, keys, now)
    rest: list[int] = np.flatnonzero(evaluation.unknown).tolist()
    found = evaluation.yes.copy()
    if rest:
        memo = MEMO if memo is None else memo
        turn, stride = turn or Turn(), max(1, STEPS // keys)
        turn.begin()
        run = _Run(mailbox, uids, evaluation, found, memo=memo, autofix=autofix, turn=turn, stride=stride)
        if needs_header(query):
            rest = await run.by_memo(rest)
            rest = await run.by_headers(rest)
        await run.by_mails(rest)
    return uids[found]


async def _evaluated(query: Query, table: Table, keys: int, now: float) -> Evaluation:
    """Evaluate the columns, in a thread for a large query."""
    needles: dict[str, Needle] = {}
    if sum(map(len, strings_of(query))) > INLINE_CHARS:
        needles = await asyncio.to_thread(lambda: {value: Needle(value) for value in strings_of(query)})
    if keys * (table.count + _KEY_CELLS) <= INLINE_CELLS:
        return evaluate(query, table, now, needles)
    return await asyncio.to_thread(evaluate, query, table.frozen(query), now, needles)


class _Run:
    """A search of text. Each step marks the rows that match in `found`, and returns the
    rows that it cannot decide."""

    def __init__(
        self,
        mailbox: Searchable,
        uids: UidArray,
        evaluation: Evaluation,
        found: Mask,
        *,
        memo: Memo,
        autofix: bool | None,
        turn: Turn,
        stride: int,
    ) -> None:
        self.mailbox = mailbox
        self.autofix = autofix
        self.uids = uids
        self.matches = evaluation.matches
        self.needles = Needles(evaluation.needles)
        self.found = found
        self.memo = memo
        self.guid = mailbox.state.guid
        self.turn = turn
        self.stride = stride

    def decide(self, row: int, source: TextSource, left: list[int]) -> None:
        answer = self.matches(row, source)
        if answer is None:
            left.append(row)
        else:
            self.found[row] = answer

    def _decide_large(self, row: int, mail: bytes, left: list[int]) -> None:
        self.decide(row, MailSource(mail, self.needles), left)

    async def by_memo(self, rows: list[int]) -> list[int]:
        left: list[int] = []
        source = _Remembering(self.memo, self.guid)
        for start in range(0, len(rows), self.stride):
            some = rows[start : start + self.stride]
            for row, source.uid in zip(some, self.uids[some].tolist(), strict=True):
                self.decide(row, source, left)
            if self.turn.over():
                await self.turn.end()
        return left

    async def by_headers(self, rows: list[int]) -> list[int]:
        left: list[int] = []
        source = _Remembering(self.memo, self.guid)
        self.turn.begin()
        start = 0
        while start < len(rows):
            chunk = rows[start : start + CHUNK]
            uids = self.uids[chunk].tolist()
            ready = await self.mailbox.fields(uids, autofix=self.autofix, bytes_max=CHUNK_BYTES)
            start += len(ready)
            for row, source.uid, fields in zip(chunk, uids, ready, strict=False):
                if isinstance(fields, Fields):
                    source.inner = None if fields.header is None else HeaderSource(fields.header, self.needles)
                    self.decide(row, source, left)
                    if self.turn.over():
                        await self.turn.end()
        return left

    async def by_mails(self, rows: list[int]) -> None:
        if not rows:
            return
        row_of = dict(zip(self.uids[rows].tolist(), rows, strict=True))
        left: list[int] = []
        async for uid, mail in self.mailbox.mails(list(row_of), autofix=self.autofix):
            if not isinstance(mail, bytes):
                continue
            if len(mail) > INLINE_BYTES:
                await asyncio.to_thread(self._decide_large, row_of[uid], mail, left)
                self.turn.begin()
                continue
            source = MailSource(mail, self.needles)
            remembering = _Remembering(self.memo, self.guid)
            remembering.uid = uid
            remembering.inner = source
            self.decide(row_of[uid], remembering, left)
            if self.turn.over():
                await self.turn.end()
        assert not left, "a whole mail decides"


# -- memo --------------------------------------------------------------------------------------------------------------


class Memo:
    """Normalised header fields of mails, by (mailbox, field) and UID. It is bounded,
    and the least recently used column is dropped first.

    A mail never changes and a UID is never used twice, so an entry is never out of
    date. A repeated search costs less than a microsecond a mail, and does not read
    cached headers.
    """

    def __init__(self, bytes_max: int = MEMO_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.kept_bytes = 0
        self.columns: OrderedDict[tuple[str, str | Day], MemoColumn] = OrderedDict()

    def column(self, guid: str, of: str | Day) -> MemoColumn:
        """Return a column. of: any name of a field, or a Day, which equals no name."""
        column = self.columns.get((guid, of))
        if column is None:
            column = self.columns[guid, of] = MemoColumn()
            self.kept_bytes += MEMO_COLUMN_BYTES
        self.columns.move_to_end((guid, of))
        return column

    def put(self, column: MemoColumn, uid: int, value: str | dt.date | bool) -> None:
        """Remember a value, unless it is long or its column was dropped. Columns beyond
        the limit are dropped at once."""
        length = len(value) * (1 if value.isascii() else 2) if isinstance(value, str) else 0
        if length > _MEMO_VALUE_MAX or column.dropped:
            return
        column[uid] = value
        column.bytes += _MEMO_ENTRY_BYTES + length
        self.kept_bytes += _MEMO_ENTRY_BYTES + length
        while self.kept_bytes > self.bytes_max:
            _, last = self.columns.popitem(last=False)
            self.kept_bytes -= MEMO_COLUMN_BYTES + last.bytes
            last.drop()  # a search may still use it


class Day(enum.Enum):
    """What is remembered of a mail apart from its fields."""

    SENT = enum.auto()


class MemoColumn(dict[int, "str | dt.date | bool"]):
    """By UID: the normalised values of a field, a line each, or a day; False if the
    mail has none."""

    bytes = 0
    dropped = False

    def drop(self) -> None:
        self.clear()
        self.dropped = True


MEMO: Final = Memo()


class _Remembering:
    """A TextSource that remembers the answers of another TextSource, if it has one."""

    def __init__(self, memo: Memo, guid: str) -> None:
        self.uid = 0
        self.inner: HeaderSource | MailSource | None = None
        self._memo = memo
        self._guid = guid
        self.columns: dict[str | Day, MemoColumn] = {}

    def _column(self, of: str | Day) -> MemoColumn | None:
        column = self.columns.get(of)
        if column is None and len(self.columns) < _MEMO_COLUMNS_MAX:
            column = self.columns[of] = self._memo.column(self._guid, of)
        return column

    def header(self, name: str, needle: Needle) -> bool | None:
        column = self.columns.get(name)
        if column is None:
            column = self._column(name)
        value = None if column is None else column.get(self.uid)
        if value is None:
            if self.inner is None:
                return None
            value = self.inner.value(name)
            if column is not None:
                self._memo.put(column, self.uid, value)
        return isinstance(value, str) and needle.text in value

    def sent_day(self) -> dt.date | bool | None:
        column = self._column(Day.SENT)
        day = None if column is None else column.get(self.uid)
        if day is None and self.inner is not None:
            day = self.inner.sent_day()
            if column is not None:
                self._memo.put(column, self.uid, day)
        return None if isinstance(day, str) else day

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        return None if self.inner is None else self.inner.contains(needle, body_only)


# -- text sources ------------------------------------------------------------------------------------------------------


class Needles:
    """The strings of TEXT and BODY of a search. Each source searches all of them at
    once.

    A few strings are first searched in the raw bytes, which decides most mails without
    decoding them.
    """

    def __init__(self, needles: Sequence[Needle] = ()) -> None:
        self.by_text = {needle.text: needle for needle in needles}
        self.finder = Finder(self.by_text)

    def with_(self, needle: Needle) -> Needles:
        return self if needle.text in self.by_text else Needles((needle,))

    def possible(self, pieces: Iterable[bytes]) -> Needles:
        """Return the strings that a plain text may have. pieces: its bytes in lower
        case, with overlaps of at least `overlap`."""
        if len(self.by_text) > _FEW:
            return self
        left = list(self.by_text.values())
        there: list[Needle] = []
        for piece in pieces:
            found = [needle for needle in left if needle.raw is not None and needle.raw in piece]
            if found:
                there += found
                left = [needle for needle in left if needle not in found]
        if not there:
            return _NONE
        return self if len(there) == len(self.by_text) else Needles(there)

    @property
    def overlap(self) -> int:
        return max((len(needle.raw or b"") for needle in self.by_text.values()), default=0)


_NONE: Final = Needles()


class HeaderSource:
    """The header block of a mail, as far as fields are searched in it (`mime.bounded`),
    without the body."""

    __slots__ = ("_all", "_found", "_needles", "_values", "block")

    def __init__(self, block: bytes, needles: Needles = _NONE) -> None:
        self.block = bounded(block)
        self._needles = needles
        self._found: set[str] | None = None
        self._values: dict[str, str | bool] = {}
        self._all: dict[bytes, list[bytes]] | None = None

    def value(self, name: str) -> str | bool:
        """Return the decoded and normalised values of the fields `name`, a line each,
        or False if there is none."""
        found = self._values.get(name)
        if found is None:
            found = self._values[name] = self._value(name)
        return found

    def _value(self, name: str) -> str | bool:
        key = name.encode()
        if self._all is None and len(self._values) > 2:
            self._all = all_values(self.block)
        values = header_values(self.block, key) if self._all is None else self._all.get(key, [])
        if name in _ADDRESS_FIELDS and any(map(_ODD_ADDRESS.search, values)):
            values = [*values, *(_plain_addresses(value) for value in values)]
        return "\n".join(map(_normalised, values)) if values else False

    def sent_day(self) -> dt.date | bool:
        values = header_values(self.block, b"date")
        found = parse_date(values[-1]) if values else None
        return False if found is None else dt.date.fromordinal(_EPOCH + found.day)

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        if body_only:
            return None
        return True if self.in_header(needle) else None

    def in_header(self, needle: Needle) -> bool:
        """Return whether the header, names of fields included, has the needle
        anywhere."""
        if self._found is None or needle.text not in self._needles.by_text:
            self._needles = self._needles.with_(needle)
            self._found = self._look()
        return needle.text in self._found

    def _look(self) -> set[str]:
        wanted = self._needles
        if self.block.isascii() and not _has_encoded_word(self.block):
            wanted = wanted.possible((self.block.lower(),))
        return wanted.finder.found((searched_header(self.block),)) if wanted.by_text else set()


def _spells_otherwise(lower: bytes) -> bool:
    """Return whether bytes in lower case have a sign that ASCII letters are encoded in
    other bytes."""
    if any(map(lower.__contains__, _ASCII_OTHERWISE)):
        return True
    # The search for a single byte is much faster than that for a word.
    return (b"*" in lower and b"name*" in lower) or _has_encoded_word(lower)


def _has_encoded_word(text: bytes) -> bool:
    """Return whether the beginning of an encoded word (RFC 2047 §2) is in a text."""
    start = 0
    for _ in range(_QUESTION_MARKS):
        at = text.find(b"?", start)
        if at < 0:
            return False
        if text[at - 1 : at] == b"=":
            return True
        start = at + 1
    return text.find(b"=?", start) >= 0


class MailSource:
    """The whole mail, which always decides.

    Body means the text parts, decoded, and the headers of parts (names of attachments),
    also in embedded messages.
    """

    def __init__(self, mail: bytes, needles: Needles = _NONE) -> None:
        self.mail = mail
        self.top = HeaderSource(mail[: header_end(mail)], needles)
        self._needles = needles
        self._found: set[str] | None = None

    def header(self, name: str, needle: Needle) -> bool:
        value = self.value(name)
        return isinstance(value, str) and needle.text in value

    def value(self, name: str) -> str | bool:
        return self.top.value(name)

    def sent_day(self) -> dt.date | bool:
        return self.top.sent_day()

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        if not body_only and self.top.in_header(needle):
            return True
        if self._found is None or needle.text not in self._needles.by_text:
            self._needles = self._needles.with_(needle)
            self._found = self._look()
        return needle.text in self._found

    def _look(self) -> set[str]:
        """Return the strings that the body has."""
        wanted = self._needles
        if len(wanted.by_text) <= _FEW and self.mail.isascii():
            if len(self.mail) <= _LOWER_BYTES:
                lower = self.mail.lower()
                possible = wanted.possible((lower,))
                if possible is not wanted and not _spells_otherwise(lower):
                    wanted = possible
            elif not any(map(_spells_otherwise, self._lower(_MARK_BYTES_MAX))):
                wanted = wanted.possible(self._lower(wanted.overlap))
        found: set[str] = set()
        if wanted.by_text:
            for text in _body_texts(self.mail):
                found |= wanted.finder.found(text)
                if len(found) == len(wanted.by_text):
                    break
        return found

    def _lower(self, overlap: int) -> Iterator[bytes]:
        """Yield the mail in lower case, in pieces that overlap."""
        for at in range(0, len(self.mail), _LOWER_BYTES):
            yield self.mail[at : at + _LOWER_BYTES + overlap].lower()


def _body_texts(mail: bytes) -> Iterator[Iterator[str]]:
    """Yield the texts of a body, each in slices."""
    root = parse(mail)
    yield from searched_texts(mail, root)
    rest: list[Part] = [*root.children] if root.message is None else [root.message]
    while rest:
        part = rest.pop()
        header = bounded(mail[part.header_start : part.body_start])
        yield iter((searched_header(header),))
        if b"*" in header:
            yield from (iter((name,)) for name in file_names(part))
        rest.extend(part.children)
        if part.message is not None:
            rest.append(part.message)


def _plain_addresses(value: bytes) -> bytes:
    """Return the addresses as readers see them: without comments, quotes and white
    space around `@` and `.`."""
    found = addresses(value)
    return b", ".join(b"@".join(part for part in (one.mailbox, one.host) if part) for one in found)


def _normalised(value: bytes) -> str:
    return normalise(searched_header(value) if b"=?" in value or not value.isascii() else value.decode("ascii"))
