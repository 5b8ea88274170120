"""Any bytes over LMTP: there is no exception, the answers do not depend on how the
bytes are cut, and the memory is within the limits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from obox.lmtp.address import parse_parameters, parse_path, split_detail
from obox.lmtp.machine import BodyChunk, BodyDropped, Machine, MailReceived, Pause, RecipientAsked
from obox.lmtp.replies import Reply
from obox.lmtp.settings import Settings
from obox.lmtp.trace import inspect

LIMITS = Settings(mail_bytes_max=40, recipients_max=2, line_bytes_max=60, errors_max=8)

LINES = [
    *(b"LHLO x|HELO x|MAIL FROM:<>|MAIL FROM:<a@b> SIZE=9|RCPT TO:<u@d>|RCPT TO:<no@d>|DATA|RSET|NOOP".split(b"|")),
    *(b"BDAT 5|BDAT 5 LAST|BDAT 0 LAST|BDAT 60|BDAT x|QUIT|.|..|hello|STARTTLS|VRFY|".split(b"|")),
    b"x" * 70,
]

noise = st.binary(max_size=40)
session = st.lists(
    st.sampled_from(LINES).map(lambda line: line + b"\r\n") | st.sampled_from([b"\r", b"\n", b".", b"\0\xff"]) | noise,
    max_size=30,
).map(b"".join)
likely = session.map(lambda data: b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<u@d>\r\n" + data)


def run(pieces: list[bytes]) -> tuple[bytes, list[bytes]]:
    machine = Machine(LIMITS)
    output, body, mails = b"", b"", []
    for piece in pieces:
        machine.feed(piece)
        while not isinstance(event := machine.next_event(), Pause):
            if isinstance(event, RecipientAsked):
                code = 550 if event.user.startswith("no") else 250
                machine.answer_recipient(Reply(code, "", "x"), event.address)
            elif isinstance(event, BodyChunk):
                assert event.data
                body += event.data
            elif isinstance(event, BodyDropped):
                body = b""
            elif isinstance(event, MailReceived):
                assert event.size == len(body) <= LIMITS.mail_bytes_max
                assert 1 <= len(event.recipients) <= LIMITS.recipients_max
                mails.append(body)
                body = b""
                machine.answer_mail([Reply(250, "", "saved")] * len(event.recipients))
        assert machine.buffered_bytes <= LIMITS.line_bytes_max
        output += machine.take_output()
    for line in output.split(b"\r\n")[:-1]:
        assert line[:3].isdigit()
        assert b"\n" not in line
    return output, mails


@settings(max_examples=300, deadline=None)
@given(session | likely | noise)
def test_whole_or_byte_by_byte(data: bytes) -> None:
    assert run([data]) == run([data[i : i + 1] for i in range(len(data))])


@given(st.text(max_size=60) | st.from_regex(r'<("[^"]*"|[a-z+.]*)(@[a-z.\[\]]*)?>( [A-Z]+=?\w*)*', fullmatch=True))
def test_paths(text: str) -> None:
    found = parse_path(text)
    if found is None:
        return
    address, parameters = found
    parse_parameters(parameters)
    user, detail = split_detail(address, "+")
    for value in (address.text, user, detail):
        assert not any(char in value for char in "\r\n\0")


header_bytes = st.lists(
    st.sampled_from(
        [
            b"Return-Path: <x>",
            b"Delivered-To: u@d",
            b"Received: by x id y; z",
            b"\r\n",
            b"\n",
            b" ",
            b"\t",
            b":",
            b"a: b",
        ]
    )
    | st.binary(max_size=5),
    max_size=20,
).map(b"".join)


@given(header_bytes)
def test_headers(source: bytes) -> None:
    found = inspect(source)
    assert len(found.source) <= len(source)
    again = inspect(found.source)
    assert again.source == found.source or b"eturn-" in source
    if b"return-path" not in source.lower():
        assert found.source == source
