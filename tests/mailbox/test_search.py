"""SEARCH: the columns, the logic with three values, the texts, and how much of a
mailbox a search reads."""

from __future__ import annotations

import datetime as dt
import re
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from turns import turns

from obox.mailbox import Delta, Needle, Rows, State, normalise
from obox.mailbox.search import (
    COMPARE,
    All,
    And,
    Body,
    DateField,
    DateTest,
    Flag,
    Header,
    Larger,
    ModSeqFrom,
    Not,
    Older,
    OnDate,
    Or,
    Query,
    Smaller,
    Table,
    Text,
    UidSet,
    Younger,
    evaluate,
    needs_header,
)
from obox.mime import decode_header, header_end
from obox.store.api import Fields, Unreadable
from obox.store.user import search as _search
from obox.store.user.search import HeaderSource
from obox.types import Guid

DAY = 86_400
NOW = 1_000 * DAY


class Mail(NamedTuple):
    uid: int
    size: int = 100
    internaldate: int = 0
    zone: int = 0
    flags: tuple[str, ...] = ()
    modseq: int = 5
    source: bytes = b""


def state_of(*mails: Mail) -> State:
    state = State(Guid("0" * 32))
    for mail in mails:
        row = Rows.one(
            mail.uid,
            size=mail.size,
            internaldate=mail.internaldate,
            zone=mail.zone,
            savedate=mail.internaldate * 1000,
            modseq=mail.modseq,
            oid=bytes(16),
            flags=mail.flags,
        )
        state.join(Delta(rows=row))
    return state


def columns(query: Query, *mails: Mail) -> list[int]:
    state = state_of(*mails)
    evaluation = evaluate(query, Table(state, slice(None)), NOW)
    assert not evaluation.unknown.any()
    for i in range(len(state)):
        assert evaluation.matches(i, NOTHING) is bool(evaluation.yes[i])
    return [int(uid) for uid in state.uids[evaluation.yes]]


class Nothing:
    """A source that knows no answer."""

    def header(self, name: str, needle: Needle) -> bool | None:
        return None

    def sent_day(self) -> dt.date | bool | None:
        return None

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        return None


NOTHING = Nothing()


@pytest.mark.parametrize(
    ("query", "want"),
    [
        (All(), [1, 2, 5, 9]),
        (And(()), [1, 2, 5, 9]),
        (Or(()), []),
        (Not(All()), []),
        (UidSet(((2, 5),)), [2, 5]),
        (UidSet(((5, 5), (1, 3), (2, 5))), [1, 2, 5]),
        (UidSet(((3, 4), (9, 4_294_967_295))), [9]),
        (UidSet(((5, 2),)), []),
        (UidSet(()), []),
        (UidSet.of(np.array([1, 2, 9], dtype=np.uint32)), [1, 2, 9]),
        (Flag("\\Seen"), [2, 9]),
        (Flag("\\seen", on=False), [1, 5]),
        (Flag("$forwarded"), [5]),
        (Flag("nosuch"), []),
        (Flag("nosuch", on=False), [1, 2, 5, 9]),
        (Larger(100), [5, 9]),
        (Smaller(100), [1]),
        (Larger(2**32), []),
        (ModSeqFrom(7), [5, 9]),
        (ModSeqFrom(2**63), []),
        (Younger(10), [9]),
        (Older(10), [1, 2, 5, 9]),
        (Older(11), [1, 2, 5]),
        (And((Flag("\\Seen"), Not(Larger(100)))), [2]),
        (Or((Smaller(100), Larger(200), Larger(1000))), [1, 9]),
    ],
)
def test_columns(query: Query, want: list[int]) -> None:
    mails = (
        Mail(1, size=99),
        Mail(2, flags=("\\Seen",)),
        Mail(5, size=101, flags=("$Forwarded",), modseq=7),
        Mail(9, size=1000, flags=("\\Seen", "\\Deleted"), modseq=8, internaldate=NOW - 10),
    )
    assert columns(query, *mails) == want
    assert columns(query) == []


