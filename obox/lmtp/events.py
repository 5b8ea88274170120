"""What the machine hands to the driver."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(slots=True)
class RecipientAsked:
    """A question whether mail may be delivered. Answer with `answer_recipient`.

    `size`: as declared by SIZE=, or None. claim: the assignment that a member knows of
    a recipient that it forwards.
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
    """The chunks so far do not count: they are too big, or the client has left.

    It needs no answer.
    """


@dataclass(slots=True)
class MailReceived:
    """All chunks have come.

    Answer with `answer_mail`, with a reply for each accepted recipient, in order.
    """

    reverse_path: str
    recipients: tuple[object, ...]
    """What `answer_recipient` was given."""
    size: int
    body: str
    smtputf8: bool


@dataclass(slots=True)
class TlsAsked:
    """220 is in the output: send it, call `tls_started`, do the handshake."""


@dataclass(slots=True)
class LinkAsked:
    """A member wants to prove itself, or goes on with it. Answer with `answer_link`.

    line: what it sent, in base64; None: nothing yet. first: the exchange begins.
    """

    line: bytes | None
    first: bool


class Pause(enum.Enum):
    """The driver has nothing else to do."""

    NEED_DATA = enum.auto()
    NEED_ANSWER = enum.auto()
    TURN = enum.auto()
    """Others should run before the next command."""
    CLOSED = enum.auto()


Event = RecipientAsked | BodyChunk | BodyDropped | MailReceived | TlsAsked | LinkAsked | Pause
