"""The server's parser of IMAP: it takes bytes and returns events. It has no socket and
no clock.

Theory of operation. A command is lines with literals between them. The parser gathers a
whole command, and then passes the pieces to the grammar (obox.imap._commands). So the
grammar never waits, and each byte is examined once while it arrives:

    LINE     looking for the end of a line
    LITERAL  gathering the announced number of bytes; then LINE. Mails go to `intake`:
             NeedFlush is the event that says when this has to be waited for
    SKIP     discarding the announced number of bytes; then DRAIN
    DRAIN    discarding to the end of a line; if it announces an unasked literal, SKIP;
             else the broken command is over, its event is given, and LINE begins anew
    PARSE    a large command is complete: NeedParse is the event that says where its
             arguments can be parsed outside the loop; then LINE
    DEAD     nothing more is read

A line may be the client's answer to a SASL challenge or its DONE instead: the session
says so (`expect_sasl`, `expect_done`) before it asks for the next event.

A command that `allowed` does not name is refused at its first word. Its arguments are
never examined. A literal that the client offers is refused, and a literal that comes
unasked is discarded.

Invariant: the same bytes give the same events, however they were split, except NeedTurn
and NeedParse. What the parser holds is bounded by Limits, and by what the session feeds
at a time.

This module knows no users and no mailboxes, and does not know what a server advertises.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from obox.errors import Invalid
from obox.imap._commands import COMMANDS, base64, parse_command
from obox.imap._fetch import parse_section as parse_section  # noqa: PLC0414 - part of the parser
from obox.imap._scan import Limits, Malformed
from obox.imap.ast import Append, Command, Replace
from obox.imap.events import (
    NEED_DATA,
    NEED_TURN,
    BadCommand,
    BadLine,
    Event,
    IdleDone,
    Incoming,
    NeedContinuation,
    NeedData,
    NeedFlush,
    NeedParse,
    Resets,
    SaslResponse,
    TooBig,
)

__all__ = ["Limits", "Parser"]

TAG_BYTES_MAX: Final = 256
"""A tag is echoed in each answer; clients use up to a dozen bytes."""

# tag = 1*<any ASTRING-CHAR except "+">
_TAG: Final = re.compile(rb"""([^\x00-\x20\x7f-\xff(){%*"\\+]++)(?: ++|\Z)""")
_COMMAND: Final = re.compile(rb"[A-Za-z0-9]++(?= |\Z)")
_SAVES: Final = re.compile(rb"[^ ]+ ++(?:UID ++)?(?:SEARCH|SORT) ++RETURN ++\([^)]*\bSAVE\b", re.IGNORECASE)
_MAY_BRING: Final = ("APPEND", "REPLACE", "UID")
_BRINGS_MAILS: Final = re.compile(rb"[^ ]++ ++(?:APPEND|(?:UID ++)?REPLACE ++[^ ]++)", re.IGNORECASE)
"""A command that brings mails, up to the mailbox name."""
# literal = "{" number64 ["+"] "}" CRLF *CHAR8; literal8 = "~" literal. At the end of a
# line only.
_MARK: Final = re.compile(rb"~?\{([0-9]{1,20})(\+?)\}\Z")
_MARK_BYTES: Final = 32
"""The tail of a line that holds any mark, its CR included: 1 + 1 + 20 + 1 + 1 + 1,
rounded up."""

_CHUNK: Final = 65_536
"""Pieces of a literal are gathered to this size, so that single bytes do not each cost
an object."""
_REASON_MAX: Final = 600

STEPS_MAX: Final = 500
"""Lines and literals that are read without an event before others run: a
millisecond."""
INLINE_BYTES: Final = 8192
"""A command of more bytes is parsed in a thread, because 64 KiB of sets take 20 ms."""
_PART_BYTES: Final = 16
"""What a literal costs in addition to its bytes, as a number of bytes."""


_NONE: Final[list[Any]] = []
"""Never changed."""


class _State(enum.Enum):
    LINE = 0
    LITERAL = 1
    SKIP = 2
    DRAIN = 3
    DEAD = 4
    PARSE = 5


class _Expect(enum.Enum):
    COMMAND = 0
    SASL = 1
    DONE = 2


class _Parsing:
    """A complete command whose arguments are not parsed yet; `parse` may be called in a
    thread."""

    __slots__ = ("_event", "_limits", "_parts", "_tag", "_utf8", "_word", "_word_end", "incoming")

    def __init__(
        self, parts: list[Any], begin: tuple[bytes, str, int], limits: Limits, incoming: Incoming | None, *, utf8: bool
    ) -> None:
        """begin: the tag, the command's word, and the position of its arguments."""
        self._parts, (self._tag, self._word, self._word_end) = parts, begin
        self._limits, self._utf8 = limits, utf8
        self.incoming = incoming
        self._event: Command | BadCommand | None = None

    @property
    def large(self) -> bool:
        """Return whether the command should be parsed in a thread."""
        parts = self._parts
        mails = self._word in ("APPEND", "REPLACE") or self.incoming is not None
        size = 0 if mails else sum(len(part) for part in parts if isinstance(part, bytes))
        return size + len(parts) * _PART_BYTES > INLINE_BYTES

    def parse(self) -> Command | BadCommand:
        """Return the command, or the reason why it is not valid."""
        if self._event is None:
            self._event = self._parse()
        return self._event

    def _parse(self) -> Command | BadCommand:
        parts, word, tag = self._parts, self._word, self._tag
        try:
            return parse_command(parts, word, self._word_end, tag, self._limits, utf8=self._utf8)
        except Malformed as error:
            resets = _resets(word, parts[0]) if error.status == "NO" else Resets.NOTHING
            return BadCommand(tag, _short(str(error)), error.status, error.code, resets)
        except Invalid as error:
            return BadCommand(tag, _short(str(error)))


class Parser:
    """One connection's parser: `feed` bytes, then call `next` until it returns
    NeedData.

    limits: may be replaced between commands, as by login. utf8: mailbox names are
    UTF-8, from ENABLE UTF8=ACCEPT on. allowed: the commands that may be given now, such
    as those that need no login; None: all. intake: makes what holds the mails of one
    APPEND; None: the parser does.
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_chunks",
        "_expect",
        "_flush",
        "_incoming",
        "_line_left",
        "_mails",
        "_marks",
        "_missing",
        "_parsing",
        "_parts",
        "_pending",
        "_seen",
        "_sink",
        "_state",
        "_strings",
        "_tag",
        "_tail",
        "_word",
        "_word_end",
        "allowed",
        "intake",
        "limits",
        "utf8",
    )

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.utf8 = False
        self.allowed: frozenset[str] | None = None
        self.intake: Callable[[], Incoming] | None = None
        self._incoming: Incoming | None = None
        # the file of the present literal, if it does not go into `_chunks`
        self._sink: Incoming | None = None
        self._flush = False
        self._parsing: _Parsing | None = None
        self._state = _State.LINE
        self._expect = _Expect.COMMAND
        self._buffer = bytearray()
        self._seen = 0  # bytes of the buffer known to hold no LF
        # Nothing is held between commands: `_NONE` stands for the empty list, and
        # `_tail` is b"".
        # lines, and literals as bytes or, of a mail, obox.store.api.Source.
        self._parts: list[Any] = _NONE
        self._tag = b""
        self._word = ""
        self._word_end = 0
        self._line_left = self.limits.line_bytes_max
        self._strings = 0  # bytes of this command in literals that are not mails
        self._mails = 0
        self._missing = 0  # bytes of the present literal still to come
        self._chunks: list[bytes] = _NONE
        self._tail: bytearray | bytes = b""
        self._pending: Event | None = None
        self._marks = True  # whether a line being drained may announce a literal

    # -- bytes in ------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client. Inside a literal they are kept as they are, not
        copied into the buffer."""
        if self._state is _State.LITERAL and not self._buffer and data:
            if len(data) <= self._missing:
                self._gather(bytes(data))
                return
            view = memoryview(data)
            rest = view[self._missing :]
            self._gather(bytes(view[: self._missing]))
            self._buffer += rest
        elif self._state is not _State.DEAD:
            self._buffer += data

    @property
    def buffered(self) -> int:
        """Return bytes that were fed and not used yet, literals in the making included;
        for the session's own limit."""
        parts = sum(len(part) for part in self._parts if isinstance(part, bytes))
        return len(self._buffer) + len(self._tail) + sum(map(len, self._chunks)) + parts

    @property
    def in_command(self) -> bool:
        """Return whether a command is incomplete: a literal, or the rest of its line,
        has to follow."""
        return bool(self._parts or self._buffer) or self._state in (_State.LITERAL, _State.SKIP, _State.DRAIN)

    def discard_buffer(self) -> int:
        """Discard all bytes that were fed and not used, because bytes that came in
        clear before TLS must not count. Returns their number."""
        size = self.buffered
        self._buffer.clear()
        self._reset()
        return size

    def take(self) -> bytes:
        """Return what was fed and not used, for another server. No command may be
        incomplete."""
        rest = bytes(self._buffer)
        self.discard_buffer()
        return rest

    def close(self) -> None:
        """Read nothing more, and release everything."""
        self._reset()
        self._buffer = bytearray()
        self._state = _State.DEAD
        self.intake = None

    def refuse(self) -> None:
        """Drop the command that asked for a continuation: the session answers its tag,
        the client does not send it."""
        if self._state is _State.LITERAL:
            self._reset()

    def expect_sasl(self) -> None:
        """Parse the next line as a SASL response: SaslResponse or BadLine. Call it for
        each challenge sent."""
        self._expect = _Expect.SASL

    def expect_done(self) -> None:
        """Parse the next line as DONE: IdleDone or BadLine. Commands follow again."""
        self._expect = _Expect.DONE

    # -- events out ----------------------------------------------------------------------------------------------------

    def next(self) -> Event:
        """Return the next event; NeedData when all that was fed has been used. Never
        raises for what a client sends."""
        for _ in range(STEPS_MAX):
            event: Event | None
            if self._state is _State.LINE:
                event = self._line() if self._expect is _Expect.COMMAND else self._answer()
            elif self._state is _State.LITERAL:
                event = self._literal()
            elif self._state is _State.SKIP:
                event = self._skip()
            elif self._state is _State.DRAIN:
                event = self._drain()
            elif self._state is _State.PARSE:
                event = self._parsed()
            else:
                return NEED_DATA
            if event is not None:
                return event
        return NEED_TURN

    def _reset(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = self._sink = None
            self._flush = False
        if self._parsing is not None and self._parsing.incoming is not None:
            self._parsing.incoming.close()
        self._parsing = None
        self._state = _State.LINE
        self._seen = 0
        self._parts = _NONE
        self._tag, self._word = b"", ""
        self._line_left = self.limits.line_bytes_max
        self._strings = self._mails = self._missing = 0
        self._chunks = _NONE
        self._tail = b""
        self._pending = None
        self._marks = True

    def _take_line(self) -> bytes | NeedData | None:
        """Take a line from the buffer, without its end; None if it is too long, and the
        buffer as it was."""
        if not self._parts:
            # It may have been replaced since the last command.
            self._line_left = self.limits.line_bytes_max
        end = self._buffer.find(b"\n", self._seen)
        if end < 0:
            self._seen = len(self._buffer)
            return NEED_DATA if self._seen <= self._line_left else None
        if end > self._line_left:
            return None
        stop = end - 1 if end and self._buffer[end - 1] == 13 else end
        line = bytes(memoryview(self._buffer)[:stop])
        del self._buffer[: end + 1]
        self._seen = 0
        self._line_left -= end
        return line

    def _line(self) -> Event | None:
        line = self._take_line()
        if isinstance(line, NeedData):
            return line
        if line is None:
            return self._too_long()
        if not self._parts:
            problem = self._begin(line)
            if problem is not None:
                return self._abandon(problem, line)
        mark = _MARK.search(line, max(0, len(line) - _MARK_BYTES)) if line.endswith(b"}") else None
        if mark is None:
            return self._finish(line)
        return self._announced(line, mark)

    def _begin(self, line: bytes) -> BadCommand | None:
        """Read tag and command word off the first line, before any literal is asked
        for."""
        tag = _TAG.match(line)
        if tag is None or len(tag[1]) > TAG_BYTES_MAX:
            return BadCommand(None, "Expected a tag: letters and digits before the command" if line else "Empty line")
        self._tag = tag[1]
        word = _COMMAND.match(line, tag.end())
        self._word = word[0].upper().decode() if word else ""
        if word is None or self._word not in COMMANDS:
            if not line[tag.end() :].strip(b" "):
                return BadCommand(self._tag, "Missing command after the tag")
            shown = f' "{self._word[:32]}"' if word else ""
            return BadCommand(self._tag, f"Unknown command{shown}")
        if self.allowed is not None and self._word not in self.allowed:
            return BadCommand(self._tag, f"{self._word} needs a login first")
        self._word_end = word.end()
        return None

    def _announced(self, line: bytes, mark: re.Match[bytes]) -> Event | None:
        size, waits = int(mark[1]), not mark[2]
        # In APPEND and REPLACE each literal is a mail, except a literal in the place of
        # the mailbox name.
        head = _BRINGS_MAILS.match(self._parts[0] if self._parts else line) if self._word in _MAY_BRING else None
        is_mail = head is not None and (bool(self._parts) or bool(line[head.end() : mark.start()].strip(b" ")))
        limits = self.limits
        if is_mail:
            size_max = min(limits.append_bytes_max, limits.multiappend_bytes_max - self._mails)
        else:
            size_max = min(limits.literal_bytes_max, limits.literals_bytes_max - self._strings)
        if size > size_max:
            resets = _resets(self._word, self._parts[0] if self._parts else line)
            named = "REPLACE" if is_mail and self._word == "UID" else self._word
            return self._abandon(TooBig(self._tag, named, size, max(0, size_max), resets=resets), line)
        if is_mail:
            if self.intake is not None and not self._admitted(self.intake, size):
                return self._abandon(BadCommand(self._tag, "Too many mails are on their way", "NO", "LIMIT"), line)
            self._mails += size
        else:
            self._strings += size
        if self._parts is _NONE:
            self._parts = []
        self._parts.append(line)
        self._missing = size
        self._state = _State.LITERAL
        return NeedContinuation(self._tag, self._word, size) if waits else None

    def _admitted(self, intake: Callable[[], Incoming], size: int) -> bool:
        if self._incoming is None:
            self._incoming = intake()
        admitted = self._incoming.admit(size)
        self._sink = self._incoming if admitted and self._incoming.spooling else None
        return admitted

    def _finish(self, line: bytes) -> Event:
        parts = [*self._parts, line.rstrip(b" ")]
        incoming, self._incoming, self._sink = self._incoming, None, None
        parsing = _Parsing(parts, (self._tag, self._word, self._word_end), self.limits, incoming, utf8=self.utf8)
        self._reset()
        if not parsing.large:
            return _made(parsing)
        self._parsing = parsing
        self._state = _State.PARSE
        return NeedParse(parsing.parse)

    def _parsed(self) -> Event:
        parsing, self._parsing = self._parsing, None
        assert parsing is not None
        self._state = _State.LINE
        return _made(parsing)

    # -- literals ------------------------------------------------------------------------------------------------------

    def _gather(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._sink is not None:
            self._flush |= self._sink.add(data)
            return
        if len(data) >= _CHUNK // 4 and not self._tail:
            self._chunks = [*self._chunks, data]
            return
        if not self._tail:
            self._tail = bytearray()
        self._tail += data
        if len(self._tail) >= _CHUNK:
            self._chunks = [*self._chunks, bytes(self._tail)]
            self._tail = b""

    def _literal(self) -> Event | None:
        if self._buffer and self._missing:
            data = bytes(memoryview(self._buffer)[: self._missing])
            del self._buffer[: len(data)]
            self._gather(data)
        if self._flush and self._incoming is not None:
            self._flush = False
            return NeedFlush(self._incoming)
        if self._missing:
            return NEED_DATA
        if self._sink is not None:
            self._parts.append(self._sink.end())
            self._sink = None
            self._state = _State.LINE
            return None
        if self._tail:
            self._chunks = [*self._chunks, bytes(self._tail)]
            self._tail = b""
        self._parts.append(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))
        self._chunks = _NONE
        self._state = _State.LINE
        return None

    # -- broken commands -----------------------------------------------------------------------------------------------

    def _abandon(self, problem: Event, line: bytes) -> Event | None:
        """Abandon the command whose present line has been taken. A literal that comes
        unasked is discarded first."""
        self._reset()
        self._pending = problem
        return self._after(line)

    def _after(self, line: bytes) -> Event | None:
        """Handle the end of a line of a broken command: discard the literal that it
        announces, or finish."""
        mark = _MARK.search(line, max(0, len(line) - _MARK_BYTES)) if self._marks else None
        if mark is not None and mark[2]:
            self._missing = int(mark[1])
            self._state = _State.SKIP
            return self._give_up() if self._missing > self.limits.discard_bytes_max else None
        problem = self._pending
        self._reset()
        return problem

    def _give_up(self) -> Event:
        """Read nothing more, because the client sends more than is ever discarded."""
        pending, size = self._pending, self._missing
        self._buffer.clear()
        self._reset()
        self._state = _State.DEAD
        tag, word = (pending.tag, pending.command) if isinstance(pending, TooBig) else (None, "")
        return TooBig(tag, word, size, self.limits.discard_bytes_max, fatal=True)

    def _too_long(self) -> Event:
        """Refuse a line beyond its limit at once, because its end may never come, and
        drain it."""
        reason = f"Line too long: at most {self.limits.line_bytes_max} bytes"
        problem: Event
        if self._expect is not _Expect.COMMAND:
            problem = BadLine(reason)
        else:
            # No further than the limit: the tag must not depend on how much came at
            # once.
            if not self._parts:
                match = _TAG.match(self._buffer, 0, min(TAG_BYTES_MAX, self._line_left) + 1)
                self._tag = bytes(match[1]) if match and match[0].endswith(b" ") else b""
            problem = BadCommand(self._tag or None, reason)
        self._reset()
        self._marks = self._expect is _Expect.COMMAND
        self._expect = _Expect.COMMAND
        self._state = _State.DRAIN
        return problem

    def _skip(self) -> Event | None:
        size = min(self._missing, len(self._buffer))
        del self._buffer[:size]
        self._missing -= size
        if self._missing:
            return NEED_DATA
        self._state = _State.DRAIN
        self._seen = 0
        return None

    def _drain(self) -> Event | None:
        end = self._buffer.find(b"\n", self._seen)
        if end < 0:
            del self._buffer[: max(0, len(self._buffer) - _MARK_BYTES)]
            self._seen = len(self._buffer)
            return NEED_DATA
        stop = end - 1 if end and self._buffer[end - 1] == 13 else end
        line = bytes(self._buffer[max(0, stop - _MARK_BYTES) : stop])
        del self._buffer[: end + 1]
        self._seen = 0
        return self._after(line)

    # -- the client's answers ------------------------------------------------------------------------------------------

    def _answer(self) -> Event | None:
        line = self._take_line()
        if isinstance(line, NeedData):
            return line
        if line is None:
            return self._too_long()
        expect, self._expect = self._expect, _Expect.COMMAND
        if expect is _Expect.DONE:
            return IdleDone() if line.rstrip(b" ").upper() == b"DONE" else BadLine("Expected DONE")
        if line == b"*":
            return SaslResponse(None)
        try:
            return SaslResponse(base64(line))
        except Invalid as error:
            return BadLine(str(error))


def _made(parsing: _Parsing) -> Command | BadCommand:
    """Return the command with the mails that came for it. The mails are discarded if
    the command is not valid."""
    event, incoming = parsing.parse(), parsing.incoming
    if incoming is None:
        return event
    if isinstance(event, Append):
        return msgspec.structs.replace(event, incoming=incoming)
    if isinstance(event, Replace):
        return msgspec.structs.replace(event, append=msgspec.structs.replace(event.append, incoming=incoming))
    incoming.close()
    return event


def _resets(word: str, line: bytes) -> Resets:
    """Return what a command resets in the session if it is answered NO. line: its first
    line, with all options of RETURN."""
    if word in ("SELECT", "EXAMINE"):
        return Resets.MAILBOX
    return Resets.SAVED if word in ("SEARCH", "SORT", "UID") and _SAVES.match(line) else Resets.NOTHING


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON_MAX else reason[:_REASON_MAX] + "..."
