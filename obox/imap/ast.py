"""The commands of a client: a frozen struct for each, with decoded arguments.

Nothing here is wire data: mailbox names are str (NFC, `INBOX` in capitals, hierarchy
separators as sent), flags are str with system flags spelt as in RFC 9051 (`\\Seen`) and
keywords as sent, dates and sets are values. Search strings are str, decoded from their
charset; message data, passwords and SASL responses are bytes. Secrets do not appear in
`repr`. This module knows no state; the session decides whether a command is allowed.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, TypeAlias

import msgspec

from obox.imap.items import BinarySection as BinarySection  # noqa: PLC0414 - part of the commands
from obox.imap.items import BodySection as BodySection  # noqa: PLC0414 - part of the commands
from obox.imap.items import FetchAttr as FetchAttr  # noqa: PLC0414 - part of the commands
from obox.imap.items import FetchItem as FetchItem  # noqa: PLC0414 - part of the commands
from obox.imap.items import SectionText as SectionText  # noqa: PLC0414 - part of the commands
from obox.imap.searchkeys import SearchKey
from obox.imap.sets import SequenceSet
from obox.store.api import Source


class Command(msgspec.Struct, frozen=True):
    """Base of all commands.

    NAME is the command's word, for tables, logs and metrics.
    """

    NAME: ClassVar[str] = ""
    tag: bytes


# -- any state ---------------------------------------------------------------------------------------------------------


class Capability(Command, frozen=True):
    NAME: ClassVar[str] = "CAPABILITY"


class Noop(Command, frozen=True):
    NAME: ClassVar[str] = "NOOP"


class Logout(Command, frozen=True):
    NAME: ClassVar[str] = "LOGOUT"


class Id(Command, frozen=True):
    """RFC 2971.

    params: pairs in the client's order, None for `ID NIL`; a value may be NIL.
    """

    NAME: ClassVar[str] = "ID"
    params: tuple[tuple[str, str | None], ...] | None


# -- not authenticated -------------------------------------------------------------------------------------------------


class StartTls(Command, frozen=True):
    """The session must call `Parser.discard_buffer` before it starts TLS, because bytes
    that came in clear do not count."""

    NAME: ClassVar[str] = "STARTTLS"


class Authenticate(Command, frozen=True):
    """mechanism: in capitals.

    initial: the decoded initial response, b"" for `=`, None if there is none (RFC
    4959).
    """

    NAME: ClassVar[str] = "AUTHENTICATE"
    mechanism: str
    initial: bytes | None = None

    def __repr__(self) -> str:
        return f"Authenticate(tag={self.tag!r}, mechanism={self.mechanism!r}, initial=...)"


class Login(Command, frozen=True):
    NAME: ClassVar[str] = "LOGIN"
    username: str
    password: bytes

    def __repr__(self) -> str:
        return f"Login(tag={self.tag!r}, username={self.username!r}, password=...)"


# -- authenticated -----------------------------------------------------------------------------------------------------


class Unauthenticate(Command, frozen=True):
    NAME: ClassVar[str] = "UNAUTHENTICATE"


class Compress(Command, frozen=True):
    """mechanism: in capitals. RFC 4978."""

    NAME: ClassVar[str] = "COMPRESS"
    mechanism: str


class Enable(Command, frozen=True):
    """RFC 5161.

    capabilities: in capitals. The session ignores unknown capabilities.
    """

    NAME: ClassVar[str] = "ENABLE"
    capabilities: tuple[str, ...]


class QResync(msgspec.Struct, frozen=True):
    """What the client knew when it was last here. RFC 7162 §3.2.5.

    seq_match: (sequence numbers, UIDs) of equal length when expanded; the session
    compares, not the parser.
    """

    uidvalidity: int
    modseq: int
    known_uids: SequenceSet | None = None
    seq_match: tuple[SequenceSet, SequenceSet] | None = None


class Select(Command, frozen=True):
    """SELECT, or EXAMINE where `read_only`.

    given, here and below: the name as the client has sent it, if the canonical name is
    another. RFC 9051 §6.3.9.7.
    """

    NAME: ClassVar[str] = "SELECT"
    mailbox: str
    read_only: bool = False
    condstore: bool = False
    qresync: QResync | None = None
    given: str = ""


class Create(Command, frozen=True):
    """special_use: attributes of `(USE (\\Sent))`, RFC 6154 §3.

    A trailing separator is still in the name.
    """

    NAME: ClassVar[str] = "CREATE"
    mailbox: str
    special_use: tuple[str, ...] = ()
    given: str = ""


class Delete(Command, frozen=True):
    NAME: ClassVar[str] = "DELETE"
    mailbox: str
    given: str = ""


class Rename(Command, frozen=True):
    NAME: ClassVar[str] = "RENAME"
    source: str
    target: str
    given: str = ""


class Subscribe(Command, frozen=True):
    NAME: ClassVar[str] = "SUBSCRIBE"
    mailbox: str


class Unsubscribe(Command, frozen=True):
    NAME: ClassVar[str] = "UNSUBSCRIBE"
    mailbox: str


class StatusItem(enum.Enum):
    MESSAGES = "MESSAGES"
    UIDNEXT = "UIDNEXT"
    UIDVALIDITY = "UIDVALIDITY"
    UNSEEN = "UNSEEN"
    RECENT = "RECENT"
    HIGHESTMODSEQ = "HIGHESTMODSEQ"
    SIZE = "SIZE"
    DELETED = "DELETED"
    DELETED_STORAGE = "DELETED-STORAGE"
    APPENDLIMIT = "APPENDLIMIT"
    MAILBOXID = "MAILBOXID"


class ListSelect(enum.Enum):
    """Selection options of LIST. RFC 5258 §3.1, RFC 6154 §2."""

    SUBSCRIBED = "SUBSCRIBED"
    REMOTE = "REMOTE"
    RECURSIVEMATCH = "RECURSIVEMATCH"
    SPECIAL_USE = "SPECIAL-USE"


class ListReturn(enum.Enum):
    """Return options of LIST; STATUS is `List.status`. RFC 5258 §3.2, RFC 6154 §2, RFC
    8440."""

    SUBSCRIBED = "SUBSCRIBED"
    CHILDREN = "CHILDREN"
    SPECIAL_USE = "SPECIAL-USE"
    MYRIGHTS = "MYRIGHTS"


class List(Command, frozen=True):
    """LIST, plain or extended. RFC 5258; RFC 5819 (status).

    patterns: with `*` and `%` as sent; may hold one empty pattern, which asks for the
    separator in plain LIST. extended: any part of the extended syntax was used; answers
    then follow RFC 5258 (no answer for a "" pattern). metadata: the entries of RETURN
    METADATA (RFC 9590).
    """

    NAME: ClassVar[str] = "LIST"
    reference: str
    patterns: tuple[str, ...]
    select: frozenset[ListSelect] = frozenset()
    returns: frozenset[ListReturn] = frozenset()
    status: tuple[StatusItem, ...] = ()
    extended: bool = False
    metadata: tuple[str, ...] = ()


class Lsub(Command, frozen=True):
    NAME: ClassVar[str] = "LSUB"
    reference: str
    pattern: str


class Namespace(Command, frozen=True):
    NAME: ClassVar[str] = "NAMESPACE"


class Status(Command, frozen=True):
    NAME: ClassVar[str] = "STATUS"
    mailbox: str
    items: tuple[StatusItem, ...]


class GetQuota(Command, frozen=True):
    NAME: ClassVar[str] = "GETQUOTA"
    root: str


class GetQuotaRoot(Command, frozen=True):
    NAME: ClassVar[str] = "GETQUOTAROOT"
    mailbox: str


class SetQuota(Command, frozen=True):
    """limits: (resource in capitals, limit). RFC 9208 §4.1.3."""

    NAME: ClassVar[str] = "SETQUOTA"
    root: str
    limits: tuple[tuple[str, int], ...]


class InternalDate(msgspec.Struct, frozen=True):
    """An instant with the zone it was written in."""

    seconds: int
    """Unix time."""
    zone_minutes: int
    """East of Greenwich."""


class Url(msgspec.Struct, frozen=True):
    """A piece of CATENATE, as sent. RFC 4469."""

    url: bytes


class AppendMessage(msgspec.Struct, frozen=True):
    """A mail of an APPEND.

    binary: it came as literal8, `~{n}`, and may have NUL. A large mail may be in a
    file. pieces: of CATENATE, of which the mail has to be made.
    """

    data: bytes | Source
    flags: tuple[str, ...] = ()
    date: InternalDate | None = None
    binary: bool = False
    pieces: tuple[bytes | Source | Url, ...] = ()

    def __repr__(self) -> str:
        return f"AppendMessage({len(self.data)} bytes, flags={self.flags!r}, date={self.date!r}, binary={self.binary})"


class Append(Command, frozen=True):
    """messages: a single mail, or several that are stored all or none (MULTIAPPEND, RFC
    3502). incoming: holds them (`obox.imap.intake.Incoming`), and must be discarded
    when they are stored. None: nothing holds them.
    """

    NAME: ClassVar[str] = "APPEND"
    mailbox: str
    messages: tuple[AppendMessage, ...]
    incoming: Any = None


class Xlist(Command, frozen=True):
    """It has no RFC."""

    NAME: ClassVar[str] = "XLIST"
    reference: str
    pattern: str


class Filter(msgspec.Struct, frozen=True):
    """Mailboxes. kind: in capitals; names: of MAILBOXES, SUBTREE and SUBTREE-ONE. RFC
    5465 §6, RFC 7377 §2.2."""

    kind: str
    names: tuple[str, ...] = ()


class EventGroup(msgspec.Struct, frozen=True):
    """events: in capitals, empty for NONE. items: of MESSAGENEW. RFC 5465 §8."""

    filter: Filter
    events: frozenset[str]
    items: tuple[FetchItem, ...] = ()


class Notify(Command, frozen=True):
    """groups: None for NOTIFY NONE."""

    NAME: ClassVar[str] = "NOTIFY"
    groups: tuple[EventGroup, ...] | None
    status: bool = False


class GetMetadata(Command, frozen=True):
    """RFC 5464 §4.2.

    mailbox: "" for the server. entries: in lower case. depth: levels below an entry
    that are answered too; None is all.
    """

    NAME: ClassVar[str] = "GETMETADATA"
    mailbox: str
    entries: tuple[str, ...]
    size_max: int | None = None
    depth: int | None = 0


class SetMetadata(Command, frozen=True):
    """RFC 5464 §4.3. values: None removes an entry."""

    NAME: ClassVar[str] = "SETMETADATA"
    mailbox: str
    values: tuple[tuple[str, bytes | None], ...]


class GetAcl(Command, frozen=True):
    """RFC 4314 §3.3."""

    NAME: ClassVar[str] = "GETACL"
    mailbox: str


class MyRights(Command, frozen=True):
    """RFC 4314 §3.5."""

    NAME: ClassVar[str] = "MYRIGHTS"
    mailbox: str


class ListRights(Command, frozen=True):
    """RFC 4314 §3.4."""

    NAME: ClassVar[str] = "LISTRIGHTS"
    mailbox: str
    identifier: str


class SetAcl(Command, frozen=True):
    """how: `+`, `-`, or "" to replace. RFC 4314 §3.1."""

    NAME: ClassVar[str] = "SETACL"
    mailbox: str
    identifier: str
    how: str
    rights: str


class DeleteAcl(Command, frozen=True):
    """RFC 4314 §3.2."""

    NAME: ClassVar[str] = "DELETEACL"
    mailbox: str
    identifier: str


class Idle(Command, frozen=True):
    """RFC 2177. The session answers `+` and calls `Parser.expect_done`."""

    NAME: ClassVar[str] = "IDLE"


# -- selected ----------------------------------------------------------------------------------------------------------


class Check(Command, frozen=True):
    NAME: ClassVar[str] = "CHECK"


class Close(Command, frozen=True):
    NAME: ClassVar[str] = "CLOSE"


class Unselect(Command, frozen=True):
    NAME: ClassVar[str] = "UNSELECT"


class Expunge(Command, frozen=True):
    """uids: None for EXPUNGE, the set of UID EXPUNGE (RFC 4315 §2.1) otherwise."""

    NAME: ClassVar[str] = "EXPUNGE"
    uids: SequenceSet | None = None


class SearchReturn(enum.Enum):
    """Result options of SEARCH. RFC 4731, RFC 5182, RFC 5267 (the last two), RFC
    9394."""

    MIN = "MIN"
    MAX = "MAX"
    ALL = "ALL"
    COUNT = "COUNT"
    SAVE = "SAVE"
    PARTIAL = "PARTIAL"
    UPDATE = "UPDATE"
    CONTEXT = "CONTEXT"


Partial: TypeAlias = tuple[int, int]
"""A range of results as sent, with numbers from 1, or from -1 for the last result. RFC
9394."""


class Search(Command, frozen=True):
    """returns: None for the old `* SEARCH` answer; `RETURN ()` is {ALL}. partial: where
    `returns` has PARTIAL. charset: whether the client has named one. items: what is
    fetched of new results (UPDATE, RFC 5465 §7).

    uid: answer with UIDs.
    """

    NAME: ClassVar[str] = "SEARCH"
    uid: bool
    key: SearchKey
    returns: frozenset[SearchReturn] | None = None
    partial: Partial | None = None
    charset: bool = False
    items: tuple[FetchItem, ...] = ()


class MultiSearch(Command, frozen=True):
    """ESEARCH. sources: empty for the selected mailbox. RFC 7377."""

    NAME: ClassVar[str] = "ESEARCH"
    search: Search
    sources: tuple[Filter, ...]


class UidBatches(Command, frozen=True):
    """batches: the first and the last that are asked for. RFC 10022."""

    NAME: ClassVar[str] = "UIDBATCHES"
    size: int
    batches: tuple[int, int] | None = None


class CancelUpdate(Command, frozen=True):
    """RFC 5267 §4.3.5."""

    NAME: ClassVar[str] = "CANCELUPDATE"
    tags: tuple[bytes, ...]


class SortField(enum.Enum):
    """RFC 5256 §3; RFC 5957 for DISPLAYFROM and DISPLAYTO."""

    ARRIVAL = "ARRIVAL"
    CC = "CC"
    DATE = "DATE"
    FROM = "FROM"
    SIZE = "SIZE"
    SUBJECT = "SUBJECT"
    TO = "TO"
    DISPLAYFROM = "DISPLAYFROM"
    DISPLAYTO = "DISPLAYTO"


class Sort(Command, frozen=True):
    """RFC 5256.

    criteria: (field, reverse), the most significant first. returns, partial, items: as
    for Search.
    """

    NAME: ClassVar[str] = "SORT"
    uid: bool
    criteria: tuple[tuple[SortField, bool], ...]
    key: SearchKey
    returns: frozenset[SearchReturn] | None = None
    partial: Partial | None = None
    items: tuple[FetchItem, ...] = ()


class Thread(Command, frozen=True):
    """RFC 5256.

    algorithm: in capitals, unchecked. The session knows which algorithms it advertises.
    """

    NAME: ClassVar[str] = "THREAD"
    uid: bool
    algorithm: str
    key: SearchKey


class Fetch(Command, frozen=True):
    """items: macros expanded, repetitions dropped. The session adds UID to the answer
    of a UID FETCH.

    changed_since, vanished: RFC 7162 §3.1.4.1, §3.2.6; `vanished` only with `uid` and
    `changed_since`. partial: only with `uid`. RFC 9394 §3.3.
    """

    NAME: ClassVar[str] = "FETCH"
    uid: bool
    sequence: SequenceSet
    items: tuple[FetchItem, ...]
    changed_since: int | None = None
    vanished: bool = False
    partial: Partial | None = None


class StoreMode(enum.Enum):
    REPLACE = "FLAGS"
    ADD = "+FLAGS"
    REMOVE = "-FLAGS"


class Store(Command, frozen=True):
    """unchanged_since: RFC 7162 §3.1.3; 0 is a value of its own, not absence."""

    NAME: ClassVar[str] = "STORE"
    uid: bool
    sequence: SequenceSet
    mode: StoreMode
    flags: tuple[str, ...]
    silent: bool = False
    unchanged_since: int | None = None


class Replace(Command, frozen=True):
    """RFC 8508.

    sequence: a single number. append: what is stored in its place.
    """

    NAME: ClassVar[str] = "REPLACE"
    uid: bool
    sequence: SequenceSet
    append: Append


class Copy(Command, frozen=True):
    NAME: ClassVar[str] = "COPY"
    uid: bool
    sequence: SequenceSet
    mailbox: str


class Move(Command, frozen=True):
    """RFC 6851."""

    NAME: ClassVar[str] = "MOVE"
    uid: bool
    sequence: SequenceSet
    mailbox: str
