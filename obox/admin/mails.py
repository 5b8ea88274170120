"""Verbs about mails: fetch, search, flags …, expunge, copy, move."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from msgspec import Meta

from ..accounts import Account
from ..errors import Invalid, NotFound, OboxError
from .params import DryRun, Selection
from .parts import Admin
from .query import SearchQuery
from .table import Event, Row, user_verb

if TYPE_CHECKING:
    from ..mailbox._uidset import UidArray
    from ..store.api import Fields, Unreadable
    from ..store.mailbox import Mailbox
    from ..store.user import User

FIELDS: Final = (
    "user", "mailbox", "mailbox-guid", "seq", "uid", "guid", "flags", "modseq", "hdr", "body", "text", "text.utf8",
    "size.physical", "size.virtual", "date.received", "date.sent", "date.saved", "imap.envelope", "imap.body",
    "imap.bodystructure", "storageid",
)  # fmt: skip
_NEED_FIELDS: Final = frozenset(("imap.envelope", "imap.body", "imap.bodystructure"))
_NEED_MAIL: Final = frozenset(("body", "text", "text.utf8"))
_NEED_HEADER: Final = frozenset(("hdr", "date.sent"))
BATCH: Final = 64


class QueryParams(Selection, kw_only=True):
    query: Annotated[list[str], Meta(min_length=1, description="A search query, a word each: MAILBOX INBOX UNSEEN")]


class Found(NamedTuple):
    """Mails of one mailbox that a query matches; opened while it is worked on."""

    name: str
    box: Mailbox
    uids: UidArray


async def _search(admin: Admin, user: User, query: SearchQuery) -> AsyncIterator[Found]:
    """Where a query matches, mailbox by mailbox. Raises Invalid."""
    for info in user.mailboxes():
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
            continue  # deleted meanwhile


@asynccontextmanager
async def _opened(admin: Admin, account: Account, words: list[str], *, guarded: bool) -> AsyncIterator[Any]:
    query = SearchQuery(words, time.time())
    if guarded and not (query.names_mailbox and query.names_mails):
        raise Invalid("the query must say MAILBOX and which mails; allowed: MAILBOX name ALL for all of it")
    async with admin.open(account) as user:
        yield user, query


class FetchParams(QueryParams, kw_only=True):
    field: Annotated[list[str], Meta(min_length=1, description="Fields; hdr.<name> for one field of the header")]


@user_verb("fetch", FetchParams)
async def fetch(admin: Admin, account: Account, params: FetchParams) -> AsyncIterator[Event]:
    """Show fields of the mails that a query matches.

    Fields: user mailbox mailbox-guid seq uid guid flags modseq hdr hdr.<name> body text text.utf8 size.physical
    size.virtual date.received date.sent date.saved imap.envelope imap.body imap.bodystructure storageid. Bytes that are
    not UTF-8 are replaced; text.utf8 has the texts of all parts decoded. A mail that is lost has empty contents.
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
    if not whole and header:  # a header too long to be kept
        whole = any(one.header is None for one in ready.values() if one and not isinstance(one, OboxError))
    if whole:
        async for uid, source in found.box.mails(uids):
            if (row := _row(user, found, uid, fields, _contents(ready.get(uid), source))) is not None:
                yield row
        return
    for uid in uids:
        if (row := _row(user, found, uid, fields, _contents(ready.get(uid), None))) is not None:
            yield row


class Contents(NamedTuple):
    """What was read of one mail: its ready fields, the whole of it."""

    ready: Fields | None
    source: bytes


def _contents(ready: Fields | Unreadable | None, source: bytes | Unreadable | None) -> Contents:
    """Of a mail that is gone or cannot be read: nothing."""
    return Contents(None if isinstance(ready, OboxError) else ready, source if isinstance(source, bytes) else b"")


