"""What the parser answers to bytes: commands (obox.imap.ast), and the events here.

`next()` is called until it returns NEED_DATA. Events have no wire form beyond what the
peer must see; obox.imap.wire turns a refusal into its response line.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import msgspec

from obox.imap.ast import Command
from obox.store.api import Source


class NeedData(msgspec.Struct, frozen=True):
    """There is no further event before `feed`."""


NEED_DATA: Final = NeedData()


class Incoming(Protocol):
    """The mails of an APPEND while they arrive: `obox.imap.intake.Incoming`.

    Without one the parser holds them.
    """

    spooling: bool

    def admit(self, size: int) -> bool: ...
    def add(self, data: bytes) -> bool: ...
    def end(self) -> Source: ...
    async def flush(self) -> None: ...
    def close(self) -> None: ...


class NeedFlush(msgspec.Struct, frozen=True):
    """In the middle of a mail: wait for `incoming.flush` before the next event."""

    incoming: Incoming


class NeedTurn(msgspec.Struct, frozen=True):
    """Much has been read without an event. Let others run before the next event."""


NEED_TURN: Final = NeedTurn()


class NeedParse(msgspec.Struct, frozen=True, eq=False):
    """A large command is complete. Call `parse` in a thread before the next event.

    Without it the next call of `next` parses the command.
    """

    parse: Callable[[], object]


class NeedContinuation(msgspec.Struct, frozen=True):
    """The client waits for `+` before it sends a literal: send it, or call
    `Parser.refuse` and answer NO.

    Only for synchronising literals (`{n}`); `{n+}` is read without an event. command:
    the command's word in capitals.
    """

    tag: bytes
    command: str
    size: int


class Resets(enum.Enum):
    """What a failed command resets in the session, if it is answered NO.

    A BAD changes nothing.
    """

    NOTHING = 0
    MAILBOX = 1
    """SELECT and EXAMINE: no mailbox is selected. RFC 3501 §6.3.1, RFC 9051 §6.3.2."""
    SAVED = 2
    """SEARCH with RETURN (SAVE): `$` is empty. RFC 5182 §2.1."""


class BadCommand(msgspec.Struct, frozen=True):
    """The command was not understood, and the parser is at the next line. Answer `tag
    STATUS [code] reason`.

    tag: None where there was none to be read: answer `* BAD reason`. status: "BAD" for
    a syntax error, "NO" where the syntax is right and a value cannot be served. code: a
    response code without brackets, such as `BADCHARSET (US-ASCII UTF-8)`. resets: with
    "NO" only.
    """

    tag: bytes | None
    reason: str
    status: str = "BAD"
    code: str | None = None
    resets: Resets = Resets.NOTHING


class TooBig(msgspec.Struct, frozen=True):
    """A literal was refused for its size, and was not read or was discarded: NO
    [TOOBIG] to APPEND (RFC 7889 §4), else NO [LIMIT].

    fatal: the client sends more than is ever discarded; send BYE and close. The parser
    returns nothing more. tag: None only where `fatal`.
    """

    tag: bytes | None
    command: str
    size: int
    size_max: int
    fatal: bool = False
    resets: Resets = Resets.NOTHING


class SaslResponse(msgspec.Struct, frozen=True):
    """After `expect_sasl`: the decoded response, or None where the client cancelled
    with `*`. RFC 9051 §6.2.2."""

    data: bytes | None

    def __repr__(self) -> str:
        return "SaslResponse(None)" if self.data is None else "SaslResponse(...)"


class IdleDone(msgspec.Struct, frozen=True):
    """After `expect_done`: the client sent DONE."""


class BadLine(msgspec.Struct, frozen=True):
    """After `expect_sasl` or `expect_done`: another line than expected; answer the
    waiting command's tag with BAD."""

    reason: str


Event: TypeAlias = (
    NeedData
    | NeedFlush
    | NeedTurn
    | NeedParse
    | NeedContinuation
    | Command
    | BadCommand
    | TooBig
    | SaslResponse
    | IdleDone
    | BadLine
)
