"""ENVELOPE, BODY, BODYSTRUCTURE in wire form, and the summary that is stored."""

from __future__ import annotations

import pytest

from obox.mime import Summary, body, bodystructure, envelope, nstring, parse, sent_date, string, summary

from .imapwire import read


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (b"", b'""'),
        (b"abc \t\x7f", b'"abc \t\x7f"'),
        (b'a"b\\c', b'"a\\"b\\\\c"'),
        (b'""""', b'"\\"\\"\\"\\""'),
        (b'"""""', b'{5}\r\n"""""'),
        (b"\xc3\xa9", b"{2}\r\n\xc3\xa9"),
        (b"a\r\nb", b"{4}\r\na\r\nb"),
        (b"a\0b", b"{5}\r\na\xef\xbf\xbdb"),
    ],
)
def test_string(value: bytes, wire: bytes) -> None:
    assert string(value) == wire


def test_nstring() -> None:
    assert nstring(None) == b"NIL"
    assert nstring(b"NIL") == b'"NIL"'


HEADER = (
    b"Date: Mon, 23 Nov 2026 10:00:00 +0100\r\nSubject: Folded\r\n  subject,  =?utf-8?q?=C3=A9?=\r\n"
    b'FROM: "Doe, J." <j@example.com>\r\n'
    b"Reply-To: other@example.com\r\nto : Team: a@example.com, B <@r1,@r2:b@example.com>;, c@example.com\r\n"
    b"In-Reply-To: <1@example.com>\r\n <2@example.com>\r\nMessage-Id: <3@example.com>\r\nX-From: no\r\n\r\n"
)


def test_envelope() -> None:
    assert envelope(HEADER) == (
        b'("Mon, 23 Nov 2026 10:00:00 +0100" "Folded subject, =?utf-8?q?=C3=A9?=" '
        b'(("Doe, J." NIL "j" "example.com")) (("Doe, J." NIL "j" "example.com")) ((NIL NIL "other" "example.com")) '
        b'((NIL NIL "Team" NIL)(NIL NIL "a" "example.com")("B" "@r1,@r2" "b" "example.com")(NIL NIL NIL NIL)'
        b'(NIL NIL "c" "example.com")) NIL NIL "<1@example.com> <2@example.com>" "<3@example.com>")'
    )


def test_envelope_does_not_depend_on_line_ends() -> None:
    assert envelope(HEADER.replace(b"\r\n", b"\n")) == envelope(HEADER)


def test_envelope_of_nothing() -> None:
    assert envelope(b"") == b"(NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL)"
    assert envelope(b"no field\r\n more\r\n\r\n") == envelope(b"")


@pytest.mark.parametrize("empty", [b"", b"Sender:\r\nReply-To: \r\n", b"Sender: ,\r\nReply-To: (none)\r\n"])
def test_sender_and_reply_to_default_to_from(empty: bytes) -> None:
    date, subject, from_, sender, reply_to, *rest = read(envelope(b"From: a@b.c\r\n" + empty + b"\r\n"))
    assert date is subject is None
    assert from_ == sender == reply_to == [[None, None, b"a", b"b.c"]]
    assert rest == [None] * 5


def test_empty_fields_are_empty_strings_not_nil() -> None:
    value = read(envelope(b"Date:\r\nSubject: \r\nMessage-ID:\r\nIn-Reply-To:\r\nTo:\r\n\r\n"))
    assert (value[0], value[1], value[5], value[8], value[9]) == (b"", b"", None, b"", b"")


def test_repeated_fields() -> None:
    value = read(envelope(b"Subject: 1\r\nSubject: 2\r\nTo: a@b\r\nCc: x@y\r\nTo: c@d\r\n\r\n"))
    assert value[1] == b"2"
    assert value[5] == [[None, None, b"a", b"b"], [None, None, b"c", b"d"]]