def _row(user: User, found: Found, uid: int, fields: list[str], contents: Contents) -> Row | None:
    from .. import mime

    ready, source = contents

    state = found.box.state
    at = state.position(uid)
    if at is None:
        return None  # expunged meanwhile
    end = mime.header_end(source) if source else 0
    header = source[:end] if source else (ready.header or b"") if ready is not None else b""

    def one(field: str) -> object:
        match field:
            case "user":
                return user.name
            case "mailbox":
                return found.name
            case "mailbox-guid":
                return found.box.guid
            case "seq":
                return at + 1
            case "uid":
                return uid
            case "guid":
                return bytes(state.column("oid")[at]).hex()
            case "flags":
                return " ".join(state.flags_of_bits(state.flag_bits(slice(at, at + 1))[0]))
            case "modseq":
                return int(state.modseqs[at])
            case "hdr":
                return _text(header)
            case "body":
                return _text(source[end:])
            case "text":
                return _text(source)
            case "text.utf8":
                return "\n".join(mime.text_of(source, mime.parse(source))) if source else ""
            case "size.physical" | "size.virtual":
                return int(state.column("size")[at])
            case "date.received":
                return _date(int(state.column("internaldate")[at]))
            case "date.saved":
                return _date(int(state.column("savedate")[at]) // 1000)
            case "date.sent":
                return _sent(header)
            case "imap.envelope" | "imap.body" | "imap.bodystructure":
                return "" if ready is None else _text(bytes(getattr(ready, field[5:])))
            case "storageid":
                home, home_uid = state.home_of(at)
                return f"{home}/{home_uid:08x}"
        values = mime.header_values(header, field[4:].encode())
        return "\n".join(mime.decode_header(value).strip() for value in values)

    return {field: one(field) for field in fields}


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
    """Say which mails a query matches, by the GUID of their mailbox and UID."""
    async with _opened(admin, account, params.query, guarded=False) as (user, query):
        async for found in _search(admin, user, query):
            for uid in found.uids.tolist():
                yield {"mailbox-guid": found.box.guid, "uid": uid}


class FlagsAddParams(QueryParams, kw_only=True):
    flag: Annotated[list[str], Meta(min_length=1, description="Flags and keywords: \\Seen, $Label1")]


class FlagsRemoveParams(QueryParams, kw_only=True):
    flag: Annotated[list[str], Meta(min_length=1, description="Flags and keywords: \\Seen, $Label1")]


class FlagsReplaceParams(QueryParams, kw_only=True):
    flag: Annotated[list[str], Meta(description="Flags and keywords; none takes all off")]


@user_verb("flags add", FlagsAddParams, columns=("mailbox", "changed"))
async def flags_add(admin: Admin, account: Account, params: FlagsAddParams) -> AsyncIterator[Event]:
    """Set flags of the mails that a query matches."""
    async for row in _flags(admin, account, params.query, "add", params.flag):
        yield row


@user_verb("flags remove", FlagsRemoveParams, columns=("mailbox", "changed"))
async def flags_remove(admin: Admin, account: Account, params: FlagsRemoveParams) -> AsyncIterator[Event]:
    """Take flags off the mails that a query matches."""
    async for row in _flags(admin, account, params.query, "remove", params.flag):
        yield row


@user_verb("flags replace", FlagsReplaceParams, columns=("mailbox", "changed"))
async def flags_replace(admin: Admin, account: Account, params: FlagsReplaceParams) -> AsyncIterator[Event]:
    """Give the mails that a query matches these flags and no others."""
    async for row in _flags(admin, account, params.query, "replace", params.flag):
        yield row


SYSTEM: Final = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")


def _flag_names(given: list[str]) -> list[str]:
    """Flags, one or several a word. Raises Invalid: no such system flag, or a character that no flag has."""
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
    delete_empty_mailbox: Annotated[bool, Meta(description="Delete mailboxes that are empty then, but INBOX")] = False
    dry_run: DryRun = False


@user_verb("expunge", ExpungeParams, columns=("mailbox", "expunged"), asks="Expunge these mails?")
async def expunge(admin: Admin, account: Account, params: ExpungeParams) -> AsyncIterator[Event]:
    """Expunge the mails that a query matches; the query must name a mailbox and say which mails."""
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
        user.entry(target)  # NotFound before anything is copied
        async for found in _search(admin, user, query):
            if move and found.name == target:
                continue
            copied = await user.copy(found.box, found.uids, target, move=move)
            yield {"mailbox": found.name, "moved" if move else "copied": len(copied.target)}
