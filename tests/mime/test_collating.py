"""Text as comparators get it: the octets of what a charset cannot convert."""

import pytest

from obox.mime import decode_header, parse, text_of
from obox.mime.collating import converted, octets, searched_header, searched_texts

KOI8 = "Алексей".encode("koi8-r")
E_ACUTE = "\u00e9".encode()


@pytest.mark.parametrize(
    "value",
    [b"plain", b"=?utf-8?q?=C3=A9?= x", b"=?koi8-r?b?4czFy9PFyg==?=", "\u00e9".encode(), b"\xe9", b"=?us-ascii?q?a?="],
)
def test_what_can_be_converted(value: bytes) -> None:
    assert converted(value) == searched_header(value) == decode_header(value)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"=?utf-8?q?=C3=A9=FF?=", b"\xc3\xa9\xff"),
        (b"=?x-unknown?q?=C3=A9=FF?= b", b"\xc3\xa9\xff b"),
        (b"=?us-ascii?q?=C3=A9=FF?=", b"\xc3\xa9\xff"),
        (b"a =?iso-2022-jp?q?=C3=A9?=", b"a \xc3\xa9"),
    ],
)
def test_what_cannot_be_converted(value: bytes, wanted: bytes) -> None:
    assert converted(value) is None
    assert octets(value) == wanted
    text, _, rest = searched_header(value).partition("\0")
    assert text == decode_header(value)
    assert "\u00e9" in rest


@pytest.mark.parametrize("charset", ["us-ascii", "x-unknown", "iso-2022-jp", "shift_jis"])
@pytest.mark.parametrize("long", [1, 20_000])
def test_bodies(charset: str, long: int) -> None:
    body = b"ab " * long + E_ACUTE + b" \xff"
    mail = b"Content-Type: text/plain; charset=%b\r\n\r\n%b" % (charset.encode(), body)
    root = parse(mail)
    (found,) = ["".join(slices) for slices in searched_texts(mail, root)]
    text, _, rest = found.partition("\0")
    assert [text] == list(text_of(mail, root))
    assert rest == body.decode(errors="replace")


@pytest.mark.parametrize("mail", [b"\r\nb\xe9", b"Content-Type: text/plain; charset=koi8-r\r\n\r\n" + KOI8, b"\r\nab"])
def test_bodies_that_can_be_converted_come_once(mail: bytes) -> None:
    root = parse(mail)
    assert ["".join(slices) for slices in searched_texts(mail, root)] == list(text_of(mail, root))
