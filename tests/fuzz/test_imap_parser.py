"""Any bytes are parsed or refused: there is no exception, the events do not depend on
how the bytes are cut, and the memory is within the limits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from obox.imap import wire
from obox.imap.ast import Authenticate, Command, Idle
from obox.imap.events import BadCommand, Event, NeedData, NeedParse, NeedTurn, TooBig
from obox.imap.parser import Limits, Parser

LIMITS = Limits(
    line_bytes_max=120,
    literal_bytes_max=20,
    literals_bytes_max=40,
    append_bytes_max=50,
    multiappend_bytes_max=80,
    discard_bytes_max=200,
    arguments_max=8,
    depth_max=4,
)

WORDS = [
    *b"CAPABILITY NOOP LOGOUT STARTTLS AUTHENTICATE LOGIN ENABLE SELECT EXAMINE CREATE DELETE RENAME LIST LSUB".split(),
    *b"NAMESPACE STATUS APPEND IDLE DONE CHECK CLOSE EXPUNGE UID SEARCH FETCH STORE COPY MOVE ID SORT THREAD".split(),
    *b"PLAIN QRESYNC CONDSTORE RETURN SUBSCRIBED RECURSIVEMATCH MESSAGES ALL FLAGS +FLAGS.SILENT BODY[ ]".split(),
    *b"BODY.PEEK[] BODY[1.HEADER.FIELDS <0.5> CHANGEDSINCE VANISHED UNCHANGEDSINCE OR NOT HEADER SINCE".split(),
    *b"1-Feb-2000 CHARSET UTF-8 MODSEQ OLDER KEYWORD \\Seen $x 1:* 1:5,7 0 9999999999 NIL = * % & &- &APw- ~".split(),
    *b'{3} {3+} ~{5+} {0+} {30+} {60+} {500+} {99999999999999999999+} \r\n \n \r \0 \xff " \\ ( ) < >'.split(b" "),
    b'"a b"',
    b'"\\""',
    b'"17-Jul-1996 02:44:25 -0700"',
    b" ",
    b"a ",
]

noise = st.binary(max_size=200)
sentences = st.lists(st.sampled_from(WORDS) | st.binary(max_size=3), max_size=30).map(b" ".join)
commands = st.lists(sentences.map(lambda s: b"a " + s + b"\r\n"), max_size=4).map(b"".join)
glued = st.lists(st.sampled_from(WORDS), max_size=40).map(b"".join)


def drive(pieces: list[bytes]) -> list[Event]:
    parser = Parser(LIMITS)
    events: list[Event] = []
    for piece in pieces:
        parser.feed(piece)
        while not isinstance(event := parser.next(), NeedData):
            if isinstance(event, NeedTurn | NeedParse):
                continue
            events.append(event)
            assert isinstance(event, Event)
            repr(event)
            if isinstance(event, Idle):
                parser.expect_done()
            elif isinstance(event, Authenticate):
                parser.expect_sasl()
            elif isinstance(event, BadCommand | TooBig):
                line = wire.refusal(event)
                assert line.endswith(b"\r\n")
                assert b"\n" not in line[:-2]
            elif isinstance(event, Command):
                assert event.tag
        assert parser.buffered <= LIMITS.line_bytes_max + LIMITS.multiappend_bytes_max + LIMITS.literals_bytes_max + 64
    return events


@settings(max_examples=300)
@given(noise | commands | glued, st.integers(1, 40))
def test_any_bytes(data: bytes, step: int) -> None:
    events = drive([data])
    assert drive([data[i : i + 1] for i in range(len(data))]) == events
    assert drive([data[i : i + step] for i in range(0, len(data), step)]) == events


@settings(max_examples=100)
@given(noise)
def test_a_fresh_line_is_heard_again(data: bytes) -> None:
    """After noise without literals and the end of its line, the parser reads the next
    command."""
    data = data.replace(b"}", b")")
    events = drive([data + b"\r\nz NOOP\r\n"])
    last = events[-1]
    assert isinstance(last, Command)
    assert last.tag == b"z"
