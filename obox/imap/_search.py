"""SEARCH: the key grammar, result options. RFC 9051 §6.4.4, RFC 4731, RFC
5256, and the keys of RFC 5032, RFC 7162 and RFC 8514."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from obox.imap._fetch import fetch_items
from obox.imap._scan import Malformed, Scan, partial_range
from obox.imap.ast import FetchItem, Partial, Search, SearchReturn
from obox.imap.searchkeys import (
    All,
    And,
    HasFlag,
    Header,
    InSet,
    ModSeqFrom,
    Not,
    ObjectId,
    OnDate,
    Or,
    SaveDateSupported,
    SearchKey,
    Size,
    Text,
    Within,
)
from obox.mailbox.search import DateField, DateTest

CHARSETS: Final = frozenset(
    {"US-ASCII", "UTF-8", "ISO-8859-1", "ISO-8859-2", "ISO-8859-15", "WINDOWS-1250", "WINDOWS-1251", "WINDOWS-1252"}
    | {"KOI8-R", "KOI8-U", "ISO-2022-JP", "SHIFT_JIS", "EUC-JP", "GB2312", "GBK", "BIG5", "EUC-KR"}
)
"""Charsets a search may be in. Each is a text codec of the standard library; nothing
else is looked up by name."""

_ALIASES: Final = {"UTF8": "UTF-8", "ASCII": "US-ASCII"}
"""Names of charsets that clients send, and the registered names."""

_MODSEQ_TYPES: Final = ("all", "priv", "shared")

_FIXED: Final[dict[str, SearchKey]] = {
    "ALL": All(),
    "NEW": And((HasFlag("\\Recent"), HasFlag("\\Seen", False))),
    "OLD": HasFlag("\\Recent", False),
    "RECENT": HasFlag("\\Recent"),
    "SAVEDATESUPPORTED": SaveDateSupported(),
    **{f.upper(): HasFlag("\\" + f) for f in ("Answered", "Deleted", "Draft", "Flagged", "Seen")},
    **{"UN" + f.upper(): HasFlag("\\" + f, False) for f in ("Answered", "Deleted", "Draft", "Flagged", "Seen")},
}


def _date_key(field: DateField, test: DateTest) -> Callable[[Scan], SearchKey]:
    return lambda scan: OnDate(field, test, scan.date())


def _header_key(name: str) -> Callable[[Scan], SearchKey]:
    return lambda scan: Header(name, scan.text("the search string"))


def _header(scan: Scan) -> SearchKey:
    name = scan.header_name()
    try:
        field = name.decode("ascii").lower()
    except UnicodeDecodeError:
        raise Malformed("Bad header field name: only ASCII") from None
    scan.sp("the search string")
    return Header(field, scan.text("the search string"))


def _keyword(present: bool) -> Callable[[Scan], SearchKey]:
    return lambda scan: HasFlag(scan.flag(), present)


def _mod_sequence(scan: Scan) -> SearchKey:
    """search-modsequence = "MODSEQ" [search-modseq-ext] SP mod-sequence-valzer. RFC
    7162 §7."""
    if scan.peek() != b'"':
        return ModSeqFrom(scan.modseq())
    entry = scan.string("an entry name").decode("ascii", "replace")
    scan.sp("an entry type")
    kind = scan.word("an entry type: all, priv or shared").lower()
    if kind not in _MODSEQ_TYPES:
        scan.fail(f'Unknown entry type "{kind}": allowed are all priv shared')
    scan.sp("a mod-sequence")
    return ModSeqFrom(scan.modseq(), entry, kind)


def _object_id(scan: Scan) -> str:
    """objectid = 1*255(ALPHA / DIGIT / "_" / "-"). RFC 8474 §7."""
    value = scan.astring("an object ID")
    if not _OBJECT_ID.fullmatch(value):
        scan.fail("Bad object ID: 1 to 255 letters, digits, _ and -")
    return value.decode()


_OBJECT_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,255}")

_WITH_ARGUMENT: Final[dict[str, Callable[[Scan], SearchKey]]] = {
    "BODY": lambda scan: Text(scan.text("the search string"), body_only=True),
    "TEXT": lambda scan: Text(scan.text("the search string")),
    "HEADER": _header,
    **{name: _header_key(name.lower()) for name in ("BCC", "CC", "FROM", "SUBJECT", "TO")},
    "KEYWORD": _keyword(True),
    "UNKEYWORD": _keyword(False),
    "LARGER": lambda scan: Size(True, scan.number("size", most=2**63 - 1)),
    "SMALLER": lambda scan: Size(False, scan.number("size", most=2**63 - 1)),
    "OLDER": lambda scan: Within(True, scan.number("interval in seconds", least=1)),
    "YOUNGER": lambda scan: Within(False, scan.number("interval in seconds", least=1)),
    "UID": lambda scan: InSet(scan.sequence(), uid=True),
    "MODSEQ": _mod_sequence,
    "EMAILID": lambda scan: ObjectId(_object_id(scan)),
    "THREADID": lambda scan: ObjectId(_object_id(scan), thread=True),
    **{test.value: _date_key(DateField.INTERNAL, test) for test in DateTest},
    **{"SENT" + test.value: _date_key(DateField.SENT, test) for test in DateTest},
    **{"SAVED" + test.value: _date_key(DateField.SAVED, test) for test in DateTest},
}

_KEY: Final = re.compile(rb"[A-Za-z]++")


def key(scan: Scan, depth: int = 0) -> SearchKey:
    """Take one search key. A chain of OR is one Or, a chain of NOT cancels; parentheses
    and OR's left nest."""
    scan.count_key()
    head = scan.peek()
    if head == b"(":
        inner = scan.deeper(depth)
        found = scan.items("search keys", lambda: key(scan, inner), most=scan.limits.search_keys_max)
        return found[0] if len(found) == 1 else And(tuple(found))
    if head.isdigit() or head in {b"*", b"$"}:
        return InSet(scan.sequence(), uid=False)
    match = _KEY.match(scan.line, scan.at)
    word = match[0].upper().decode() if match else ""
    fixed = _FIXED.get(word)
    if fixed is not None:
        scan.at += len(word)
        return fixed
    argument = _WITH_ARGUMENT.get(word)
    if argument is not None:
        scan.at += len(word)
        scan.sp(f"the argument of {word}")
        return argument(scan)
    if word == "NOT":
        return _negation(scan, depth)
    if word == "OR":
        return _alternatives(scan, depth)
    if word == "FUZZY":  # RFC 6203 §3: how exact a search is, is up to the server
        scan.at += len(word)
        scan.sp("the key of FUZZY")
        return key(scan, scan.deeper(depth))
    if not word:
        scan.expected("a search key")
    allowed = " ".join(sorted([*_FIXED, *_WITH_ARGUMENT, "FUZZY", "NOT", "OR"]))
    scan.fail(f"Unknown search key {scan.shown()}: allowed are sets, parentheses, {allowed}")


