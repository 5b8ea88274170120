"""The keys of a search, as `obox.imap.ast` has the commands. RFC 9051 §6.4.4."""

from __future__ import annotations

import datetime as dt
from typing import TypeAlias

import msgspec

from obox.imap.sets import SequenceSet
from obox.mailbox.search import DateField, DateTest


class All(msgspec.Struct, frozen=True):
    """Every mail."""


class InSet(msgspec.Struct, frozen=True):
    """uid: the set names UIDs (`UID 1:5`), else sequence numbers.

    A saved `$` is a set of either.
    """

    sequence: SequenceSet
    uid: bool


class HasFlag(msgspec.Struct, frozen=True):
    """SEEN, UNSEEN, KEYWORD x, …; present=False for the UN- forms.

    RECENT, OLD and NEW use `\\Recent`.
    """

    flag: str
    present: bool = True


class OnDate(msgspec.Struct, frozen=True):
    """BEFORE, SENTON, SAVEDSINCE, …: dates compare without time and zone.

    RFC 8514 for the saved date.
    """

    field: DateField
    test: DateTest
    date: dt.date


class SaveDateSupported(msgspec.Struct, frozen=True):
    """SAVEDATESUPPORTED, RFC 8514 §4.3: all mails or none."""


class Size(msgspec.Struct, frozen=True):
    """LARGER n where `larger`, else SMALLER n; both exclude n."""

    larger: bool
    size: int


class Header(msgspec.Struct, frozen=True):
    """HEADER name value; BCC, CC, FROM, SUBJECT, TO likewise.

    name: in lower case. An empty value: the field exists.
    """

    name: str
    value: str


class Text(msgspec.Struct, frozen=True):
    """TEXT, or BODY where `body_only`."""

    value: str
    body_only: bool = False


class ModSeqFrom(msgspec.Struct, frozen=True):
    """MODSEQ n: mails of this modseq or above.

    The entry, if any, is kept and may be ignored. RFC 7162 §3.1.5.
    """

    modseq: int
    entry: str | None = None
    entry_type: str | None = None


class ObjectId(msgspec.Struct, frozen=True):
    """EMAILID x, or THREADID x where `thread`. RFC 8474 §6."""

    value: str
    thread: bool = False


class Within(msgspec.Struct, frozen=True):
    """OLDER n where `older`, else YOUNGER n, seconds before now. RFC 5032."""

    older: bool
    seconds: int


class Not(msgspec.Struct, frozen=True):
    key: SearchKey


class Or(msgspec.Struct, frozen=True):
    """At least two keys: `OR a OR b c` is one Or of three, so that a long chain of ORs
    is not deep."""

    keys: tuple[SearchKey, ...]


class And(msgspec.Struct, frozen=True):
    keys: tuple[SearchKey, ...]


SearchKey: TypeAlias = (
    All
    | InSet
    | HasFlag
    | OnDate
    | SaveDateSupported
    | Size
    | Header
    | Text
    | ModSeqFrom
    | ObjectId
    | Within
    | Not
    | Or
    | And
)
