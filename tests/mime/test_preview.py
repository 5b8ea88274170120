"""The first words of a mail. RFC 8970 §3.3."""

from __future__ import annotations

import base64
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.mime import parse
from obox.mime import preview as module
from obox.mime.preview import preview, text_of_html


def of(mail: bytes | str) -> str:
    data = mail if isinstance(mail, bytes) else mail.encode()
    return preview(data, parse(data))


KOI8 = b"Content-Type: text/plain; charset=koi8-r\r\n"
MIME = b"MIME-Version: 1.0\r\n"
HTML = b"Content-Type: text/html; charset=utf-8\r\n\r\n"
ALTERNATIVE = (
    b"Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\n%b\r\n"
    b"--b\r\nContent-Type: text/html\r\n\r\n<p>as <b>HTM</b>L</p>\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    ("mail", "wanted"),
    [
        (b"", ""),
        (b"\r\nHello,\r\n\r\nthere  is\ta word\r\n", "Hello, there is a word"),
        (b"\r\n> cited\r\n>> more\r\nmy answer\r\n", "my answer"),
        (b"\r\n> cited\r\n> > more\r\n", "cited more"),
        (b"\r\na\x00\x01b\x7f", "a b"),
        ("\r\na\u200bb\u034f\u00ad", "ab"),
        (KOI8 + b"Content-Transfer-Encoding: base64\r\n\r\n4czFy9PFyg==", "Алексей"),
        (MIME + b"Content-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BC=\r\n=C3=9Fe", "Grüße"),
        (b"Content-Type: application/pdf\r\n\r\nx", ""),
        (b"Content-Type: text/calendar\r\n\r\nx", ""),
        (b"Content-Type: text/plain\r\nContent-Disposition: attachment\r\n\r\nx", ""),
        (b"\r\n-----BEGIN PGP MESSAGE-----\r\nabc\r\n", ""),
        (b"Content-Type: multipart/encrypted; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n", ""),
        (ALTERNATIVE % b"\r\nplain", "plain"),
        (ALTERNATIVE % b"\r\n \r\n", "as HTML"),
        (b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\ninner", "inner"),
        (HTML + b"<html><head><title>no</title><style>p {}</style></head><body>a<br>b&amp;c&#0;</body>", "a b&c\ufffd"),
        (HTML + b"<STYLE>x</Style >a<script>if (a < b) '</p>'</script><!-- no <b> --> b<?php x ?><!DOCTYPE x>", "a b"),
        (HTML + b"1 < 2 <3 a<b", "1 < 2 <3 a"),
        (HTML + b"<style>never closed", ""),
        (HTML + b"a<!-- never closed", "a"),
        (HTML + b"a<p title='never closed", "a"),
    ],
)
def test_texts(mail: bytes, wanted: str) -> None:
    assert of(mail) == wanted


def test_it_has_200_characters() -> None:
    assert of("\r\n" + "\u00e9 " * 300) == ("\u00e9 " * 100).rstrip()
    assert of("\r\n" + "\U0001f600" * 300) == "\U0001f600" * 200


@pytest.mark.parametrize("fill", ["", "x"])
def test_a_long_part_is_not_read_to_its_end(fill: str) -> None:
    """The cut is inside of a character, which does not change how the text is read."""
    text = ("\u00e9" * 99 + " ") * 2_000
    assert of(f"\r\n{fill}{text}") == (fill + text)[:200].rstrip()
    coded = base64.encodebytes((fill + text).encode())
    assert of(MIME + b"Content-Transfer-Encoding: base64\r\n\r\n" + coded) == (fill + text)[:200].rstrip()
    assert of("\r\n" + " " * module.PART_BYTES + "late") == ""


def test_few_parts_are_read() -> None:
    parts = b"".join(b"--b\r\n\r\n%b\r\n" % text for text in [b" "] * module.PARTS + [b"late"])
    assert of(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + parts + b"--b--\r\n") == ""


PIECES = ("<", ">", "<a", "</a", "<style>", "</style", "<!--", "-->", "<!", "&", "&#", "\u0130", "<script", "x", "<?")


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_any_html_is_text(text: str) -> None:
    assert isinstance(text_of_html(text), str)


@pytest.mark.parametrize("piece", PIECES)
def test_any_repetition_is_read_once(piece: str) -> None:
    """The loop advances with each step, and a search that fails is the last."""
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event == "c_call"

    text = piece * 5_000
    sys.setprofile(count)
    try:
        text_of_html(text)
    finally:
        sys.setprofile(None)
    assert steps < 12 * 5_000


@given(st.binary(max_size=300))
def test_any_bytes_have_a_preview(data: bytes) -> None:
    for mail in (b"\r\n" + data, HTML + data, data):
        found = of(mail)
        assert len(found) <= module.CHARS
        assert found == " ".join(found.split())
