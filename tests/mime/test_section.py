"""BODY[...] sections."""

from __future__ import annotations

import pytest

from obox.mime import Section, parse, section

INNER = b"Subject: inner\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n\r\ndeep\r\n--i--"
MAIL = (
    b"Subject: s\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nX: 1\r\n\r\none\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nTo: t\r\nFrom: f\r\n\r\ntext\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + INNER + b"\r\n"
    b"--b\r\nContent-Type: multipart/x; boundary=c\r\n\r\n--c\r\n\r\nlast\r\n--c--\r\n--b--\r\n"
)
PLAIN = b"Subject: s\r\nTo: t\r\n\r\nbody\r\n"
FORWARD = b"Content-Type: message/rfc822\r\n\r\n" + PLAIN


def get(mail: bytes, spec: Section) -> bytes | None:
    found = section(mail, parse(mail), spec)
    return mail[found[0] : found[1]] if isinstance(found, tuple) else found


CASES: list[tuple[bytes, tuple[int, ...], str, bytes | None]] = [
    (PLAIN, (), "", PLAIN),
    (PLAIN, (), "HEADER", b"Subject: s\r\nTo: t\r\n\r\n"),
    (PLAIN, (), "TEXT", b"body\r\n"),
    (PLAIN, (1,), "", b"body\r\n"),
    (PLAIN, (1,), "MIME", b"Subject: s\r\nTo: t\r\n\r\n"),
    (PLAIN, (1,), "HEADER", None),
    (PLAIN, (1,), "TEXT", None),
    (PLAIN, (2,), "", None),
    (PLAIN, (0,), "", None),
    (PLAIN, (1, 1), "", None),
    (PLAIN, (), "MIME", None),
    (FORWARD, (1,), "", PLAIN),
    (FORWARD, (1,), "MIME", b"Content-Type: message/rfc822\r\n\r\n"),
    (FORWARD, (1,), "HEADER", b"Subject: s\r\nTo: t\r\n\r\n"),
    (FORWARD, (1,), "TEXT", b"body\r\n"),
    (FORWARD, (1, 1), "", b"body\r\n"),
    (FORWARD, (1, 1), "MIME", b"Subject: s\r\nTo: t\r\n\r\n"),
    (FORWARD, (1, 2), "", None),
    (FORWARD, (1, 1, 1), "", None),
    (MAIL, (), "", MAIL),
    (MAIL, (1,), "", b"one"),
    (MAIL, (1,), "MIME", b"X: 1\r\n\r\n"),
    (MAIL, (1, 1), "", None),
    (MAIL, (2,), "", b"To: t\r\nFrom: f\r\n\r\ntext"),
    (MAIL, (2,), "HEADER", b"To: t\r\nFrom: f\r\n\r\n"),
    (MAIL, (2,), "TEXT", b"text"),
    (MAIL, (2, 1), "", b"text"),
    (MAIL, (2, 1), "HEADER", None),
    (MAIL, (3,), "", INNER),
    (MAIL, (3, 1), "", b"deep"),
    (MAIL, (3, 1), "MIME", b"\r\n"),
    (MAIL, (3, 2), "", None),
    (MAIL, (4,), "", b"--c\r\n\r\nlast\r\n--c--"),
    (MAIL, (4,), "TEXT", None),
    (MAIL, (4, 1), "", b"last"),
    (MAIL, (5,), "", None),
    (MAIL, (), "NONSENSE", None),
]


@pytest.mark.parametrize(("mail", "path", "what", "expected"), CASES)
def test_section(mail: bytes, path: tuple[int, ...], what: str, expected: bytes | None) -> None:
    assert get(mail, Section(path, what)) == expected


def test_header_fields_of_the_mail_and_of_a_part() -> None:
    assert get(MAIL, Section((), "HEADER.FIELDS", (b"SUBJECT", b"To"))) == b"Subject: s\r\n\r\n"
    assert get(MAIL, Section((2,), "HEADER.FIELDS", (b"from",))) == b"From: f\r\n\r\n"
    assert get(MAIL, Section((2,), "HEADER.FIELDS.NOT", (b"from",))) == b"To: t\r\n\r\n"
    assert get(MAIL, Section((1,), "HEADER.FIELDS", (b"x",))) is None


def test_everything_but_header_fields_is_a_range() -> None:
    root = parse(MAIL)
    for mail, path, what, expected in CASES:
        if mail is MAIL and expected is not None:
            assert isinstance(section(MAIL, root, Section(path, what)), tuple)
