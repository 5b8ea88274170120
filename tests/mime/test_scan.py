"""The tree of parts and its offsets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from obox.mime import DEPTH_MAX, PARTS_MAX, Part, bodystructure, parse, summary

from .imapwire import check_body, read
from .trees import check_tree

MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"


def shape(mail: bytes, part: Part) -> object:
    """Return the shape of a part: its body, (subtype, parts) for a multipart,
    ("message", its shape) for a message."""
    if part.children:
        return (part.subtype, *[shape(mail, child) for child in part.children])
    if part.message is not None:
        return ("message", shape(mail, part.message))
    return mail[part.body_start : part.body_end]


def walk(part: Part) -> Iterator[Part]:
    rest = [part]
    while rest:
        part = rest.pop()
        yield part
        rest.extend(part.children)
        if part.message is not None:
            rest.append(part.message)


SHAPES = {
    "no header": (b"\r\nbody\r\n", b"body\r\n"),
    "empty": (b"", b""),
    "header alone": (b"Subject: x\r\n", b""),
    "plain": (b"Subject: x\r\n\r\none\r\ntwo", b"one\r\ntwo"),
    "bare LF": (b"Subject: x\n\none\ntwo", b"one\ntwo"),
    "mixed line ends": (b"Subject: x\r\nTo: y\n\r\none\ntwo", b"one\ntwo"),
    "CR is no line end": (b"Subject: x\r\ry\r\n\r\nbody", b"body"),
    "two parts": (
        MIXED + b"preamble\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n\r\n--b--\r\nepilogue",
        (b"mixed", b"one", b"two\r\n"),
    ),
    "LF": (MIXED.replace(b"\r", b"") + b"--b\n\none\n--b\n\ntwo\n--b--", (b"mixed", b"one", b"two")),
    "empty bodies": (MIXED + b"--b\r\n\r\n--b\r\nX: y\r\n\r\n\r\n--b--\r\n", (b"mixed", b"", b"")),
    "a line that starts with the boundary": (MIXED + b"--b and more\r\n\r\none\r\n--b--", (b"mixed", b"one")),
    "not at the start of a line": (MIXED + b"--b\r\n\r\nx --b\r\n--b--", (b"mixed", b"x --b")),
    "never closed": (MIXED + b"--b\r\n\r\none\r\ntwo\r\n", (b"mixed", b"one\r\ntwo\r\n")),
    "closed at once": (MIXED + b"--b--\r\n\r\n--b\r\n\r\none", (b"mixed", b"")),
    "nothing after the close": (MIXED + b"--b\r\n\r\none\r\n--b--\r\n\r\n--b\r\n\r\ntwo", (b"mixed", b"one")),
    "no delimiter": (MIXED + b"text\r\n", (b"mixed", b"")),
    "no boundary": (b"Content-Type: multipart/mixed\r\n\r\n--b\r\n\r\none", (b"mixed", b"")),
    "delimiter is the last line": (MIXED + b"--b\r\n\r\none\r\n--b", (b"mixed", b"one", b"")),
    "header cut by a delimiter": (
        MIXED + b"--b\r\nContent-Type: text/html\r\n--b\r\n\r\none\r\n--b--",
        (b"mixed", b"", b"one"),
    ),
    "nested, inner not closed": (
        MIXED + b"--b\r\nContent-Type: multipart/x; boundary=c\r\n\r\n--c\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--",
        (b"mixed", (b"x", b"one"), b"two"),
    ),
    "nested, inner boundary extends the outer": (
        MIXED
        + b"--b\r\nContent-Type: multipart/x; boundary=bc\r\n\r\n--bc\r\n\r\none\r\n--bc--\r\n--b\r\n\r\ntwo\r\n--b--",
        (b"mixed", (b"x", b"one"), b"two"),
    ),
    "nested, outer boundary extends the inner": (
        b"Content-Type: multipart/mixed; boundary=bc\r\n\r\n--bc\r\nContent-Type: multipart/x; boundary=b\r\n\r\n"
        b"--b\r\n\r\none\r\n--b--\r\n--bc\r\n\r\ntwo\r\n--bc--",
        (b"mixed", (b"x", b"one"), b"two"),
    ),
    "nested, same boundary": (
        MIXED
        + b"--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b--\r\n\r\n--b\r\n\r\ntwo\r\n--b--",
        (b"mixed", (b"x", b"one"), b"two"),
    ),
    "nested, whole line of the inner, start of the outer": (
        b"Content-Type: multipart/mixed; boundary=a-\r\n\r\n--a-\r\nContent-Type: multipart/x; boundary=a\r\n\r\n"
        b"--a\r\n\r\none\r\n--a--\r\n--a-\r\n\r\ntwo\r\n--a---",
        (b"mixed", (b"x", b"one"), b"two"),
    ),
    "multipart cut in its header": (
        MIXED + b"--b\r\nContent-Type: multipart/x; boundary=b\r\n--b\r\n\r\none\r\n--b--",
        (b"mixed", (b"x", b""), b"one"),
    ),
    "nested, same boundary, no whole line": (
        MIXED + b"--b x\r\nContent-Type: multipart/x; boundary=b\r\n\r\n--b x\r\n\r\none\r\n--b x\r\n\r\ntwo\r\n--b--",
        (b"mixed", (b"x", b"one", b"two")),
    ),
    "nested, empty part before the outer delimiter": (
        MIXED + b"--b\r\nContent-Type: multipart/x; boundary=c\r\n\r\n--c\r\n\r\n--b--",
        (b"mixed", (b"x", b"")),
    ),
    "nested, empty message before the outer delimiter": (
        MIXED + b"--b\r\nContent-Type: multipart/digest; boundary=c\r\n\r\n--c\r\n\r\n\r\n--b--",
        (b"mixed", (b"digest", ("message", b""))),
    ),
    "inner boundary in the inner epilogue": (
        MIXED
        + b"--b\r\nContent-Type: multipart/x; boundary=c\r\n\r\n--c\r\n\r\none\r\n--c--\r\n--c\r\n\r\nno\r\n--b--",
        (b"mixed", (b"x", b"one")),
    ),
    "boundary that ends in dashes": (
        b'Content-Type: multipart/mixed; boundary="b--"\r\n\r\n--b--\r\n\r\none\r\n--b----\r\n',
        (b"mixed", b"one"),
    ),
    "unquoted boundary with tspecials": (
        b"Content-Type: multipart/mixed; boundary=a=_b/c:d\r\n\r\n--a=_b/c:d\r\n\r\none\r\n--a=_b/c:d--",
        (b"mixed", b"one"),
    ),
    "message": (b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\none", ("message", b"one")),
    "message/global": (b"Content-Type: message/global\r\n\r\nSubject: x\r\n\r\none", ("message", b"one")),
    "message without a header": (b"Content-Type: message/rfc822\r\n\r\n", ("message", b"")),
    "message that is a multipart": (
        b"Content-Type: message/rfc822\r\n\r\n" + MIXED + b"--b\r\n\r\none\r\n--b--",
        ("message", (b"mixed", b"one")),
    ),
    "message in a multipart": (
        MIXED + b"--b\r\nContent-Type: message/rfc822\r\n\r\nTo: x\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--",
        (b"mixed", ("message", b"one"), b"two"),
    ),
    "message cut in its header": (
        MIXED + b"--b\r\nContent-Type: message/rfc822\r\n\r\nTo: x\r\n--b\r\n\r\ntwo\r\n--b--",
        (b"mixed", ("message", b""), b"two"),
    ),
    "digest": (
        b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nTo: x\r\n\r\none\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\ntwo\r\n--b\r\nX: y\r\n\r\nTo: x\r\n\r\nthree\r\n--b--",
        (b"digest", ("message", b"one"), b"two", ("message", b"three")),
    ),
    "message/partial is a leaf": (b"Content-Type: message/partial\r\n\r\nTo: x\r\n\r\none", b"To: x\r\n\r\none"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str) -> None:
    mail, expected = SHAPES[name]
    assert shape(mail, parse(mail)) == expected


@pytest.mark.parametrize("name", SHAPES)
def test_offsets(name: str) -> None:
    mail, _ = SHAPES[name]
    check_tree(parse(mail), 0, len(mail), [], ())


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "CR is no line end"])
def test_shape_does_not_depend_on_line_ends(name: str) -> None:
    mail, _ = SHAPES[name]
    lf = mail.replace(b"\r\n", b"\n")
    crlf = lf.replace(b"\n", b"\r\n")

    def normal(value: object) -> object:
        if isinstance(value, bytes):
            return value.replace(b"\r\n", b"\n")
        return tuple(map(normal, value)) if isinstance(value, tuple) else value

    assert normal(shape(lf, parse(lf))) == normal(shape(crlf, parse(crlf)))


TYPES = {
    b"text/html": (b"text", b"html", ()),
    b"TEXT / Html ; Charset=UTF-8": (b"text", b"html", ((b"charset", b"UTF-8"),)),
    b'text/html; charset="utf-8"': (b"text", b"html", ((b"charset", b"utf-8"),)),
    b"text/html; charset=utf-8 (in (nested) comment); x=y": (b"text", b"html", ((b"charset", b"utf-8"), (b"x", b"y"))),
    b"text (c) / (d) html (e); (f) a (g) = (h) b (i)": (b"text", b"html", ((b"a", b"b"),)),
    b'a/b; n="x\\"y\\\\z;(no comment)"; m=': (b"a", b"b", ((b"n", b'x"y\\z;(no comment)'), (b"m", b""))),
    b'a/b;\r\n\tn="one\r\n two";\r\n m=3': (b"a", b"b", ((b"n", b"one two"), (b"m", b"3"))),
    b'a/b; n="never closed; m=3': (b"a", b"b", ((b"n", b"never closed; m=3"),)),
    b"a/b;; =1; flag; x=y;": (b"a", b"b", ((b"x", b"y"),)),
    b"a/b; x=1; x=2": (b"a", b"b", ((b"x", b"1"), (b"x", b"2"))),
    b"a/b; name*0*=utf-8''%e2; name*1=z": (b"a", b"b", ((b"name*", b"utf-8''%e2z"),)),
    b"text/html charset=foo": (b"text", b"html", ()),
    b"text": (b"text", b"plain", ()),
    b"text/": (b"text", b"plain", ()),
    b"/html": (b"text", b"plain", ()),
    b"": (b"text", b"plain", ()),
    b"\xc3\xa9/\x00": (b"\xc3\xa9", b"\x00", ()),
}


@pytest.mark.parametrize("value", TYPES)
def test_content_type(value: bytes) -> None:
    part = parse(b"Content-Type: " + value + b"\r\n\r\n")
    assert (part.type, part.subtype, part.params) == TYPES[value]


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (b"BASE64", b"base64"),
        (b" 8bit (c) ", b"8bit"),
        (b'"quoted-printable"', b"quoted-printable"),
        (b"quoted-printable;", b"quoted-printable"),
        (b"quoted printable", b"7bit"),
        (b"text/html", b"7bit"),
        (b"x-own", b"x-own"),
        (b"", b"7bit"),
    ],
)
def test_transfer_encoding(value: bytes, encoding: bytes) -> None:
    part = parse(b"Content-Type: a/b\r\nContent-Transfer-Encoding: " + value + b"\r\n\r\n")
    assert part.encoding == encoding


def test_content_fields() -> None:
    part = parse(
        b"MIME-Version: 1.0\r\ncontent-id : <a\r\n b>\r\nContent-Description: two\r\n\twords \r\nContent-MD5: abc=\r\n"
        b'Content-Disposition: Attachment (c); FileName="a b"; size=3\r\nContent-Language: en, de-AT (c) , fr\r\n'
        b"Content-Location: http://example.com/\r\nContent-ID: second\r\n\r\n"
    )
    assert part.id == b"<a b>"
    assert part.description == b"two\twords"
    assert part.md5 == b"abc="
    assert part.disposition == (b"attachment", ((b"filename", b"a b"), (b"size", b"3")))
    assert part.language == (b"en", b"de-AT", b"fr")
    assert part.location == b"http://example.com/"


def test_absent_content_fields_are_none() -> None:
    part = parse(b"Content-Type: a/b\r\n\r\n")
    assert (part.id, part.description, part.md5, part.disposition, part.language, part.location) == (
        None,
        None,
        None,
        None,
        (),
        None,
    )


def test_content_fields_without_mime_version_or_type_do_not_count() -> None:
    plain = b"Content-Transfer-Encoding: base64\r\nContent-Disposition: attachment\r\n\r\n"
    for mail, expected in (
        (plain, b"7bit"),
        (b"MIME-Version: 1.0\r\n" + plain, b"base64"),
        (b"Content-Type: text/plain\r\n" + plain, b"base64"),
    ):
        assert parse(mail).encoding == expected
        assert read(summary(mail).body)[5] == expected
    inner = parse(b"Content-Type: message/rfc822\r\n\r\n" + plain).message
    assert inner is not None
    assert inner.encoding == b"7bit"
    assert parse(MIXED + b"--b\r\n" + plain + b"--b--").children[0].encoding == b"base64"


def test_lines() -> None:
    mail = MIXED + b"--b\r\n\r\none\r\ntwo\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nTo: x\r\n\r\none\r\n\r\n--b--"
    text, message = parse(mail).children
    assert text.lines == 1
    assert message.lines == 3


def test_depth_bomb_is_opaque_below_the_limit() -> None:
    levels = 3 * DEPTH_MAX
    mail = b"".join(b"Content-Type: multipart/x; boundary=b%d.\r\n\r\n--b%d.\r\n" % (i, i) for i in range(levels))
    root = parse(mail)
    depth, part = 0, root
    while part.children:
        depth, part = depth + 1, part.children[0]
    assert depth == DEPTH_MAX
    assert (part.type, part.subtype) == (b"application", b"octet-stream")
    assert part.body_end == len(mail)
    check_body(read(bodystructure(mail, root)), True)


def test_message_bomb_is_opaque_below_the_limit() -> None:
    mail = b"Content-Type: message/rfc822\r\n\r\n" * (3 * DEPTH_MAX)
    depth, part = 0, parse(mail)
    while part.message is not None:
        depth, part = depth + 1, part.message
    assert depth == DEPTH_MAX
    assert (part.type, part.subtype) == (b"application", b"octet-stream")


def test_parts_bomb() -> None:
    mail = MIXED + b"--b\r\n\r\nx\r\n" * (2 * PARTS_MAX)
    root = parse(mail)
    assert len(root.children) == PARTS_MAX - 1
    assert root.children[-1].body_end == root.body_end == len(mail)
    assert len(list(walk(root))) == PARTS_MAX


def test_parts_bomb_of_multiparts() -> None:
    mail = MIXED + b"--b\r\nContent-Type: multipart/x; boundary=c\r\n\r\n--c\r\n\r\n--c--\r\n" * PARTS_MAX
    assert len(list(walk(parse(mail)))) <= PARTS_MAX + 1


class Searched(bytes):
    """Bytes that count how many of them were searched."""

    total = 0

    def find(self, needle, start=0, end=None):
        at = super().find(needle, start, len(self) if end is None else end)
        Searched.total += (min(len(self), end or len(self)) if at < 0 else at) - start
        return at


@pytest.mark.parametrize(
    "block",
    [
        b"--b\r\nContent-Type: multipart/x; boundary=c\r\n\r\n",
        b"--b\r\nContent-Type: multipart/x; boundary=bb\r\n\r\n--bb\r\n\r\n--bb--\r\n",
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n",
        b"x\r\n--c\r\n",
    ],
)
def test_each_byte_is_searched_a_bounded_number_of_times(block: bytes) -> None:
    """The test counts the work and measures no time. No block makes the scanner search
    the rest of the mail again."""
    mail = Searched(MIXED + block * 5000)
    Searched.total = 0
    parse(mail)
    assert Searched.total < 10 * len(mail)