@pytest.mark.parametrize("field", [DateField.INTERNAL, DateField.SAVED])
def test_dates_disregard_the_time(field: DateField) -> None:
    mails = (Mail(1, internaldate=9 * DAY - 1), Mail(2, internaldate=9 * DAY), Mail(3, internaldate=10 * DAY))
    day = dt.date(1970, 1, 10)
    assert columns(OnDate(field, DateTest.BEFORE, day), *mails) == [1]
    assert columns(OnDate(field, DateTest.ON, day), *mails) == [2]
    assert columns(OnDate(field, DateTest.SINCE, day), *mails) == [2, 3]


def test_internaldate_counts_in_its_own_zone() -> None:
    mails = (
        Mail(1, internaldate=9 * DAY - 1, zone=60),
        Mail(2, internaldate=9 * DAY, zone=-60),
        Mail(3, internaldate=-1),
    )
    assert columns(OnDate(DateField.INTERNAL, DateTest.ON, dt.date(1970, 1, 10)), *mails) == [1]
    assert columns(OnDate(DateField.INTERNAL, DateTest.ON, dt.date(1970, 1, 9)), *mails) == [2]
    assert columns(OnDate(DateField.INTERNAL, DateTest.ON, dt.date(1969, 12, 31)), *mails) == [3]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", ""),
        ("Straße", "strasse"),
        ("STRASSE", "strasse"),
        ("ﬁn", "fin"),
        ("Ａ", "a"),
        ("\u212a", "k"),
        ("É", "e\u0301"),
        ("a \r\n\t b", "a b"),
        (" a\n", " a "),
        ("\n", " "),
        ("\u00a0x", " x"),
    ],
)
def test_normalise(text: str, want: str) -> None:
    assert normalise(text) == want


