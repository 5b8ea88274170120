"""The input split into lines, and mails as lines of an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.pop3.lines import LINE_BYTES_MAX, Input, Output

MAILS = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a", b"\r\n\r\n", b"\r\n.\r\n"])).map(b"".join)


def sent(mail: bytes, sizes: list[int], lines: int | None = None) -> bytes:
    """Return an answer to a mail in pieces of these sizes."""
    output, out, at = Output(lines), [], 0
    for size in [*sizes, len(mail) or 1]:
        out.append(output.piece(mail[at : at + size]))
        at += size
    return b"".join(out) + output.end()


def read(answer: bytes) -> bytes:
    """Read an answer as a client does that takes LF as the end of a line."""
    lines = answer.split(b"\n")
    assert lines[-1] == b""
    assert [line.rstrip(b"\r") for line in lines[:-1]].index(b".") == len(lines) - 2, answer
    return b"".join(line.removeprefix(b".") + b"\n" for line in lines[:-2])


@given(MAILS, st.lists(st.integers(1, 3), max_size=6))
def test_an_answer_ends_at_its_dot_alone_and_has_the_mail(mail: bytes, sizes: list[int]) -> None:
    answer = sent(mail, sizes)
    assert answer == sent(mail, []), "it does not matter how the mail is read"
    assert b"\n" not in answer.replace(b"\r\n", b""), "each line ends with CRLF"
    whole = mail.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert read(answer) == (whole if whole.endswith(b"\n") or not whole else whole + b"\r\n")


@given(MAILS, st.integers(0, 5), st.lists(st.integers(1, 3), max_size=6))
def test_top_has_the_header_and_so_many_lines(mail: bytes, count: int, sizes: list[int]) -> None:
    whole = read(sent(mail, []))
    answer = read(sent(mail, sizes, count))
    header, blank, body = (b"", b"\r\n", whole[2:]) if whole.startswith(b"\r\n") else whole.partition(b"\r\n\r\n")
    assert answer == header + blank + b"".join(lines_of(body)[:count])


def lines_of(body: bytes) -> list[bytes]:
    return [line + b"\n" for line in body.split(b"\n")[:-1]]


def test_top_stops_reading_once_it_has_its_lines() -> None:
    output = Output(1)
    assert not output.complete
    assert output.piece(b"A: b\r\n\r\none\r\ntwo") == b"A: b\r\n\r\none\r\n"
    assert output.complete
    assert output.end() == b".\r\n"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_do_not_depend_on_how_they_arrive(end: bytes) -> None:
    source = Input()
    for byte in b"NOOP" + end + b"STAT" + end + b"QU":
        source.feed(bytes([byte]))
    assert [source.next(), source.next(), source.next()] == [b"NOOP", b"STAT", None]
    assert source.clear() == b"QU"


def test_a_line_that_is_too_long_is_dropped_while_it_arrives() -> None:
    source = Input()
    most = 0
    for _ in range(100):
        source.feed(b"x" * 10_000)
        assert source.next() is None
        most = max(most, len(source.buffered))
    assert most <= LINE_BYTES_MAX + 2
    source.feed(b"\r\nNOOP\r\n")
    line = source.next()
    assert line is not None
    assert len(line) > LINE_BYTES_MAX
    assert source.next() == b"NOOP"


@pytest.mark.parametrize(("size", "fits"), [(LINE_BYTES_MAX, True), (LINE_BYTES_MAX + 1, False)])
def test_the_longest_line(size: int, fits: bool) -> None:
    source = Input()
    source.feed(b"x" * size + b"\r\nNOOP\r\n")
    line = source.next()
    assert line is not None
    assert (len(line) <= LINE_BYTES_MAX) is fits
    assert source.next() == b"NOOP"
