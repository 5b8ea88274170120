"""Long bodies are decoded in slices. The text is the same, no call gets more than a
slice, and no charset is loaded from the disk."""

from __future__ import annotations

import base64
import codecs
import encodings
import pkgutil
import quopri
import random
from typing import Any

import pytest

from obox.mime import _text, decode_header, parse, part_text, text_of, texts_of, to_text
from obox.mime._fields import SLICE_BYTES, blank_line, find, lines_in

CHARSETS = sorted(
    {found for module in pkgutil.iter_modules(encodings.__path__) if (found := _text.codec_named(module.name.encode()))}
)
LETTERS = "aZ 9\né€αЖאあ一가☃"


def spelled(charset: str, count: int, seed: int) -> bytes:
    rng = random.Random(seed)
    text = "".join(rng.choices(LETTERS, k=count))
    return text.encode(charset, "ignore")


@pytest.mark.parametrize("charset", CHARSETS)
def test_slices_are_the_whole(charset: str) -> None:
    data = spelled(charset, 100_000, 1)
    assert to_text(data, charset.encode()) == data.decode(charset, "replace")
    for seed in range(20):
        junk = random.Random(seed).randbytes(300)
        assert isinstance(to_text(junk, charset.encode()), str)


@pytest.mark.parametrize("charset", [name for name in CHARSETS if _text.table_of(name)])
def test_bytes_that_a_charset_lacks(charset: str) -> None:
    every = bytes(range(256))
    assert to_text(every, charset.encode()) == every.decode(charset, "replace")


@pytest.mark.parametrize("name", ["base64", "quoted-printable", "8bit"])
@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "iso-2022-jp", "gb18030", "windows-1252", "utf-7"])
def test_transfer_encodings(name: str, charset: str) -> None:
    data = spelled(charset, 90_000, 2)
    encoded = {"base64": base64.encodebytes, "quoted-printable": quopri.encodestring}.get(name, bytes)(data)
    mail = b"Content-Type: text/plain; charset=%b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b"
    mail %= (charset.encode(), name.encode(), encoded)
    root = parse(mail)
    (slices,) = texts_of(mail, root)
    pieces = list(slices)
    assert max(map(len, pieces)) <= 2 * _text.SLICE_BYTES
    assert "".join(pieces) == part_text(mail, root) == next(text_of(mail, root)) == data.decode(charset, "replace")


@pytest.mark.parametrize(
    "body", [b"QUJD=QUJD", b"QUI=\r\nQUJD", b"=QUJD", b"Q=UJD", b"QUJD!QU\r\n JD", b"Q", b"", b"===="]
)
def test_base64_in_slices_ends_where_it_ends(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    mail = b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n" + body
    whole = part_text(mail, parse(mail))
    monkeypatch.setattr(_text, "SLICE_BYTES", 3)
    assert part_text(mail, parse(mail)) == whole


def test_no_call_decodes_more_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = codecs.getincrementaldecoder

    def counted(name: str) -> Any:
        class Decoder(plain(name)):
            def decode(self, data: bytes, final: bool = False) -> str:
                seen.append(len(data))
                text: str = super().decode(data, final)
                return text

        return Decoder

    monkeypatch.setattr(codecs, "getincrementaldecoder", counted)
    monkeypatch.setattr(
        _text, "decode_piece", lambda data, codec: seen.append(len(data)) or data.decode(codec, "replace")
    )
    for charset in (b"utf-8", b"utf-7", b"windows-1252", b"gb18030", None):
        to_text(b"+" + b"A" * 300_000 + b"\xff", charset)
    assert max(seen) <= 32 * 1024
    assert sum(seen) <= 7 * 300_002, "each byte once, or twice where it has to be seen whether it is UTF-8"


def test_utf7_takes_each_byte_once() -> None:
    """The incremental decoder decodes an open shift sequence again at each call. 5 MB
    of such a sequence would take minutes."""
    data = b"+" + b"AGEAYgBj" * 100_000
    runs = list(_text.utf7_runs(lambda: _text.slices_of(data))())
    assert b"".join(runs) == data
    assert max(map(len, runs)) <= 32 * 1024


def test_unknown_charsets_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """`codecs.lookup` of an unknown name searches the disk and keeps the name for ever.
    A header may have 800 such names."""
    asked: list[str] = []
    plain = codecs.lookup
    monkeypatch.setattr(codecs, "lookup", lambda name: asked.append(name) or plain(name))
    _text.codec_named.cache_clear()
    value = b" ".join(b"=?x-unknown-%d?Q?=41?=" % n for n in range(500))
    assert decode_header(value) == "A" * 500
    assert not asked
    assert to_text("é".encode("utf-16-le"), b"UTF-16LE") == "é"
    assert asked


def test_long_searches_are_sliced() -> None:
    """The functions find and count, and the search for a blank line, give the same
    results across slices."""
    size = SLICE_BYTES
    for at in (0, size - 3, size - 2, size - 1, size, size + 1, 2 * size - 1, 3 * size):
        data = bytearray(b"x" * (3 * size + 10))
        data[at : at + 3] = b"\n\r\n"
        mail = bytes(data)
        assert find(mail, b"\n\r\n", 0, len(mail)) == at
        assert blank_line(mail, 0, len(mail)) == at + 3
        assert find(mail, b"\n\r\n", 0, at + 2) is None
        assert blank_line(mail, 0, at + 2) is None
        assert lines_in(mail, 0, len(mail)) == 2
