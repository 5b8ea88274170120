"""LMTP without I/O: it takes bytes, and returns events and replies. RFC 2033, RFC 5321.

Theory of operation. `feed` appends to a buffer. `next_event` works on the buffer until
it has an event for the driver, or NEED_DATA. Two events stop the machine until they are
answered, because what follows depends on the answer: `RecipientAsked`
(`answer_recipient`) and `MailReceived` (`answer_mail`). Meanwhile pipelined commands
wait in the buffer (RFC 2920). Replies are gathered in order until `take_output`.

    NEW --LHLO--> READY --MAIL--> MAIL --RCPT accepted--> RCPT
    RCPT --DATA--> DATA --CRLF.CRLF--> READY
    RCPT --BDAT n--> CHUNK --n bytes--> BDAT --LAST--> READY

Invariants:
- Only after the mail, there is a reply for each accepted recipient, in their order (RFC
  2033 §4.2).
- DATA ends at CRLF.CRLF and at nothing else. A bare CR or LF is content and is kept. So
  no other server can see a different end of the mail ("SMTP smuggling").
- Events and replies do not depend on how the input was split.
- Lines, recipients, mails and bad commands are bounded.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from typing import Final

from obox.auth import LINK
from obox.lmtp.address import NULL_ADDRESS, Address, parse_parameters, parse_path, split_detail
from obox.lmtp.events import (
    BodyChunk,
    BodyDropped,
    Event,
    LinkAsked,
    MailReceived,
    Pause,
    RecipientAsked,
    TlsAsked,
)
from obox.lmtp.replies import Reply
from obox.lmtp.settings import Settings


class State(enum.Enum):
    """The state of a session; see the drawing above."""

    NEW = enum.auto()
    READY = enum.auto()
    MAIL = enum.auto()
    RCPT = enum.auto()
    BDAT = enum.auto()
    DATA = enum.auto()
    CHUNK = enum.auto()
    CLOSED = enum.auto()


NEXT: dict[State, dict[str, State]] = {
    State.NEW: {"LHLO": State.READY},
    State.READY: {"LHLO": State.READY, "MAIL": State.MAIL},
    State.MAIL: {"LHLO": State.READY, "RCPT": State.RCPT},
    State.RCPT: {"LHLO": State.READY, "RCPT": State.RCPT, "DATA": State.DATA, "BDAT": State.CHUNK},
    State.BDAT: {"LHLO": State.READY, "BDAT": State.CHUNK},
}
"""state -> command -> state if the command succeeds. STARTTLS, RSET, NOOP, VRFY, HELP
and QUIT are allowed in each of these states. A BDAT out of order goes to CHUNK too,
because its bytes follow whatever we reply."""

WANTED: dict[State, str] = {
    State.NEW: "send LHLO first",
    State.READY: "send MAIL FROM first",
    State.MAIL: "no valid recipients, send RCPT TO first",
    State.RCPT: "a mail is under way, send DATA or RSET",
    State.BDAT: "chunks are under way, send BDAT or RSET",
}


CLAIM: Final = "XOBOX="
"""Parameter of RCPT over the link: the owner's assignment, as its sender knows it."""
COMMANDS_TURN: Final = 64
"""Commands that are answered before other tasks may run. They take about a
millisecond."""

_END = b"\r\n.\r\n"
_BDAT = re.compile(r"(\d{1,18})( +LAST)?", re.IGNORECASE)
_LHLO = re.compile(r"[!-~]{1,255}")
_TOO_BIG = Reply(552, "5.3.4", "Message is too big")
_NO_RECIPIENTS = Reply(503, "5.5.1", "No valid recipients")
_CHUNK_LOST = Reply(503, "5.5.1", "BDAT out of order, its bytes were ignored")


