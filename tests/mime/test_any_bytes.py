"""Any bytes are accepted as a mail: there is no exception, offsets are in order, and
the answers are valid IMAP."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from obox.mime import (
    Section,
    addresses,
    decode_header,
    decoded,
    header_end,
    header_fields,
    header_values,
    parse,
    parse_date,
    section,
    summary,
    text_of,
    to_text,
)

from .imapwire import check_body, check_envelope, read
from .trees import check_tree

# The scanner reacts to these fragments, so that random mails reach its special cases.
_FRAGMENTS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"\r\n\r\n",
        b"\n\n",
        b"\0",
        b"\xff",
        b"\xc3\xa9",
        b"--",
        b":",
        b";",
        b"=",
        b'"',
        b"\\",
    ),
    *(
        b"(",
        b")",
        b"<",
        b">",
        b"@",
        b",",
        b".",
        b"[",
        b"]",
        b"/",
        b"?",
        b"a",
        b"b",
        b"--b",
        b"\r\n--b\r\n",
        b"\r\n--b--\r\n",
        b"\n--bb\n",
    ),
    *(
        b"\n--c\n",
        b"\n--c--",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n",
        b"Content-Type: multipart/digest; boundary=c\n\n",
    ),
    *(
        b'Content-Type: multipart/x; boundary="bb"\r\n',
        b"Content-Type: message/rfc822\r\n\r\n",
        b"Content-Type: message/global\n\n",
    ),
    *(
        b"Content-Type: text/plain; charset=utf-8\r\n",
        b"Content-Type:",
        b"MIME-Version: 1.0\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
    ),
    *(
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n",
        b"Content-Disposition: attachment; filename=",
        b"Content-Language: en, de\r\n",
    ),
    *(
        b"Content-ID: ",
        b"Content-Description: ",
        b"Content-Location: x\r\n",
        b"Content-MD5: ",
        b"From: A <a@b>\r\n",
        b"To: g: a@b, c;\r\n",
    ),
    *(
        b"Sender: ",
        b"Reply-To: <@a:b@c>",
        b"Cc: ",
        b"Subject: ",
        b"Date: 1 Jan 2026 00:00:00 +0100",
        b"Message-ID: <x@y>\r\n",
        b"=?utf-8?q?",
    ),
    *(b"=?utf-8?b?", b"?=", b"=?utf-8?q?=C3?= ", b"In-Reply-To: "),
]
mails = st.one_of(
    st.binary(max_size=300),
    st.lists(st.one_of(st.sampled_from(_FRAGMENTS), st.binary(max_size=4)), max_size=60).map(b"".join),
)


@settings(max_examples=400, deadline=None)
@given(mails)
def test_tree_and_sections(mail: bytes) -> None:
    root = parse(mail)
    assert (root.header_start, root.header_end, root.body_end) == (0, header_end(mail), len(mail))
    paths: list[tuple[int, ...]] = []
    check_tree(root, 0, len(mail), paths, ())
    assert section(mail, root, Section()) == (0, len(mail))
    for path in [*paths, (1,), (99,), (0,)]:
        for what in ("", "HEADER", "TEXT", "MIME", "HEADER.FIELDS", "HEADER.FIELDS.NOT"):
            found = section(mail, root, Section(path, what, (b"from", b"Subject")))
            if isinstance(found, tuple):
                assert 0 <= found[0] <= found[1] <= len(mail)
            elif found is not None:
                assert found.endswith(b"\n")
    assert "".join(text_of(mail, root)) is not None
    decoded(mail, root)


@settings(max_examples=400, deadline=None)
@given(mails)
def test_answers_are_imap(mail: bytes) -> None:
    kept = summary(mail)
    check_envelope(read(kept.envelope))
    check_body(read(kept.body), False)
    check_body(read(kept.bodystructure), True)
    assert mail.startswith(kept.header)
    assert b"\r" not in kept.message_id
    assert b"\n" not in kept.message_id


@settings(max_examples=300, deadline=None)
@given(
    mails, st.frozensets(st.one_of(st.sampled_from([b"from", b"To", b"subject"]), st.binary(max_size=4)), max_size=20)
)
def test_fields_partition_the_header(header: bytes, names: frozenset[bytes]) -> None:
    header = header[: header_end(header)]
    picked, kept = header_fields(header, names, False), header_fields(header, names, True)
    lines, rest = picked.split(b"\n"), kept.split(b"\n")
    assert picked.endswith(b"\n")
    assert kept.endswith(b"\n")
    # Each line is on one side. Only the ends of lines, and the blank line, of which
    # there are two now, may differ.
    both = sorted(line.rstrip(b"\r") for line in (*lines, *rest) if line.rstrip(b"\r"))
    assert both == sorted(line.rstrip(b"\r") for line in header.split(b"\n") if line.rstrip(b"\r"))
    assert header_fields(picked, names, False) == picked
    assert header_fields(kept, names, False) == b"\r\n"


@settings(max_examples=300, deadline=None)
@given(
    mails, st.one_of(st.none(), st.sampled_from([b"utf-7", b"hz", b"utf-16", b"iso-2022-kr"]), st.binary(max_size=12))
)
def test_the_rest_takes_any_bytes(value: bytes, charset: bytes | None) -> None:
    decode_header(value)
    to_text(value, charset)
    parse_date(value)
    header_values(value, value[:5])
    groups = 0
    for address in addresses(value):
        if address.host is None:
            groups += 1 if address.mailbox is not None else -1
        assert groups in {0, 1}
    assert groups == 0
