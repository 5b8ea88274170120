"""Verbs for mails: fetch, search, flags …, expunge, copy, move."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from msgspec import Meta

from ..accounts import Account
from ..errors import Invalid, NotFound, OboxError
from ..turn import Turn
from .params import DryRun, Selection
from .parts import Admin
from .query import SearchQuery
from .table import Event, Row, user_verb

if TYPE_CHECKING:
    from ..mailbox import UidArray
    from ..store.api import Fields, Unreadable
    from ..store.user.mailbox import Mailbox
    from ..store.user.user import User

_NEED_FIELDS: Final = frozenset(("imap.envelope", "imap.body", "imap.bodystructure"))
_NEED_MAIL: Final = frozenset(("body", "text", "text.utf8"))
_NEED_HEADER: Final = frozenset(("hdr", "date.sent"))
BATCH: Final = 64
INLINE_BYTES: Final = 16 * 1024
"""The texts of a mail of at most this size are decoded on the loop, and those of a
larger mail in a thread."""


class QueryParams(Selection, kw_only=True):
    query: Annotated[list[str], Meta(min_length=1, description="The words of a search query: MAILBOX INBOX UNSEEN")]


class Found(NamedTuple):
    """Mails of a mailbox that a query matches. The mailbox is open while it is used."""

    name: str
    box: Mailbox
    uids: UidArray


async def _search(admin: Admin, user: User, query: SearchQuery) -> AsyncIterator[Found]:
    """Yield the mailboxes in which a query matches, with the mails. Raises Invalid."""
    turn = Turn()
    for info in user.mailboxes():
        if turn.over():
            await turn.end()
        program = query.program(info.name, info.guid) if info.guid is not None else None
        if program is None:
            continue
        evaluate = admin.parse_search(program)
        try:
            opened = admin.mailbox(user, info.name)
            async with opened as box:
                uids = await box.search(evaluate(box), box.state.uids)
                if len(uids):
                    yield Found(info.name, box, uids)
        except NotFound:
            continue  # it was deleted meanwhile


@asynccontextmanager
async def _opened(admin: Admin, account: Account, words: list[str], *, guarded: bool) -> AsyncIterator[Any]:
    query = SearchQuery(words, time.time())
    if guarded and not (query.names_mailbox and query.names_mails):
        raise Invalid("the query must name MAILBOX and select mails; allowed: MAILBOX name ALL for all mails")
    async with admin.open(account) as user:
        yield user, query


class FetchParams(QueryParams, kw_only=True):
    field: Annotated[list[str], Meta(min_length=1, description="Fields; hdr.<name> for a field of the header")]


@user_verb("fetch", FetchParams)
async def fetch(admin: Admin, account: Account, params: FetchParams) -> AsyncIterator[Event]:
    """Show fields of the mails that a query matches.

    Fields: user mailbox mailbox-guid seq uid guid flags modseq hdr hdr.<name> body text
    text.utf8 size.physical size.virtual date.received date.sent date.saved
    imap.envelope imap.body imap.bodystructure storageid. Bytes that are not UTF-8 are
    replaced. text.utf8 has the decoded texts of all parts. A lost mail has empty
    contents.
    """
    fields = [field for one in params.field for field in one.lower().split()]
    for field in fields:
        if field not in FIELDS and not field.startswith("hdr."):
            raise Invalid(f"field {field!r}; allowed: {' '.join(FIELDS)} hdr.<name>")
    async with _opened(admin, account, params.query, guarded=False) as (user, query):
        async for found in _search(admin, user, query):
            for begin in range(0, len(found.uids), BATCH):
                async for row in _rows(user, found, found.uids[begin : begin + BATCH].tolist(), fields):
                    yield row


async def _rows(user: User, found: Found, uids: list[int], fields: list[str]) -> AsyncIterator[Row]:
    header = any(field in _NEED_HEADER or field.startswith("hdr.") for field in fields)
    ready: dict[int, Fields | Unreadable | None] = {}
    if header or any(field in _NEED_FIELDS for field in fields):
        ready = dict(zip(uids, await found.box.fields(uids), strict=True))
    whole = any(field in _NEED_MAIL for field in fields)
    if not whole and header:  # the header was too long to be kept
        whole = any(one.header is None for one in ready.values() if one and not isinstance(one, OboxError))
    if whole:
        async for uid, source in found.box.mails(uids):
            if (row := await _row(user, found, uid, fields, _contents(ready.get(uid), source))) is not None:
                yield row
        return
    for uid in uids:
        if (row := await _row(user, found, uid, fields, _contents(ready.get(uid), None))) is not None:
            yield row


class Contents(NamedTuple):
    """What was read of a mail: its ready fields, and the whole mail."""

    ready: Fields | None
    source: bytes


def _contents(ready: Fields | Unreadable | None, source: bytes | Unreadable | None) -> Contents:
    """Return the contents. They are empty if the mail is lost or cannot be read."""
    return Contents(None if isinstance(ready, OboxError) else ready, source if isinstance(source, bytes) else b"")


@dataclass(frozen=True, slots=True)
class _Mail:
    """A mail that is shown as a row. at: its index in the mailbox's columns."""

    user: str
    found: Found
    uid: int
    at: int
    ready: Fields | None
    header: bytes
    source: bytes

    def column(self, name: str) -> Any:
        return self.found.box.state.column(name)[self.at]

    def flags(self) -> str:
        state = self.found.box.state
        return " ".join(state.flags.of_bits(state.flag_bits(slice(self.at, self.at + 1))[0]))

    def body(self) -> bytes:
        from .. import mime

        return self.source[mime.header_end(self.source) :] if self.source else b""

    def texts(self) -> str:
        """Return the decoded text parts."""
        from .. import mime

        return "\n".join(mime.text_of(self.source, mime.parse(self.source))) if self.source else ""

    def field(self, name: str) -> str:
        """Return the decoded values of a field of the header."""
        from .. import mime

        values = mime.header_values(self.header, name.encode())
        return "\n".join(mime.decode_header(value).strip() for value in values)

    def wire(self, name: str) -> str:
        """Return a field in the form in which IMAP sends it."""
        return "" if self.ready is None else _text(bytes(getattr(self.ready, name)))

    def home(self) -> str:
        home, uid = self.found.box.state.home_of(self.at)
        return f"{home}/{uid:08x}"


