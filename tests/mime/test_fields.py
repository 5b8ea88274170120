"""Header fields: finding, cutting out, unfolding, dates."""

from __future__ import annotations

import pytest

from obox.mime import header_end, header_fields, header_values, parse_date, sent_date, unfold

HEADER = (
    b"Received: one\r\n\tfolded\r\nFrom: a@b\r\nsubject : S\r\n more\r\n  still\r\njunk without colon\r\nX-From: no\r\n"
    b"FROM:c@d\r\nEmpty:\r\n\r\n"
)


def pick(header: bytes, *names: bytes) -> bytes:
    return header_fields(header, frozenset(names), False)


def drop(header: bytes, *names: bytes) -> bytes:
    return header_fields(header, frozenset(names), True)


def test_header_fields_keep_order_case_and_folding() -> None:
    assert pick(HEADER, b"SUBJECT", b"from") == b"From: a@b\r\nsubject : S\r\n more\r\n  still\r\nFROM:c@d\r\n\r\n"


def test_header_fields_at_both_ends() -> None:
    assert pick(HEADER, b"received", b"empty") == b"Received: one\r\n\tfolded\r\nEmpty:\r\n\r\n"


@pytest.mark.parametrize("names", [(), (b"absent",), (b"",), (b"re",), (b"fro.",), (b"received: one",)])
def test_header_fields_of_nothing(names: tuple[bytes, ...]) -> None:
    assert pick(HEADER, *names) == b"\r\n"


def test_header_fields_not() -> None:
    assert drop(HEADER, b"From", b"received", b"SUBJECT") == b"junk without colon\r\nX-From: no\r\nEmpty:\r\n\r\n"
    assert drop(HEADER) == HEADER
    assert drop(b"From: a\r\n\r\n", b"from") == b"\r\n"


def test_many_names_answer_as_few_do() -> None:
    many = tuple(b"x-%d" % i for i in range(100))
    assert pick(HEADER, b"From", b"Subject", *many) == pick(HEADER, b"From", b"Subject")
    assert drop(HEADER, b"From", b"Subject", *many) == drop(HEADER, b"From", b"Subject")


def test_names_are_not_patterns() -> None:
    assert pick(b"a+b: 1\r\naab: 2\r\n[x]: 3\r\n\r\n", b"A+B", b"[x]") == b"a+b: 1\r\n[x]: 3\r\n\r\n"


@pytest.mark.parametrize(
    ("header", "picked", "dropped"),
    [
        (b"", b"\r\n", b"\r\n"),
        (b"\r\n", b"\r\n", b"\r\n"),
        (b"A: 1", b"A: 1\r\n\r\n", b"\r\n"),
        (b"A: 1\r\n", b"A: 1\r\n\r\n", b"\r\n"),
        (b"A: 1\n\n", b"A: 1\n\r\n", b"\n"),
        (b"A: 1\nB: 2", b"A: 1\n\r\n", b"B: 2\r\n\r\n"),
        (b"B: 2\r\nA: 1", b"A: 1\r\n\r\n", b"B: 2\r\n\r\n"),
        (b"A:\r\n \r\n\tx\r\nB: 2\r\n\r\n", b"A:\r\n \r\n\tx\r\n\r\n", b"B: 2\r\n\r\n"),
    ],
)
def test_header_fields_of_odd_headers(header: bytes, picked: bytes, dropped: bytes) -> None:
    assert pick(header, b"a") == picked
    assert drop(header, b"a") == dropped


def test_header_values() -> None:
    assert header_values(HEADER, b"From") == [b"a@b", b"c@d"]
    assert header_values(HEADER, b"SUBJECT") == [b"S more  still"]
    assert header_values(HEADER, b"empty") == [b""]
    assert header_values(HEADER, b"absent") == []
    assert header_values(HEADER, b"") == []
    assert header_values(b"a:b: c:d\r\n", b"A") == [b"b: c:d"]


def test_unfold() -> None:
    assert unfold(b" a\r\n b\n\tc \r\n") == b"a b\tc"
    assert unfold(b"a\rb") == b"a b"


@pytest.mark.parametrize(
    ("mail", "end"),
    [
        (b"", 0),
        (b"\r\nx", 2),
        (b"\nx", 1),
        (b"A: b\r\n\r\nx", 8),
        (b"A: b\n\nx", 6),
        (b"A: b\n\r\nx\n\n", 7),
        (b"A: b\r\n \r\nx", 10),
        (b"A: b\r\n", 6),
    ],
)
def test_header_end(mail: bytes, end: int) -> None:
    assert header_end(mail) == end


@pytest.mark.parametrize(
    ("value", "seconds", "zone"),
    [
        (b"Thu, 1 Jan 1970 00:00:00 +0000", 0, 0),
        (b"Mon, 23 Nov 2026 10:20:30 +0130", 1795423830, 90),
        (b"  Mon,23 Nov 2026 10:20:30 -0130 (comment)", 1795434630, -90),
        (b"23 November 2026 08:50 GMT", 1795423800, 0),
        (b"Mon, 23 Nov 26 08:50:30 EST", 1795441830, -300),
        (b"1 Jan 99 00:00 Z", 915148800, 0),
        (b"Mon (a), 23 (b) Nov 2026 (c) 08:50:30 (d) UT", 1795423830, 0),
        (b"23-Nov-2026 08:50:30", 1795423830, 0),
        (b"31 Dec 2016 23:59:60 +0000", 1483228799, 0),
        (b"23 Nov 2026", 1795392000, 0),
        (b"29 Feb 2000 00:00:00 +0000", 951782400, 0),
    ],
)
def test_date(value: bytes, seconds: int, zone: int) -> None:
    found = parse_date(value)
    assert found is not None
    assert found[:2] == (seconds, zone)
    assert sent_date(b"X: y\r\nDATE: " + value + b"\r\n\r\n") == seconds


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        b"30 Feb 2026 00:00:00 +0000",
        b"1 Foo 2026 00:00:00 +0000",
        b"1 Jan 2026 25:00:00 +0000",
        b"\xff\0(",
    ],
)
def test_no_date(value: bytes) -> None:
    assert parse_date(value) is None
    assert sent_date(b"Date: " + value + b"\r\n\r\n") is None


def test_no_date_field() -> None:
    assert sent_date(b"Subject: Date: 1 Jan 1970\r\n\r\n") is None


def test_only_the_beginning_of_a_date_is_read() -> None:
    """A date that is a long comment takes no time."""
    for size, there in ((100, True), (1_900, True), (2_100, False), (100_000, False)):
        assert (parse_date(b"(" + b"x" * size + b") 1 Jan 2020 10:00:00 +0000") is not None) is there
