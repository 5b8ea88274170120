"""A cursor over a complete command. Each terminal of the ABNF is a compiled pattern.

A command is its line fragments with the literals between them: [line, literal, line,
literal, …, line]. Every line but the last ends with the mark of the literal behind it.
Each method takes its terminal and moves on, or raises Malformed with a reason for the
client: what is wrong, and what is allowed.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

from obox.errors import Invalid
from obox.imap import utf7
from obox.imap.ast import InternalDate
from obox.imap.sets import SequenceSet, parse_set
from obox.imap.wire import MONTHS
from obox.mailbox import KEYWORD_BYTES_MAX
from obox.mailbox.names import GIVEN_BYTES_MAX, NAME_BYTES_MAX, SEPARATOR, canonical
from obox.store.api import Source
from obox.text import nfc_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a single client may make the parser hold. Sizes are in bytes."""

    line_bytes_max: int = 65_536
    """A command without its literals. Clients send long UID sets; 64 KiB is what they
    are used to (Dovecot)."""
    literal_bytes_max: int = 65_536
    """A literal that is not a mail: a name, a password, a search string."""
    literals_bytes_max: int = 262_144
    """All such literals of a command."""
    append_bytes_max: int = 64 * 1024 * 1024
    """The largest mail of an APPEND. The session sets the value from
    limits.mail_bytes_max; it is 0 before login."""
    multiappend_bytes_max: int = 128 * 1024 * 1024
    """The size of all mails of an APPEND together. They wait for each other, large
    mails in a file."""
    discard_bytes_max: int = 1024 * 1024 * 1024
    """A `{n+}` beyond its limit is read and discarded up to this size. A larger literal
    ends the connection."""
    arguments_max: int = 1_000
    """Elements of a list that has no limit of its own, and mails of one APPEND."""
    search_keys_max: int = 4_096
    """Keys of one SEARCH, each NOT and OR counted: twice what `OR HEADER Message-ID …`
    fills a line with."""
    fetch_items_max: int = 128
    """Different items of one FETCH: each may be as large as the mail. Clients ask for
    all parts of a mail at most."""
    header_names_max: int = 256
    """Names in one HEADER.FIELDS; clients ask for about 40."""
    header_name_bytes_max: int = 255
    """One name in HEADER.FIELDS or SEARCH HEADER; a line of a header has 998 at most
    (RFC 5322 §2.1.1)."""
    list_patterns_max: int = 64
    """Patterns of one LIST; clients send one or two. Each is held against each
    mailbox."""
    flags_max: int = 128
    """Flags of one mail in STORE and APPEND; a mailbox holds the five of the system and
    59 keywords."""
    part_depth_max: int = 128
    """Numbers in a section's part, as in 1.2.1; deeper parts are not parsed."""
    id_fields_max: int = 64
    """Fields of ID. RFC 2971 §3.3 allows 30."""
    depth_max: int = 32
    """The depth of parentheses and NOTs. The parser is recursive, and so is the code
    that uses its result."""


NAME_WIRE_BYTES_MAX: Final = 8 * NAME_BYTES_MAX
"""A mailbox name or LIST pattern as it is sent: modified UTF-7 has at most 2.5 times
the bytes of UTF-8, a decomposed name three times those of its NFC form."""


