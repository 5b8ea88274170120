"""The sender's end of the trusted link over a new connection to a backend: greeting,
TLS, and the exchange of the proofs. A `Dialect` says how a protocol writes the steps.

Diagnostics: each function raises OSError if the backend does not answer, or answers
something else, and LinkRefused if the two members have no common secret.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final, Generic, NamedTuple, TypeVar

from obox.accounts import Account
from obox.auth import LINK, Forward, LinkRefused, LinkSender
from obox.cluster import There
from obox.net.dialogue import Dialogue

from .dial import CONNECT_S, binding, context

LOGIN_S: Final = 15.0
"""The time in which the backend opens the user's mail. It waits 10 s for the bucket."""

Make = Callable[[bytes], LinkSender]
"""Returns the sender of the link for a binding."""
A = TypeVar("A")


class Dialect(ABC, Generic[A]):
    """How a protocol writes the steps of the link. A: an answer of the backend."""

    STARTTLS: ClassVar[bytes]
    """The command that begins TLS."""
    AUTH: ClassVar[bytes]
    """The command that begins a mechanism of SASL."""

    @abstractmethod
    async def greeted(self, dialogue: Dialogue) -> None:
        """Read the greeting, and greet if the protocol asks for it. Raises: OSError."""

    async def secured(self, dialogue: Dialogue) -> None:
        """Greet again after TLS has begun, if the protocol asks for it. Raises:
        OSError."""

    @abstractmethod
    async def answer(self, dialogue: Dialogue) -> A:
        """Read an answer. Raises: OSError."""

    @abstractmethod
    def check_tls(self, answer: A) -> None:
        """Raises: ConnectionRefusedError, the backend does not begin TLS."""

    @abstractmethod
    def challenge(self, answer: A) -> bytes | None:
        """Return the challenge in base64, which has the proof of the backend. None: the
        answer is none."""


class Answer(NamedTuple):
    """The answer to a login: the code without its brackets, and the text."""

    code: bytes
    text: str


class LoginDialect(Dialect[bytes]):
    """The dialect of a protocol with a login. Its answers are single lines."""

    @abstractmethod
    def entered(self, line: bytes) -> Answer:
        """Read the answer to the login. Raises: OboxError, the backend has refused;
        Referred; LinkRefused; OSError."""


async def login(dialogue: Dialogue, dialect: LoginDialect, make: Make) -> Answer:
    """Log a client in at its backend. Raises: what `LoginDialect.entered` raises."""
    async with asyncio.timeout(LOGIN_S):
        line = await prove(dialogue, dialect, make)
    return dialect.entered(line)


async def prove(dialogue: Dialogue, dialect: Dialect[A], make: Make) -> A:
    """Exchange the proofs. Return the last answer of the backend, which has proved that
    it knows the secret."""
    await dialect.greeted(dialogue)
    if not dialogue.tls and not dialogue.local:
        await dialogue.send(dialect.STARTTLS + b"\r\n")
        dialect.check_tls(await dialect.answer(dialogue))
        await dialogue.start_tls(context(), CONNECT_S)
        await dialect.secured(dialogue)
    sender = make(binding(dialogue))
    await dialogue.send(b"%b %b %b\r\n" % (dialect.AUTH, LINK.encode(), sender.first()))
    answer = await dialect.answer(dialogue)
    challenge = dialect.challenge(answer)
    if challenge is None:
        # Whatever it says, it may be anybody: no client may get that answer.
        raise LinkRefused("the backend answers without a proof of the common secret")
    try:
        proof = sender.answer(challenge)
    except LinkRefused:
        await dialogue.send(b"*\r\n")
        raise
    await dialogue.send(proof + b"\r\n")
    return await dialect.answer(dialogue)


def forward_of(there: There, account: Account | None, *, member: str, listener: str, remote: str, tls: bool) -> Forward:
    """Return what a backend learns about a client. account: None in LMTP. member: the
    sender."""
    assigned = there.assigned
    return Forward(
        user=account.name if account is not None else "",
        storage_id=account.storage_id if account is not None else "",
        remote=remote,
        listener=listener,
        tls=tls,
        member=member,
        backend=assigned.backend,
        number=assigned.number,
        token=assigned.token,
    )
