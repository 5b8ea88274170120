"""SEARCH, SORT, THREAD: every key, charsets, result options, nesting."""

from __future__ import annotations

import datetime as dt

import pytest

from obox.imap.ast import Search, SearchReturn, Sort, SortField, Thread
from obox.imap.events import BadCommand, NeedContinuation, NeedParse, NeedTurn
from obox.imap.parser import Limits, Parser
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
from obox.imap.sets import SAVED, STAR, SequenceSet
from obox.mailbox.search import DateField, DateTest
from tests.imap.spaces import spaced


def parse(data: bytes, limits: Limits | None = None) -> object:
    parser = Parser(limits)
    parser.feed(data + b"\r\n")
    event = parser.next()
    while isinstance(event, NeedContinuation | NeedParse | NeedTurn):
        event = parser.next()
    return event


DAY = dt.date(1994, 2, 1)
KEYS: list[tuple[bytes, SearchKey]] = [
    (b"EMAILID M6d99ac3275bb4e", ObjectId("M6d99ac3275bb4e")),
    (b'threadid "T64b478a75b7ea9"', ObjectId("T64b478a75b7ea9", thread=True)),
    (b"ALL", All()),
    (b"answered", HasFlag("\\Answered")),
    (b"DELETED", HasFlag("\\Deleted")),
    (b"DRAFT", HasFlag("\\Draft")),
    (b"FLAGGED", HasFlag("\\Flagged")),
    (b"SEEN", HasFlag("\\Seen")),
    (b"UNANSWERED", HasFlag("\\Answered", False)),
    (b"UNDELETED", HasFlag("\\Deleted", False)),
    (b"UNDRAFT", HasFlag("\\Draft", False)),
    (b"UNFLAGGED", HasFlag("\\Flagged", False)),
    (b"UNSEEN", HasFlag("\\Seen", False)),
    (b"NEW", And((HasFlag("\\Recent"), HasFlag("\\Seen", False)))),
    (b"OLD", HasFlag("\\Recent", False)),
    (b"RECENT", HasFlag("\\Recent")),
    (b"KEYWORD $MDNSent", HasFlag("$MDNSent")),
    (b"UNKEYWORD x", HasFlag("x", False)),
    (b"BEFORE 1-Feb-1994", OnDate(DateField.INTERNAL, DateTest.BEFORE, DAY)),
    (b'ON "01-feb-1994"', OnDate(DateField.INTERNAL, DateTest.ON, DAY)),
    (b"SINCE 1-Feb-1994", OnDate(DateField.INTERNAL, DateTest.SINCE, DAY)),
    (b"SENTBEFORE 1-Feb-1994", OnDate(DateField.SENT, DateTest.BEFORE, DAY)),
    (b"SENTON 1-Feb-1994", OnDate(DateField.SENT, DateTest.ON, DAY)),
    (b"SENTSINCE 1-Feb-1994", OnDate(DateField.SENT, DateTest.SINCE, DAY)),
    (b"SAVEDBEFORE 1-Feb-1994", OnDate(DateField.SAVED, DateTest.BEFORE, DAY)),
    (b"SAVEDON 1-Feb-1994", OnDate(DateField.SAVED, DateTest.ON, DAY)),
    (b"SAVEDSINCE 1-Feb-1994", OnDate(DateField.SAVED, DateTest.SINCE, DAY)),
    (b"SAVEDATESUPPORTED", SaveDateSupported()),
    (b"LARGER 10", Size(True, 10)),
    (b"SMALLER 0", Size(False, 0)),
    (b"OLDER 3600", Within(True, 3600)),
    (b"YOUNGER 60", Within(False, 60)),
    (b'FROM "Smith"', Header("from", "Smith")),
    (b"TO x", Header("to", "x")),
    (b"CC x", Header("cc", "x")),
    (b"BCC x", Header("bcc", "x")),
    (b"SUBJECT {6}\r\nse\xc3\xb1or", Header("subject", "señor")),
    (b'HEADER Message-ID "<a@b>"', Header("message-id", "<a@b>")),
    (b'HEADER X-Flag ""', Header("x-flag", "")),
    (b"BODY x", Text("x", True)),
    (b'TEXT "string not in mailbox"', Text("string not in mailbox")),
    (b"MODSEQ 620162338", ModSeqFrom(620162338)),
    (b'MODSEQ "/flags/\\\\draft" all 620162338', ModSeqFrom(620162338, "/flags/\\draft", "all")),
    (b"UID 1:5,*", InSet(SequenceSet(((1, 5), (STAR, STAR))), True)),
    (b"UID $", InSet(SAVED, True)),
    (b"2,4:7", InSet(SequenceSet(((2, 2), (4, 7))), False)),
    (b"*:4", InSet(SequenceSet(((4, STAR),)), False)),
    (b"$", InSet(SAVED, False)),
    (b"NOT SEEN", Not(HasFlag("\\Seen"))),
    (b"NOT NOT SEEN", HasFlag("\\Seen")),
    (b"NOT NOT NOT SEEN", Not(HasFlag("\\Seen"))),
    (b"OR SEEN ALL", Or((HasFlag("\\Seen"), All()))),
    (b"OR SEEN OR ALL DRAFT", Or((HasFlag("\\Seen"), All(), HasFlag("\\Draft")))),
    (b"OR OR SEEN ALL DRAFT", Or((Or((HasFlag("\\Seen"), All())), HasFlag("\\Draft")))),
    (b"(SEEN)", HasFlag("\\Seen")),
    (b"(SEEN DRAFT)", And((HasFlag("\\Seen"), HasFlag("\\Draft")))),
    (b"NOT (SEEN (DRAFT))", Not(And((HasFlag("\\Seen"), HasFlag("\\Draft"))))),
]