class Malformed(Invalid):
    """The command breaks the grammar (BAD), or asks for a value that cannot be served
    (NO)."""

    def __init__(self, reason: str, status: str = "BAD", code: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code


# Possessive and with disjoint alternatives: no input makes them backtrack.
#   astring = 1*ASTRING-CHAR / string;  ASTRING-CHAR = ATOM-CHAR / "]"
#   quoted = DQUOTE *QUOTED-CHAR DQUOTE
#   QUOTED-CHAR = <any TEXT-CHAR except quoted-specials> / "\" quoted-specials
# 8-bit in an atom is not in the ABNF; clients send names that way.
_QUOTED_BODY: Final = rb'"((?:[^"\\\r\n\x00]++|\\["\\])*+)"'
_ASTRING: Final = re.compile(rb'([^\x00-\x20\x7f(){%*"\\]++)|' + _QUOTED_BODY)
# list-char adds the wildcards.
_LIST: Final = re.compile(rb'([^\x00-\x20\x7f(){"\\]++)|' + _QUOTED_BODY)
_QUOTED: Final = re.compile(_QUOTED_BODY)
_WORD: Final = re.compile(rb"[A-Za-z0-9.+\-_/=:]++")
_ATOM: Final = re.compile(rb"""[^\x00-\x20\x7f-\xff(){%*"\\\]]++""")
_FLAG: Final = re.compile(rb"""\\?[^\x00-\x20\x7f-\xff(){%*"\\\]]++""")
_SET: Final = re.compile(rb"[0-9:,*$]++")
_SPACES: Final = re.compile(rb" *+")
_NUMBER: Final = re.compile(rb"[0-9]++")
_ESCAPE: Final = re.compile(rb'\\(["\\])')
_SHOW: Final = re.compile(rb"[^ ]?[^ ()\[]*")
_DATE: Final = re.compile(rb'("?)([0-9]{1,2})-([A-Za-z]{3})-([0-9]{4})\1')
_DATE_TIME: Final = re.compile(
    rb'" ?([0-9]{1,2})-([A-Za-z]{3})-([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-][0-9]{4})"'
)
_MARK: Final = re.compile(rb"(~?)\{[0-9]+\+?\}\Z")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")

_MONTH: Final = {name.upper().encode(): number for number, name in enumerate(MONTHS, 1)}
_SYSTEM_FLAGS: Final = {name.upper(): name for name in ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")}
_EPOCH: Final = dt.datetime(1970, 1, 1)

MODSEQ_MAX: Final = 2**63 - 1
"""RFC 7162 §7."""
NUMBER_MAX: Final = 2**32 - 1
NUMBER64_MAX: Final = 2**63 - 1


class Scan:
    """The cursor. It has a method for each terminal of the grammar, so it has many.

    charset: what `text` decodes from. utf8: names are UTF-8 (RFC 6855). given: the last
    mailbox name as it was sent, if its canonical form is another.
    """

    __slots__ = ("_keys", "_parts", "at", "charset", "given", "index", "limits", "line", "utf8")

    def __init__(self, parts: Sequence[Any], at: int, limits: Limits, *, utf8: bool = False) -> None:
        self._parts = parts
        self.index = 0
        self.line: bytes = parts[0]
        self.at = at
        self.limits = limits
        self.utf8 = utf8
        self.charset = "utf-8"
        self.given = ""
        self._keys = 0

    # -- reasons -------------------------------------------------------------------------------------------------------

    def shown(self) -> str:
        """Return the text at the cursor, short and printable."""
        match = _SHOW.match(self.line, self.at)
        found = match[0] if match else b""
        if not found:
            return "a space" if self.at < len(self.line) else "the end of the line"
        short = "".join(chr(c) if 32 <= c < 127 else "?" for c in found[:32])
        return f'"{short}"' + ("..." if len(found) > 32 else "")

    def fail(self, reason: str) -> NoReturn:
        raise Malformed(reason)

    def beyond(self, reason: str) -> NoReturn:
        """Refuse what the grammar allows and a limit does not; the reason names the
        limit. RFC 5530 §3 (LIMIT)."""
        raise Malformed(reason, "NO", "LIMIT")

    def expected(self, what: str) -> NoReturn:
        raise Malformed(f"Expected {what}, found {self.shown()}")

    # -- punctuation ---------------------------------------------------------------------------------------------------

    def peek(self) -> bytes:
        """Return the next byte; empty at the end of a line."""
        return self.line[self.at : self.at + 1]

    def take(self, char: bytes) -> bool:
        """Move over `char`, one byte, if it is next."""
        if self.line[self.at : self.at + 1] == char:
            self.at += 1
            return True
        return False

    def need(self, char: bytes, where: str) -> None:
        if self.line[self.at : self.at + 1] != char:
            self.expected(f'"{char.decode()}" {where}')
        self.at += 1

    def sp(self, before: str) -> None:
        """Take the space before an argument; some clients send more than one. before:
        the name of the argument, for the reason."""
        if self.line[self.at : self.at + 1] != b" ":
            if self.at >= len(self.line):
                self.fail(f"Missing argument: {before}")
            self.expected(f"a space before {before}")
        self.at += 1
        self.spaces()

    def spaces(self) -> None:
        """Move over spaces that the grammar has no place for."""
        if self.line[self.at : self.at + 1] == b" " and (found := _SPACES.match(self.line, self.at)):
            self.at = found.end()

    def more(self) -> bool:
        """Return whether another argument follows; the parser has cut spaces at the
        end, which some clients send."""
        return self.line[self.at : self.at + 1] == b" "

    def end(self) -> None:
        """Assert that the command ends here."""
        if self.at < len(self.line):
            self.spaces()
            self.fail(f"Unexpected argument at the end: {self.shown()}")

    # -- words and numbers ---------------------------------------------------------------------------------------------

    def word(self, what: str) -> str:
        """Take a keyword of the protocol, returned in capitals."""
        match = _WORD.match(self.line, self.at)
        if match is None:
            self.expected(what)
        self.at = match.end()
        return match[0].upper().decode()

    def peek_word(self) -> str:
        match = _WORD.match(self.line, self.at)
        return match[0].upper().decode() if match else ""

    def atom(self, what: str) -> bytes:
        match = _ATOM.match(self.line, self.at)
        if match is None:
            self.expected(what)
        self.at = match.end()
        return match[0]

    def number(self, what: str, *, least: int = 0, most: int = NUMBER_MAX) -> int:
        match = _NUMBER.match(self.line, self.at)
        if match is None:
            self.expected(what)
        # int() of many digits is quadratic.
        value = int(match[0]) if len(match[0]) <= 19 else most + 1
        if not least <= value <= most:
            self.fail(f"Bad {what} {self.shown()}: allowed are {least} to {most}")
        self.at = match.end()
        return value

    def modseq(self, what: str = "mod-sequence", *, least: int = 0) -> int:
        return self.number(what, least=least, most=MODSEQ_MAX)

    def sequence(self, *, star: bool = True, saved: bool = True) -> SequenceSet:
        match = _SET.match(self.line, self.at)
        if match is None:
            self.expected("a set such as 1:5,7,9:*")
        found = parse_set(match[0], star=star, saved=saved)
        self.at = match.end()
        return found

    # -- strings -------------------------------------------------------------------------------------------------------

    def _literal(self, what: str) -> tuple[Any, bool]:
        match = _MARK.match(self.line, self.at)
        if match is None or self.index + 2 >= len(self._parts):
            self.expected(what)
        self.index += 2
        data = self._parts[self.index - 1]
        self.line = self._parts[self.index]
        self.at = 0
        return data, bool(match[1])

    def _string(self, pattern: re.Pattern[bytes], what: str) -> bytes:
        match = pattern.match(self.line, self.at)
        if match is not None:
            self.at = match.end()
            if match.lastindex == pattern.groups:
                body = match[match.lastindex]
                return _ESCAPE.sub(rb"\1", body) if b"\\" in body else body
            return match[0]
        head = self.line[self.at : self.at + 1]
        if head == b"{":
            data, _ = self._literal(what)
            if not isinstance(data, bytes):  # a mail is not allowed here
                self.expected(what)
            if b"\0" in data:
                self.fail(f"NUL in a literal for {what}")
            return data
        if head == b'"':
            self.fail(f'Bad quoted string for {what}: no closing quote, or a \\ not before \\ or "')
        self.expected(what)

    def header_name(self) -> bytes:
        """Take the name of a header field; its characters are not checked."""
        name = self.astring("a header field name")
        if len(name) > self.limits.header_name_bytes_max:
            self.beyond(f"Header field name of {len(name)} bytes; allowed: {self.limits.header_name_bytes_max}")
        return name

    def astring(self, what: str) -> bytes:
        return self._string(_ASTRING, what)

    def string(self, what: str) -> bytes:
        """Take a quoted string or a literal, but no atom."""
        return self._string(_QUOTED, what)

    def nstring(self, what: str) -> bytes | None:
        if self.line[self.at : self.at + 3].upper() == b"NIL":
            self.at += 3
            return None
        return self.string(what)

    def mail(self) -> tuple[bytes | Source, bool]:
        """Take the literal that holds a mail; True if it came as literal8."""
        return self._literal("a literal with the mail, {bytes}")

    def text(self, what: str) -> str:
        """Take a string to search for, decoded from `charset`."""
        data = self.astring(what)
        try:
            return data.decode(self.charset)
        except UnicodeDecodeError:
            raise Malformed(f"{what[:1].upper()}{what[1:]} is not in {self.charset.upper()}") from None

    # -- names ---------------------------------------------------------------------------------------------------------

    def _name(self, data: bytes) -> str:
        if len(data) > NAME_WIRE_BYTES_MAX:
            raise Invalid(f"Mailbox name of {len(data)} bytes: at most {NAME_WIRE_BYTES_MAX}")
        name = data.decode() if self.utf8 else utf7.decode(data)
        if _CONTROL.search(name):
            raise Malformed("Control characters in a mailbox name", "NO", "CANNOT")
        self.given = name
        return nfc_name(name, GIVEN_BYTES_MAX, "Mailbox name")

    def mailbox(self, what: str = "a mailbox name") -> str:
        """Take a mailbox name: decoded, canonical, not empty."""
        name = canonical(self._decoded(self.astring(what)))
        if not name:
            raise Malformed("Empty mailbox name", "NO", "CANNOT")
        if self.given.removesuffix(SEPARATOR) == name:
            self.given = ""
        return name

    def reference(self) -> str:
        """Take the reference name of LIST; its length is limited as a pattern's."""
        return self._decoded(self._measured(self.astring("a reference name"), "Reference name"))

    def pattern(self) -> str:
        """Take list-mailbox: a name that may have `*` and `%`. A pattern that no
        mailbox can match is accepted."""
        data = self._measured(self._string(_LIST, "a mailbox pattern"), "Mailbox pattern")
        try:
            return self._decoded(data)
        except Malformed as error:
            if error.status == "BAD":
                raise
            return data.decode("latin-1")

    def _measured(self, data: bytes, what: str) -> bytes:
        if len(data) > NAME_WIRE_BYTES_MAX:
            self.beyond(f"{what} of {len(data)} bytes; allowed: {NAME_WIRE_BYTES_MAX}")
        return data

    def _decoded(self, data: bytes) -> str:
        try:
            return self._name(data)
        except UnicodeDecodeError:
            raise Malformed("Mailbox name is not in UTF-8") from None
        except Malformed:
            raise
        except Invalid as error:  # an atom, but no name: the grammar is kept
            raise Malformed(str(error), "NO", "CANNOT") from None

    def flag(self) -> str:
        match = _FLAG.match(self.line, self.at)
        if match is None:
            self.expected("a flag")
        if match.end() - self.at > KEYWORD_BYTES_MAX:
            self.beyond(f"Keyword of {match.end() - self.at} bytes; allowed: {KEYWORD_BYTES_MAX}")
        name = match[0].decode()
        if name[0] == "\\":
            found = _SYSTEM_FLAGS.get(name.upper())
            if found is None:
                self.fail(f"Unknown system flag {self.shown()}: allowed are {' '.join(_SYSTEM_FLAGS.values())}")
            name = found
        self.at = match.end()
        return name

    def flags(self) -> tuple[str, ...]:
        """Take a flag list in parentheses, which may be empty; repetitions are
        dropped."""
        return tuple(dict.fromkeys(self.items("flags", self.flag, empty=True, most=self.limits.flags_max)))

    # -- dates ---------------------------------------------------------------------------------------------------------

    def date(self) -> dt.date:
        """date = date-text / DQUOTE date-text DQUOTE; date-text = date-day "-"
        date-month "-" date-year"""
        match = _DATE.match(self.line, self.at)
        if match is None:
            self.expected("a date such as 1-Feb-1994")
        try:
            found = dt.date(int(match[4]), self._month(match[3]), int(match[2]))
        except ValueError:
            self.fail(f"Bad date {self.shown()}: no such day")
        self.at = match.end()
        return found

    def date_time(self) -> InternalDate:
        """date-time = DQUOTE date-day-fixed "-" date-month "-" date-year SP time SP
        zone DQUOTE"""
        match = _DATE_TIME.match(self.line, self.at)
        if match is None:
            self.expected('a date such as "17-Jul-1996 02:44:25 -0700"')
        zone = self._zone(match[7])
        # A leap second is its neighbour.
        second = min(int(match[6]), 59) if match[6] == b"60" else int(match[6])
        try:
            moment = dt.datetime(
                int(match[3]), self._month(match[2]), int(match[1]), int(match[4]), int(match[5]), second
            )
        except ValueError:
            self.fail("Bad date: no such day or time")
        self.at = match.end()
        since = moment - _EPOCH
        return InternalDate(since.days * 86_400 + since.seconds - zone * 60, zone)

    def _zone(self, zone: bytes) -> int:
        hours, minutes = int(zone[1:3]), int(zone[3:5])
        if hours > 23 or minutes > 59:
            self.fail(f"Bad zone {zone.decode()}: expected +hhmm or -hhmm")
        return (hours * 60 + minutes) * (-1 if zone[:1] == b"-" else 1)

    def _month(self, name: bytes) -> int:
        month = _MONTH.get(name.upper())
        if month is None:
            self.fail(f'Bad month "{name.decode()}": allowed are {" ".join(MONTHS)}')
        return month

    # -- lists ---------------------------------------------------------------------------------------------------------

    def items(self, what: str, one: Callable[[], T], *, empty: bool = False, most: int = 0) -> list[T]:
        """Take `(one SP one …)`. most: how many there may be; 0: as the limits say of
        arguments."""
        most = most or self.limits.arguments_max
        self.need(b"(", f"before {what}")
        self.spaces()
        found: list[T] = []
        if self.take(b")"):
            if not empty:
                self.fail(f"Empty list of {what}")
            return found
        while True:
            found.append(one())
            if len(found) > most:
                self.beyond(f"Too many {what}: at most {most}")
            if not self.take(b" "):
                if self.take(b")"):
                    return found
                self.expected(f'a space or ")" in the list of {what}')
            self.spaces()
            if self.take(b")"):
                return found

    def count_key(self) -> None:
        """Count one search key against the limit."""
        self._keys += 1
        if self._keys > self.limits.search_keys_max:
            self.beyond(f"Too many search keys: at most {self.limits.search_keys_max}")

    def deeper(self, depth: int) -> int:
        if depth >= self.limits.depth_max:
            self.beyond(f"Nested too deeply: at most {self.limits.depth_max} levels")
        return depth + 1


_RANGE: Final = re.compile(rb"(-?)([1-9][0-9]{0,9}):\1([1-9][0-9]{0,9})(?![0-9])")


def partial_range(scan: Scan) -> tuple[int, int]:
    """partial-range = nz-number ":" nz-number / "-" nz-number ":" "-" nz-number. RFC
    9394 §4."""
    scan.sp("a range of results such as 1:500 or -1:-500")
    match = _RANGE.match(scan.line, scan.at)
    if match is None or max(int(match[2]), int(match[3])) > NUMBER_MAX:
        scan.expected("a range of results such as 1:500 or -1:-500")
    scan.at = match.end()
    sign = -1 if match[1] else 1
    return sign * int(match[2]), sign * int(match[3])
