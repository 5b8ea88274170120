"""Comparison with the standard library: obox reads the mails that it writes in the same
way."""

from __future__ import annotations

import email
import email.header
import email.message
import email.policy
import email.utils
import re
from email.message import EmailMessage

from hypothesis import given, settings
from hypothesis import strategies as st

from obox.mime import (
    Part,
    addresses,
    decode_header,
    decoded,
    envelope,
    header_fields,
    header_values,
    parse,
    part_text,
    sent_date,
)

from .imapwire import read

words = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=12)
texts = st.lists(words, max_size=12).map(" ".join)
atoms = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789"), min_size=1, max_size=8)
names = st.text(st.sampled_from('abcABC ,.;:<>()"@[]éü€日'), max_size=12).map(lambda s: " ".join(s.split()))
bodies = st.lists(st.one_of(texts, st.just("--b"), st.just(""), st.just("From x")), max_size=6).map("\n".join)


@st.composite
def leaves(draw: st.DrawFn) -> EmailMessage:
    message = EmailMessage()
    if draw(st.booleans()):
        message.set_content(draw(bodies), subtype=draw(st.sampled_from(["plain", "html"])), charset="utf-8")
    else:
        name = draw(st.one_of(st.none(), atoms))
        message.set_content(draw(st.binary(max_size=200)), maintype="image", subtype="png", filename=name)
    return message


def multipart(parts: list[EmailMessage]) -> EmailMessage:
    message = EmailMessage()
    message.make_mixed()
    for part in parts:
        message.attach(part)
    return message


def forwarded(inner: EmailMessage) -> EmailMessage:
    message = EmailMessage()
    message.set_content(inner)
    return message


trees = st.recursive(
    leaves(),
    lambda inner: st.one_of(st.lists(inner, min_size=1, max_size=3).map(multipart), inner.map(forwarded)),
    max_leaves=6,
)


def compare(mail: bytes, part: Part, theirs: email.message.Message) -> None:
    assert (part.type + b"/" + part.subtype).decode() == theirs.get_content_type()
    if theirs.get_content_type() == "message/rfc822":
        assert part.message is not None
        compare(mail, part.message, theirs.get_payload(0))
    elif theirs.is_multipart():
        kids = theirs.get_payload()
        assert len(part.children) == len(kids)
        for child, kid in zip(part.children, kids, strict=True):
            compare(mail, child, kid)
    else:
        raw = theirs.get_payload(decode=True)
        assert isinstance(raw, bytes)
        assert decoded(mail, part) == raw
        if part.type == b"text":
            assert part_text(mail, part) == raw.decode(theirs.get_content_charset("utf-8"))
        assert part.encoding.decode() == str(theirs.get("Content-Transfer-Encoding", "7bit")).lower()
        filename = theirs.get_filename()
        if filename is not None:
            assert part.disposition is not None
            assert dict(part.disposition[1])[b"filename"].decode() == filename


@settings(max_examples=150, deadline=None)
@given(trees, st.sampled_from(["\r\n", "\n"]))
def test_structure_and_content(message: EmailMessage, line_end: str) -> None:
    mail = message.as_bytes(policy=email.policy.default.clone(linesep=line_end))
    compare(mail, parse(mail), email.message_from_bytes(mail))


people = st.tuples(names, atoms, atoms.map(lambda s: s + ".example"))
groups = st.tuples(atoms, st.lists(people, max_size=2))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(people, people, groups), min_size=1, max_size=4), st.sampled_from([", ", ",", " ,\r\n\t"]))
def test_addresses(them: list[tuple[str, str, str] | tuple[str, list[tuple[str, str, str]]]], comma: str) -> None:
    def write(one: tuple[str, str, str]) -> str:
        return email.utils.formataddr((one[0], f"{one[1]}@{one[2]}"))

    value: list[str] = []
    expected: list[tuple[str | None, str | None, str | None]] = []
    for item in them:
        if len(item) == 2:
            value.append(f"{item[0]}: {comma.join(map(write, item[1]))};")
            expected += [(None, item[0], None), *((n or None, m, h) for n, m, h in item[1]), (None, None, None)]
        else:
            value.append(write(item))
            expected.append((item[0] or None, *item[1:]))
    found = [
        (a.name and decode_header(a.name), a.mailbox and a.mailbox.decode(), a.host and a.host.decode())
        for a in addresses(comma.join(value).encode())
    ]
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(texts)
def test_encoded_subject(text: str) -> None:
    for charset in ("utf-8", "utf-16be"):
        value = email.header.Header(text, charset, header_name="Subject").encode().encode()
        assert decode_header(value) == text
    subject = read(envelope(b"Subject: " + email.header.Header(text, "utf-8").encode().encode() + b"\r\n\r\n"))[1]
    assert decode_header(subject) == text


@settings(max_examples=100, deadline=None)
@given(st.integers(-2_000_000_000, 4_000_000_000), st.integers(-14 * 60, 14 * 60))
def test_dates(seconds: int, zone_min: int) -> None:
    base = email.utils.formatdate(seconds + 60 * zone_min, usegmt=True).removesuffix("GMT")
    zone = f"{'-' if zone_min < 0 else '+'}{abs(zone_min) // 60:02}{abs(zone_min) % 60:02}"
    assert sent_date(f"Date: {base}{zone}\r\n\r\n".encode()) == seconds


fields = st.lists(
    st.tuples(st.sampled_from(["A", "b", "X-a", "AB"]), st.lists(atoms, min_size=1, max_size=3)), max_size=8
)


@settings(max_examples=100, deadline=None)
@given(fields, st.frozensets(st.sampled_from([b"a", b"B", b"ab", b"x-A", b"none"])), st.sampled_from(["\r\n", "\n"]))
def test_header_fields(pairs: list[tuple[str, list[str]]], wanted: frozenset[bytes], end: str) -> None:
    lines = [f"{name}: {(end + ' ').join(words)}{end}" for name, words in pairs]
    header = ("".join(lines) + end).encode()
    lower = {name.lower().decode() for name in wanted}
    inside = "".join(line for line, (name, _) in zip(lines, pairs, strict=True) if name.lower() in lower)
    outside = "".join(line for line, (name, _) in zip(lines, pairs, strict=True) if name.lower() not in lower)
    assert header_fields(header, wanted, False) == inside.encode() + b"\r\n"
    assert header_fields(header, wanted, True) == (outside + end).encode()
    theirs = email.message_from_bytes(header)
    for name in ("a", "ab"):
        expected = [re.sub(r"\r?\n", "", value) for value in theirs.get_all(name, [])]
        assert [value.decode() for value in header_values(header, name.encode())] == expected
