"""Header fields: find, unfold, cut out, and split structured values; bytes in, bytes out.

Invariant: every pattern is linear in its input. Repeats are possessive, so that no input makes them backtrack, and a
construct that may stay open (quoted string, comment) is closed by the end of the value. Knows no part and no IMAP.

A field is `name [WSP] ":" value`, a value goes on over lines that start with WSP (RFC 5322 §2.2.3, §4.5 for the WSP
before the colon). A line is ended by LF; a CR before it is part of the line end. A line that is neither field nor
continuation is left alone: it belongs to no field and does not end the header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

FIELD_VALUE = rb"([^\n]*+(?:\n[ \t][^\n]*+)*+)"
"""A value with its continuation lines, without the last LF. Follows `name[ \\t]*+:`."""

_NAMES_IN_REGEX_MAX = (
    16  # more names than this are looked up in a set, so that no client makes us compile large regexes
)

# Linear although it starts with a repeat: the LF before it pins where a match may start.
_ANY_FIELD = re.compile(rb"\n(([^\s:]++)[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+)")
_BLANK_LINE = re.compile(rb"\n\r?\n")

# RFC 2045 §5.1: parameter := attribute "=" value; value := token / quoted-string. What real mails add is let through:
# tspecials in an unquoted value, an unclosed quoted string, blanks around "=".
_PARAMETER = re.compile(
    rb"""[;\s]*+([^\s;="]++)\s*+(?:=\s*+(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)(?:"|\\?\Z)|([^\s;"]*+)))?[^;"]*+""", re.DOTALL
)
_JUNK = re.compile(rb'[;\s="]++')
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_COMMENT_STEP = re.compile(rb"[^()\\]*+(?:\\.[^()\\]*+)*+", re.DOTALL)
_OUTSIDE_COMMENT = re.compile(rb'(?:[^"(\\]++|\\.|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|\\\Z)*+', re.DOTALL)

Parameters = tuple[tuple[bytes, bytes], ...]
"""Names in lower case, values unquoted, in the order of the mail. RFC 2231 forms stay as they are."""


def header_end(mail: bytes) -> int:
    """Offset behind the blank line that ends the header; the length of the mail when there is none. RFC 5322 §2.1."""
    if mail.startswith(b"\r\n"):
        return 2
    if mail.startswith(b"\n"):
        return 1
    blank = _BLANK_LINE.search(mail)
    return blank.end() if blank else len(mail)


def unfold(value: bytes) -> bytes:
    """One line without blanks at its ends: line ends go, the WSP behind them stays. RFC 5322 §2.2.3.

    A bare CR, which no line of the answer may carry, becomes a blank.
    """
    if b"\n" in value:
        value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    value = value.strip(b" \t\r")
    return value.replace(b"\r", b" ") if b"\r" in value else value


def spelled(name: bytes) -> bytes:
    """A pattern for a lower-case name in any case: with both cases spelled out the regex engine tests a first byte by
    a bitmap, with IGNORECASE it does not."""
    return b"".join(b"[%c%c]" % (c, c - 32) if 97 <= c <= 122 else re.escape(bytes((c,))) for c in name)


@lru_cache(maxsize=256)
def _one_of(names: frozenset[bytes]) -> re.Pattern[bytes]:
    """Match `LF field` for the fields of these names (lower case); the field is the group, without its last LF."""
    return re.compile(rb"\n((?:" + b"|".join(map(spelled, sorted(names))) + rb")[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+)")


@lru_cache(maxsize=256)
def _lower(names: frozenset[bytes]) -> frozenset[bytes]:
    return frozenset(name.lower() for name in names if name)


def header_fields(header: bytes, names: frozenset[bytes], invert: bool) -> bytes:
    """The fields of these names, or all but these, in original order and bytes, and the final CRLF.

    header: a header block with or without its blank line; a last line without an end gets one. names: any case.
    RFC 9051 §6.4.5 (HEADER.FIELDS).
    """
    names = _lower(names)
    if header and not header.endswith(b"\n"):
        header += b"\r\n"
    if invert:
        return _header_fields_not(header, names)
    if not names:
        return b"\r\n"
    if len(names) <= _NAMES_IN_REGEX_MAX:
        found: list[bytes] = _one_of(names).findall(b"\n" + header)
    else:
        found = [field for field, name in _ANY_FIELD.findall(b"\n" + header) if name.lower() in names]
    if not found:
        return b"\r\n"
    return b"\n".join(found) + b"\n\r\n"


def _header_fields_not(header: bytes, names: frozenset[bytes]) -> bytes:
    text = b"\n" + header
    if names and len(names) <= _NAMES_IN_REGEX_MAX:
        text = _one_of(names).sub(b"", text)
    elif names:
        text = _ANY_FIELD.sub(lambda m: b"" if m[2].lower() in names else m[0], text)
    kept = text[1:]
    if kept in {b"\r\n", b"\n"} or kept.endswith((b"\n\r\n", b"\n\n")):
        return kept
    return kept + b"\r\n"


def header_values(header: bytes, name: bytes) -> list[bytes]:
    """The unfolded values of all fields of that name (any case), in order; encoded words stay encoded."""
    if not name:
        return []
    fields: list[bytes] = _one_of(frozenset((name.lower(),))).findall(b"\n" + header)
    return [unfold(field[field.index(b":", len(name)) + 1 :]) for field in fields]


def collect(found: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """(name, value) pairs as lower-case name -> values, folded as found."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in found:
        key = name.lower()
        if key in values:
            values[key].append(value)
        else:
            values[key] = [value]
    return values


def skip_comment(value: bytes, at: int) -> int:
    """Offset behind the comment that opens at `at`; comments nest; an open one ends with the value. RFC 5322 §3.2.2."""
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
    """The value with a blank for each comment outside quoted strings."""
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
    """What stands between the quotes of a quoted string, its quoted pairs resolved. RFC 5322 §3.2.4."""
    return _QUOTED_PAIR.sub(rb"\1", text) if b"\\" in text else text


def parameters(text: bytes) -> Parameters:
    """The parameters that follow a media or disposition type, from its first `;` on. RFC 2045 §5.1, RFC 2183 §2."""
    return tuple(_parameters(text))


def _parameters(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, end = 0, len(text)
    while at < end:
        found = _PARAMETER.match(text, at)
        if found is None:
            junk = _JUNK.match(text, at)
            at = junk.end() if junk else end
            continue
        at = found.end()
        name, quoted, token = found.groups()
        if quoted is not None:
            yield name.lower(), unquote(quoted)
        elif token is not None:
            yield name.lower(), token
