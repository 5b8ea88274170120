"""Lines, literals and limits: what the parser requests, refuses and drops. The result
does not depend on how the bytes are cut."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.imap import ast
from obox.imap.ast import Append, Authenticate, Idle, Login, Noop
from obox.imap.events import (
    NEED_DATA,
    BadCommand,
    BadLine,
    Event,
    IdleDone,
    NeedContinuation,
    NeedData,
    NeedParse,
    NeedTurn,
    SaslResponse,
    TooBig,
)
from obox.imap.parser import Limits, Parser

SMALL = Limits(
    line_bytes_max=60,
    literal_bytes_max=8,
    literals_bytes_max=12,
    append_bytes_max=20,
    multiappend_bytes_max=30,
    discard_bytes_max=1_000,
    arguments_max=5,
    flags_max=5,
    list_patterns_max=5,
    depth_max=3,
)


def drive(pieces: list[bytes], limits: Limits | None = None) -> list[Event]:
    """Return the events that a server gets which answers IDLE and AUTHENTICATE with a
    continuation."""
    parser = Parser(limits)
    events: list[Event] = []
    for piece in pieces:
        parser.feed(piece)
        while not isinstance(event := parser.next(), NeedData):
            if isinstance(event, NeedTurn | NeedParse):
                continue
            events.append(event)
            if isinstance(event, Idle):
                parser.expect_done()
            elif isinstance(event, Authenticate):
                parser.expect_sasl()
    return events


def whole(data: bytes, limits: Limits | None = None) -> list[Event]:
    """Return the events of `data`, and assert that they are the same byte by byte."""
    events = drive([data], limits)
    assert drive([data[i : i + 1] for i in range(len(data))], limits) == events
    return events


# -- literals ----------------------------------------------------------------------------------------------------------


def test_synchronising_literal_asks_for_a_continuation() -> None:
    parser = Parser()
    parser.feed(b"a login {5}\r\n")
    assert parser.next() == NeedContinuation(b"a", "LOGIN", 5)
    assert parser.next() == NEED_DATA
    parser.feed(b"smith {6}\r\nse")
    assert parser.next() == NeedContinuation(b"a", "LOGIN", 6)
    assert parser.next() == NEED_DATA
    parser.feed(b"same\r\nb NOOP\r\n")
    assert parser.next() == Login(b"a", "smith", b"sesame")
    assert parser.next() == Noop(b"b")
    assert parser.next() == NEED_DATA


def test_non_synchronising_literal_does_not_ask() -> None:
    assert whole(b"a LOGIN {5+}\r\nsmith {0+}\r\n\r\n") == [Login(b"a", "smith", b"")]


def test_bare_line_feeds_end_lines() -> None:
    assert whole(b"a LOGIN {5+}\nsmith x\nb NOOP\n") == [Login(b"a", "smith", b"x"), Noop(b"b")]


def test_a_refused_literal_is_not_waited_for() -> None:
    parser = Parser()
    parser.feed(b"a APPEND x {9}\r\n")
    assert isinstance(parser.next(), NeedContinuation)
    parser.refuse()
    parser.feed(b"b NOOP\r\n")
    assert parser.next() == Noop(b"b")


def test_a_broken_command_is_refused_before_its_literal() -> None:
    events = whole(b"a FROB {5}\r\nb NOOP\r\n(c {3}\r\nd NOOP\r\n")
    assert events == [
        BadCommand(b"a", 'Unknown command "FROB"'),
        Noop(b"b"),
        BadCommand(None, "Expected a tag: letters and digits before the command"),
        Noop(b"d"),
    ]


def test_a_broken_command_swallows_the_literals_that_come_unasked() -> None:
    events = whole(b"a FROB {7+}\r\nx NOOP\n {3+}\r\n\r\n\n {5}\r\nb NOOP\r\n")
    assert events == [BadCommand(b"a", 'Unknown command "FROB"'), Noop(b"b")]


def test_a_brace_in_quotes_is_text() -> None:
    assert whole(b'a LOGIN "{5}" "x{3+}"\r\n') == [Login(b"a", "{5}", b"x{3+}")]


def test_append_literal_is_not_copied_into_the_command_twice() -> None:
    mail = b"x" * 1_000_000
    parser = Parser()
    parser.feed(b"a APPEND INBOX {%d+}\r\n" % len(mail))
    assert parser.next() == NEED_DATA
    parser.feed(mail)
    parser.feed(b"\r\n")
    event = parser.next()
    assert isinstance(event, Append)
    assert event.messages[0].data is mail


# -- limits ------------------------------------------------------------------------------------------------------------


def test_too_big_is_refused_unread() -> None:
    events = whole(b"a LOGIN {9}\r\nb APPEND x {21}\r\nc APPEND x {20}\r\n%b\r\n" % (b"m" * 20), SMALL)
    assert events == [
        TooBig(b"a", "LOGIN", 9, 8),
        TooBig(b"b", "APPEND", 21, 20),
        NeedContinuation(b"c", "APPEND", 20),
        Append(b"c", "x", (ast.AppendMessage(b"m" * 20),)),
    ]


def test_too_big_and_unasked_is_thrown_away() -> None:
    junk = b"b NOOP\r\n" * 10
    events = whole(b"a LOGIN {80+}\r\n%b {3+}\r\n\r\n\n x\r\nc NOOP\r\n" % junk, SMALL)
    assert events == [TooBig(b"a", "LOGIN", 80, 8), Noop(b"c")]
    events = whole(b"a APPEND x {80+}\r\n%b {3}\r\nc NOOP\r\n" % junk, SMALL)
    assert events == [TooBig(b"a", "APPEND", 80, 20), Noop(b"c")]


def test_the_sum_of_literals_is_bounded() -> None:
    assert whole(b"a LOGIN {8+}\r\nxxxxxxxx {5}\r\nb NOOP\r\n", SMALL) == [TooBig(b"a", "LOGIN", 5, 4), Noop(b"b")]
    events = whole(b"a APPEND x {20+}\r\n%b {11}\r\nb NOOP\r\n" % (b"m" * 20), SMALL)
    assert events == [TooBig(b"a", "APPEND", 11, 10), Noop(b"b")]


def test_the_mailbox_name_of_append_is_no_mail() -> None:
    assert whole(b"a APPEND {9}\r\nb APPEND {1+}\r\nx {9+}\r\n123456789\r\n", SMALL) == [
        TooBig(b"a", "APPEND", 9, 8),
        Append(b"b", "x", (ast.AppendMessage(b"123456789"),)),
    ]


@pytest.mark.parametrize("head", [b"a LOGIN ", b"a FROB ", b"a APPEND x "])
def test_beyond_the_discard_limit_is_the_end(head: bytes) -> None:
    events = whole(head + b"{1001+}\r\nb NOOP\r\n", SMALL)
    assert len(events) == 1
    assert isinstance(events[0], TooBig)
    assert events[0].fatal


def test_long_line() -> None:
    fits = b"a LOGIN x " + b"y" * 49 + b"\r\n"  # 60 with its CR
    assert isinstance(whole(fits, SMALL)[0], Login)
    reason = "Line too long: at most 60 bytes"
    assert whole(b"a LOGIN x " + b"y" * 51 + b"\r\nb NOOP\r\n", SMALL) == [BadCommand(b"a", reason), Noop(b"b")]
    assert whole(b"y" * 500, SMALL) == [BadCommand(None, reason)]
    # The limit counts the whole command and not each line. A literal at the end of a
    # line that is dropped is still a literal.
    long = b"a LOGIN {1+}\r\nx {1+}\r\ny%b {4+}\r\nx\r\ny x\r\nb NOOP\r\n" % (b" " * 50)
    assert whole(long, SMALL) == [BadCommand(b"a", reason), Noop(b"b")]


def test_an_endless_line_holds_little() -> None:
    parser = Parser()
    for _ in range(100):
        parser.feed(b"x" * 10_000)
        parser.next()
        assert parser.buffered <= 80_000


def test_lists_are_bounded() -> None:
    for data in (b"a STORE 1 FLAGS (a b c d e f)", b"a STORE 1 FLAGS a b c d e f", b'a LIST "" (a b c d e f)'):
        event = whole(data + b"\r\n", SMALL)[0]
        assert isinstance(event, BadCommand)
        assert "at most 5" in event.reason


def test_limits_may_be_replaced_after_login() -> None:
    parser = Parser(Limits(append_bytes_max=0, line_bytes_max=20))
    parser.feed(b"a APPEND x {10}\r\n")
    assert parser.next() == TooBig(b"a", "APPEND", 10, 0)
    parser.limits = Limits()
    parser.feed(b"a APPEND averyverylongname {10}\r\n")
    assert parser.next() == NeedContinuation(b"a", "APPEND", 10)


# -- the client's answers ----------------------------------------------------------------------------------------------


def test_idle() -> None:
    assert whole(b"a IDLE\r\ndone\r\nb NOOP\r\n") == [Idle(b"a"), IdleDone(), Noop(b"b")]
    assert whole(b"a IDLE\r\nb NOOP {3+}\r\nc NOOP\r\n") == [Idle(b"a"), BadLine("Expected DONE"), Noop(b"c")]


def test_sasl() -> None:
    head = b"a AUTHENTICATE PLAIN\r\n"
    assert whole(head + b"AHgAeQ==\r\n")[1:] == [SaslResponse(b"\0x\0y")]
    assert whole(head + b"\r\n")[1:] == [SaslResponse(b"")]
    assert whole(head + b"*\r\nb NOOP\r\n")[1:] == [SaslResponse(None), Noop(b"b")]
    for bad in (b"A", b"AB==C", b"A\xff==", b"=", b"AHgAeQ== "):
        assert whole(head + bad + b"\r\n")[1:] == [BadLine("Bad base64")]
    events = whole(head + b"A" * 61 + b"{3+}\r\nb NOOP\r\n", SMALL)
    assert events[1:] == [BadLine("Line too long: at most 60 bytes"), Noop(b"b")]


def test_starttls_forgets_what_came_in_clear() -> None:
    parser = Parser()
    parser.feed(b"a STARTTLS\r\nb LOGIN x {3+}\r\ny")
    assert parser.next() == ast.StartTls(b"a")
    assert parser.discard_buffer() == 17
    assert parser.next() == NEED_DATA
    parser.feed(b"c NOOP\r\n")
    assert parser.next() == Noop(b"c")


# -- any cut -----------------------------------------------------------------------------------------------------------

SESSION = (
    b'a ID ("name" "x")\r\nb LOGIN {5}\r\nsmith {6+}\r\nsesame\r\nc SELECT INBOX\r\n\r\n'
    b"d FROB {7+}\r\nx\r\ny\r\nz {2}\r\ne IDLE\r\nDONE\r\n"
    b"f APPEND x (\\Seen) {18}\r\nmail\r\n{3+}\r\nmail\r\n \r\n (k) ~{2+}\r\n\0\n\r\n"
    b"g LOGIN {70+}\r\n" + b"n NOOP\r\n\r\n" * 7 + b" x\r\nh SEARCH " + b"x" * 90 + b"{4+}\r\n\r\n\r\n\r\n"
    b"i AUTHENTICATE PLAIN\r\nAHgAeQ==\r\nj UID FETCH 1:* (FLAGS BODY[]<0.5>)\r\nk LOGIN {9}\r\nl LOGOUT\r\n"
)


@given(st.lists(st.integers(0, len(SESSION)), max_size=40))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(SESSION)]
    pieces = [SESSION[a:b] for a, b in pairwise(edges)]
    assert drive(pieces, SMALL) == drive([SESSION], SMALL)
    assert drive(pieces) == drive([SESSION])


def test_the_session_as_a_whole() -> None:
    kinds = [type(event).__name__ for event in whole(SESSION, SMALL)]
    first = ["Id", "NeedContinuation", "Login", "Select", "BadCommand", "BadCommand", "Idle", "IdleDone"]
    then = ["NeedContinuation", "Append", "BadCommand", "TooBig", "BadCommand", "Authenticate", "SaslResponse", "Fetch"]
    assert kinds == [*first, *then, "TooBig", "Logout"]


def test_linear() -> None:
    """Four times the bytes, fed one by one, cost about four times the CPU time. If the
    parser searched the bytes that it holds again, they would cost sixteen times as
    much."""
    small, large = (min(_cost(size) for _ in range(3)) for size in (50_000, 200_000))
    assert large < 9 * small


def _cost(size: int) -> float:
    """Return the CPU seconds that the parser needs for `size` bytes, byte by byte and
    then as commands in pieces."""
    start = time.thread_time()
    parser = Parser()
    parser.feed(b"a APPEND x {%d+}\r\n" % size)
    for _ in range(size):
        parser.feed(b"m")
        assert parser.next() is NEED_DATA
    for _ in range(size // 100):
        parser.feed(b"\r\nb NOOP" * 50)
        while parser.next() is not NEED_DATA:
            pass
    return time.thread_time() - start
