"""Address lists."""

from __future__ import annotations

import pytest

from obox.mime import ADDRESSES_MAX, addresses

Quad = tuple[bytes | None, bytes | None, bytes | None, bytes | None]
END: Quad = (None, None, None, None)


def a(mailbox: bytes, host: bytes, name: bytes | None = None, route: bytes | None = None) -> Quad:
    return (name, route, mailbox, host)


def group(name: bytes) -> Quad:
    return (None, None, name, None)


CASES: dict[bytes, list[Quad]] = {
    b"": [],
    b" , ,, ": [],
    b"(a comment alone)": [],
    b"a@b": [a(b"a", b"b")],
    b"<a@b>": [a(b"a", b"b")],
    b"A B <a@b>": [a(b"a", b"b", b"A B")],
    b'"A, \\"B\\"" <a@b>': [a(b"a", b"b", b'A, "B"')],
    b'"" <a@b>': [a(b"a", b"b")],
    b"A\r\n B\r\n\t<a@b>\r\n": [a(b"a", b"b", b"A B")],
    b"A (c) B <a@b> (d)": [a(b"a", b"b", b"A B")],
    b'A "B  C" D <a@b>': [a(b"a", b"b", b"A B C D")],
    b"J. R. Doe <a@b>": [a(b"a", b"b", b"J. R. Doe")],
    b"a@b (Full (nested) Name)": [a(b"a", b"b", b"Full (nested) Name")],
    b"(before) a@b": [a(b"a", b"b")],
    b"a@b, C <c@d> ,e@f": [a(b"a", b"b"), a(b"c", b"d", b"C"), a(b"e", b"f")],
    b"a@b,,c@d,": [a(b"a", b"b"), a(b"c", b"d")],
    b"=?utf-8?q?J=C3=BCrgen?= <j@b>": [a(b"j", b"b", b"=?utf-8?q?J=C3=BCrgen?=")],
    b"J\xc3\xbcrgen <j\xc3\xbc@b\xc3\xbc>": [a(b"j\xc3\xbc", b"b\xc3\xbc", b"J\xc3\xbcrgen")],
    b'"a b"@c': [a(b"a b", b"c")],
    b'<"a@b"@c>': [a(b"a@b", b"c")],
    b"a . b @ c . d": [a(b"a.b", b"c.d")],
    b"a.(x)b@c.d": [a(b"a.b", b"c.d")],
    b"a@[192.0.2.1]": [a(b"a", b"[192.0.2.1]")],
    b"<@r1,@r2:a@b>": [a(b"a", b"b", None, b"@r1,@r2")],
    b"N < @r1 , , @r2 : a @ b >, c@d": [a(b"a", b"b", b"N", b"@r1,@r2"), a(b"c", b"d")],
    b"g: a@b, C <c@d>;": [group(b"g"), a(b"a", b"b"), a(b"c", b"d", b"C"), END],
    b"undisclosed-recipients:;": [group(b"undisclosed-recipients"), END],
    b'"g h": a@b; , x@y': [group(b"g h"), a(b"a", b"b"), END, a(b"x", b"y")],
    b"g: a@b": [group(b"g"), a(b"a", b"b"), END],
    b"a": [a(b"a", b"MISSING_DOMAIN")],
    b"<a>, b@c": [a(b"a", b"MISSING_DOMAIN"), a(b"b", b"c")],
    b"A (c)": [a(b"A", b"MISSING_DOMAIN", b"c")],
    b"(before) A": [a(b"A", b"MISSING_DOMAIN")],
    b'"A B"': [a(b"MISSING_MAILBOX", b"MISSING_DOMAIN", b"A B")],
    b"<,a@b>": [a(b"MISSING_MAILBOX", b"SYNTAX_ERROR"), a(b"a", b"b")],
    b"A B": [a(b"MISSING_MAILBOX", b"MISSING_DOMAIN", b"A B")],
    b"<>": [a(b"MISSING_MAILBOX", b"MISSING_DOMAIN")],
    b"a@": [a(b"a", b"MISSING_DOMAIN")],
    b"@b": [a(b"MISSING_MAILBOX", b"b")],
    b"a@@b": [a(b"a", b"MISSING_DOMAIN")],
    b"<@b>": [a(b"MISSING_MAILBOX", b"MISSING_DOMAIN", None, b"INVALID_ROUTE")],
    b"A <a@b": [a(b"a", b"SYNTAX_ERROR", b"A")],
    b"<a@b@c>": [a(b"a", b"SYNTAX_ERROR")],
    b"A@B <c@d>, e@f": [a(b"A", b"B"), a(b"e", b"f")],
    b"a@b; c@d": [a(b"a", b"b")],
    b'"never closed <a@b>': [a(b"MISSING_MAILBOX", b"MISSING_DOMAIN")],
    b"(never closed <a@b>": [],
    b"[a@b], c@d": [a(b"MISSING_MAILBOX", b"MISSING_DOMAIN"), a(b"c", b"d")],
    b"a@b\\": [a(b"a", b"b")],
}


@pytest.mark.parametrize("value", CASES)
def test_addresses(value: bytes) -> None:
    assert addresses(value) == CASES[value]


def test_number_is_bounded() -> None:
    assert len(addresses(b"a," * (2 * ADDRESSES_MAX))) == ADDRESSES_MAX
    assert len(addresses(b"," * 100_000 + b"a@b")) == 1
