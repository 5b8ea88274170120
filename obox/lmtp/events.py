"""What the machine hands to the driver."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(slots=True)
class RecipientAsked:
    """May mail be delivered there? Answer with `answer_recipient`.

    `size`: as declared by SIZE=, or None. claim: the assignment that a member of the
    cluster knows of the recipient, who is forwarded to us.
    """

    address: str
    user: str
    detail: str
    size: int | None
    claim: str = ""


@dataclass(slots=True)
class BodyChunk:
    """Bytes of the mail, unstuffed, in order."""

    data: bytes


@dataclass(slots=True)
class BodyDropped:
    """The chunks so far are of no use: too big, or the client gave up.

    Needs no answer.
    """


@dataclass(slots=True)
class MailReceived:
    """All chunks have come.

    Answer with `answer_mail`: one reply for each accepted recipient, in their order.
    """

    reverse_path: str
    recipients: tuple[object, ...]
    """What `answer_recipient` was given."""
    size: int
    body: str
    smtputf8: bool


@dataclass(slots=True)
class TlsAsked:
    """220 is in the output: send it, call `tls_started`, shake hands."""


@dataclass(slots=True)
class LinkAsked:
    """A member wants to prove itself, or goes on with it. Answer with `answer_link`.

    line: what it sent, in base64; None: nothing yet. first: the exchange begins.
    """

    line: bytes | None
    first: bool


class Pause(enum.Enum):
    """Nothing to do for the driver but this."""

    NEED_DATA = enum.auto()
    NEED_ANSWER = enum.auto()
    TURN = enum.auto()
    """Others should run before the next command."""
    CLOSED = enum.auto()


Event = RecipientAsked | BodyChunk | BodyDropped | MailReceived | TlsAsked | LinkAsked | Pause
