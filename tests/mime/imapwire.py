"""A strict reader of IMAP data for tests. It raises an error for everything that RFC
9051 §9 does not allow in a response."""

from __future__ import annotations

import re
from typing import Any

_ATOM = re.compile(rb"[^\x00-\x20\x7f-\xff(){%*\"\\\]]+")
_LITERAL = re.compile(rb"\{(0|[1-9]\d*)\}\r\n")
_QUOTED = re.compile(rb'"((?:[^\x00\r\n"\\\x80-\xff]|\\["\\])*)"')


class WireError(AssertionError):
    """The data is not IMAP."""


def read(data: bytes) -> Any:  # noqa: C901, PLR0912 - one loop over the grammar
    """Return the single value of the data: lists, bytes for strings, None for NIL, int
    for numbers."""
    stack: list[list[Any]] = [[]]
    at = 0
    # A value must follow an opening parenthesis, a blank, or the start. A list may also
    # follow another list without a blank.
    before = b"("
    while at < len(data):
        c = data[at : at + 1]
        if before in {b"v", b")"} and c not in {b" ", b")"} and not (c == b"(" and before == b")"):
            raise WireError(f"no blank at {at}")
        if before == b" " and c in {b" ", b")"}:
            raise WireError(f"stray blank at {at}")
        before = c if c in {b"(", b")", b" "} else b"v"
        if c == b"(":
            stack.append([])
            at += 1
        elif c == b")":
            if len(stack) < 2:
                raise WireError(f"unbalanced ) at {at}")
            done = stack.pop()
            stack[-1].append(done)
            at += 1
        elif c == b" ":
            if data[at - 1 : at] == b"(" and stack[-1] == []:
                raise WireError(f"stray blank at {at}")
            at += 1
        elif c == b'"':
            found = _QUOTED.match(data, at)
            if not found:
                raise WireError(f"bad quoted string at {at}: {data[at : at + 40]!r}")
            stack[-1].append(re.sub(rb"\\(.)", rb"\1", found[1]))
            at = found.end()
        elif c == b"{":
            found = _LITERAL.match(data, at)
            if not found:
                raise WireError(f"bad literal at {at}")
            end = found.end() + int(found[1])
            value = data[found.end() : end]
            if end > len(data) or b"\0" in value:
                raise WireError(f"literal at {at} is too long or has a NUL")
            stack[-1].append(value)
            at = end
        else:
            found = _ATOM.match(data, at)
            if not found:
                raise WireError(f"unexpected {data[at : at + 20]!r} at {at}")
            stack[-1].append(None if found[0] == b"NIL" else int(found[0]))
            at = found.end()
    if before == b" " or len(stack) != 1 or len(stack[0]) != 1:
        raise WireError("not one value")
    return stack[0][0]


def check_body(value: Any, extended: bool) -> None:
    """Assert the grammar of body: body-type-1part, body-type-mpart with or without
    extension data. RFC 9051 §9."""
    assert isinstance(value, list)
    assert value
    if isinstance(value[0], list):
        kids = [item for item in value if isinstance(item, list)]
        n = next(i for i, item in enumerate(value) if not isinstance(item, list))
        for kid in kids[:n]:
            check_body(kid, extended)
        rest = value[n:]
        assert isinstance(rest[0], bytes)
        assert len(rest) == (5 if extended else 1)
        if extended:
            _check_params(rest[1])
            _check_extension(rest[2:])
        return
    kind, subtype, params, ident, description, encoding, octets = value[:7]
    assert isinstance(kind, bytes)
    assert isinstance(subtype, bytes)
    _check_params(params)
    assert ident is None or isinstance(ident, bytes)
    assert description is None or isinstance(description, bytes)
    assert isinstance(encoding, bytes)
    assert isinstance(octets, int)
    n = 7
    if kind == b"text":
        assert isinstance(value[7], int)
        n = 8
    elif kind == b"message" and subtype == b"rfc822":
        check_envelope(value[7])
        check_body(value[8], extended)
        assert isinstance(value[9], int)
        n = 10
    rest = value[n:]
    assert len(rest) == (4 if extended else 0)
    if extended:
        assert rest[0] is None or isinstance(rest[0], bytes)
        _check_extension(rest[1:])


def _check_params(params: Any) -> None:
    assert params is None or (params and len(params) % 2 == 0 and all(isinstance(item, bytes) for item in params))


def _check_extension(rest: list[Any]) -> None:
    disposition, language, location = rest
    if disposition is not None:
        assert isinstance(disposition[0], bytes)
        assert len(disposition) == 2
        _check_params(disposition[1])
    assert language is None or (language and all(isinstance(tag, bytes) for tag in language))
    assert location is None or isinstance(location, bytes)


def check_envelope(value: Any) -> None:
    """Assert the grammar of envelope. RFC 9051 §9."""
    assert len(value) == 10
    for index in (0, 1, 8, 9):
        assert value[index] is None or isinstance(value[index], bytes)
    for index in range(2, 8):
        if value[index] is None:
            continue
        assert value[index]
        open_group = False
        for address in value[index]:
            assert len(address) == 4
            assert all(item is None or isinstance(item, bytes) for item in address)
            # RFC 9051 §7.5.2: a group starts with a name in the mailbox field, ends
            # with NIL.
            if address[3] is None:
                assert open_group == (address[2] is None)
                open_group = not open_group
        assert not open_group