@pytest.mark.parametrize(("data", "key"), KEYS, ids=[repr(d)[2:40] for d, _ in KEYS])
def test_key_with_more_spaces(data: bytes, key: SearchKey) -> None:
    assert parse(b"a  SEARCH  " + spaced(data)) == Search(b"a", False, key)


@pytest.mark.parametrize(("data", "key"), KEYS, ids=[repr(d)[2:40] for d, _ in KEYS])
def test_key(data: bytes, key: SearchKey) -> None:
    assert parse(b"a SEARCH " + data) == Search(b"a", False, key)
    assert parse(b"a UID SEARCH (" + data + b") ALL") == Search(b"a", True, And((key, All())))
    assert parse(b"a SEARCH OR NOT ALL " + data + b" ") in (
        Search(b"a", False, Or((Not(All()), key))),
        Search(b"a", False, Or((Not(All()), *key.keys))) if isinstance(key, Or) else None,
    )


def test_return_options() -> None:
    assert parse(b"a SEARCH RETURN (MIN COUNT) DELETED") == Search(
        b"a", False, HasFlag("\\Deleted"), frozenset({SearchReturn.MIN, SearchReturn.COUNT})
    )
    assert parse(b"a UID SEARCH RETURN () ALL") == Search(b"a", True, All(), frozenset({SearchReturn.ALL}))
    assert parse(b"a SEARCH return (save) charset utf-8 ALL") == Search(
        b"a", False, All(), frozenset({SearchReturn.SAVE}), charset=True
    )


@pytest.mark.parametrize(
    ("charset", "data", "text"),
    [
        (b"UTF-8", "ü".encode(), "ü"),
        (b"utf8", "ü".encode(), "ü"),
        (b"ISO-8859-1", b"\xfc", "ü"),
        (b'"koi8-r"', "почта".encode("koi8-r"), "почта"),
    ],
)
def test_charset(charset: bytes, data: bytes, text: str) -> None:
    sent = b"a SEARCH CHARSET %b TEXT {%d}\r\n%b" % (charset, len(data), data)
    assert parse(sent) == Search(b"a", False, Text(text), charset=True)


