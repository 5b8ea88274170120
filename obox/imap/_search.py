"""SEARCH, SORT, THREAD: the key grammar, result options. RFC 9051 §6.4.4, RFC 4731, RFC
5256, and the keys of RFC 5032, RFC 7162 and RFC 8514."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from obox.imap._scan import NUMBER_MAX, Malformed, Scan
from obox.imap.ast import Partial, Search, SearchReturn, Sort, SortField, Thread
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


_RANGE: Final = re.compile(rb"(-?)([1-9][0-9]{0,9}):\1([1-9][0-9]{0,9})(?![0-9])")
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
    if not word:
        scan.expected("a search key")
    allowed = " ".join(sorted([*_FIXED, *_WITH_ARGUMENT, "NOT", "OR"]))
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


def _program(scan: Scan) -> SearchKey:
    """Parse search-key *(SP search-key), to the end of the command."""
    found = [key(scan)]
    while scan.more():
        scan.spaces()
        found.append(key(scan))
    scan.end()
    return found[0] if len(found) == 1 else And(tuple(found))


def _charset(scan: Scan) -> None:
    name = scan.astring("a charset").decode("ascii", "replace").upper()
    name = _ALIASES.get(name, name)
    if name not in CHARSETS:
        shown = "".join(c if " " < c < "\x7f" else "?" for c in name[:32])
        raise Malformed(f'Unknown charset "{shown}"', "NO", "BADCHARSET (US-ASCII UTF-8)")
    scan.charset = name.lower()


def partial_range(scan: Scan) -> Partial:
    """partial-range = nz-number ":" nz-number / "-" nz-number ":" "-" nz-number. RFC
    9394 §4."""
    scan.sp("a range of results such as 1:500 or -1:-500")
    match = _RANGE.match(scan.line, scan.at)
    if match is None or max(int(match[2]), int(match[3])) > NUMBER_MAX:
        scan.expected("a range of results such as 1:500 or -1:-500")
    scan.at = match.end()
    sign = -1 if match[1] else 1
    return sign * int(match[2]), sign * int(match[3])


def _returns(scan: Scan) -> tuple[frozenset[SearchReturn] | None, Partial | None]:
    """search-return-opts = SP "RETURN" SP "(" [search-return-opt *(SP
    search-return-opt)] ")". RFC 4466 §2.6."""
    if scan.peek_word() != "RETURN":
        return None, None
    scan.at += 6
    scan.sp("result options")
    partial: Partial | None = None

    def option() -> SearchReturn:
        nonlocal partial
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
        return found

    found = frozenset(scan.items("result options", option, empty=True))
    if {SearchReturn.ALL, SearchReturn.PARTIAL} <= found:
        scan.fail("PARTIAL and ALL exclude each other")
    scan.sp("search keys")
    return found or frozenset((SearchReturn.ALL,)), partial


def search(scan: Scan, tag: bytes, uid: bool) -> Search:
    scan.sp("search keys")
    returns, partial = _returns(scan)
    if scan.peek_word() == "CHARSET":
        if scan.utf8:  # RFC 6855 §3
            raise Malformed("CHARSET is not allowed with UTF8=ACCEPT: strings are UTF-8")
        scan.at += 7
        scan.sp("a charset")
        _charset(scan)
        scan.sp("search keys")
    return Search(tag, uid, _program(scan), returns, partial)


def sort(scan: Scan, tag: bytes, uid: bool) -> Sort:
    """sort = ["UID" SP] "SORT" SP sort-criteria SP search-criteria. RFC 5256 §5; RFC
    5267 §3 (RETURN)."""
    scan.sp("sort criteria")
    returns, partial = _returns(scan)

    def criterion() -> tuple[SortField, bool]:
        word = scan.word("a sort criterion")
        reverse = word == "REVERSE"
        if reverse:
            scan.sp("the criterion of REVERSE")
            word = scan.word("a sort criterion")
        try:
            return SortField(word), reverse
        except ValueError:
            allowed = " ".join(f.value for f in SortField)
            raise Malformed(f'Unknown sort criterion "{word}": allowed are REVERSE {allowed}') from None

    criteria = tuple(scan.items("sort criteria", criterion))
    scan.sp("a charset")
    _charset(scan)
    scan.sp("search keys")
    return Sort(tag, uid, criteria, _program(scan), returns, partial)


def thread(scan: Scan, tag: bytes, uid: bool) -> Thread:
    scan.sp("a threading algorithm")
    algorithm = scan.word("a threading algorithm")
    scan.sp("a charset")
    _charset(scan)
    scan.sp("search keys")
    return Thread(tag, uid, algorithm, _program(scan))
