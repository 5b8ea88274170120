"""Text of mails, for search and preview: encoded words, transfer encodings, charsets.

Invariant: any bytes give text. Bytes that a charset cannot decode become U+FFFD. If a
charset is unknown, or refused (because mails do not use it, or because it is slow to
decode), the bytes are read as UTF-8 or else as Windows-1252. A long body is decoded
slice by slice: no call into the standard library has more than SLICE_BYTES to process,
because each holds the interpreter's lock. RFC 2045 §6 (encodings), RFC 2047 (encoded
words; a language suffix of RFC 2231 §5 is skipped).
"""

from __future__ import annotations

import binascii
import codecs
import encodings
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Final

from ._params import charset_and_value
from ._scan import Part

SLICE_BYTES: Final = 32 * 1024
"""A call decodes at most 32 KiB of a body. It takes at most 5 ms, for bytes that are
not valid UTF-7 (0.15 us a byte).
"""

# Codecs of the standard library that are not charsets of mails. punycode and idna also
# take quadratic time.
_REFUSED = frozenset(
    {"punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape", "mbcs", "oem", "charmap", "utf-8-sig"}
)
# the longest registered name has 45 letters, the longest name with a codec here 17
_CHARSET_NAME_MAX = 40

# RFC 2047 §2: encoded-word = "=?" charset "?" encoding "?" encoded-text "?=". Blanks in
# the text are accepted, since mailers write them.
_ENCODED_WORD = re.compile(rb"=\?([^\s?*]{1,64})(?:\*[^\s?]{0,64})?\?([BbQq])\?([^?\r\n]*+)\?=")
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(c for c in range(256) if c not in _BASE64 + b"=")
# the look-behind keeps a sequence of blanks linear
_BLANKS_BEFORE_LINE_END = re.compile(rb"(?<![ \t])[ \t]++(?=\r?\n)")


@cache
def _known() -> frozenset[str]:
    """Return the names of the standard library's codecs, as it normalises them, with
    their aliases.

    No other name is looked up: for an unknown name `codecs.lookup` searches the disk
    and remembers the name for ever.
    """
    modules = {module.name for module in pkgutil.iter_modules(encodings.__path__)} - {"aliases"}
    return frozenset(modules | set(encodings.aliases.aliases))


@lru_cache(maxsize=256)
def codec_named(charset: bytes) -> str | None:
    """Return the name of the codec for a charset; None if there is none."""
    if len(charset) > _CHARSET_NAME_MAX:
        return None
    try:
        spelled = encodings.normalize_encoding(charset.decode("ascii")).lower()
        if spelled not in _known():
            return None
        name = codecs.lookup(spelled).name
        "".encode(name)  # it raises LookupError if it is not a text encoding
    except (LookupError, ValueError):
        return None
    if name.replace("_", "-") in _REFUSED:
        return None
    # What senders mean by these names: RFC 2046 text with 8-bit bytes, and the superset
    # that the web uses.
    return {"ascii": None, "iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}.get(name, name)


@cache
def table_of(codec: str) -> str | None:
    """Return all 256 characters of a charset with a byte for each character; U+FFFD for
    those that it lacks.

    The codecs themselves take 150 times as long for a byte that they lack as for
    another byte.
    """
    module = importlib.import_module(f"encodings.{encodings.normalize_encoding(codec)}")
    table: str | None = getattr(module, "decoding_table", None)
    return None if table is None else table.replace("\ufffe", "\ufffd").ljust(256, "\ufffd")


def decode_piece(data: bytes, codec: str) -> str:
    table = table_of(codec)
    return codecs.charmap_decode(data, "replace", table)[0] if table else data.decode(codec, "replace")


def to_text(data: bytes, charset: bytes | None) -> str:
    """Return bytes in a charset as text. It raises nothing."""
    codec = _codec_of(charset)
    if len(data) > SLICE_BYTES:
        return "".join(_decoded_slices(lambda: slices_of(data), codec))
    if codec is None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            codec = "cp1252"
    try:
        return decode_piece(data, codec)
    except (LookupError, ValueError):
        return data.decode("latin-1")


def _codec_of(charset: bytes | None) -> str | None:
    return codec_named(charset.strip(b" \"'").lower()) if charset else None


def slices_of(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), SLICE_BYTES):
        yield data[at : at + SLICE_BYTES]


