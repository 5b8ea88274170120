"""Encoded words, transfer encodings, charsets."""

from __future__ import annotations

import base64
import quopri

import pytest

from obox.mime import decode_header, decoded, parse, part_text, text_of, to_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"plain", "plain"),
        (b"fold\r\n ed\n\ttab", "fold ed\ttab"),
        (b"J\xc3\xbcrgen", "Jürgen"),
        (b"J\xfcrgen", "Jürgen"),
        (b"=?utf-8?q?J=C3=BCrgen_M?=", "Jürgen M"),
        (b"=?ISO-8859-1?Q?J=FCrgen?= said", "Jürgen said"),
        (b"=?utf-8?B?SsO8cmdlbg==?=", "Jürgen"),
        (b"=?utf-8?B?SsO8cmdlbg?=", "Jürgen"),
        (b"a =?utf-8?q?b?= c", "a b c"),
        (b"=?utf-8?q?a?= =?utf-8?q?b?=", "ab"),
        (b"=?utf-8?q?=C3=BC?=\r\n\t=?iso-8859-1?q?=FC?=", "üü"),
        (b"=?utf-8?q?a?= and =?utf-8?q?b?=", "a and b"),
        (b"=?utf-8?b?4g==?= =?utf-8?b?gqw=?=", "€"),
        (b"=?utf-8?q?=E2=82?= =?utf-8?q?=AC?=", "€"),
        (b"=?utf-8*en?q?a?=", "a"),
        (b"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=", "日本"),
        (b"=?x-unknown?q?=C3=BC?=", "ü"),
        (b"=?punycode?q?a-?=", "a-"),
        (b"=?utf-8?q?with blank?=", "with blank"),
        (b"=?utf-8?x?no?= =?utf-8?q?open", "=?utf-8?x?no?= =?utf-8?q?open"),
        (b"=??q?x?=", "=??q?x?="),
        (b"=?utf-8?q??=", ""),
    ],
)
def test_decode_header(value: bytes, text: str) -> None:
    assert decode_header(value) == text


@pytest.mark.parametrize(
    "charset", ["utf-8", "utf-16le", "iso-8859-15", "koi8-r", "windows-1251", "euc-jp", "iso-2022-jp", "big5"]
)
def test_charsets(charset: str) -> None:
    text = (
        "日本"
        if charset in {"euc-jp", "iso-2022-jp", "big5"}
        else "Привет"
        if charset in {"koi8-r", "windows-1251"}
        else "é"
    )
    assert to_text(text.encode(charset), charset.upper().encode()) == text


@pytest.mark.parametrize(
    "charset",
    [
        None,
        b"",
        b"x-unknown",
        b"\xff",
        b"\0",
        b"base64",
        b"rot13",
        b"hex",
        b"idna",
        b"us-ascii",
        b"undefined",
        b"a" * 999,
    ],
)
def test_no_charset_is_utf_8_or_windows_1252(charset: bytes | None) -> None:
    assert to_text("é“".encode(), charset) == "é“"
    assert to_text(b"\xe9\x93", charset) == "é“"


def test_what_does_not_decode_is_replaced() -> None:
    assert to_text(b"a\xffb", b"utf-8") == "a\ufffdb"
    assert to_text(b"a\x81", b"iso-8859-1") == "a\ufffd"


def leaf(encoding: bytes, data: bytes, charset: bytes = b"utf-8") -> tuple[bytes, bytes, str]:
    mail = b"Content-Type: text/plain; charset=%b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (
        charset,
        encoding,
        data,
    )
    root = parse(mail)
    return mail, decoded(mail, root), part_text(mail, root)


TEXT = "Zeile eins é\r\n=€ Zeile zwei, etwas länger, damit der Umbruch kommt, und noch länger als das\r\n".encode()


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        (b"base64", base64.encodebytes(TEXT)),
        (b"BASE64", base64.encodebytes(TEXT).replace(b"\n", b"\r\n")),
        (b"base64", base64.b64encode(TEXT).rstrip(b"=")),
        (b"base64", base64.encodebytes(TEXT).replace(b"\n", b" *\r\n!")),
        (b"quoted-printable", quopri.encodestring(TEXT.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")),
        (b"8bit", TEXT),
        (b"binary", TEXT),
        (b"x-own", TEXT),
    ],
)
def test_decoded(encoding: bytes, data: bytes) -> None:
    _, raw, text = leaf(encoding, data)
    assert raw == TEXT
    assert text == TEXT.decode()


@pytest.mark.parametrize(
    ("encoding", "data", "expected"),
    [
        (b"base64", b"YWJj!", b"abc"),
        (b"base64", b"YWJjZ", b"abc"),
        (b"base64", b"YWJjZA", b"abcd"),
        (b"base64", b"=", b""),
        (b"base64", b"\xff\0", b""),
        (b"quoted-printable", b"a=\r\nb=3D=zz=", b"ab==zz"),
        (b"quoted-printable", b"blanks \t \r\nend", b"blanks\r\nend"),
    ],
)
def test_broken_encodings(encoding: bytes, data: bytes, expected: bytes) -> None:
    assert leaf(encoding, data)[1] == expected


def test_text_of_all_leaves_in_order() -> None:
    mail = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\npreamble\r\n--b\r\n\r\none\r\n"
        b"--b\r\nContent-Type: image/png\r\n\r\nno\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\nContent-Type: text/html; charset=iso-8859-1\r\n\r\n\xe9\r\n"
        b"--b\r\nContent-Type: multipart/x; boundary=c\r\n\r\n--c\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"dHdv\r\n--c--\r\n"
        b"--b\r\n\r\nlast\r\n--b--\r\nepilogue"
    )
    assert list(text_of(mail, parse(mail))) == ["one", "é", "two", "last"]
