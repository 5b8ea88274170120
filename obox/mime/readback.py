"""The values of an ENVELOPE, read from its wire form. SORT and THREAD need them.

The index keeps the ENVELOPE of each mail ready for clients. Reading it takes a few
microseconds, much less than parsing the header again. The time is linear. Only the
beginning of a long value is kept. If the bytes are no ENVELOPE, all values are empty.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

VALUE_BYTES_MAX: Final = 2_000
"""At most 2,000 bytes of a value are kept. A line of a header has 998 at most."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NSTRING = rb"(?:NIL|" + _STRING + rb")"
_ADDRESS = rb"\(" + rb" ".join([_NSTRING] * 4) + rb"\)"
_LIST = rb"(NIL|\((?:" + _ADDRESS + rb")++\))"
_PLAIN = re.compile(
    rb"\((" + _NSTRING + rb") (" + _NSTRING + rb") " + rb" ".join([_LIST] * 6) + rb" (" + _NSTRING + rb") ("
    + _NSTRING + rb")\)\Z", re.DOTALL
)  # fmt: skip
"""An ENVELOPE without literals."""
_FIRST = re.compile(
    rb"\(\((" + _NSTRING + rb") " + _NSTRING + rb" (" + _NSTRING + rb") (" + _NSTRING + rb")\)", re.DOTALL
)
_TOKEN = re.compile(rb'([()])|NIL|"((?:[^"\\]++|\\.)*+)"|\{([0-9]{1,9})\}\r\n', re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_FIELDS = 10


class First(NamedTuple):
    """The first address of a list, or the beginning of a group, whose name is in
    `mailbox` and which has no host."""

    name: bytes | None
    mailbox: bytes | None
    host: bytes | None


class Envelope(NamedTuple):
    """Values as the header has them: encoded words are not decoded. sender, to, cc:
    lists of addresses in wire form, without literals (`first_address`)."""

    date: bytes | None = None
    subject: bytes | None = None
    sender: bytes = b"NIL"
    to: bytes = b"NIL"
    cc: bytes = b"NIL"
    in_reply_to: bytes | None = None
    message_id: bytes | None = None


def read_envelope(wire: bytes) -> Envelope:
    """Return the values of an ENVELOPE."""
    found = _PLAIN.match(wire)
    if found is None:
        return _with_literals(wire)
    date, subject, sender, _, _, to, cc, _, reply, own = found.groups()
    return Envelope(_value(date), _value(subject), sender, to, cc, _value(reply), _value(own))


def _value(text: bytes) -> bytes | None:
    if text == b"NIL":
        return None
    inner = text[1:-1][:VALUE_BYTES_MAX]
    return _ESCAPE.sub(rb"\1", inner) if b"\\" in inner else inner


def first_address(text: bytes) -> First | None:
    """Return the first address of a list in wire form."""
    found = _FIRST.match(text)
    return None if found is None else First(*map(_value, found.groups()))


def _with_literals(wire: bytes) -> Envelope:
    """Return the values of an ENVELOPE that has literals. Of a list of addresses the
    first is kept."""
    fields: list[bytes | list[bytes | None] | None] = []
    some: list[bytes | None] = []
    depth, at = 0, 0
    while (token := _TOKEN.match(wire, at)) is not None:
        at = token.end()
        bracket, quoted, size = token.groups()
        if bracket == b"(":
            depth += 1
            if depth == 2:
                some = []
        elif bracket == b")":
            depth -= 1
            if depth == 1:
                fields.append(some)
        else:
            value: bytes | None = None
            if size is not None:
                value, at = wire[at : at + min(int(size), VALUE_BYTES_MAX)], at + int(size)
            elif quoted is not None:
                value = _ESCAPE.sub(rb"\1", quoted[:VALUE_BYTES_MAX])
            if depth == 1:
                fields.append(value)
            elif len(some) < 4:
                some.append(value)
        if wire[at : at + 1] == b" ":
            at += 1
    if len(fields) != _FIELDS:
        return Envelope()
    lists = [b"((" + b" ".join(map(_quoted, one)) + b"))" if isinstance(one, list) else b"NIL" for one in fields]
    plain = [one if isinstance(one, bytes) else None for one in fields]
    return Envelope(plain[0], plain[1], lists[2], lists[5], lists[6], plain[8], plain[9])


def _quoted(value: bytes | None) -> bytes:
    return b"NIL" if value is None else b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
