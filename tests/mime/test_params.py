"""RFC 2231: values in sections and values with a charset, where the server itself needs
the value."""

from __future__ import annotations

import pytest

from obox.mime import Parameters, bodystructure, file_names, parse, part_text
from obox.mime._params import SECTIONS_MAX, charset_and_value, parameters

from .imapwire import read as wire

JOINED: dict[bytes, Parameters] = {
    b"; a*0=x; a*1=y": ((b"a", b"xy"),),
    b'; a*1="y z"; b=1; a*0="x "': ((b"b", b"1"), (b"a", b"x y z")),
    b"; a*0*=utf-8'de'Gr%C3; a*1*=%BC; a*2=%e": ((b"a*", b"utf-8'de'Gr%C3%BC%25e"),),
    b"; a*0=x%; a*1*=%41": ((b"a*", b"''x%25%41"),),
    b"; a*=utf-8''x": ((b"a*", b"utf-8''x"),),
    b"; a*0=x; a*2=z": ((b"a", b"x"), (b"a*2", b"z")),
    b"; a*1=y": ((b"a*1", b"y"),),
    b"; a*0=x; a*0=z; a*1=y": ((b"a", b"xy"),),
    b"; a*00=x; a*01=y": ((b"a*00", b"x"), (b"a*01", b"y")),
    b"; a=p; a*0=x; a*1=y": ((b"a", b"p"), (b"a", b"xy")),
    b"; A*0=x; a*1=y": ((b"a", b"xy"),),
}


@pytest.mark.parametrize("text", JOINED)
def test_sections(text: bytes) -> None:
    assert parameters(text) == JOINED[text]


def test_sections_are_bounded() -> None:
    text = b"".join(b"; a*%d=x" % n for n in range(10 * SECTIONS_MAX))
    found = parameters(text)
    assert found[0] == (b"a", b"x" * SECTIONS_MAX)
    assert len(found) == 1 + 9 * SECTIONS_MAX


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (b"; n*=utf-8'en'%E2%82%AC%20x", (b"utf-8", "€ x".encode())),
        (b"; n*=''plain", (None, b"plain")),
        (b"; n*=nothing", (None, b"nothing")),
        (b"; n=p; n*=utf-8''q", (b"utf-8", b"q")),
        (b"; n=p", (None, b"p")),
        (b"; m=p", None),
    ],
)
def test_extended(text: bytes, want: tuple[bytes | None, bytes] | None) -> None:
    assert charset_and_value(parameters(text), b"n") == want


@pytest.mark.parametrize(
    "boundary",
    [
        b'boundary*0="one-"; boundary*1="two"',
        b'boundary*1="two"; boundary*0="one-"',
        b"boundary*=us-ascii''one%2Dtwo",
        b"boundary*0*=us-ascii'en'one%2D; boundary*1=two",
    ],
)
def test_a_boundary_is_joined(boundary: bytes) -> None:
    mail = (
        b"Content-Type: multipart/mixed; "
        + boundary
        + b"\r\n\r\n--one-two\r\n\r\nfirst\r\n--one-two\r\n\r\nsecond\r\n--one-two--\r\n"
    )
    root = parse(mail)
    assert [mail[part.body_start : part.body_end] for part in root.children] == [b"first", b"second"]


def test_a_charset_is_joined() -> None:
    mail = b"Content-Type: text/plain; charset*0=iso-8859-; charset*1=7\r\n\r\n" + "λόγος".encode("iso-8859-7")
    assert part_text(mail, parse(mail)) == "λόγος"


def test_bodystructure_shows_the_joined_value() -> None:
    """RFC 2231 §6: IMAP servers SHOULD decode continuations there. The charset stays
    encoded, as in Dovecot."""
    mail = (
        b"Content-Type: application/x; name*0=a; name*1=b\r\n"
        b"Content-Disposition: attachment; filename*0*=utf-8''Gr%C3%BC; filename*1*=%C3%9Fe.pdf\r\n\r\n"
    )
    root = parse(mail)
    value = wire(bodystructure(mail, root))
    assert value[2] == [b"name", b"ab"]
    assert value[8] == [b"attachment", [b"filename*", b"utf-8''Gr%C3%BC%C3%9Fe.pdf"]]
    assert file_names(root) == ["ab", "Grüße.pdf"]