def _negation(scan: Scan, depth: int) -> SearchKey:
    negative = False
    while scan.peek_word() == "NOT":
        scan.at += 3
        scan.count_key()
        scan.sp("the key of NOT")
        negative = not negative
    found = key(scan, scan.deeper(depth))
    return Not(found) if negative else found


def _alternatives(scan: Scan, depth: int) -> SearchKey:
    """Parse `OR a OR b c`. The right side is taken in a loop, since clients chain
    hundreds."""
    inner = scan.deeper(depth)
    found: list[SearchKey] = []
    while scan.peek_word() == "OR":
        scan.at += 2
        scan.count_key()
        scan.sp("the first key of OR")
        found.append(key(scan, inner))
        scan.sp("the second key of OR")
    found.append(key(scan, inner))
    return Or(tuple(found))


def program(scan: Scan) -> SearchKey:
    """Parse search-key *(SP search-key), to the end of the command."""
    found = [key(scan)]
    while scan.more():
        scan.spaces()
        found.append(key(scan))
    scan.end()
    return found[0] if len(found) == 1 else And(tuple(found))


def take_charset(scan: Scan) -> None:
    name = scan.astring("a charset").decode("ascii", "replace").upper()
    name = _ALIASES.get(name, name)
    if name not in CHARSETS:
        shown = "".join(c if " " < c < "\x7f" else "?" for c in name[:32])
        raise Malformed(f'Unknown charset "{shown}"', "NO", "BADCHARSET (US-ASCII UTF-8)")
    scan.charset = name.lower()


class Results(NamedTuple):
    """The options behind RETURN: `ast.Search` has the same fields."""

    returns: frozenset[SearchReturn] | None = None
    partial: Partial | None = None
    items: tuple[FetchItem, ...] = ()


def result_options(scan: Scan) -> Results:
    """search-return-opts = SP "RETURN" SP "(" [search-return-opt *(SP
    search-return-opt)] ")". RFC 4466 §2.6; modifier-update = "UPDATE" [SP "(" fetch-att
    *(SP fetch-att) ")"]. RFC 5465 §8."""
    if scan.peek_word() != "RETURN":
        return Results()
    scan.at += 6
    scan.sp("result options")
    partial: Partial | None = None
    items: tuple[FetchItem, ...] = ()

    def option() -> SearchReturn:
        nonlocal partial, items
        word = scan.word("a result option")
        try:
            found = SearchReturn(word)
        except ValueError:
            allowed = " ".join(o.value for o in SearchReturn)
            raise Malformed(f'Unknown result option "{word}": allowed are {allowed}') from None
        if found is SearchReturn.PARTIAL:
            if partial is not None:
                scan.fail("PARTIAL is allowed once")
            partial = partial_range(scan)
        if found is SearchReturn.UPDATE:
            behind = scan.at
            scan.spaces()
            if scan.peek() == b"(":
                items = fetch_items(scan)
            else:
                scan.at = behind
        return found

    found = frozenset(scan.items("result options", option, empty=True))
    if {SearchReturn.ALL, SearchReturn.PARTIAL} <= found:
        scan.fail("PARTIAL and ALL exclude each other")
    scan.sp("search keys")
    if found <= {SearchReturn.UPDATE, SearchReturn.CONTEXT}:
        found |= {SearchReturn.ALL}
    return Results(found, partial, items)


def search(scan: Scan, tag: bytes, uid: bool) -> Search:
    scan.sp("search keys")
    results = result_options(scan)
    charset = scan.peek_word() == "CHARSET"
    if charset:
        scan.at += 7
        scan.sp("a charset")
        take_charset(scan)
        scan.sp("search keys")
    return Search(tag, uid, program(scan), results.returns, results.partial, charset, results.items)