class Machine:
    """The protocol of a session. secure: whether TLS is already in use.

    links: AUTH X-OBOX-LINK is accepted. member: the peer has proved itself; its mails
    name the owner of each recipient. trusted: mails are accepted from others, too.
    """

    def __init__(self, settings: Settings, *, secure: bool = False) -> None:
        self.settings = settings
        self.secure = secure
        self.state = State.NEW
        self.lhlo = ""
        self.links = self.member = False
        self.trusted = True
        self._linking = False
        self._buffer = bytearray()
        self._output: list[bytes] = []
        self._awaiting: type[Event] | None = None
        self._bad_commands = 0
        self._line_lost = False
        self._clear()

    def _clear(self) -> None:
        self._reverse_path = NULL_ADDRESS
        self._recipients: list[object] = []
        self._declared: int | None = None
        self._body = "7BIT"
        self._smtputf8 = False
        self._size = 0
        self._too_big = False
        self._data_first = True
        self._data_ending = False
        self._chunk_left = 0
        self._chunk_last = False
        # A BDAT out of order: ignore its bytes, then return to this state.
        self._chunk_lost: State | None = None

    # The driver's side

    def greet(self) -> None:
        """The first reply."""
        self._reply(Reply(220, "", f"{self.settings.hostname} LMTP obox ready"))

    def feed(self, data: bytes) -> None:
        """Take bytes from the client; they may be split anywhere."""
        if self.state is not State.CLOSED:
            self._buffer += data

    def take_output(self) -> bytes:
        """Return what to send to the client now."""
        if not self._output:
            return b""
        output = b"".join(self._output)
        self._output.clear()
        return output

    @property
    def buffered_bytes(self) -> int:
        """Return how many bytes were fed and are not consumed yet."""
        return len(self._buffer)

    @property
    def in_body(self) -> bool:
        """Return whether the next bytes belong to a mail."""
        return self.state is State.DATA or self.state is State.CHUNK

    @property
    def idle(self) -> bool:
        """Return whether no transaction is under way, so that the session may be
        stopped."""
        return self.state is State.NEW or self.state is State.READY or self.state is State.CLOSED

    def close(self, reply: Reply) -> None:
        """Send a last reply such as 421, and accept nothing more."""
        if self.state is not State.CLOSED:
            self._reply(reply)
            self.state = State.CLOSED
            self._buffer.clear()

    def answer_recipient(self, reply: Reply, recipient: object = None) -> None:
        """Answer RecipientAsked. A 2xx reply adds the recipient.

        recipient: returned in MailReceived.
        """
        assert self._awaiting is RecipientAsked
        self._awaiting = None
        self._reply(reply)
        if reply.accepted:
            self._recipients.append(recipient)
            self.state = NEXT[self.state]["RCPT"]

    def answer_mail(self, replies: Sequence[Reply]) -> None:
        """Answer MailReceived with a reply for each accepted recipient, in their
        order."""
        assert self._awaiting is MailReceived
        assert len(replies) == len(self._recipients)
        self._awaiting = None
        for reply in replies:
            self._reply(reply)
        self._bad_commands = 0
        self._clear()
        self.state = State.READY

    def answer_link(self, reply: Reply | None, challenge: bytes = b"") -> None:
        """Answer LinkAsked. None: the exchange goes on with a challenge, in base64."""
        assert self._awaiting is LinkAsked
        self._awaiting = None
        self._linking = reply is None
        if reply is None:
            self._output.append(b"334 " + challenge + b"\r\n")
        else:
            self._reply(reply)

    def tls_started(self) -> None:
        """Answer TlsAsked. Both sides forget what came before the handshake. RFC 3207
        §4.2.

        Call it after 220 has been sent, and before the first byte under TLS is fed.
        """
        assert self._awaiting is TlsAsked
        self._awaiting = None
        self._buffer.clear()
        self._clear()
        self.lhlo = ""
        self.member = self._linking = False
        self.secure = True
        self.state = State.NEW

    def next_event(self) -> Event:
        """Return what the driver has to do next.

        It returns `Pause.TURN` after COMMANDS_TURN commands without an event.
        """
        for _ in range(COMMANDS_TURN):
            if self.state is State.CLOSED:
                return Pause.CLOSED
            if self._awaiting is not None:
                return Pause.NEED_ANSWER
            event: Event | None
            if self.state is State.DATA:
                event = self._in_data()
            elif self.state is State.CHUNK:
                event = self._in_chunk()
            else:
                event = self._command()
            if event is not None:
                return event
        return Pause.TURN

    # Bodies

    def _in_data(self) -> Event | None:
        """Read the mail after DATA.

        RFC 5321 §4.5.2: a dot that begins a line is removed. CRLF.CRLF ends the mail,
        and its first CRLF is content.
        """
        buffer = self._buffer
        if self._data_first:  # the very first line has no CRLF before it
            if len(buffer) < 3 and _END[2:].startswith(buffer):
                return Pause.NEED_DATA
            if buffer.startswith(_END[2:]):
                del buffer[:3]
                return self._mail_ended()
            if buffer.startswith(b"."):
                del buffer[:1]
            self._data_first = False
        end = buffer.find(_END)
        if end < 0:
            # Keep what may be the beginning of the end mark, or of a dot to remove.
            keep = next((size for size in (4, 3, 2, 1) if buffer.endswith(_END[:size])), 0)
            data = self._unstuffed(len(buffer) - keep)
            del buffer[: len(buffer) - keep]
            return self._chunk(data) or Pause.NEED_DATA
        if self._data_ending:
            self._data_ending = False
            del buffer[: end + len(_END)]
            return self._mail_ended()
        data = self._unstuffed(end + 2)
        event = self._chunk(data)
        if event is None:
            del buffer[: end + len(_END)]
            return self._mail_ended()
        # The last bytes of the mail are returned first. The mark stays in the buffer,
        # and the next call finds it at once.
        del buffer[:end]
        self._data_ending = True
        return event

    def _unstuffed(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        if b"\r\n." in data:
            data = data.replace(b"\r\n.", b"\r\n")
        return data

    def _in_chunk(self) -> Event | None:
        """Handle BDAT. RFC 3030 §2."""
        buffer = self._buffer
        if self._chunk_left:
            if not buffer:
                return Pause.NEED_DATA
            size = min(self._chunk_left, len(buffer))
            data = bytes(buffer[:size]) if self._chunk_lost is None and not self._too_big else b""
            del buffer[:size]
            self._chunk_left -= size
            if self._chunk_lost is not None:
                return None
            return self._chunk(data)
        if self._chunk_lost is not None:
            self.state, self._chunk_lost = self._chunk_lost, None
            self._reply(_NO_RECIPIENTS if self.state is State.MAIL else _CHUNK_LOST)
            return None
        if self._chunk_last:
            return self._mail_ended()
        self._reply(_TOO_BIG if self._too_big else Reply(250, "2.0.0", f"OK, {self._size} bytes so far"))
        self.state = State.BDAT
        return None

    def _chunk(self, data: bytes) -> Event | None:
        """Pass on bytes of the mail, unless it has become too big."""
        if not data or self._too_big:
            return None
        self._size += len(data)
        if self._size > self.settings.mail_bytes_max:
            self._too_big = True
            return BodyDropped()
        return BodyChunk(data)

    def _mail_ended(self) -> Event | None:
        if self._too_big:
            for _ in self._recipients:
                self._reply(_TOO_BIG)
            self._clear()
            self.state = State.READY
            return None
        self._awaiting = MailReceived
        recipients = tuple(self._recipients)
        return MailReceived(self._reverse_path.text, recipients, self._size, self._body, self._smtputf8)

    # Commands

    def _command(self) -> Event | None:
        """Read a command line.

        It ends with CRLF. A line that ends with a bare LF is refused at once.
        """
        buffer = self._buffer
        if self._line_lost:  # ignore the rest of a line that was too long, then answer
            end = buffer.find(b"\n")
            if end < 0:
                buffer.clear()
                return Pause.NEED_DATA
            del buffer[: end + 1]
            self._line_lost = False
            return self._bad(Reply(500, "5.5.6", "Line is too long"))
        limit = self.settings.line_bytes_max
        end = buffer.find(b"\n", 0, limit)
        if end < 0:
            if len(buffer) < limit:
                return Pause.NEED_DATA
            self._line_lost = True
            return None
        line = bytes(buffer[: end + 1])
        del buffer[: end + 1]
        if not line.endswith(b"\r\n") or b"\r" in line[:-2] or b"\0" in line:
            return self._bad(Reply(500, "5.5.2", "Line has a bare CR, bare LF or NUL"))
        try:
            text = line[:-2].decode("utf-8")
        except UnicodeDecodeError:
            return self._bad(Reply(500, "5.5.2", "Line is not UTF-8"))
        if self._linking:
            return self._link(text.encode(), first=False)
        verb, _, argument = text.partition(" ")
        verb, argument = verb.upper(), argument.strip()
        if (command := COMMANDS.get(verb)) is not None:
            if verb in NEXT[self.state] or verb == "BDAT":
                return command(self, argument)
            return self._bad(Reply(503, "5.5.1", f"Bad sequence: {WANTED[self.state]}"))
        if (command := ANYWHERE.get(verb)) is not None:
            return command(self, argument)
        return self._bad(Reply(500, "5.5.1", "Unknown command"))

    def _lhlo(self, argument: str) -> Event | None:
        if not _LHLO.fullmatch(argument):
            return self._bad(Reply(501, "5.5.4", "LHLO wants a domain"))
        dropped = self._dropped()
        self._clear()
        self.lhlo = argument
        self.state = State.READY
        extensions = ["8BITMIME", "CHUNKING", "ENHANCEDSTATUSCODES", "PIPELINING"]
        extensions += [f"SIZE {self.settings.mail_bytes_max}", "SMTPUTF8"]
        if self.settings.tls is not None and not self.secure:
            extensions.append("STARTTLS")
        lines = [self.settings.hostname, *extensions]
        for line in lines[:-1]:
            self._output.append(f"250-{line}\r\n".encode())
        self._output.append(f"250 {lines[-1]}\r\n".encode())
        return dropped

    def _helo(self, argument: str) -> Event | None:
        # RFC 2033 §4.1: HELO and EHLO are not part of LMTP; answer 500.
        return self._bad(Reply(500, "5.5.1", "This is LMTP, not SMTP: send LHLO"))

    def _auth(self, argument: str) -> Event | None:
        """Handle AUTH, which only members use: docs/cluster.md, "The trusted link"."""
        mechanism, _, initial = argument.partition(" ")
        if not self.links:
            return self._bad(Reply(500, "5.5.1", "Unknown command"))
        if self.state is not State.READY or self.member:
            return self._bad(Reply(503, "5.5.1", "AUTH comes once, after LHLO"))
        if mechanism.upper() != LINK:
            return self._bad(Reply(504, "5.5.4", "Unsupported authentication mechanism"))
        return self._link(initial.encode() or None, first=True)

    def _link(self, line: bytes | None, *, first: bool) -> Event:
        self._awaiting = LinkAsked
        return LinkAsked(line, first)

    def _mail(self, argument: str) -> Event | None:
        if not (self.trusted or self.member):
            return self._bad(Reply(554, "5.7.1", "Client is not in a trusted network"))
        path = parse_path(argument[5:]) if argument[:5].upper() == "FROM:" else None
        if path is None:
            return self._bad(Reply(501, "5.1.7", "Bad syntax: MAIL FROM:<address>"))
        address, rest = path
        declared: int | None = None
        body = "7BIT"
        smtputf8 = False
        parameters = parse_parameters(rest) if rest else {}
        if parameters is None:
            return self._bad(Reply(501, "5.5.4", "Bad parameters"))
        for key, value in parameters.items():
            # RFC 1870 §5.
            if key == "SIZE" and value.isascii() and value.isdigit() and len(value) <= 20:
                declared = int(value)
            elif key == "BODY" and value.upper() in {"7BIT", "8BITMIME"}:  # RFC 6152 §3
                body = value.upper()
            elif key == "SMTPUTF8" and not value:  # RFC 6531 §3.4
                smtputf8 = True
            elif key in {"SIZE", "BODY", "SMTPUTF8"}:
                return self._bad(Reply(501, "5.5.4", f"Bad value of {key}"))
            else:
                return self._bad(Reply(555, "5.5.4", "Unsupported parameter of MAIL"))
        if not smtputf8 and not address.text.isascii():
            return self._bad(Reply(553, "5.6.7", "Address needs SMTPUTF8"))
        if declared is not None and declared > self.settings.mail_bytes_max:
            self._reply(_TOO_BIG)
            return None
        self._clear()
        self._reverse_path, self._declared, self._body, self._smtputf8 = address, declared, body, smtputf8
        self._reply(Reply(250, "2.1.0", "OK"))
        self.state = NEXT[self.state]["MAIL"]
        return None

    def _rcpt(self, argument: str) -> Event | None:
        path = parse_path(argument[3:]) if argument[:3].upper() == "TO:" else None
        if path is None or path[0] is NULL_ADDRESS:
            return self._bad(Reply(501, "5.1.3", "Bad syntax: RCPT TO:<address>"))
        address, rest = path
        claim = ""
        if rest:
            if not self.member or not rest.upper().startswith(CLAIM):
                return self._bad(Reply(555, "5.5.4", "Unsupported parameter of RCPT"))
            claim = rest[len(CLAIM) :]
        if not self._smtputf8 and not address.text.isascii():
            return self._bad(Reply(553, "5.6.7", "Address needs SMTPUTF8"))
        if len(self._recipients) >= self.settings.recipients_max:
            self._reply(Reply(452, "4.5.3", "Too many recipients"))
            return None
        return self._ask(address, claim)

    def _ask(self, address: Address, claim: str) -> Event:
        self._awaiting = RecipientAsked
        user, detail = split_detail(address, self.settings.delimiters)
        return RecipientAsked(address.text, user, detail, self._declared, claim)

    def _data(self, argument: str) -> Event | None:
        if argument:
            return self._bad(Reply(501, "5.5.4", "DATA has no parameters"))
        self._reply(Reply(354, "", "OK, end with <CRLF>.<CRLF>"))
        self.state = NEXT[self.state]["DATA"]
        return None

    def _bdat(self, argument: str) -> Event | None:
        match = _BDAT.fullmatch(argument)
        if match is None:
            # The number of bytes that follow is unknown, so the next command cannot be
            # found.
            self.close(Reply(501, "5.5.4", "Bad syntax: BDAT size [LAST]; closing"))
            return None
        self._chunk_left = int(match[1])
        self._chunk_last = match[2] is not None
        if "BDAT" not in NEXT[self.state]:
            self._chunk_lost = self.state
            if (last := self._counted()) is not None:
                return last
        self.state = State.CHUNK
        return None

    def _rset(self, argument: str) -> Event | None:
        dropped = self._dropped()
        self._clear()
        self._reply(Reply(250, "2.0.0", "OK"))
        self.state = State.NEW if self.state is State.NEW else State.READY
        return dropped

    def _noop(self, argument: str) -> Event | None:
        self._reply(Reply(250, "2.0.0", "OK"))
        return None

    def _vrfy(self, argument: str) -> Event | None:
        self._reply(Reply(252, "2.3.3", "Try RCPT to attempt delivery"))
        return None

    def _help(self, argument: str) -> Event | None:
        self._reply(Reply(214, "2.0.0", "LHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP STARTTLS QUIT; see RFC 2033"))
        return None

    def _quit(self, argument: str) -> Event | None:
        self.close(Reply(221, "2.0.0", "Bye"))
        return None

    def _starttls(self, argument: str) -> Event | None:
        if self.settings.tls is None:
            return self._bad(Reply(502, "5.5.1", "TLS is not configured"))
        if self.secure:
            return self._bad(Reply(503, "5.5.1", "TLS is on already"))
        if argument:
            return self._bad(Reply(501, "5.5.4", "STARTTLS has no parameters"))
        if not self.idle:
            return self._bad(Reply(503, "5.5.1", "A mail is under way, send RSET"))
        self._reply(Reply(220, "2.0.0", "Begin TLS"))
        self._awaiting = TlsAsked
        return TlsAsked()

    def _dropped(self) -> Event | None:
        return BodyDropped() if self._size and not self._too_big else None

    def _bad(self, reply: Reply) -> Event | None:
        """Answer a bad command. Too many of them end the session."""
        self._reply(reply)
        return self._counted()

    def _counted(self) -> Event | None:
        self._bad_commands += 1
        if self._bad_commands > self.settings.errors_max:
            self.close(Reply(421, "4.7.0", "Too many bad commands, closing"))
            return Pause.CLOSED
        return None

    def _reply(self, reply: Reply) -> None:
        self._output.append(reply.wire(utf8=self._smtputf8))


Command = Callable[[Machine, str], Event | None]
"""Takes the argument of a command."""

COMMANDS: Final[dict[str, Command]] = {
    "LHLO": Machine._lhlo,
    "MAIL": Machine._mail,
    "RCPT": Machine._rcpt,
    "DATA": Machine._data,
    "BDAT": Machine._bdat,
}
"""Commands that have their states in `NEXT`."""
ANYWHERE: Final[dict[str, Command]] = {
    "RSET": Machine._rset,
    "NOOP": Machine._noop,
    "VRFY": Machine._vrfy,
    "HELP": Machine._help,
    "QUIT": Machine._quit,
    "STARTTLS": Machine._starttls,
    "AUTH": Machine._auth,
    "HELO": Machine._helo,
    "EHLO": Machine._helo,
}
"""Commands that may come in each state."""
