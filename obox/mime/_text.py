"""Text out of mails, for search and preview: encoded words, transfer encodings, charsets.

Invariant: any bytes give text; what a charset cannot decode becomes U+FFFD; a charset that is unknown, or refused as
none of mails' or as slow to decode, is read as UTF-8 or else as Windows-1252.
RFC 2045 §6 (encodings), RFC 2047 (encoded words; a language suffix of RFC 2231 §5 is skipped).
"""

from __future__ import annotations

import binascii
import codecs
import re
from collections.abc import Iterator
from functools import lru_cache

from ._scan import Part

# Codecs of the standard library that are no charsets of mails; punycode and idna take quadratic time as well.
_REFUSED = frozenset(
    {"punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape", "mbcs", "oem", "charmap", "utf-8-sig"}
)
_CHARSET_NAME_MAX = 40  # the longest registered name has 45 letters, the longest one with a codec here 17

# RFC 2047 §2: encoded-word = "=?" charset "?" encoding "?" encoded-text "?="; blanks in the text are let through, since
# mailers write them.
_ENCODED_WORD = re.compile(rb"=\?([^\s?*]{1,64})(?:\*[^\s?]{0,64})?\?([BbQq])\?([^?\r\n]*+)\?=")
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_NOT_BASE64 = bytes(
    c for c in range(256) if c not in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
)
_BLANKS_BEFORE_LINE_END = re.compile(rb"(?<![ \t])[ \t]++(?=\r?\n)")  # the look-behind keeps a run of blanks linear


@lru_cache(maxsize=256)
def _codec(charset: bytes) -> str | None:
    """Name of the codec for a charset, None where there is none."""
    if len(charset) > _CHARSET_NAME_MAX:
        return None
    try:
        name = codecs.lookup(charset.decode("ascii")).name
        "".encode(name)  # not a text encoding: LookupError
    except (LookupError, ValueError):
        return None
    if name.replace("_", "-") in _REFUSED:
        return None
    # What senders mean by these: RFC 2046 text with 8-bit bytes, and the superset that the web settled on.
    return {"ascii": None, "iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}.get(name, name)


def to_text(data: bytes, charset: bytes | None) -> str:
    """Bytes in a charset as text; never an exception."""
    codec = _codec(charset.strip(b" \"'").lower()) if charset else None
    if codec is None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            codec = "cp1252"
    try:
        return data.decode(codec, "replace")
    except (LookupError, ValueError):
        return data.decode("latin-1")


def _base64(data: bytes) -> bytes:
    """Base64 with whatever is between the letters; an incomplete end gives what is there. RFC 2045 §6.8."""
    try:
        return binascii.a2b_base64(data)
    except binascii.Error:
        letters = data.translate(None, _NOT_BASE64).partition(b"=")[0]
        if len(letters) % 4 == 1:
            letters = letters[:-1]
        return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))


def _encoded_word(encoding: bytes, text: bytes) -> bytes:
    if encoding in {b"Q", b"q"}:
        return binascii.a2b_qp(text, header=True)
    return _base64(text)


def decode_header(value: bytes) -> str:
    """A header value as text: unfolded, encoded words decoded, other bytes UTF-8 or else Windows-1252. RFC 2047 §6.2.

    Neighbouring words of one charset are joined before their charset is decoded: many mailers split a character.
    """
    value = _FOLD.sub(b"", value) if b"\n" in value else value
    if b"=?" not in value:
        return to_text(value, None)
    out: list[str] = []
    pending: list[bytes] = []
    pending_charset = b""
    at = 0
    for word in _ENCODED_WORD.finditer(value):
        between = value[at : word.start()]
        charset = word[1].lower()
        if pending and (charset != pending_charset or between.strip()):
            out.append(to_text(b"".join(pending), pending_charset))
            pending = []
            if between.strip():
                out.append(to_text(between, None))
        elif at == 0 and between:
            out.append(to_text(between, None))
        pending.append(_encoded_word(word[2], word[3]))
        pending_charset = charset
        at = word.end()
    if pending:
        out.append(to_text(b"".join(pending), pending_charset))
    if at < len(value):
        out.append(to_text(value[at:], None))
    return "".join(out)


def decoded(mail: bytes, part: Part) -> bytes:
    """The body of a part with its Content-Transfer-Encoding undone; unknown encodings as they are. RFC 9051 §6.4.5
    (BINARY)."""
    data = mail[part.body_start : part.body_end]
    if part.encoding == b"base64":
        return _base64(data)
    if part.encoding == b"quoted-printable":
        if b" \n" in data or b" \r\n" in data or b"\t\n" in data or b"\t\r\n" in data:  # RFC 2045 §6.7 (3)
            data = _BLANKS_BEFORE_LINE_END.sub(b"", data)
        return binascii.a2b_qp(data)
    return data


def part_text(mail: bytes, part: Part) -> str:
    """The body of a leaf as text: transfer encoding and charset undone, markup left in."""
    return to_text(decoded(mail, part), part.param(b"charset"))


def text_of(mail: bytes, root: Part) -> Iterator[str]:
    """The text of all text/* leaves in the order of the mail, those of embedded messages included."""
    rest = [root]
    while rest:
        part = rest.pop()
        if part.message is not None:
            rest.append(part.message)
        elif part.children:
            rest.extend(reversed(part.children))
        elif part.type == b"text":
            yield part_text(mail, part)
