"""The LMTP machine without I/O: dialogues as text, bodies, and input that is cut at any
place."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from obox.lmtp.machine import (
    NEXT,
    WANTED,
    BodyChunk,
    BodyDropped,
    Machine,
    MailReceived,
    Pause,
    RecipientAsked,
    State,
    TlsAsked,
)
from obox.lmtp.replies import Reply
from obox.lmtp.settings import Settings

SMALL = Settings(hostname="mx", mail_bytes_max=200, recipients_max=3, line_bytes_max=120, errors_max=5)


class Driver:
    """A driver that answers each recipient by its name and each mail with "saved". It
    keeps the mails."""

    def __init__(self, settings: Settings = SMALL) -> None:
        self.machine = Machine(settings)
        self.output = b""
        self.body = b""
        self.mails: list[tuple[str, tuple[object, ...], bytes]] = []
        self.asked: list[RecipientAsked] = []
        self.events: list[MailReceived] = []
        self.dropped = 0

    def feed(self, data: bytes) -> None:
        self.machine.feed(data)
        while not isinstance(event := self.machine.next_event(), Pause):
            if isinstance(event, RecipientAsked):
                self.asked.append(event)
                assert self.machine.next_event() is Pause.NEED_ANSWER
                if event.user.startswith("no"):
                    self.machine.answer_recipient(Reply(550, "5.1.1", "Unknown"))
                else:
                    self.machine.answer_recipient(Reply(250, "2.1.5", "OK"), event.address)
            elif isinstance(event, BodyChunk):
                self.body += event.data
            elif isinstance(event, BodyDropped):
                self.body = b""
                self.dropped += 1
            elif isinstance(event, MailReceived):
                self.events.append(event)
                assert event.size == len(self.body)
                self.mails.append((event.reverse_path, event.recipients, self.body))
                self.body = b""
                self.machine.answer_mail([Reply(250, "2.0.0", f"{to} saved") for to in event.recipients])
            else:
                assert isinstance(event, TlsAsked)
                self.machine.tls_started()
        self.output += self.machine.take_output()

    def send(self, *lines: str) -> list[str]:
        """Pass lines to the machine. Return the new reply lines."""
        before = len(self.output)
        self.feed("".join(line + "\r\n" for line in lines).encode())
        return self.output[before:].decode().splitlines()


def started(settings: Settings = SMALL, *lines: str) -> Driver:
    driver = Driver(settings)
    driver.send("LHLO c", *lines)
    return driver


def bodies(data: Iterable[bytes], settings: Settings = SMALL) -> tuple[list[bytes], bytes]:
    """Return the mails that result from DATA and these bytes, and the replies."""
    driver = started(replace(settings, mail_bytes_max=100_000), "MAIL FROM:<a@b>", "RCPT TO:<u@d>", "DATA")
    start = len(driver.output)
    for piece in data:
        driver.feed(piece)
    return [mail[2] for mail in driver.mails], driver.output[start:]


# Each line has what the client sends => codes of the replies, in order.
DIALOGUES = [
    # RFC 2033 §4.1
    "HELO x => 500 | EHLO x => 500 | LHLO => 501 | LHLO x y => 501 | LHLO x => 250",
    "MAIL FROM:<> => 503 | RCPT TO:<u@d> => 503 | DATA => 503 | NOOP => 250 | RSET => 250 | VRFY u => 252",
    "HELP => 214 | QUIT => 221",
    "lhlo x => 250 | mail from:<> => 250 | rcpt to:<u@d> => 250 | rset => 250 | data => 503",
    "LHLO x => 250 | MAIL FROM:<> => 250 | MAIL FROM:<> => 503 | LHLO y => 250 | MAIL FROM:<> => 250",
    "LHLO x => 250 | XCLIENT ADDR=1 => 500 | EXPN u => 500 | AUTH PLAIN => 500 | STARTTLS => 502 | NOOP x y => 250",
    # RFC 2033 §4.2: no recipient was accepted
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<no@d> => 550 | DATA => 503 | RCPT TO:<u@d> => 250 | DATA => 354",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | DATA => 354 | .=> 250 | DATA => 503",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | RCPT TO:<no@d> => 550 | RCPT TO:<v@d> => 250"
    " | DATA => 354 | hi => | . => 250 250 | QUIT => 221 | NOOP => ",
    # parameters
    "LHLO x => 250 | MAIL FROM:<a@b> SIZE=200 BODY=8BITMIME SMTPUTF8 => 250",
    "LHLO x => 250 | MAIL FROM:<a@b> SIZE=201 => 552 | MAIL FROM:<a@b> SIZE=x => 501"
    " | MAIL FROM:<a@b> BODY=BINARYMIME => 501 | MAIL FROM:<a@b> RET=FULL => 555"
    " | MAIL FROM:<a@b> SIZE=1 SIZE=1 => 501 | MAIL FROM:<a@b> => 250",
    "LHLO x => 250 | MAIL FROM:a@b => 501 | MAIL FROM:<a b@c> => 501 | MAIL <a@b> => 501 | MAIL => 501 | RCPT => 503",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<> => 501 | RCPT TO:<u@d> NOTIFY=NEVER => 555 | RCPT TO:u => 501",
    "LHLO x => 250 | MAIL FROM:<ü@d> => 553 | MAIL FROM:<> => 250 | RCPT TO:<ü@d> => 553 | RCPT TO:<u@d> => 250",
    "LHLO x => 250 | MAIL FROM:<ü@d> SMTPUTF8 => 250 | RCPT TO:<ü@d> => 250",
    "LHLO x => 250 | MAIL FROM: <a@b> => 250 | RCPT TO: <@r1,@r2:u@d> => 250",
    # limits
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<1@d> => 250 | RCPT TO:<2@d> => 250 | RCPT TO:<3@d> => 250"
    " | RCPT TO:<4@d> => 452 | DATA => 354 | . => 250 250 250",
    "a => 500 | b => 500 | c => 500 | d => 500 | e => 500 | f => 500 421 | LHLO x => ",
    "LHLO " + "x" * 200 + " => 500 | LHLO x => 250",
    # BDAT: RFC 3030 §2
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | RCPT TO:<v@d> => 250 | BDAT 4 => | ab => 250"
    " | BDAT 4 LAST => | cd => 250 250 | MAIL FROM:<> => 250",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | BDAT 0 last => 250",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | BDAT 0 => 250 | DATA => 503 | RCPT TO:<v@d> => 503"
    " | MAIL FROM:<> => 503 | NOOP => 250 | BDAT 0 LAST => 250",
    # The bytes of a BDAT that is out of order are no commands.
    "LHLO x => 250 | BDAT 6 LAST => | QUIT => 503 | MAIL FROM:<> => 250 | BDAT 6 => | QUIT => 503"
    " | RCPT TO:<no@d> => 550 | BDAT 6 LAST => | QUIT => 503 | RCPT TO:<u@d> => 250 | BDAT 6 LAST => | QUIT => 250",
    "BDAT 6 LAST => | QUIT => 503 | LHLO x => 250",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | BDAT 6 => | QUIT => 250"
    " | RSET => 250 | BDAT 6 => | QUIT => 503",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | BDAT x => 501 | NOOP => ",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | BDAT -1 LAST => 501 | NOOP => ",
    # A mail that is too big comes in chunks. Each chunk has a reply, and the last has a
    # reply for each recipient.
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | RCPT TO:<v@d> => 250 | BDAT 302 => | "
    + "x" * 300
    + " => 552"
    " | BDAT 4 => | ab => 552 | BDAT 4 LAST => | cd => 552 552 | MAIL FROM:<> => 250",
    "LHLO x => 250 | MAIL FROM:<> => 250 | RCPT TO:<u@d> => 250 | RCPT TO:<v@d> => 250 | DATA => 354 | "
    + "x" * 300
    + " =>"
    " | y => | . => 552 552 | MAIL FROM:<> => 250",
]


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("how", ["lines", "bytes"])
def test_dialogues(dialogue: str, how: str) -> None:
    driver = Driver()
    for step in dialogue.split(" | "):
        line, _, codes = step.partition("=>")
        before = len(driver.output)
        data = line.strip().encode() + b"\r\n"
        for piece in [data] if how == "lines" else [data[i : i + 1] for i in range(len(data))]:
            driver.feed(piece)
        replies = driver.output[before:].decode().splitlines()
        assert [reply[:3] for reply in replies if reply[3:4] == " "] == codes.split(), step


def test_pipelined_at_once() -> None:
    driver = Driver()
    driver.feed(
        b"LHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<u@d>\r\nRCPT TO:<no@d>\r\nRCPT TO:<v@d>\r\nDATA\r\n..x\r\n.\r\n"
        b"MAIL FROM:<>\r\nRCPT TO:<w@d>\r\nBDAT 3\r\n.\r\nBDAT 2 LAST\r\n\0\xffQUIT\r\n"
    )
    assert driver.mails == [("a@b", ("u@d", "v@d"), b".x\r\n"), ("", ("w@d",), b".\r\n\0\xff")]
    assert driver.output.decode().splitlines()[7:] == [
        "250 2.1.0 OK",
        "250 2.1.5 OK",
        "550 5.1.1 Unknown",
        "250 2.1.5 OK",
        "354 OK, end with <CRLF>.<CRLF>",
        "250 2.0.0 u@d saved",
        "250 2.0.0 v@d saved",
        "250 2.1.0 OK",
        "250 2.1.5 OK",
        "250 2.0.0 OK, 3 bytes so far",
        "250 2.0.0 w@d saved",
        "221 2.0.0 Bye",
    ]


def test_extensions() -> None:
    driver = Driver()
    driver.machine.greet()
    assert driver.send("LHLO c") == [
        "220 mx LMTP obox ready",
        "250-mx",
        "250-8BITMIME",
        "250-CHUNKING",
        "250-ENHANCEDSTATUSCODES",
        "250-PIPELINING",
        "250-SIZE 200",
        "250 SMTPUTF8",
    ]


def test_starttls_forgets_what_came_before_it() -> None:
    driver = Driver(replace(SMALL, tls=ssl.create_default_context))
    assert driver.send("LHLO c")[-1] == "250 STARTTLS"
    assert driver.send("MAIL FROM:<>", "STARTTLS")[-1].startswith("503")
    assert driver.send("RSET", "STARTTLS x")[-1].startswith("501")
    replies = driver.send("STARTTLS", "MAIL FROM:<injected@x>", "RCPT TO:<u@d>")
    assert replies == ["220 2.0.0 Begin TLS"]
    assert driver.send("MAIL FROM:<>")[0].startswith("503")
    assert "STARTTLS" not in "".join(driver.send("LHLO c"))
    assert driver.send("STARTTLS")[0].startswith("503")


def test_what_the_store_is_asked() -> None:
    driver = started(SMALL, "MAIL FROM:<a@b> SIZE=7")
    driver.send("RCPT TO:<Bob+Work+x@D.example>", 'RCPT TO:<"a\\"b c"@d>', "RCPT TO:<+x@d>", "RCPT TO:<bob>")
    assert [(asked.address, asked.user, asked.detail, asked.size) for asked in driver.asked] == [
        ("Bob+Work+x@D.example", "Bob@D.example", "Work+x", 7),
        ('"a\\"b c"@d', 'a"b c@d', "", 7),
        ("+x@d", "+x@d", "", 7),
    ]
    driver = started(
        replace(SMALL, delimiters="-_"), "MAIL FROM:<a@b>", "RCPT TO:<a+b_c-d@x>", "RCPT TO:<u@[127.0.0.1]>"
    )
    assert [(asked.user, asked.detail) for asked in driver.asked] == [("a+b@x", "c-d"), ("u@[127.0.0.1]", "")]
    driver = started(replace(SMALL, delimiters=""), "MAIL FROM:<a@b>", "RCPT TO:<a+b@x>")
    assert [(asked.user, asked.detail) for asked in driver.asked] == [("a+b@x", "")]


def test_what_is_known_of_the_mail() -> None:
    driver = started(SMALL, "MAIL FROM:<ü@b> SMTPUTF8 BODY=8BITMIME", "RCPT TO:<ü@d>", "DATA")
    assert driver.send(".") == ["250 2.0.0 ü@d saved"]
    assert (driver.events[0].body, driver.events[0].smtputf8) == ("8BITMIME", True)


def test_a_reset_drops_the_chunks() -> None:
    driver = started(SMALL, "MAIL FROM:<>", "RCPT TO:<u@d>", "BDAT 3", "x")
    assert driver.body == b"x\r\n"
    driver.send("RSET", "MAIL FROM:<>", "RCPT TO:<v@d>", "BDAT 3 LAST", "y")
    assert driver.dropped == 1
    assert driver.mails == [("", ("v@d",), b"y\r\n")]


@pytest.mark.parametrize(
    ("wire", "mail"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"hi\r\n.\r\n", b"hi\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"..hi\r\n...\r\n.x\r\n.\r\n", b".hi\r\n..\r\nx\r\n"),
        (b".\rx\r\n.\r\n", b"\rx\r\n"),
        (b"a\r\n..\r\n..\r\n\r\n.\r\n", b"a\r\n.\r\n.\r\n\r\n"),
        (b"\r\r\n.\r\n", b"\r\r\n"),
        (b"\r\n\r\n\r\n.\r\n", b"\r\n\r\n\r\n"),
        (b"\0\xff\r\n.\r\n", b"\0\xff\r\n"),
    ],
)
def test_dot_unstuffing(wire: bytes, mail: bytes) -> None:
    assert bodies([wire])[0] == [mail]
    assert bodies([wire[i : i + 1] for i in range(len(wire))])[0] == [mail]


SMUGGLED = b"MAIL FROM:<evil@x>\r\nRCPT TO:<v@d>\r\nDATA\r\nevil"


@pytest.mark.parametrize(
    "false_end",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r.\r",
        b"\r.\r\n",
        b"\n.\r",
        b"\n\r.\r\n",
        b"\r\n.\r\r\n",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
        b"\r\n. \r\n",
    ],
)
def test_only_crlf_dot_crlf_ends(false_end: bytes) -> None:
    wire = b"good" + false_end + SMUGGLED + b"\r\n.\r\n"
    for pieces in ([wire], [wire[i : i + 1] for i in range(len(wire))]):
        mails, output = bodies(pieces)
        assert mails == [b"good" + false_end.replace(b"\r\n.", b"\r\n") + SMUGGLED + b"\r\n"]
        assert output == b"250 2.0.0 u@d saved\r\n"


@pytest.mark.parametrize("line", [b"NOOP\n", b"NO\rOP\r\n", b"NOOP\0\r\n", b"NOOP \xff\r\n", b"\n", b"\r\n"])
def test_lines_that_are_none(line: bytes) -> None:
    driver = started()
    driver.output = b""
    driver.feed(line)
    driver.feed(b"NOOP\r\n")
    assert [reply[:3] for reply in driver.output.split(b"\r\n")] == [b"500", b"250", b""]


def test_a_line_without_end_takes_no_memory() -> None:
    driver = started()
    for _ in range(1000):
        driver.feed(b"x" * 1000)
        assert driver.machine.buffered_bytes <= SMALL.line_bytes_max
    assert driver.send("")[0].startswith("500 5.5.6")


def test_a_too_big_mail_takes_no_memory() -> None:
    driver = started(SMALL, "MAIL FROM:<>", "RCPT TO:<u@d>", "DATA")
    for _ in range(100):
        driver.feed(b"x" * 998 + b"\r\n")
        assert len(driver.body) <= SMALL.mail_bytes_max
        assert driver.machine.buffered_bytes <= 4
    assert driver.send(".") == ["552 5.3.4 Message is too big"]
    assert driver.mails == []
    assert driver.dropped <= 1


def test_exactly_the_limit() -> None:
    driver = started(SMALL, "MAIL FROM:<>", "RCPT TO:<u@d>", "DATA")
    driver.send("x" * 198, ".")
    assert len(driver.mails) == 1
    driver.send("MAIL FROM:<>", "RCPT TO:<u@d>", "BDAT 201 LAST")
    driver.feed(b"x" * 201)
    assert driver.output.endswith(b"552 5.3.4 Message is too big\r\n")
    assert len(driver.mails) == 1


def test_tables_agree() -> None:
    assert set(NEXT) == set(WANTED)
    reached = {State.NEW} | {state for row in NEXT.values() for state in row.values()} | {State.BDAT, State.CLOSED}
    assert reached == set(State)


@given(
    st.lists(
        st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"x", b"\r\n.\r\n", b"\0"]) | st.binary(max_size=3),
        max_size=20,
    ).map(b"".join),
    st.lists(st.integers(1, 6), min_size=1, max_size=60),
)
def test_a_body_does_not_depend_on_the_cuts(data: bytes, sizes: list[int]) -> None:
    wire = b".".join([b"", data]) if data.startswith(b".") else data
    wire = wire.replace(b"\r\n.", b"\r\n..") + b"\r\n.\r\n"
    pieces, at = [], 0
    for size in sizes:
        pieces.append(wire[at : at + size])
        at += size
    mails, output = bodies([*pieces, wire[at:]])
    # The mail is dot-stuffed as a client does it, and comes back byte for byte.
    assert mails == [data + b"\r\n"]
    assert output == b"250 2.0.0 u@d saved\r\n"
    assert bodies([wire]) == (mails, output)


@hypothesis_settings(max_examples=40)
@given(st.data())
def test_chunks_come_back_byte_for_byte(data: st.DataObject) -> None:
    chunks = data.draw(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
    wire = b"LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<u@d>\r\n"
    for number, chunk in enumerate(chunks, 1):
        wire += b"BDAT %d%s\r\n" % (len(chunk), b" LAST" if number == len(chunks) else b"") + chunk
    driver = Driver()
    cut = data.draw(st.integers(0, len(wire)))
    driver.feed(wire[:cut])
    driver.feed(wire[cut:])
    assert driver.mails == [("", ("u@d",), b"".join(chunks))]
