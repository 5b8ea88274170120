"""The helpers of the writer, sequence sets, and mailbox names."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.errors import Invalid
from obox.imap import utf7, wire
from obox.imap.ast import Append, Delete
from obox.imap.events import BadCommand, TooBig
from obox.imap.parser import Parser
from obox.imap.sets import SAVED, STAR, SequenceSet, format_ranges, format_set, parse_set
from obox.mailbox.names import canonical

# -- strings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "astring", "string"),
    [
        (b"INBOX", b"INBOX", b'"INBOX"'),
        (b"", b'""', b'""'),
        (b"nil", b'"nil"', b'"nil"'),
        (b"a b", b'"a b"', b'"a b"'),
        (b'a"b\\', b'"a\\"b\\\\"', b'"a\\"b\\\\"'),
        (b"[Gmail]", b'"[Gmail]"', b'"[Gmail]"'),
        (b"100%", b'"100%"', b'"100%"'),
        (b"a\r\nb", b"{4}\r\na\r\nb", b"{4}\r\na\r\nb"),
        (b"\xc3\xbc", b"{2}\r\n\xc3\xbc", b"{2}\r\n\xc3\xbc"),
        (b"a\0", b"{2}\r\na\x80", b"{2}\r\na\x80"),
    ],
)
def test_strings(data: bytes, astring: bytes, string: bytes) -> None:
    assert wire.astring(data) == astring
    assert wire.string(data) == string
    assert wire.nstring(data) == string


def test_nil_utf8_and_long_strings() -> None:
    assert wire.nstring(None) == b"NIL"
    assert wire.string("ü".encode(), utf8=True) == '"ü"'.encode()
    assert wire.string(b"x" * 5_000).startswith(b"{5000}\r\n")
    assert wire.quoted(b"a\r\n\0") == b'"a???"'
    assert wire.literal8(b"\0") == b"~{1}\r\n\0"


@given(st.binary(max_size=40))
def test_what_is_written_is_read_back(data: bytes) -> None:
    """The string is read back as an argument of LOGIN. NUL is left out, because a
    string must not have it."""
    data = data.replace(b"\0", b"")
    for written in (wire.astring(data), wire.string(data), wire.literal(data)):
        parser = Parser()
        parser.feed(b"a LOGIN x " + written + b"\r\n")
        events = [parser.next(), parser.next()]
        assert data in [getattr(event, "password", None) for event in events]


def test_mailbox_and_flags() -> None:
    assert wire.mailbox("Entwürfe") == b"Entw&APw-rfe"
    assert wire.mailbox("Entwürfe", utf8=True) == '"Entwürfe"'.encode()
    assert wire.mailbox("A&B") == b"A&-B"
    assert wire.mailbox("Sent Items") == b'"Sent Items"'
    assert wire.flags(["\\Seen", "$Junk"]) == b"(\\Seen $Junk)"
    assert wire.flags(()) == b"()"


# -- dates -------------------------------------------------------------------------------------------------------------


def test_internaldate() -> None:
    assert wire.internaldate(837596665, -420) == b'"17-Jul-1996 02:44:25 -0700"'
    assert wire.internaldate(0) == b'" 1-Jan-1970 00:00:00 +0000"'
    assert wire.internaldate(-1, 60) == b'" 1-Jan-1970 00:59:59 +0100"'
    assert wire.internaldate(2**62).startswith(b'"31-Dec-9999')
    assert wire.internaldate(-(2**62), 10**6).endswith(b'+2359"')


@given(st.integers(-62_135_500_000, 253_402_200_000), st.integers(-1_439, 1_439))
def test_dates_are_read_back(seconds: int, zone: int) -> None:
    text = wire.internaldate(seconds, zone)
    parser = Parser()
    parser.feed(b"a APPEND x " + text + b" {1+}\r\nx\r\n")
    event = parser.next()
    assert isinstance(event, Append)
    date = event.messages[0].date
    assert date is not None
    assert (date.seconds, date.zone_minutes) == (seconds, zone)
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds, minutes=zone)
    assert b"%02d:%02d:%02d" % (moment.hour, moment.minute, moment.second) in text


# -- lines -------------------------------------------------------------------------------------------------------------


def test_status_lines() -> None:
    assert wire.status(b"a", "OK", "Done") == b"a OK Done\r\n"
    assert wire.status(None, "BYE", "ü\r\nx\0") == b"* BYE &APw-??x?\r\n"
    assert wire.status(b"a", "NO", "no mailbox '\u53f0\u5317 & x'") == b"a NO no mailbox '&U,BTFw- &- x'\r\n"
    assert wire.status(b"a", "NO", "half \ud800") == b"a NO half ?\r\n"
    assert wire.status(b"a", "OK", "x", b"UIDNEXT 5") == b"a OK [UIDNEXT 5] x\r\n"
    assert wire.status(b"a", "NO", "", "A\r\nB") == b"a NO [A??B] -\r\n"
    assert wire.status(b"a", "NO", "[ALERT] x") == b"a NO ([ALERT] x\r\n"
    assert wire.line(b"5", b"EXISTS") == b"* 5 EXISTS\r\n"
    assert wire.continuation("idling") == b"+ idling\r\n"
    assert wire.challenge(b"") == b"+ \r\n"
    assert wire.challenge(b"x") == b"+ eA==\r\n"


def test_refusals() -> None:
    assert wire.refusal(BadCommand(b"a", "x")) == b"a BAD x\r\n"
    assert wire.refusal(BadCommand(None, "x", "NO", "CANNOT")) == b"* BAD x\r\n"
    assert wire.refusal(BadCommand(b"a", "x", "NO", "CANNOT")) == b"a NO [CANNOT] x\r\n"
    assert wire.refusal(TooBig(b"a", "APPEND", 9, 8)) == (
        b"a NO [TOOBIG] Literal of 9 bytes is too big: at most 8 in APPEND\r\n"
    )
    assert wire.refusal(TooBig(b"a", "LOGIN", 9, 8)).startswith(b"a NO [LIMIT] ")
    assert wire.refusal(TooBig(None, "", 9, 8, True)).startswith(b"* BYE ")


@given(st.text(max_size=30), st.text(max_size=30) | st.none())
def test_a_status_line_is_one_line(reason: str, code: str | None) -> None:
    line = wire.status(b"a", "NO", reason, code)
    assert line.endswith(b"\r\n")
    assert line[:-2].isascii()
    assert not set(line[:-2]) & {0, 10, 13}


# -- mailbox names -----------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_utf7_round_trip(name: str) -> None:
    coded = utf7.encode(name)
    assert coded.isascii()
    assert utf7.decode(coded) == name


@pytest.mark.parametrize(
    ("coded", "name"),
    [
        (b"~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),
        (b"&-", "&"),
        (b"&2D3eAA-", "😀"),
        (b"&AP8A,w-", "ÿÿ"),
        ("台北".encode(), "台北"),
        ("&APw-台".encode(), "&APw-台"),
    ],
)
def test_utf7_examples(coded: bytes, name: str) -> None:
    assert utf7.decode(coded) == name
    if coded.isascii():
        assert utf7.encode(name) == coded


@pytest.mark.parametrize(
    "coded",
    [b"&", b"&AP", b"A&B", b"&AGE-", b"&A-", b"&AP9-", b"&2D0-", b"&Jjo-&Jjo-", b"&AP8-&AP8-", b"\xff", b"&U/BTFw-"],
)
def test_utf7_refuses_all_but_the_one_encoding(coded: bytes) -> None:
    with pytest.raises(Invalid, match="Mailbox name"):
        utf7.decode(coded)


@given(st.binary(max_size=20) | st.from_regex(rb"[&A-Za-z0-9+,-]{0,20}", fullmatch=True))
def test_any_name_decodes_or_is_refused(data: bytes) -> None:
    try:
        name = utf7.decode(data)
    except Invalid:
        return
    if data.isascii():
        assert utf7.encode(name) == data


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20))
def test_a_mailbox_name_comes_back_canonical(name: str) -> None:
    parser = Parser()
    parser.feed(b"a DELETE " + wire.mailbox(name) + b"\r\n")
    event = parser.next()
    # The canonical form of this name is empty.
    if name == "/":
        assert isinstance(event, BadCommand)
        return
    assert isinstance(event, Delete)
    assert event.mailbox == canonical(name)
    again = Parser()
    again.feed(b"a DELETE " + wire.mailbox(event.mailbox) + b"\r\n")
    assert again.next() == Delete(b"a", event.mailbox), "a canonical name needs no OLDNAME"


# -- sets --------------------------------------------------------------------------------------------------------------


def test_parse_set() -> None:
    assert parse_set(b"1:5,7,*:9").ranges == ((1, 5), (7, 7), (9, STAR))
    assert parse_set(b"*").ranges == ((STAR, STAR),)
    assert parse_set(b"9:4").ranges == ((4, 9),)
    assert parse_set(b"$") is SAVED
    assert parse_set(b"1:5,7,*:9").to_bytes() == b"1:5,7,9:*"
    assert SAVED.to_bytes() == b"$"
    assert format_ranges(((1, 3), (5, 5))) == b"1:3,5"


@pytest.mark.parametrize("bad", [b"", b"0", b"1,", b",1", b"1:", b":1", b"1:2:3", b"a", b"-1", b"1 2", b"4294967296"])
def test_parse_set_refuses(bad: bytes) -> None:
    with pytest.raises(Invalid):
        parse_set(bad)


def test_parse_set_bounds() -> None:
    with pytest.raises(Invalid, match="at most 3"):
        parse_set(b"1,2,3,4", ranges_max=3)
    for bad in (b"*", b"$", b"1:*"):
        with pytest.raises(Invalid):
            parse_set(bad, star=False, saved=False)
    with pytest.raises(Invalid):
        parse_set(b"9" * 60_000)


def test_resolve() -> None:
    wanted = parse_set(b"5:*,1:2,3,10:20,12")
    assert wanted.has_star
    assert wanted.highest == 20
    assert wanted.resolve(7) == ((1, 3), (5, 7), (10, 20))
    assert parse_set(b"9:*").resolve(7) == ((7, 9),)
    assert parse_set(b"*").resolve(7) == ((7, 7),)
    assert parse_set(b"*,9:*").resolve(0) == ()
    assert parse_set(b"*").highest == 0
    assert not parse_set(b"3").has_star


def names(sequence: SequenceSet, largest: int) -> set[int]:
    return {n for low, high in sequence.resolve(largest) for n in range(low, high + 1)}


@given(st.sets(st.integers(1, 200)))
def test_format_set_is_the_set(numbers: set[int]) -> None:
    values = sorted(numbers)
    text = format_set(values)
    assert format_set(iter(values)) == text
    assert format_set(np.array(values, dtype=np.uint32)) == text
    assert format_set(np.array(values, dtype=np.int64)) == text
    if not values:
        assert text == b""
        return
    parsed = parse_set(text)
    assert names(parsed, 200) == numbers
    assert parsed.resolve(200) == parsed.ranges


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50) | st.just(STAR)), min_size=1, max_size=8))
def test_resolve_is_the_union(ranges: list[tuple[int, int]]) -> None:
    sequence = SequenceSet(tuple((min(r), max(r)) for r in ranges))
    expected: set[int] = set()
    for low, high in sequence.ranges:
        top = 30 if high == STAR else high
        expected |= set(range(min(low, top), max(low, top) + 1))
    resolved = sequence.resolve(30)
    assert names(sequence, 30) == expected
    assert all(a[1] + 1 < b[0] for a, b in pairwise(resolved))


def test_format_set_extremes() -> None:
    assert format_set([1, 2, 3, 7]) == b"1:3,7"
    assert format_set([5, 5, 6]) == b"5:6"
    assert format_set(range(1, 10_001)) == b"1:10000"
    assert format_set(np.array([2**32 - 2, 2**32 - 1], dtype=np.uint32)) == b"4294967294:4294967295"