@given(st.text())
def test_normalise_is_idempotent(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(text.lower()) == once or not text.isascii()


# -- three-valued logic ------------------------------------------------------------------------------------------------


class Answers:
    """A source that answers HEADER by the name of the field: yes, no, or unknown."""

    def __init__(self, known: dict[str, bool]) -> None:
        self.known = known

    def header(self, name: str, needle: Needle) -> bool | None:
        return self.known.get(name)

    def sent_day(self) -> dt.date | bool | None:
        return None

    def contains(self, needle: Needle, body_only: bool) -> bool | None:
        return None


_leaf = st.one_of(
    st.sampled_from([Header("a", "x"), Header("b", "x"), Header("c", "x")]),
    st.sampled_from([UidSet(((1, 1),)), Flag("\\Seen"), All(), Larger(100)]),
)
_query = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


def _truth(query: Query, mail: Mail, known: dict[str, bool]) -> bool:
    match query:
        case Header(name, _):
            return known[name]
        case UidSet(ranges):
            return any(low <= mail.uid <= high for low, high in ranges)
        case Flag(name, on):
            return (name in mail.flags) == on
        case Larger(size):
            return mail.size > size
        case Not(key):
            return not _truth(key, mail, known)
        case And(keys):
            return all(_truth(key, mail, known) for key in keys)
        case Or(keys):
            return any(_truth(key, mail, known) for key in keys)
    return True


@given(
    _query,
    st.fixed_dictionaries({"a": st.booleans(), "b": st.booleans(), "c": st.booleans()}),
    st.sets(st.sampled_from("abc")),
)
def test_logic_agrees_with_two_values(query: Query, known: dict[str, bool], hidden: set[str]) -> None:
    mails = (Mail(1, flags=("\\Seen",)), Mail(2, size=200), Mail(3))
    evaluation = evaluate(query, Table(state_of(*mails), slice(None)), NOW)
    assert not (evaluation.yes & evaluation.unknown).any()
    for i, mail in enumerate(mails):
        truth = _truth(query, mail, known)
        assert evaluation.matches(i, Answers(known)) is truth
        if not evaluation.unknown[i]:
            assert bool(evaluation.yes[i]) == truth
        partly = evaluation.matches(i, Answers({name: v for name, v in known.items() if name not in hidden}))
        assert partly is None or partly is truth


def test_needs_header() -> None:
    assert needs_header(Not(Or((Body("a"), Header("subject", "x")))))
    assert needs_header(OnDate(DateField.SENT, DateTest.ON, dt.date(2000, 1, 1)))
    assert not needs_header(And((Body("a"), OnDate(DateField.SAVED, DateTest.ON, dt.date(2000, 1, 1)), All())))


# -- text --------------------------------------------------------------------------------------------------------------

PLAIN = (
    b"From: Ann <ann@example.org>\r\nSubject: The quick\r\n brown Fox\r\nDate: Mon, 1 Jan 2024 23:30:00 -0500\r\n"
    b"X-Empty:\r\n\r\nLazy dogs\r\nsleep.\r\n"
)
CODED = (
    b"From: =?utf-8?q?J=C3=BCrgen?= <j@example.org>\r\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\r\n =?utf-8?q?_aus?= Wien\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    b"sch=C3=B6ne Gr=\r\n=C3=BC=C3=9Fe\r\n"
    b"--b\r\nContent-Type: application/pdf; name=Invoice.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nSGlkZGVu\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner one\r\n\r\ndeep text\r\n--b--\r\n"
)
EIGHT = "Subject: Grüße\r\n\r\nbody ÄÖ\r\n".encode()


class Box:
    """A mailbox that counts the fields and mails that are requested from it."""

    def __init__(self, *sources: bytes | None, header_max: int = 8192) -> None:
        self.state = state_of(*(Mail(uid) for uid in range(1, len(sources) + 1)))
        self.sources = dict(enumerate(sources, 1))
        self.header_max = header_max
        self.asked_fields: list[int] = []
        self.asked_mails: list[int] = []
        self.memo = _search.Memo()

    async def fields(
        self, uids: Sequence[int], *, autofix: bool | None = None, bytes_max: int = sys.maxsize
    ) -> list[Fields | Unreadable | None]:
        self.asked_fields += uids
        out: list[Fields | Unreadable | None] = []
        for uid in uids:
            source = self.sources[uid]
            header = None if source is None else source[: header_end(source)]
            if header is not None and len(header) > self.header_max:
                header = None
            out.append(None if source is None else Fields.of(b"", b"", b"", header))
        return out

    async def mails(
        self, uids: Sequence[int], *, autofix: bool | None = None
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        for uid in uids:
            self.asked_mails.append(uid)
            yield uid, self.sources[uid]

    async def search(self, query: Query) -> list[int]:
        found = await _search.search(self, query, self.state.uids, now=NOW, memo=self.memo)
        return [int(uid) for uid in found]


@pytest.mark.parametrize(
    ("query", "want"),
    [
        (Header("Subject", "quick brown"), [1]),
        (Header("SUBJECT", "BROWN FOX"), [1]),
        (Header("subject", "ann"), []),
        (Header("from", "ann"), [1]),
        (Header("from", "<ann@EXAMPLE.org>"), [1]),
        (Header("subject", "grüsse"), [2, 3]),
        (Header("subject", "GRÜẞE AUS wien"), [2]),
        (Header("subject", "utf-8"), []),
        (Header("subject", ""), [1, 2, 3]),
        (Header("x-empty", ""), [1]),
        (Header("x-empty", "a"), []),
        (Header("x-none", ""), []),
        (Header("", ""), []),
        (Header("ü", "x"), []),
        (Header("from", "jürgen"), [2]),
        (Text("ann@"), [1]),
        (Text("lazy"), [1]),
        (Text("jürgen"), [2]),
        (Text("x-empty"), [1]),
        (Body("ann"), []),
        (Body("dogs sleep"), [1]),
        (Body("DOGS\nSLEEP"), [1]),
        (Body("schöne grüsse"), [2]),
        (Body("äö"), [3]),
        (Body("hidden"), []),
        (Body("SGlkZGVu"), []),
        (Body("invoice.pdf"), [2]),
        (Body("inner one"), [2]),
        (Body("deep text"), [2]),
        (Text(""), [1, 2, 3]),
        (OnDate(DateField.SENT, DateTest.ON, dt.date(2024, 1, 1)), [1]),
        (OnDate(DateField.SENT, DateTest.SINCE, dt.date(2024, 1, 2)), []),
        (OnDate(DateField.SENT, DateTest.BEFORE, dt.date(2024, 1, 2)), [1]),
        (Not(OnDate(DateField.SENT, DateTest.BEFORE, dt.date(2024, 1, 2))), [2, 3]),
        (Not(Header("subject", "quick")), [2, 3]),
        (Or((Header("subject", "quick"), Body("äö"))), [1, 3]),
        (And((Header("subject", "quick"), Body("nothing"))), []),
    ],
)
@pytest.mark.parametrize("header_max", [8192, 0])
async def test_text(query: Query, want: list[int], header_max: int) -> None:
    assert await Box(PLAIN, CODED, EIGHT, None, header_max=header_max).search(query) == want


async def test_reads_only_what_is_left() -> None:
    box = Box(*[PLAIN] * 1200)
    assert await box.search(And((UidSet(((1, 3),)), Flag("\\Seen", on=False)))) == [1, 2, 3]
    assert (box.asked_fields, box.asked_mails) == ([], [])
    assert await box.search(And((UidSet(((1, 3),)), Header("from", "ann")))) == [1, 2, 3]
    assert (box.asked_fields, box.asked_mails) == ([1, 2, 3], [])
    box.asked_fields.clear()
    box.memo = _search.Memo()
    assert await box.search(Or((Not(UidSet(((1, 3),))), And((Body("dogs"), Header("from", "bob")))))) == [
        *range(4, 1201)
    ]
    assert (box.asked_fields, box.asked_mails) == ([1, 2, 3], [])
    box.asked_fields.clear()
    assert len(await box.search(Text("brown"))) == 1200
    assert (len(box.asked_fields), box.asked_mails) == (1200, [])
    box.asked_fields.clear()
    assert await box.search(And((UidSet(((7, 8),)), Body("dogs")))) == [7, 8]
    assert (box.asked_fields, box.asked_mails) == ([], [7, 8])


async def test_a_large_mail_is_searched_as_well() -> None:
    large = PLAIN + b"filler words\r\n" * 50_000 + b"needle\r\n"
    assert await Box(PLAIN, large).search(Body("needle")) == [2]


async def test_a_second_search_reads_no_header() -> None:
    box = Box(PLAIN, CODED, EIGHT, None)
    query = And((Header("subject", "quick"), OnDate(DateField.SENT, DateTest.ON, dt.date(2024, 1, 1))))
    assert await box.search(query) == [1]
    box.asked_fields.clear()
    assert await box.search(query) == [1]
    assert await box.search(Header("subject", "grüsse")) == [2, 3]
    assert set(box.asked_fields) <= {4}
    other = Box(CODED)
    other.state.guid = Guid("1" * 32)
    other.memo = box.memo
    assert await other.search(Header("subject", "quick")) == []


async def test_memo_stays_bounded() -> None:
    box = Box(*(b"Subject: =?utf-8?q?n=C3=BCmber_%d?=\r\nFrom: a\r\n\r\n" % i for i in range(1000)))
    box.memo = _search.Memo(bytes_max=100_000)
    for _ in range(3):
        assert await box.search(Header("subject", "nümber 42")) == [43, *range(421, 431)]
        assert len(await box.search(Header("from", "a"))) == 1000
        assert sum(column.bytes for column in box.memo.columns.values()) <= 100_000
        assert box.memo.kept_bytes <= 100_000
    for n in range(300):
        await box.search(Header(f"x-{n}", "a"))
    assert len(box.memo.columns) * _search.MEMO_COLUMN_BYTES <= box.memo.kept_bytes <= 100_000
    long = Box(b"To: " + b"a@example.org, " * 1000 + b"\r\n\r\n")
    assert await long.search(Header("to", "a@")) == [1]
    assert long.memo.column(long.state.guid, "to") == {}


@given(
    st.lists(
        st.sampled_from(["a", "B", "ä", "Ä", " ", "\r\n ", "=?utf-8?q?=C3=84?=", "\t", "ss", "ß", "K"]), max_size=8
    ),
    st.text("abäß sk", max_size=3),
)
def test_the_fast_path_changes_no_answer(value: list[str], needle: str) -> None:
    block = b"X-A: 1\r\nSubject: " + "".join(value).encode() + b"\r\n\r\n"
    (raw,) = _search.header_values(block, b"subject")
    slow = normalise(needle) in normalise(decode_header(raw))
    value = _search.HeaderSource(block).value("subject")
    assert isinstance(value, str)
    assert Needle(needle).inside(value) is slow
    mail = _search.MailSource(block + b"nothing")
    whole = normalise(decode_header(block)) + "\n" + "nothing"
    assert mail.contains(Needle(needle), False) is (normalise(needle) in whole)


def test_an_address_is_found_without_its_comments() -> None:
    source = HeaderSource(
        b'From: user-from (c)@ (c) domain.org\r\nTo: "user-to" (x) @domain.org, "A B" <c.d@e>\r\n\r\n'
    )
    assert "user-from@domain.org" in str(source.value("from"))
    assert "user-to@domain.org" in str(source.value("to"))
    assert '"a b" <c.d@e>' in str(source.value("to"))


# -- hostile mails and hostile queries ---------------------------------------------------------------------------------

LAST_DAY = dt.date(9999, 12, 31)
FIRST_DAY = dt.date(1, 1, 1)


@pytest.mark.parametrize(
    ("date", "day"),
    [
        (b"Fri, 31 Dec 9999 23:59:60 +0000", LAST_DAY),
        (b"Fri, 31 Dec 9999 23:59:59 -2359", LAST_DAY),
        (b"Fri, 31 Dec 9999 24:00:00 +0000", LAST_DAY),
        (b"Mon, 1 Jan 0001 00:00:00 +1400", FIRST_DAY),
        (b"Mon, 1 Jan 0001 00:00 -1200", FIRST_DAY),
        (b"Sat, 31 Dec 2016 23:59:60 +0000", dt.date(2016, 12, 31)),
        (b"Sat, 31 Dec 2016 23:59:60 -0800", dt.date(2016, 12, 31)),
        (b"1 Jan 10000 00:00:00 +0000", False),
        (b"31 Dec 99999 23:59:60 +0000", False),
        (b"1 Jan 0000 00:00:00 +0000", False),
        (b"29 Feb 2023 00:00:00 +0000", False),
        (b"1 Jan 123456789012345678901234567890 00:00:00 +0000", False),
    ],
)
async def test_every_date_is_searchable_or_absent(date: bytes, day: dt.date | bool) -> None:
    """RFC 5322 §3.3: a year has four digits or more, a leap second is :60, a zone any
    four digits."""
    block = b"Date: " + date + b"\r\n\r\n"
    assert HeaderSource(block).sent_day() == day
    box = Box(block, PLAIN)
    for test in DateTest:
        for asked in (FIRST_DAY, LAST_DAY, dt.date(2016, 12, 31), dt.date(2024, 1, 1)):
            found = await box.search(OnDate(DateField.SENT, test, asked))
            assert (1 in found) is (day is not False and bool(COMPARE[test](day, asked)))
            assert (2 in found) is bool(COMPARE[test](dt.date(2024, 1, 1), asked))


@pytest.mark.parametrize("name", [":sent", "SENT", "Day.SENT", "1", "date"])
async def test_no_name_of_a_field_meets_the_sent_day(name: str) -> None:
    box = Box(PLAIN, EIGHT)
    on = OnDate(DateField.SENT, DateTest.ON, dt.date(2024, 1, 1))
    for _ in range(2):
        assert await box.search(Header(name, "no such value")) == []
        assert await box.search(on) == [1]
        assert await box.search(And((on, Not(Header(name, "no such value"))))) == [1]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the lengths of header blocks and bodies at each decoding or parsing."""
    calls: list[int] = []
    for name in ("searched_header", "parse", "all_values", "header_values"):
        plain = getattr(_search, name)

        def counted(data: bytes, *args: object, plain: Any = plain) -> Any:
            calls.append(len(data))
            return plain(data, *args)

        monkeypatch.setattr(_search, name, counted)
    return calls


@pytest.mark.parametrize("kind", [Text, Body])
@pytest.mark.parametrize("join", [And, Or])
async def test_a_thousand_strings_decode_a_mail_once(kind: Any, join: Any, decoded: list[int]) -> None:
    box = Box(CODED, EIGHT)
    keys = tuple(Not(kind(f"absent {n} ü")) for n in range(1_000))
    query = And(keys) if join is And else Or((*(kind(f"absent {n} ü") for n in range(1_000)), kind("deep text")))
    assert await box.search(query) == ([1, 2] if join is And else [1])
    # A search decodes a header block once for the block itself and once for its mail.
    # Of a mail it parses the structure once, and the header of each part once.
    assert len(decoded) <= 2 + 2 + 2 + 5


async def test_a_thousand_fields_are_read_once(decoded: list[int]) -> None:
    box = Box(PLAIN, CODED)
    names = [f"x-{n}" for n in range(1_000)]
    query = Or((*(Header(name, "x") for name in names), Header("subject", "brown")))
    assert await box.search(query) == [1]
    assert len(decoded) <= 2 * (3 + 1 + 4)
    assert len(box.memo.columns) <= 32


async def test_names_are_not_compiled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []
    plain = re.compile
    monkeypatch.setattr(re, "compile", lambda pattern, *flags: compiled.append(len(pattern)) or plain(pattern, *flags))
    box = Box(PLAIN, CODED)
    await box.search(Or(tuple(Header("x" * 60_000 + str(n), "x") for n in range(20))))
    await box.search(Or(tuple(Header(f"y-{n}", "x") for n in range(500))))
    many = Box(*[PLAIN] * 200)
    assert len(await many.search(Header("subject", "brown"))) == 200
    assert len(compiled) <= 1, "a name that is asked for often is, once"


async def test_long_queries_and_wide_columns_leave_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large comparison of columns runs in a thread, on a copy, and gives the same
    result. So does the preparation of long search strings."""
    aside: dict[str, bool] = {}
    for name in ("evaluate", "Needle"):
        plain = getattr(_search, name)

        def noted(*given: Any, plain: Any = plain, name: str = name) -> Any:
            aside[name] = threading.current_thread() is not threading.main_thread()
            return plain(*given)

        monkeypatch.setattr(_search, name, noted)
    monkeypatch.setattr(_search, "INLINE_CELLS", 10)
    monkeypatch.setattr(_search, "INLINE_CHARS", 10)
    box = Box(PLAIN, CODED, EIGHT)
    query = And(
        (Or((Flag("\\Seen"), Smaller(1_000), UidSet(((2, 3),)))), Not(Larger(7_000)), Text("grüße aus wien" * 0))
    )
    assert await box.search(query) == [1, 2, 3]
    assert aside == {"evaluate": True}
    assert await box.search(And((UidSet(((2, 3),)), Text("grüße aus"), Not(Text("nothing here"))))) == [2]
    assert aside == {"evaluate": True, "Needle": True}
    monkeypatch.setattr(_search, "INLINE_CELLS", 1 << 40)
    monkeypatch.setattr(_search, "INLINE_CHARS", 1 << 40)
    assert await box.search(And((UidSet(((2, 3),)), Text("grüße")))) == [2, 3]
    assert not aside["evaluate"]


async def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mails are hostile and keys come by the thousand. No turn of the loop is long."""
    marks = "\u0301" * 16_384 + "\u0316" * 16_384
    mails = [
        *[PLAIN, CODED, EIGHT] * 100,
        b"Subject: " + (marks[:1_500] + marks[-1_500:]).encode() + b"\r\n\r\n",
        b"Subject: s\r\n\r\n" + (marks * 8).encode(),
        b"From: " + b"(a)b," * 1_500 + b"\r\nTo: " + b"a\\,b;" * 100 + b"\r\n\r\n",
        b"Subject: " + b"=?x-%b?q?=41?= " * 20 + b"\r\n\r\n",
        b"Content-Type: text/plain; charset=iso-8859-6\r\n\r\n" + b"\xff" * 1_000_000,
        b"Content-Type: text/plain; charset=utf-7\r\n\r\n+" + b"AGEAYgBj" * 100_000,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 20_000,
        b"X: y\r\n" * 200_000 + b"\r\nbody",
        b"Subject: s\r\n\r\n" + "\ufdfa".encode() * 300_000,
    ]
    box = Box(*mails)
    keys: list[Query] = [Text(f"text {n}") for n in range(400)]
    keys += [Body(f"body {n} \u00fc") for n in range(300)]
    keys += [Header(("from", "to", "subject", f"x-{n}")[n % 4], f"value {n}") for n in range(300)]
    with turns() as found:
        assert await box.search(Or(tuple(keys))) == []
        assert len(await box.search(And(tuple(map(Not, keys))))) == len(mails)
        assert await box.search(Header("from", "b")) == [303]
    found.check()