def test_sort_and_thread() -> None:
    assert parse(b"a UID SORT (REVERSE DATE SUBJECT) UTF-8 ALL") == Sort(
        b"a", True, ((SortField.DATE, True), (SortField.SUBJECT, False)), All()
    )
    assert parse(b"a SORT RETURN (COUNT) (SIZE) US-ASCII SEEN") == Sort(
        b"a", False, ((SortField.SIZE, False),), HasFlag("\\Seen"), frozenset({SearchReturn.COUNT})
    )
    assert parse(b"a THREAD references UTF-8 ALL") == Thread(b"a", False, "REFERENCES", All())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a SEARCH", "Missing argument: search keys"),
        (b"a SEARCH EMAILID x.y", "Bad object ID: 1 to 255 letters"),
        (b"a SEARCH FOO", 'Unknown search key "FOO"'),
        (b"a SEARCH ALLSEEN", 'Unknown search key "ALLSEEN"'),
        (b"a SEARCH ALL,", 'Unexpected argument at the end: ","'),
        (b"a SEARCH ()", "Empty list of search keys"),
        (b"a SEARCH (ALL", 'Expected a space or ")" in the list of search keys'),
        (b"a SEARCH OR ALL", "Missing argument: the second key of OR"),
        (b"a SEARCH NOT", "Missing argument: the key of NOT"),
        (b"a SEARCH FROM", "Missing argument: the argument of FROM"),
        (b"a SEARCH HEADER x", "Missing argument: the search string"),
        (b"a SEARCH HEADER \xff x", "Bad header field name"),
        (b"a SEARCH SINCE 30-Feb-2000", "no such day"),
        (b"a SEARCH SINCE 2000-01-01", "Expected a date such as 1-Feb-1994"),
        (b"a SEARCH SINCE 1-Foo-2000", 'Bad month "Foo"'),
        (b"a SEARCH LARGER x", "Expected size"),
        (b"a SEARCH OLDER 0", "Bad interval in seconds"),
        (b"a SEARCH UID x", "Expected a set"),
        (b"a SEARCH UID 0", "Bad number 0"),
        (b'a SEARCH MODSEQ "/flags/x" foo 1', 'Unknown entry type "foo": allowed are all priv shared'),
        (b"a SEARCH TEXT {1}\r\n\xff", "is not in UTF-8"),
        (b"a SEARCH CHARSET US-ASCII TEXT {2}\r\n\xc3\xbc", "is not in US-ASCII"),
        (b"a SEARCH RETURN (FOO) ALL", 'Unknown result option "FOO": allowed are MIN MAX ALL COUNT SAVE'),
        (b"a SEARCH RETURN (MIN)", "Missing argument: search keys"),
        (b"a SEARCH KEYWORD \\Foo", "Unknown system flag"),
        (b"a SORT (FOO) UTF-8 ALL", 'Unknown sort criterion "FOO": allowed are REVERSE ARRIVAL'),
        (b"a SORT () UTF-8 ALL", "Empty list of sort criteria"),
        (b"a THREAD REFERENCES UTF-8", "Missing argument: search keys"),
    ],
)
def test_error(data: bytes, reason: str) -> None:
    event = parse(data)
    assert isinstance(event, BadCommand)
    assert event.tag == b"a"
    assert reason in event.reason


def test_depth_is_bounded_and_chains_are_not_depth() -> None:
    limits = Limits(depth_max=4, line_bytes_max=65_536)
    assert isinstance(parse(b"a SEARCH ((((ALL))))", limits), Search)
    for deep in (b"(" * 5 + b"ALL" + b")" * 5, b"(" * 20_000, b"OR " * 9_000 + b"ALL", b"NOT (" * 9_000):
        event = parse(b"a SEARCH " + deep, limits)
        assert isinstance(event, BadCommand)
        assert "Nested too deeply: at most 4 levels" in event.reason
    chain = parse(b"a SEARCH " + b"OR FROM x " * 1_000 + b"NOT " * 1_000 + b"ALL", limits)
    assert isinstance(chain, Search)
    assert isinstance(chain.key, Or)
    assert len(chain.key.keys) == 1_001


def test_keys_are_counted() -> None:
    event = parse(b"a SEARCH " + b"ALL " * 20, Limits(search_keys_max=10))
    assert isinstance(event, BadCommand)
    assert event.reason == "Too many search keys: at most 10"