def test_8_bit_and_nul_go_as_literals() -> None:
    assert envelope(b"Subject: \xc3\xa9\0\r\nFrom: \xff <a@b>\r\n\r\n").startswith(
        b'(NIL {5}\r\n\xc3\xa9\xef\xbf\xbd (({1}\r\n\xff NIL "a" "b"))'
    )


MAIL = (
    b"From: a@b.c\r\nDate: Thu, 1 Jan 1970 01:00:00 +0100\r\nMessage-ID: <m@b.c>\r\nContent-Type: multipart/mixed;\r\n"
    b' boundary="x y"\r\nContent-Language: en\r\n\r\n--x y\r\n\r\nline\r\n'
    b"--x y\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: BASE64\r\nContent-ID: <i>\r\n"
    b"Content-Description: d\r\nContent-MD5: m\r\nContent-Disposition: INLINE\r\nContent-Location: l\r\n\r\n"
    b"PGI+\r\n\r\n"
    b"--x y\r\nContent-Type: message/rfc822\r\nContent-Disposition: attachment; filename=f\r\n\r\n"
    b"Subject: s\r\n\r\ninner\r\n"
    b"--x y\r\nContent-Type: image/png\r\n\r\n\r\n--x y--\r\n"
)
NIL10 = b'(NIL "s" NIL NIL NIL NIL NIL NIL NIL NIL)'


def test_bodystructure() -> None:
    assert bodystructure(MAIL, parse(MAIL)) == (
        b'(("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 4 0 NIL NIL NIL NIL)'
        b'("text" "html" ("charset" "utf-8") "<i>" "d" "base64" 6 1 "m" ("inline" NIL) NIL "l")'
        b'("message" "rfc822" NIL NIL NIL "7bit" 19 ' + NIL10 + b' ("text" "plain" ("charset" "us-ascii") NIL NIL '
        b'"7bit" 5 0 NIL NIL NIL NIL) 2 NIL ("attachment" ("filename" "f")) NIL NIL)'
        b'("image" "png" NIL NIL NIL "7bit" 0 NIL NIL NIL NIL) "mixed" ("boundary" "x y") NIL ("en") NIL)'
    )


def test_body() -> None:
    assert body(MAIL, parse(MAIL)) == (
        b'(("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 4 0)'
        b'("text" "html" ("charset" "utf-8") "<i>" "d" "base64" 6 1)'
        b'("message" "rfc822" NIL NIL NIL "7bit" 19 ' + NIL10 + b' ("text" "plain" ("charset" "us-ascii") NIL NIL '
        b'"7bit" 5 0) 2)("image" "png" NIL NIL NIL "7bit" 0) "mixed")'
    )


def test_multipart_without_parts_has_an_empty_text() -> None:
    mail = b"Content-Type: multipart/x\r\n\r\nno parts"
    assert body(mail, parse(mail)) == b'(("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 0 0) "x")'


def test_summary_is_what_its_parts_say() -> None:
    root = parse(MAIL)
    header = MAIL[: root.header_end]
    assert summary(MAIL) == Summary(
        envelope=envelope(header),
        bodystructure=bodystructure(MAIL, root),
        body=body(MAIL, root),
        header=header,
        sent_date=0,
        sent_zone_min=60,
        message_id=b"<m@b.c>",
    )


def test_repeated_fields_in_the_summary() -> None:
    header = (
        b"Date: 1 Jan 1970 00:00:01 +0000\r\nMessage-ID: <1>\r\n"
        b"Date: 1 Jan 1970 00:00:02 +0000\r\nMessage-ID: <2>\r\n\r\n"
    )
    kept = summary(header)
    assert kept.sent_date == sent_date(header) == 2
    assert kept.message_id == b"<2>"
    assert (read(kept.envelope)[0], read(kept.envelope)[9]) == (b"1 Jan 1970 00:00:02 +0000", b"<2>")


def test_summary_of_nothing() -> None:
    nothing = summary(b"")
    assert (nothing.header, nothing.sent_date, nothing.message_id) == (b"", None, b"")
    assert nothing.body == b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 0 0)'