def _decoded_slices(slices: Callable[[], Iterator[bytes]], codec: str | None) -> Iterator[str]:
    """Yield the text of bytes that come in slices.

    The slices are read twice if they must first be checked for UTF-8.
    """
    if codec is None:
        codec = "utf-8" if _is_utf8(slices()) else "cp1252"
    if table_of(codec):
        yield from (decode_piece(piece, codec) for piece in slices())
        return
    if codec == "utf-7":
        slices = utf7_runs(slices)
    decoder = codecs.getincrementaldecoder(codec)("replace")
    for piece in slices():
        try:
            yield decoder.decode(piece)
            if codec == "utf-7":
                yield decoder.decode(b"", True)
        except ValueError:  # no codec of ours has the name
            decoder.reset()
            yield piece.decode("latin-1")
    try:
        yield decoder.decode(b"", True)
    except ValueError:
        return


def _is_utf8(slices: Iterator[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in slices:
            decoder.decode(piece)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


def utf7_runs(slices: Callable[[], Iterator[bytes]]) -> Callable[[], Iterator[bytes]]:
    """Return slices that end where a shift sequence cannot continue (RFC 2152).

    The incremental decoder of UTF-7 begins an open sequence anew with each slice, which
    takes quadratic time. A sequence that is longer than a slice is cut.
    """

    def cut() -> Iterator[bytes]:
        kept = b""
        for more in slices():
            piece = kept + more
            last = len(piece.rstrip(_BASE64)) or len(piece)
            kept = piece[last:]
            yield piece[:last]
        if kept:
            yield kept

    return cut


def _base64_slices(data: bytes, start: int, end: int) -> Iterator[bytes]:
    """Decode base64 slice by slice. Padding ends the data, if it completes four
    letters."""
    kept = b""
    for at in range(start, end, SLICE_BYTES):
        pieces = data[at : min(at + SLICE_BYTES, end)].translate(None, _NOT_BASE64).split(b"=")
        letters = [kept]
        length = len(kept)
        ended = False
        for number, piece in enumerate(pieces):
            if number and length % 4 >= 2:
                ended = True
                break
            letters.append(piece)
            length += len(piece)
        kept = b"".join(letters)
        whole = len(kept) if ended else len(kept) // 4 * 4
        if whole:
            yield _base64(kept[:whole])
        kept = kept[whole:]
        if ended:
            return
    if kept:
        yield _base64(kept)


def _quoted_printable_slices(data: bytes, start: int, end: int) -> Iterator[bytes]:
    """Decode quoted-printable slice by slice. Slices end behind a line, or else outside
    of `=XX`."""
    while start < end:
        stop = min(start + SLICE_BYTES, end)
        if stop < end:
            line_end = data.rfind(b"\n", start, stop)
            if line_end >= 0:
                stop = line_end + 1
            elif (escape := data.rfind(b"=", stop - 2, stop)) >= 0:
                stop = escape
        yield _quoted_printable(data[start:stop])
        start = stop


def _quoted_printable(data: bytes) -> bytes:
    # RFC 2045 §6.7 (3)
    if b" \n" in data or b" \r\n" in data or b"\t\n" in data or b"\t\r\n" in data:
        data = _BLANKS_BEFORE_LINE_END.sub(b"", data)
    return binascii.a2b_qp(data)


def _base64(data: bytes) -> bytes:
    """Decode base64 with any bytes between the letters. RFC 2045 §6.8.

    An incomplete end gives the bytes that are there.
    """
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
    """Return a header value as text. RFC 2047 §6.2.

    The value is unfolded and its encoded words are decoded; other bytes are UTF-8 or
    else Windows-1252. Neighbouring words of the same charset are joined before they are
    decoded, because many mailers split a character.
    """
    return "".join([to_text(data, charset) for data, charset in runs(value)])


def runs(value: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield the octets of a header value with their charset, None if none is named."""
    value = _FOLD.sub(b"", value) if b"\n" in value else value
    if b"=?" not in value:
        yield value, None
        return
    pending: list[bytes] = []
    pending_charset = b""
    at = 0
    for word in _ENCODED_WORD.finditer(value):
        between = value[at : word.start()]
        charset = word[1].lower()
        if pending and (charset != pending_charset or between.strip()):
            yield b"".join(pending), pending_charset
            pending = []
            if between.strip():
                yield between, None
        elif at == 0 and between:
            yield between, None
        pending.append(_encoded_word(word[2], word[3]))
        pending_charset = charset
        at = word.end()
    if pending:
        yield b"".join(pending), pending_charset
    if at < len(value):
        yield value[at:], None


def decoded(mail: bytes, part: Part) -> bytes:
    """Return the body of a part with its Content-Transfer-Encoding undone. RFC 9051
    §6.4.5 (BINARY).

    A body with an unknown encoding is returned as it is.
    """
    return b"".join(_body_slices(mail, part))


def _body_slices(mail: bytes, part: Part) -> Iterator[bytes]:
    """Yield the decoded body in slices of at most SLICE_BYTES."""
    start, end = part.body_start, part.body_end
    if part.encoding == b"base64":
        if end - start <= SLICE_BYTES:
            yield _base64(mail[start:end])
        else:
            yield from _base64_slices(mail, start, end)
    elif part.encoding == b"quoted-printable":
        yield from _quoted_printable_slices(mail, start, end)
    else:
        for at in range(start, end, SLICE_BYTES):
            yield mail[at : min(at + SLICE_BYTES, end)]


def part_text(mail: bytes, part: Part) -> str:
    """Return the body of a leaf as text: encoding and charset undone, markup left
    in."""
    return "".join(_part_slices(mail, part))


def _part_slices(mail: bytes, part: Part) -> Iterator[str]:
    charset = part.param(b"charset")
    if part.body_end - part.body_start <= SLICE_BYTES:
        yield to_text(b"".join(_body_slices(mail, part)), charset)
    else:
        yield from _decoded_slices(lambda: _body_slices(mail, part), _codec_of(charset))


def texts_of(mail: bytes, root: Part) -> Iterator[Iterator[str]]:
    """Yield the text of all `leaves`, each in slices."""
    for part in text_leaves(root):
        yield _part_slices(mail, part)


def leaves(root: Part) -> Iterator[Part]:
    """Yield the parts without parts in the order of the mail, also those of embedded
    messages."""
    rest = [root]
    while rest:
        part = rest.pop()
        if part.message is not None:
            rest.append(part.message)
        elif part.children:
            rest.extend(reversed(part.children))
        else:
            yield part


def text_leaves(root: Part) -> Iterator[Part]:
    """Yield the text/* leaves."""
    return (part for part in leaves(root) if part.type == b"text")


def text_of(mail: bytes, root: Part) -> Iterator[str]:
    """Yield the texts of `texts_of`, each whole."""
    for slices in texts_of(mail, root):
        yield "".join(slices)


def file_names(part: Part) -> list[str]:
    """Return a part's name and filename as text, joined and decoded. RFC 2231 §3,
    §4."""
    params = (part.params, b"name"), (part.disposition[1] if part.disposition else (), b"filename")
    found = [charset_and_value(some, name) for some, name in params]
    return [to_text(value, charset) for charset, value in filter(None, found)]
