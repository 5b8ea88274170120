"""Header fields: find, unfold and cut out fields, and remove comments; bytes in, bytes
out.

Invariant: every pattern is linear in its input. Repeats are possessive, so that no
input makes them backtrack. A construct that may stay open (quoted string, comment) is
closed by the end of the value. This module does not know parts or IMAP.

A field is `name [WSP] ":" value`. A value continues over lines that start with WSP (RFC
5322 §2.2.3; §4.5 for the WSP before the colon). A line ends with LF; a CR before the LF
is part of the line end. A line that is neither field nor continuation is left alone: it
belongs to no field and does not end the header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

FIELD_VALUE = rb"([^\n]*+(?:\n[ \t][^\n]*+)*+)"
"""A value with its continuation lines, without the last LF. Follows `name[ \\t]*+:`."""

HEADER_BYTES_MAX: Final = 128 * 1024
"""Bytes of a header block in which fields are searched. Postfix has 100 KiB
(header_size_limit). A call of a regular expression over as many bytes takes at most 15
ms, and holds the interpreter's lock.
"""
_COMPILED_NAMES_MAX: Final = 16
"""Above this number names are looked up in a set."""
_COMPILED_NAME_BYTES_MAX: Final = 64
_COMPILE_AFTER: Final = 64
"""Headers in which a set of names is looked up before a pattern is compiled for it.
Compiling takes 2 ms, as long as these look-ups. Nobody who sends names makes us compile
more than we read for them.
"""

# This is linear although it starts with a repeat: the LF before it fixes where a match
# may start.
_ANY_FIELD = re.compile(rb"\n(([^\s:]++)[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+)")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_FIELD_NAME = re.compile(rb"[^\s:]++")

_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_COMMENT_STEP = re.compile(rb"[^()\\]*+(?:\\.[^()\\]*+)*+", re.DOTALL)
_OUTSIDE_COMMENT = re.compile(rb'(?:[^"(\\]++|\\.|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|\\\Z)*+', re.DOTALL)

SLICE_BYTES: Final = 1 << 20
"""The bytes of a long mail that a call searches: at most 4 ms, during which the call
holds the interpreter's lock.
"""


def find(mail: bytes, needle: bytes, start: int, end: int) -> int | None:
    """Do mail.find(needle, start, end), slice by slice; None if it is not there."""
    while end - start > SLICE_BYTES:
        at = mail.find(needle, start, start + SLICE_BYTES)
        if at >= 0:
            return at
        start += SLICE_BYTES - len(needle) + 1
    at = mail.find(needle, start, end)
    return at if at >= 0 else None


def lines_in(mail: bytes, start: int, end: int) -> int:
    """Do mail.count of LF, slice by slice."""
    count = 0
    while end - start > SLICE_BYTES:
        count += mail.count(b"\n", start, start + SLICE_BYTES)
        start += SLICE_BYTES
    return count + mail.count(b"\n", start, end)


def blank_line(mail: bytes, start: int, end: int) -> int | None:
    """Return the offset behind the first blank line (LF, perhaps CR, LF), or None; by
    slices."""
    while True:
        stop = min(end, start + SLICE_BYTES)
        blank = _BLANK_LINE.search(mail, start, stop)
        if blank is not None:
            return blank.end()
        if stop == end:
            return None
        start = stop - 2


def header_end(mail: bytes) -> int:
    """Return the offset behind the blank line that ends the header. RFC 5322 §2.1.

    It is the length of the mail if there is no blank line.
    """
    if mail.startswith(b"\r\n"):
        return 2
    if mail.startswith(b"\n"):
        return 1
    end = blank_line(mail, 0, len(mail))
    return len(mail) if end is None else end


def unfold(value: bytes) -> bytes:
    """Return the value as a single line without blanks at its ends. RFC 5322 §2.2.3.

    Line ends are removed, and the WSP behind them stays. A bare CR, which no line of an
    answer may have, becomes a blank.
    """
    if b"\n" in value:
        value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    value = value.strip(b" \t\r")
    return value.replace(b"\r", b" ") if b"\r" in value else value


def spelled(name: bytes) -> bytes:
    """Return a pattern for a lower-case name in any case.

    With both cases spelled out, the regex engine tests a first byte by a bitmap; with
    IGNORECASE it does not.
    """
    return b"".join(b"[%c%c]" % (c, c - 32) if 97 <= c <= 122 else re.escape(bytes((c,))) for c in name)


class _Names:
    """Names of fields as a client gave them, prepared once for many headers.

    lower: the names in lower case, without names that no field can have. fields: a
    pattern that matches `LF field` for them; its group is the field without its last
    LF. None until compiling pays off, or if there are too many names or too long names.
    """

    __slots__ = ("_compiles", "_uses", "fields", "lower")

    def __init__(self, names: frozenset[bytes]) -> None:
        self.lower = frozenset(name.lower() for name in names if _FIELD_NAME.fullmatch(name))
        self.fields: re.Pattern[bytes] | None = None
        small = 0 < len(self.lower) <= _COMPILED_NAMES_MAX and max(map(len, self.lower)) <= _COMPILED_NAME_BYTES_MAX
        self._uses = 0
        self._compiles = small

    def used(self) -> _Names:
        if self._compiles:
            self._uses += 1
            if self._uses > _COMPILE_AFTER:
                self._compiles = False
                one = b"|".join(map(spelled, sorted(self.lower)))
                self.fields = re.compile(rb"\n((?:" + one + rb")[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+)")
        return self


_ready = lru_cache(maxsize=64)(_Names)


def bounded(header: bytes) -> bytes:
    """Return the whole lines of a header block among its first HEADER_BYTES_MAX bytes.

    Fields are searched only in these.
    """
    if len(header) <= HEADER_BYTES_MAX:
        return header
    return header[: header.rfind(b"\n", 0, HEADER_BYTES_MAX) + 1 or HEADER_BYTES_MAX]


def header_fields(header: bytes, names: frozenset[bytes], invert: bool) -> bytes:
    """The fields of these names, or all but these, in original order and bytes, and the
    final CRLF.

    header: a header block with or without its blank line; a last line without an end
    gets a line end. names: any case. RFC 9051 §6.4.5 (HEADER.FIELDS).
    """
    found = _ready(names).used()
    rest = b""
    if len(header) > HEADER_BYTES_MAX:
        head = bounded(header)
        header, rest = head, header[len(head) :]
    if header and not header.endswith(b"\n"):
        header += b"\r\n"
    if invert:
        return _fields_not(header, found, rest)
    if not found.lower:
        return b"\r\n"
    return b"\n".join([*_fields_of(header, found), b"\r\n"])


def fields_cutter(names: frozenset[bytes], invert: bool) -> Callable[[bytes], bytes]:
    """`header_fields` for these names, prepared for many headers."""
    ready = _ready(names)

    def cut(header: bytes) -> bytes:
        fields = ready.fields
        if fields is None or invert or len(header) > HEADER_BYTES_MAX or header[-1:] != b"\n":
            return header_fields(header, names, invert)
        return b"\n".join([*fields.findall(b"\n" + header), b"\r\n"])

    return cut


def _fields_of(header: bytes, names: _Names) -> list[bytes]:
    """The fields of these names, each without its last LF."""
    text = b"\n" + header
    if names.fields is not None:
        fields: list[bytes] = names.fields.findall(text)
        return fields
    lower = names.lower
    return [field for field, name in _ANY_FIELD.findall(text) if name.lower() in lower]


def _fields_not(header: bytes, names: _Names, rest: bytes) -> bytes:
    """The header without the fields of these names.

    rest: the end of a header that is too long to be searched; it is kept.
    """
    text = b"\n" + header
    lower = names.lower
    if names.fields is not None:
        text = names.fields.sub(b"", text)
    elif lower:
        text = _ANY_FIELD.sub(lambda m: b"" if m[2].lower() in lower else m[0], text)
    kept = text[1:] + rest
    if kept in {b"\r\n", b"\n"} or kept.endswith((b"\n\r\n", b"\n\n")):
        return kept
    return kept + b"\r\n"


def header_values(header: bytes, name: bytes) -> list[bytes]:
    """Return the unfolded values of all fields of that name (any case), in order.

    Encoded words stay encoded.
    """
    if not name:
        return []
    names = _ready(frozenset((name,))).used()
    return [unfold(field[field.index(b":", len(name)) + 1 :]) for field in _fields_of(bounded(header), names)]


def all_values(header: bytes) -> dict[bytes, list[bytes]]:
    """Return the unfolded values of all fields by their names in lower case.

    For a caller that asks for many names.
    """
    values: dict[bytes, list[bytes]] = {}
    for field, name in _ANY_FIELD.findall(b"\n" + bounded(header)):
        values.setdefault(name.lower(), []).append(unfold(field[field.index(b":", len(name)) + 1 :]))
    return values


def collect(found: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """Collect (name, value) pairs as lower-case name -> values, folded as found."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in found:
        key = name.lower()
        if key in values:
            values[key].append(value)
        else:
            values[key] = [value]
    return values


def skip_comment(value: bytes, at: int) -> int:
    """Return the offset behind the comment that opens at `at`. RFC 5322 §3.2.2.

    Comments nest; an open comment ends with the value.
    """
    depth = 0
    end = len(value)
    while True:
        c = value[at : at + 1]
        if c == b"(":
            depth += 1
        elif c == b")":
            depth -= 1
            if depth == 0:
                return at + 1
        else:
            return end  # the end, or a backslash that is the last byte
        step = _COMMENT_STEP.match(value, at + 1)
        at = step.end() if step else end


def strip_comments(value: bytes) -> bytes:
    """Return the value with a blank for each comment outside quoted strings."""
    if b"(" not in value:
        return value
    out = []
    at = 0
    while at < len(value):
        plain = _OUTSIDE_COMMENT.match(value, at)
        end = plain.end() if plain else len(value)
        out.append(value[at:end])
        if end >= len(value):
            break
        at = skip_comment(value, end)
    return b" ".join(out)


def unquote(text: bytes) -> bytes:
    """Return the content of a quoted string, quoted pairs resolved. RFC 5322 §3.2.4."""
    return _QUOTED_PAIR.sub(rb"\1", text) if b"\\" in text else text
