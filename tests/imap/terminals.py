"""The terminals of the grammar of responses: a cursor over a single response. RFC 3501
§9, RFC 9051 §9."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from obox.imap import utf7

T = TypeVar("T")

NUMBER_MAX = 2**32 - 1
NUMBER64_MAX = 2**63 - 1
MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")

# atom-specials = "(" / ")" / "{" / SP / CTL / list-wildcards / quoted-specials /
# resp-specials
ATOM = re.compile(rb"""[^\x00-\x20\x7f-\xff(){%*"\\\]]+""")
ASTRING_ATOM = re.compile(rb"""[^\x00-\x20\x7f-\xff(){%*"\\]+""")
TAG = re.compile(rb"""[^\x00-\x20\x7f-\xff(){%*"\\+]+""")
QUOTED = re.compile(rb'"((?:[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x5b\x5d-\x7f]|\\["\\])*)"')
QUOTED_UTF8 = re.compile(rb'"((?:[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x5b\x5d-\x7f\x80-\xff]|\\["\\])*)"')
LITERAL = re.compile(rb"\{([0-9]+)\}\r\n")
NUMBER = re.compile(rb"0|[1-9][0-9]*")
# This is TEXT-CHAR without the control characters, which obox never sends.
TEXT = re.compile(rb"[\x20-\x7e]+")
TEXT_UTF8 = re.compile(rb"[\x20-\x7e\x80-\xff]+")
SET = re.compile(rb"[0-9]+(?::[0-9]+)?(?:,[0-9]+(?::[0-9]+)?)*")
DATE_TIME = re.compile(
    rb'"([ 1-3][0-9])-([A-Z][a-z]{2})-([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-])([0-9]{2})([0-9]{2})"'
)
WORD = re.compile(rb"[A-Z0-9.]+")

SYSTEM_FLAGS = frozenset((b"\\Answered", b"\\Flagged", b"\\Deleted", b"\\Seen", b"\\Draft"))


class Ungrammatical(AssertionError):
    """The bytes are no response. at: the place of the error."""


class Terminals:
    def __init__(self, data: bytes, utf8: bool) -> None:
        self.data = data
        self.at = 0
        self.quoted = QUOTED_UTF8 if utf8 else QUOTED
        self.utf8 = utf8

    # -- terminals -----------------------------------------------------------------------------------------------------

    def fail(self, expected: str) -> NoReturn:
        around = self.data[max(0, self.at - 60) : self.at] + b" >>> " + self.data[self.at : self.at + 60]
        raise Ungrammatical(f"expected {expected} at {self.at}: {around!r}")

    def match(self, pattern: re.Pattern[bytes], expected: str) -> re.Match[bytes]:
        found = pattern.match(self.data, self.at)
        if found is None:
            self.fail(expected)
        self.at = found.end()
        return found

    def take(self, text: bytes) -> bool:
        if self.data.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def need(self, text: bytes) -> None:
        if not self.take(text):
            self.fail(repr(text))

    def end(self) -> None:
        if self.at != len(self.data):
            self.fail("the end of the response")

    def number(self, least: int = 0, most: int = NUMBER_MAX) -> int:
        value = int(self.match(NUMBER, "a number")[0])
        if not least <= value <= most:
            self.fail(f"a number from {least} to {most}, not {value}")
        return value

    def nz(self) -> int:
        return self.number(1)

    def modseq(self) -> int:
        """Read mod-sequence-value: positive, 63 bits. RFC 7162 §7."""
        return self.number(1, NUMBER64_MAX)

    def atom(self) -> bytes:
        return self.match(ATOM, "an atom")[0]

    def sequence(self) -> list[tuple[int, int]]:
        """Read sequence-set without `*`, which a server never sends."""
        ranges = []
        for piece in self.match(SET, "a set")[0].split(b","):
            low, _, high = piece.partition(b":")
            first, last = int(low), int(high or low)
            if not (0 < first <= NUMBER_MAX and 0 < last <= NUMBER_MAX):
                self.fail("numbers of a set")
            ranges.append((first, last))
        return ranges

    def string(self, *, nul: bool = False) -> bytes:
        """string = quoted / literal; a literal holds CHAR8: no NUL."""
        literal = LITERAL.match(self.data, self.at)
        if literal is not None:
            start, size = literal.end(), int(literal[1])
            value = self.data[start : start + size]
            if len(value) != size:
                self.fail(f"a literal of {size} bytes")
            if not nul and b"\0" in value:
                self.fail("a literal without NUL")
            self.at = start + size
            return value
        body = self.match(self.quoted, "a string")[1]
        if self.utf8:
            body.decode()
        return re.sub(rb'\\(["\\])', rb"\1", body)

    def nstring8(self) -> bytes | None:
        """Read nstring / literal8. A literal8 is for data with NUL. RFC 3516 §4.3,
        §7."""
        if self.take(b"~"):
            value = self.string(nul=True)
            if b"\0" not in value:
                self.fail("NUL in a literal8")
            return value
        return self.nstring()

    def nil(self) -> bool:
        return self.take(b"NIL")

    def nstring(self, *, nul: bool = False) -> bytes | None:
        return None if self.nil() else self.string(nul=nul)

    def astring(self) -> bytes:
        found = ASTRING_ATOM.match(self.data, self.at)
        if found is None:
            return self.string()
        self.at = found.end()
        return found[0]

    def mailbox(self) -> str:
        data = self.astring()
        if self.utf8:
            return data.decode()
        # A name has a single spelling.
        name = utf7.decode(data)
        if not data.isascii() or (name.isascii() and name.upper() == "INBOX" != name):
            self.fail("a mailbox name in modified UTF-7, INBOX in capitals")
        return name

    def items(self, one: Callable[[], T], *, empty: bool = True, sep: bytes = b" ") -> list[T]:
        self.need(b"(")
        if empty and self.take(b")"):
            return []
        found = [one()]
        while not self.take(b")"):
            if sep:
                self.need(sep)
            found.append(one())
        return found

    def date_time(self) -> dt.datetime:
        found = self.match(DATE_TIME, "a date-time")
        if found[2] not in MONTHS or int(found[8]) > 23 or int(found[9]) > 59:
            self.fail("a month and a zone")
        day = int(found[1].strip())
        if (day < 10) != found[1].startswith(b" "):
            self.fail("date-day-fixed")
        return dt.datetime(int(found[3]), MONTHS.index(found[2]) + 1, day, int(found[4]), int(found[5]), int(found[6]))

    def flag(self, also: frozenset[bytes] = frozenset()) -> bytes:
        """flag = one of the five system flags / flag-keyword. flag-extension is for
        future RFCs."""
        if self.data.startswith(b"\\", self.at):
            found = re.compile(rb"\\(?:\*|[A-Za-z]+)").match(self.data, self.at)
            if found is None or found[0] not in SYSTEM_FLAGS | also:
                self.fail("a system flag")
            self.at = found.end()
            return found[0]
        return self.atom()

    def flags(self, *also: bytes) -> list[bytes]:
        found = self.items(lambda: self.flag(frozenset(also)))
        if len({flag.lower() for flag in found}) != len(found):
            self.fail("flags without repetition")
        return found
