"""The description of a mail has a single budget for addresses, parts, and bytes of
values. What exceeds the budget becomes NIL or an opaque part."""

from __future__ import annotations

from typing import Any

import pytest

from obox.mime import (
    ADDRESSES_MAX,
    CONTENT_BYTES_MAX,
    HEADER_BYTES_MAX,
    Budget,
    _address,
    bodystructure,
    header_fields,
    header_values,
    parse,
    summary,
)

from .imapwire import check_body, check_envelope
from .imapwire import read as wire

BOMB = b"a," * 10_000
FIELDS = b"From: " + BOMB + b"\r\nTo: " + BOMB + b"\r\nCc: " + BOMB + b"\r\n"
INNER = b"Content-Type: message/rfc822\r\n\r\n"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many addresses the slow parser has read, with an entry for each."""
    made: list[int] = []
    plain = _address.Reader.__init__

    def init(self: Any, value: bytes, at: int) -> None:
        made.append(at)
        plain(self, value, at)

    monkeypatch.setattr(_address.Reader, "__init__", init)
    return made


def test_addresses_of_one_mail(read: list[int]) -> None:
    made = summary(b"Subject: s\r\n" + FIELDS + b"Message-ID: <1@x>\r\n\r\n")
    assert len(read) <= ADDRESSES_MAX
    assert made.exceeded == ("addresses",)
    envelope = wire(made.envelope)
    check_envelope(envelope)
    assert envelope[1] == b"s"
    assert envelope[2:8] == [None] * 6, "part of a list would pass for all of it"
    assert envelope[9] == b"<1@x>", "fields that cost nothing are there"


@pytest.mark.parametrize("element", [b"a,", b"a:;", b"<@,", b"(a)b,", b"a@b,", b"\x80,"])
def test_every_element_counts(element: bytes, read: list[int]) -> None:
    """An element that gives no address costs as much as an element with an address."""
    made = summary(b"To: " + element * (60_000 // len(element)) + b"\r\n\r\n")
    assert made.exceeded == ("addresses",)
    assert len(read) <= ADDRESSES_MAX


def test_a_list_at_the_limit_is_whole() -> None:
    people = [b"p%d@example.org" % n for n in range(ADDRESSES_MAX)]
    made = summary(b"To: " + b",\r\n ".join(people) + b"\r\n\r\n")
    assert made.exceeded == ()
    assert len(wire(made.envelope)[5]) == ADDRESSES_MAX


def test_nested_messages_share_it(read: list[int]) -> None:
    """60 messages are nested in each other, and each has 30,000 broken addresses. The
    parser reads as many addresses as in a single message."""
    made = summary((FIELDS + INNER) * 60)
    assert len(read) <= ADDRESSES_MAX
    assert {"addresses", "values"} <= set(made.exceeded)
    check_body(wire(made.body), False)
    check_body(wire(made.bodystructure), True)
    assert len(made.bodystructure) < 100_000


def test_values_of_all_parts() -> None:
    """Many parts have long descriptions. BODYSTRUCTURE does not become larger than the
    budget."""
    part = b"--b\r\nContent-Description: " + b"x" * 9_000 + b"\r\n\r\n\r\n"
    made = summary(b"Subject: s\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" + part * 500)
    assert made.exceeded == ("content",)
    assert CONTENT_BYTES_MAX / 2 < len(made.bodystructure) < CONTENT_BYTES_MAX + 500 * 100
    parts = wire(made.bodystructure)
    check_body(parts, True)
    assert len([one for one in parts if isinstance(one, list) and one[0] == b"application"]) > 400


def test_a_part_that_bodystructure_names_is_found() -> None:
    """The ENVELOPE uses no budget of the parts. So BODYSTRUCTURE, which is made
    together with an ENVELOPE, and a FETCH of a part see the same parts."""
    long = b"".join(b"%b: %b\r\n" % (name, b"x" * 40_000) for name in (b"Subject", b"Date", b"To"))
    inner = b"Content-Type: multipart/mixed; boundary=bb; x=" + b"y" * 4_000 + b"\r\n\r\n"
    mail = long + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    mail += (b"--b\r\n" + inner + b"--bb\r\n\r\n\r\n" * 2) * 110
    assert summary(mail).bodystructure == bodystructure(mail, parse(mail))


def test_the_body_cannot_use_up_what_the_envelope_needs() -> None:
    made = summary(
        b"Subject: s\r\nFrom: a@b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        + (b"--b\r\n" + INNER + FIELDS + b"\r\n\r\n") * 30
    )
    envelope = wire(made.envelope)
    assert envelope[1:3] == [b"s", [[None, None, b"a", b"b"]]]


def test_parts_are_counted_and_named() -> None:
    made = summary(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 20_000)
    assert made.exceeded == ("parts",)


def test_quick_says_that_it_does_not_suffice() -> None:
    """The quick function has a smaller budget, because it runs on the loop. Nearly all
    mails need less."""
    mail = (
        b"From: a@b\r\nTo: "
        + b"c@d," * 100
        + b"\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        + b"--b\r\n\r\n" * 50
    )
    assert summary(mail, Budget.quick()) == summary(mail)
    assert summary(FIELDS + b"\r\n", Budget.quick()).exceeded == ("values",)
    assert summary(b"To: " + b"a," * 500 + b"\r\n\r\n", Budget.quick()).exceeded == ("addresses",)


def test_fields_behind_a_long_header() -> None:
    """The header is megabytes long. Fields are looked for only in the part of it where
    real mails have them."""
    block = b"Subject: s\r\n" + b"X: " + b"y" * 70 + b"\r\n"
    block += b"X-Filler: " + b"z" * 100 + b"\r\n"
    header = block + b"X-Filler: zzzz\r\n" * (2 * HEADER_BYTES_MAX // 16) + b"Subject: late\r\n\r\n"
    assert header_values(header, b"subject") == [b"s"]
    assert header_fields(header, frozenset((b"Subject",)), False) == b"Subject: s\r\n\r\n"
    without = header_fields(header, frozenset((b"X", b"X-Filler")), True)
    assert without.startswith(b"Subject: s\r\n")
    assert without.endswith(b"Subject: late\r\n\r\n"), "the rest is there as it is"
    assert header_fields(header, frozenset((b"nosuch",)), True) == header
