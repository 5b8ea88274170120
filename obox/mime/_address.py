"""Address lists of header fields: any bytes to (name, route, mailbox, host) tuples.

There are two paths. Almost every address of a real mail matches one of two patterns.
Any other address goes, alone, through a tolerant reader of RFC 5322 §3.4 with the
obsolete forms of §4.4 (routes, comments and blanks anywhere, empty list elements). A
broken address still appears, with the words that Dovecot puts in its place, because a
host of NIL would announce a group (RFC 9051 §7.5.2). Encoded words stay encoded. Linear
time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ._budget import ADDRESSES_MAX
from ._fields import skip_comment, unquote

MISSING_MAILBOX = b"MISSING_MAILBOX"
MISSING_DOMAIN = b"MISSING_DOMAIN"
SYNTAX_ERROR = b"SYNTAX_ERROR"
INVALID_ROUTE = b"INVALID_ROUTE"

_MAILBOX = rb"([A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]++)@([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?)"
_NAMED = re.compile(
    rb'\s*+(?:"([^"\\]*+)"\s*+|([^\x00-\x08\x0e-\x1f"(),:;<>@\[\\\]]*+))<' + _MAILBOX + rb">\s*+(?:,|\Z)"
)
_BARE = re.compile(rb"\s*+" + _MAILBOX + rb"\s*+(?:,|\Z)")
# blanks and simple comments
_BLANK = re.compile(rb"(?:\s++|\([^()\\]*+\))*+")
_ATOM = re.compile(rb'[^\s"(),.:;<>@\[\\\]]++|[\\\]]++')
_QUOTED = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)("|\\?\Z)', re.DOTALL)
_DOMAIN_LITERAL = re.compile(rb"\[[^\[\]\\]*+(?:\\.[^\[\]\\]*+)*+\]", re.DOTALL)
_NOTHING = re.compile(rb"[\s,]*+")
_SKIP = re.compile(rb'[^"(,;<>]++|[<>]')


class Address(NamedTuple):
    """An address as in ENVELOPE.

    A group starts with (None, None, its name, None) and ends with four Nones. RFC 9051
    §7.5.2.
    """

    name: bytes | None
    route: bytes | None
    mailbox: bytes | None
    host: bytes | None


_GROUP_END = Address(None, None, None, None)


def addresses(value: bytes) -> list[Address]:
    """Return the addresses of a field's value (folded or not), at most ADDRESSES_MAX.
    RFC 5322 §3.4."""
    return read_addresses(value, ADDRESSES_MAX)[0]


def read_addresses(value: bytes, most: int) -> tuple[list[Address], int]:
    """Return the addresses among the first `most` list elements, and the number of
    elements read.

    If the number is more than `most`, there is another element behind the last that was
    read. An element is an address, the name or the end of a group, or nothing that can
    be read.
    """
    found: list[Address] = []
    at, end = 0, len(value)
    group = False
    count = 0
    while at < end:
        count += 1
        if count > most:
            break
        fast = _NAMED.match(value, at)
        if fast is not None:
            quoted, name, mailbox, host = fast.groups()
            if quoted is not None:
                name = quoted
            found.append(Address(b" ".join(name.split()) or None, None, mailbox, host))
            at = fast.end()
            continue
        fast = _BARE.match(value, at)
        if fast is not None:
            found.append(Address(None, None, fast[1], fast[2]))
            at = fast.end()
            continue
        reader = Reader(value, at)
        address = reader.address(group)
        if address is not None:
            found.append(address)
            group = group or address.host is None
        at = reader.at
        c = value[at : at + 1]
        if c == b";" and group:
            found.append(_GROUP_END)
            group = False
        at += 1
        nothing = _NOTHING.match(value, at)  # empty list elements, RFC 5322 §4.4
        at = nothing.end() if nothing else at
    if group:
        found.append(_GROUP_END)
    return found, count


class Reader:
    """Reads an address; stops at the `,`, `;` or `:` (of a group's name) behind it."""

    __slots__ = ("at", "comment", "end", "open", "quoted", "value")

    def __init__(self, value: bytes, at: int) -> None:
        self.value = value
        self.at = at
        self.end = len(value)
        self.comment: bytes | None = None
        self.open = False  # a quoted string without its end
        self.quoted = False  # the first word is a quoted string

    def peek(self) -> bytes:
        """Return the next byte behind blanks and comments.

        The last comment is kept, because it may be the name.
        """
        while True:
            blank = _BLANK.match(self.value, self.at)
            if blank is not None and blank.end() > self.at:
                start = self.value.rfind(b"(", self.at, blank.end())
                if start >= 0:
                    self.keep(start, blank.end())
                self.at = blank.end()
            c = self.value[self.at : self.at + 1]
            if c != b"(":
                return c
            start = self.at
            self.at = skip_comment(self.value, start)
            self.keep(start, self.at)

    def keep(self, start: int, end: int) -> None:
        """Keep the comment between these offsets; blanks may follow it."""
        inside = self.value[start + 1 : end].rstrip()
        if inside.endswith(b")"):
            inside = inside[:-1]
        self.comment = b" ".join(unquote(inside).split()) or None

    def words(self) -> tuple[bytes, bytes | None]:
        """Read a sequence of words and dots.

        Returns it as a phrase, and as a local part, or None if two words have no dot
        between them.
        """
        phrase: list[bytes] = []
        local: list[bytes] = []
        is_local, after_word = True, False
        behind = self.at
        while True:
            c = self.peek()
            if c == b".":
                phrase.append(b".")
                local.append(b".")
                self.at += 1
                behind, after_word = self.at, False
                continue
            if c == b'"':
                quoted = _QUOTED.match(self.value, self.at)
                if quoted is None or quoted[2] != b'"':
                    self.open = True
                    # an open quoted string takes the rest, and nothing of it can be
                    # trusted
                    self.at = self.end
                    break
                text = unquote(quoted[1])
                if b"\n" in text:
                    text = text.replace(b"\r", b"").replace(b"\n", b"")
                self.at = quoted.end()
            else:
                atom = _ATOM.match(self.value, self.at)
                if atom is None:
                    break
                text = atom[0]
                start, self.at = self.at, atom.end()
                if phrase and phrase[-1] == b"." and start == behind:
                    phrase.append(text)
                    local.append(text)
                    behind, after_word = self.at, True
                    continue
            if phrase:
                phrase.append(b" ")
            else:
                self.comment = None  # a comment before an address does not name it
                self.quoted = c == b'"'
            phrase.append(text)
            local.append(text)
            is_local = is_local and not after_word
            behind, after_word = self.at, True
        return b" ".join(b"".join(phrase).split()), b"".join(local) if is_local else None

    def domain(self) -> bytes | None:
        """Read a domain or domain literal; None if there is none."""
        if self.peek() == b"[":
            literal = _DOMAIN_LITERAL.match(self.value, self.at)
            if literal is None:
                return None
            self.at = literal.end()
            return b"".join(literal[0].split())
        pieces: list[bytes] = []
        while True:
            c = self.peek()
            atom = _ATOM.match(self.value, self.at)
            if atom is not None and (not pieces or pieces[-1] == b"."):
                pieces.append(atom[0])
                self.at = atom.end()
            elif c == b"." and pieces and pieces[-1] != b".":
                pieces.append(b".")
                self.at += 1
            else:
                break
        return b"".join(pieces) if pieces and pieces[-1] != b"." else None

    def skip(self, group: bool) -> None:
        """Go to the `,` behind this address, or the `;` of its group, and ignore
        everything before it.
        """
        while self.at < self.end:
            c = self.peek()
            if c == b"," or (c == b";" and group):
                return
            if c == b'"':
                quoted = _QUOTED.match(self.value, self.at)
                self.at = quoted.end() if quoted else self.end
                continue
            run = _SKIP.match(self.value, self.at)
            self.at = run.end() if run else self.at + 1

    def address(self, group: bool) -> Address | None:
        """Read an address or the start of a group; None for an empty list element.

        group: whether the reader is inside a group already.
        """
        phrase, local = self.words()
        c = self.peek()
        if c == b":" and phrase and not group:
            return Address(None, None, phrase, None)
        address: Address | None
        if c == b"<":
            self.at += 1
            address = self.angle(phrase)
        elif c == b"@":
            self.at += 1
            # the comment behind the address is the name: user@host (Full Name)
            self.comment = None
            host = self.domain()
            if local is None:
                address = Address(phrase, None, MISSING_MAILBOX, MISSING_DOMAIN)
            else:
                self.peek()
                address = Address(self.comment, None, local or MISSING_MAILBOX, host or MISSING_DOMAIN)
        elif local and not self.quoted:
            address = Address(self.comment, None, local, MISSING_DOMAIN)
        elif phrase:
            address = Address(phrase, None, MISSING_MAILBOX, MISSING_DOMAIN)
        elif c in {b",", b";", b""} and not self.open:
            address = None
        else:
            address = Address(None, None, MISSING_MAILBOX, MISSING_DOMAIN)
        self.skip(group)
        return address

    def angle(self, phrase: bytes) -> Address:
        """Read the content of angle brackets: [route] local-part "@" domain.

        The name is the phrase before them.
        """
        name = phrase or None
        route: bytes | None = None
        if self.peek() == b"@":
            route = self.route()
            if route is None:
                return Address(name, INVALID_ROUTE, MISSING_MAILBOX, MISSING_DOMAIN)
        _, local = self.words()
        c = self.peek()
        if c == b"@":
            self.at += 1
            host = self.domain()
            closed = self.peek() == b">"
            if local is None or not closed:
                return Address(name, route, local or MISSING_MAILBOX, SYNTAX_ERROR)
            return Address(name, route, local or MISSING_MAILBOX, host or MISSING_DOMAIN)
        if c != b">":
            return Address(name, route, local or MISSING_MAILBOX, SYNTAX_ERROR)
        return Address(name, route, local or MISSING_MAILBOX, MISSING_DOMAIN)

    def route(self) -> bytes | None:
        """Read `@one,@two:` without its colon. RFC 5322 §4.4 (obs-route)."""
        hops: list[bytes] = []
        while True:
            c = self.peek()
            if c == b"@":
                self.at += 1
                host = self.domain()
                if host is None:
                    return None
                hops.append(b"@" + host)
            elif c == b",":
                self.at += 1
            elif c == b":":
                self.at += 1
                return b",".join(hops)
            else:
                return None