_SHOWN: Final[Mapping[str, Callable[[_Mail], object]]] = {
    "user": lambda mail: mail.user,
    "mailbox": lambda mail: mail.found.name,
    "mailbox-guid": lambda mail: mail.found.box.guid,
    "seq": lambda mail: mail.at + 1,
    "uid": lambda mail: mail.uid,
    "guid": lambda mail: bytes(mail.column("oid")).hex(),
    "flags": _Mail.flags,
    "modseq": lambda mail: int(mail.found.box.state.modseqs[mail.at]),
    "hdr": lambda mail: _text(mail.header),
    "body": lambda mail: _text(mail.body()),
    "text": lambda mail: _text(mail.source),
    "text.utf8": _Mail.texts,
    "size.physical": lambda mail: int(mail.column("size")),
    "size.virtual": lambda mail: int(mail.column("size")),
    "date.received": lambda mail: _date(int(mail.column("internaldate"))),
    "date.sent": lambda mail: _sent(mail.header),
    "date.saved": lambda mail: _date(int(mail.column("savedate")) // 1000),
    "imap.envelope": lambda mail: mail.wire("envelope"),
    "imap.body": lambda mail: mail.wire("body"),
    "imap.bodystructure": lambda mail: mail.wire("bodystructure"),
    "storageid": _Mail.home,
}
FIELDS: Final = tuple(_SHOWN)


async def _row(user: User, found: Found, uid: int, fields: list[str], contents: Contents) -> Row | None:
    """Return the row of a mail, or None if it has been expunged meanwhile.

    A large mail is decoded in a thread.
    """
    ready, source = contents
    # The header comes before the position, which may change meanwhile.
    if len(source) > INLINE_BYTES:
        header = await asyncio.to_thread(_header, source)
    else:
        header = _header(source) if source else (ready.header or b"") if ready is not None else b""
    at = found.box.state.position(uid)
    if at is None:
        return None
    mail = _Mail(user.name, found, uid, at, ready, header, source)
    row = {field: None if _of_contents(field) else _SHOWN[field](mail) for field in fields}
    decoded = [field for field in fields if _of_contents(field)]
    ready_bytes = 0 if ready is None else len(ready.packed)
    if len(source) + len(header) + ready_bytes > INLINE_BYTES:
        return {**row, **await asyncio.to_thread(_decoded, mail, decoded)}
    # Also hundreds of small mails must let others run.
    await asyncio.sleep(0)
    return {**row, **_decoded(mail, decoded)}


def _header(source: bytes) -> bytes:
    from .. import mime

    return source[: mime.header_end(source)]


def _of_contents(field: str) -> bool:
    """Return whether the field is made of the mail's bytes, and not of the index, which
    only the loop may read."""
    return field in _NEED_HEADER or field in _NEED_FIELDS or field in _NEED_MAIL or field.startswith("hdr.")


def _decoded(mail: _Mail, fields: list[str]) -> Row:
    return {field: _SHOWN[field](mail) if field in _SHOWN else mail.field(field[4:]) for field in fields}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _date(unix: int) -> str:
    try:
        return dt.datetime.fromtimestamp(unix, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(unix)


def _sent(header: bytes) -> str:
    from email.utils import parsedate_to_datetime

    from .. import mime

    for value in mime.header_values(header, b"date")[:1]:
        try:
            sent = parsedate_to_datetime(value.decode("ascii", "replace").strip())
        except (ValueError, TypeError, IndexError, OverflowError):
            break
        return sent.strftime("%Y-%m-%d %H:%M:%S %z").strip()
    return ""


class SearchParams(QueryParams, kw_only=True):
    pass


@user_verb("search", SearchParams, columns=("mailbox-guid", "uid"))
async def search(admin: Admin, account: Account, params: SearchParams) -> AsyncIterator[Event]:
    """Show which mails a query matches, by the GUID of their mailbox and their UID."""
    async with _opened(admin, account, params.query, guarded=False) as (user, query):
        async for found in _search(admin, user, query):
            for uid in found.uids.tolist():
                yield {"mailbox-guid": found.box.guid, "uid": uid}


class FlagsAddParams(QueryParams, kw_only=True):
    flag: Annotated[list[str], Meta(min_length=1, description="Flags and keywords: \\Seen, $Label1")]


class FlagsRemoveParams(QueryParams, kw_only=True):
    flag: Annotated[list[str], Meta(min_length=1, description="Flags and keywords: \\Seen, $Label1")]


class FlagsReplaceParams(QueryParams, kw_only=True):
    flag: Annotated[list[str], Meta(description="Flags and keywords; without any, all are removed")]


@user_verb("flags add", FlagsAddParams, columns=("mailbox", "changed"))
async def flags_add(admin: Admin, account: Account, params: FlagsAddParams) -> AsyncIterator[Event]:
    """Set flags of the mails that a query matches."""
    async for row in _flags(admin, account, params.query, "add", params.flag):
        yield row


@user_verb("flags remove", FlagsRemoveParams, columns=("mailbox", "changed"))
async def flags_remove(admin: Admin, account: Account, params: FlagsRemoveParams) -> AsyncIterator[Event]:
    """Remove flags of the mails that a query matches."""
    async for row in _flags(admin, account, params.query, "remove", params.flag):
        yield row


@user_verb("flags replace", FlagsReplaceParams, columns=("mailbox", "changed"))
async def flags_replace(admin: Admin, account: Account, params: FlagsReplaceParams) -> AsyncIterator[Event]:
    """Replace all flags of the mails that a query matches."""
    async for row in _flags(admin, account, params.query, "replace", params.flag):
        yield row


SYSTEM: Final = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")


def _flag_names(given: list[str]) -> list[str]:
    """Return the flags of words that may each have several.

    Raises Invalid for an unknown system flag, or a character that flags cannot have.
    """
    names = []
    for name in (name for one in given for name in one.split()):
        known = next((flag for flag in SYSTEM if flag.lower() == name.lower()), None)
        bad = any(char in '(){%*"\\]' or not "!" <= char <= "~" for char in name)
        if known is None and bad:
            raise Invalid(f"flag {name!r}; allowed: {' '.join(SYSTEM)} and keywords")
        names.append(known or name)
    return names


async def _flags(admin: Admin, account: Account, words: list[str], op: Any, flags: list[str]) -> AsyncIterator[Row]:
    names = _flag_names(flags)
    async with _opened(admin, account, words, guarded=False) as (user, query):
        async for found in _search(admin, user, query):
            stored = await found.box.store_flags(found.uids, op, names)
            yield {"mailbox": found.name, "changed": len(stored.changed)}


class ExpungeParams(QueryParams, kw_only=True):
    delete_empty_mailbox: Annotated[bool, Meta(description="Delete mailboxes that become empty, except INBOX")] = False
    dry_run: DryRun = False


@user_verb("expunge", ExpungeParams, columns=("mailbox", "expunged"), asks="Expunge these mails?")
async def expunge(admin: Admin, account: Account, params: ExpungeParams) -> AsyncIterator[Event]:
    """Expunge the mails that a query matches.

    The query must name a mailbox and select mails.
    """
    emptied = []
    async with _opened(admin, account, params.query, guarded=True) as (user, query):
        async for found in _search(admin, user, query):
            if params.dry_run:
                yield {"mailbox": found.name, "expunged": len(found.uids)}
                continue
            gone = await found.box.expunge(found.uids)
            yield {"mailbox": found.name, "expunged": len(gone)}
            if not len(found.box.state) and found.name != "INBOX":
                emptied.append(found.name)
        if params.delete_empty_mailbox:
            for name in emptied:
                await user.delete(name)


class CopyParams(QueryParams, kw_only=True):
    destination_mailbox: Annotated[str, Meta(description="An existing mailbox of the same user")]


class MoveParams(QueryParams, kw_only=True):
    destination_mailbox: Annotated[str, Meta(description="An existing mailbox of the same user")]


@user_verb("copy", CopyParams, columns=("mailbox", "copied"))
async def copy(admin: Admin, account: Account, params: CopyParams) -> AsyncIterator[Event]:
    """Copy the mails that a query matches to another mailbox of the user."""
    async for row in _copy(admin, account, params.query, params.destination_mailbox, move=False):
        yield row


@user_verb("move", MoveParams, columns=("mailbox", "moved"))
async def move(admin: Admin, account: Account, params: MoveParams) -> AsyncIterator[Event]:
    """Move the mails that a query matches to another mailbox of the user."""
    async for row in _copy(admin, account, params.query, params.destination_mailbox, move=True):
        yield row


async def _copy(admin: Admin, account: Account, words: list[str], target: str, *, move: bool) -> AsyncIterator[Row]:
    async with _opened(admin, account, words, guarded=move) as (user, query):
        user.entry(target)  # raises NotFound before anything is copied
        async for found in _search(admin, user, query):
            if move and found.name == target:
                continue
            copied = await user.copy(found.box, found.uids, target, move=move)
            yield {"mailbox": found.name, "moved" if move else "copied": len(copied.target)}
            if copied.failure is not None:
                raise copied.failure
