"""What the server writes: strings, flags, dates and response lines as bytes.

Each function returns what is safe at its place whatever it is given: no CR, LF or NUL
leaves in a line, 8-bit text leaves in literals only, or where the session has enabled
UTF-8. Pure, knows no command.
"""

from __future__ import annotations

import datetime as dt
import re
from binascii import b2a_base64
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from obox.imap import utf7
from obox.imap.events import BadCommand, TooBig

CRLF: Final = b"\r\n"
NIL: Final = b"NIL"
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

QUOTED_BYTES_MAX: Final = 4096
"""Longer strings go as literals: clients read a quoted string into a line buffer."""

# ATOM-CHAR: any CHAR except atom-specials = "(" / ")" / "{" / SP / CTL / "%" / "*" /
# DQUOTE / "\" / "]". RFC 9051 §9. Our own atoms leave out "[" too, which some clients
# take for the start of a section.
_ATOM: Final = re.compile(rb"""[^\x00-\x20\x7f-\xff(){%*"\\\]\[]+""")
_NOT_QUOTABLE: Final = re.compile(rb"[\x00\r\n\x80-\xff]")
_NOT_QUOTABLE_UTF8: Final = re.compile(rb"[\x00\r\n]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NOT_TEXT: Final = re.compile(r"[^\x20-\x7e]")

_DAY: Final = 86_400
_EPOCH_DAY: Final = dt.date(1970, 1, 1).toordinal()
_DAY_MIN: Final = 1 - _EPOCH_DAY
_DAY_MAX: Final = dt.date.max.toordinal() - _EPOCH_DAY
ZONE_MINUTES_MAX: Final = 23 * 60 + 59
"""The widest zone that four digits can say sensibly."""


def quoted(data: bytes) -> bytes:
    """Return a quoted string.

    data: without CR, LF and NUL, which are replaced by `?`; see `string`.
    """
    if b"\\" in data or b'"' in data:
        data = data.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b'"' + _NOT_QUOTABLE_UTF8.sub(b"?", data) + b'"'


def literal(data: bytes) -> bytes:
    """Return a literal; its NULs, which a literal may not hold, leave as 0x80 (as in
    other servers)."""
    if b"\0" in data:
        data = data.replace(b"\0", b"\x80")
    return b"{%d}\r\n%b" % (len(data), data)


def literal8(data: bytes) -> bytes:
    """Return a literal8, which may hold NUL. RFC 3516 §4.2."""
    return b"~{%d}\r\n%b" % (len(data), data)


def string(data: bytes, *, utf8: bool = False) -> bytes:
    """Return a quoted string where that can hold `data`, else a literal.

    utf8: quoted strings may be UTF-8.
    """
    pattern = _NOT_QUOTABLE_UTF8 if utf8 else _NOT_QUOTABLE
    if len(data) > QUOTED_BYTES_MAX or pattern.search(data):
        return literal(data)
    return quoted(data)


def nstring(data: bytes | None, *, utf8: bool = False) -> bytes:
    return NIL if data is None else string(data, utf8=utf8)


def astring(data: bytes, *, utf8: bool = False) -> bytes:
    """Return an atom where that is possible, else a string."""
    if _ATOM.fullmatch(data) and data.upper() != NIL:
        return data
    return string(data, utf8=utf8)


def mailbox(name: str, *, utf8: bool = False) -> bytes:
    """Return a mailbox name: modified UTF-7, or UTF-8 where the session has enabled it
    (RFC 6855)."""
    return astring(name.encode() if utf8 else utf7.encode(name), utf8=utf8)


def flags(names: Iterable[str]) -> bytes:
    """Return a flag list, in parentheses. names: as stored, hence atoms."""
    return ("(" + " ".join(names) + ")").encode("ascii", "replace")


@lru_cache(maxsize=4096)
def _date(day: int) -> bytes:
    date = dt.date.fromordinal(day + _EPOCH_DAY)
    return f"{date.day:2d}-{MONTHS[date.month - 1]}-{date.year:04d}".encode()


def internaldate(seconds: int, zone_minutes: int = 0) -> bytes:
    """Return a date-time with its quotes: `"17-Jul-1996 02:44:25 -0700"`.

    seconds: Unix time; years outside of 1 to 9999 show as the nearest. zone_minutes:
    east of Greenwich.
    """
    zone_minutes = max(-ZONE_MINUTES_MAX, min(ZONE_MINUTES_MAX, zone_minutes))
    day, second = divmod(seconds + zone_minutes * 60, _DAY)
    day = max(_DAY_MIN, min(_DAY_MAX, day))
    minute, second = divmod(second, 60)
    hour, minute = divmod(minute, 60)
    sign = b"-" if zone_minutes < 0 else b"+"
    zone = divmod(abs(zone_minutes), 60)
    return b'"%b %02d:%02d:%02d %b%02d%02d"' % (_date(day), hour, minute, second, sign, *zone)


def text(reason: str, *, utf8: bool = False) -> bytes:
    """Return resp-text: one line of printable characters, never empty. Those that are
    not ASCII come from the names of mailboxes, and are written as the client knows
    them: in modified UTF-7, or in UTF-8. RFC 9051 §9 (text)."""
    clean = _CONTROL.sub("?", reason)
    if not clean.isascii():
        try:
            clean.encode()
            if not utf8:
                clean = utf7.encode(clean).decode("ascii")
        except UnicodeEncodeError:  # half a surrogate pair
            clean = _NOT_TEXT.sub("?", clean)
    if clean.startswith("["):  # would be read as a response code
        clean = "(" + clean
    return clean.encode() or b"-"


def status(
    tag: bytes | None, condition: str, reason: str, code: str | bytes | None = None, *, utf8: bool = False
) -> bytes:
    """Return a status line: `tag OK [code] reason`. tag: None for untagged. condition:
    OK, NO, BAD, BYE or PREAUTH.

    code: without brackets. A `]` in it can only stand in a quoted string of the code's
    own making. utf8: the text may be UTF-8.
    """
    head = (tag or b"*") + b" " + condition.encode("ascii") + b" "
    if code is None:
        return head + text(reason, utf8=utf8) + CRLF
    inner = code if isinstance(code, bytes) else _NOT_TEXT.sub("?", code).encode("ascii")
    return head + b"[" + _NOT_QUOTABLE.sub(b"?", inner) + b"] " + text(reason, utf8=utf8) + CRLF


def line(*words: bytes) -> bytes:
    """Return an untagged response: `* ` and the words, joined by spaces, as they
    are."""
    return b"* " + b" ".join(words) + CRLF


def continuation(reason: str = "OK") -> bytes:
    """Return `+ reason`, which asks for a literal, or for DONE."""
    return b"+ " + text(reason) + CRLF


def challenge(data: bytes) -> bytes:
    """Return `+ base64`, a SASL challenge; an empty one is `+ `."""
    return b"+ " + b2a_base64(data, newline=False) + CRLF


def refusal(event: BadCommand | TooBig) -> bytes:
    """Return the status line that answers a command which the parser refused."""
    if isinstance(event, TooBig):
        if event.fatal:
            return status(None, "BYE", f"Literal of {event.size} bytes is more than this server reads")
        reason = f"Literal of {event.size} bytes is too big: at most {event.size_max} in {event.command}"
        return status(event.tag, "NO", reason, "TOOBIG" if event.command in ("APPEND", "REPLACE") else "LIMIT")
    return status(event.tag, event.status if event.tag else "BAD", event.reason, event.code if event.tag else None)
