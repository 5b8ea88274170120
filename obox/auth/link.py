"""The trusted link between members of a cluster: the SASL mechanism X-OBOX-LINK.

A member that has checked a client's password hands the client over to the backend that
owns the user. Both prove that they know a common secret, each over a fresh nonce of the
other. docs/cluster.md, "The trusted link", has the three messages:

    sender -> owner   version, sender's nonce, id of the secret
    owner -> sender   owner's nonce, proof of the owner
    sender -> owner   proof of the sender, the forward

Invariant: a proof covers the role, both nonces, the binding and, of the sender, the
forward. So a proof of another exchange, role, certificate or forward does not fit.
Without I/O; nonces come from the caller. This module does not know users, routes, or
transports.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from obox.auth.sasl import Challenge, SaslCancelled, SaslError, decode
from obox.errors import Unavailable

MECHANISM: Final = "X-OBOX-LINK"
VERSION: Final = b"\x01"
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
ID_BYTES: Final = 8
FORWARD_BYTES_MAX: Final = 2048
"""The size of an encoded forward: names of 600 bytes and addresses fit in, and it fits
a line of LMTP."""
LINE_BYTES_MAX: Final = 4 * ((PROOF_BYTES + FORWARD_BYTES_MAX + 2) // 3)
"""The longest message in base64."""


class LinkRefused(Exception):
    """The peer does not know the secret, or has changed a message.

    The text is for the log, and never for the peer.
    """


class Referred(Unavailable):
    """Another backend owns the user. backend, number, token: the assignment."""

    def __init__(self, backend: str, number: int, token: int) -> None:
        super().__init__("Another backend serves this user")
        self.backend = backend
        self.number = number
        self.token = token

    @property
    def wire(self) -> str:
        """Return the referral as members write it in their answers, in every
        protocol."""
        return f"X-OBOX-REFERRAL {self.backend} {self.number} {self.token}"

    @classmethod
    def read(cls, text: str) -> Referred | None:
        """Return the referral that a text is, or None."""
        match = _REFERRAL.fullmatch(text)
        return None if match is None else cls(match[1], int(match[2]), int(match[3]))


_REFERRAL: Final = re.compile(r"X-OBOX-REFERRAL ([A-Za-z0-9._-]{1,64}) (\d{1,18}) (\d{1,20})")

NO_OWNER: Final = 0
"""The number in a token for a member that forwards the client. No assignment has it."""


class Forward(msgspec.Struct, frozen=True):
    """What the sender says about a client.

    user, storage_id: "" in LMTP, where each recipient has an owner. remote, port: the
    client's address ("" and 0: a unix socket). listener: the listener that it came to,
    such as "imap". tls: whether the client uses TLS. member: the sender. backend,
    number, token: the assignment that the sender knows. digest: that of the request,
    for a call of the admin API; b"" otherwise.
    """

    user: str
    storage_id: str
    remote: str
    port: int = 0
    listener: str = ""
    tls: bool = False
    member: str = ""
    backend: str = ""
    number: int = 0
    token: int = 0
    digest: bytes = b""


def secret_id(secret: bytes) -> bytes:
    """Return the id that says which secret a sender uses."""
    return hashlib.sha256(secret).digest()[:ID_BYTES]


class LinkSender:
    """The sender's side of one exchange: `first`, then `answer`."""

    def __init__(self, secret: bytes, forward: Forward, *, nonce: bytes, binding: bytes) -> None:
        """nonce: NONCE_BYTES fresh random bytes. binding: SHA-256 of the owner's
        certificate, b"" on loopback and unix sockets.

        Raises ValueError: the forward is too large.
        """
        self._secret = secret
        self._forward = msgspec.msgpack.encode(forward)
        if len(self._forward) > FORWARD_BYTES_MAX:
            raise ValueError(f"a forward of {len(self._forward)} bytes; allowed: {FORWARD_BYTES_MAX}")
        self._nonce = nonce
        self._binding = binding

    def first(self) -> bytes:
        """Return the initial response, in base64."""
        return base64.b64encode(VERSION + self._nonce + secret_id(self._secret))

    def answer(self, challenge: bytes) -> bytes:
        """Return the response to the owner's challenge; both in base64.

        Raises: LinkRefused, the peer does not know the secret.
        """
        try:
            data = base64.b64decode(challenge, validate=True)
        except binascii.Error:
            data = b""
        if len(data) != NONCE_BYTES + PROOF_BYTES:
            raise LinkRefused("the owner's answer has a wrong form")
        nonces = self._nonce + data[:NONCE_BYTES]
        if not hmac.compare_digest(data[NONCE_BYTES:], _proof(self._secret, b"owner", nonces, self._binding)):
            raise LinkRefused("the owner does not know the secret, or uses another certificate")
        proof = _proof(self._secret, b"sender", nonces, self._binding, self._forward)
        return base64.b64encode(proof + self._forward)


class LinkOwner:
    """The owner's side of one exchange, with the steps of `SaslServer`.

    It ends with a Forward, a SaslError (form) or LinkRefused (forged).
    """

    def __init__(self, secrets: Sequence[bytes], *, nonce: bytes, unknown: bytes, binding: bytes) -> None:
        """nonce: NONCE_BYTES fresh random bytes. unknown: random bytes that replace an
        unknown secret, so that the peer learns nothing from the answer.
        """
        self._secrets = tuple(secrets)
        self._secret = unknown
        self._known = False
        self._nonces = b""
        self._nonce = nonce
        self._binding = binding

    def start(self, mechanism: str, initial: bytes | None = None) -> Challenge:
        """Begin. initial: the first message in base64; None: it comes with `step`."""
        if mechanism.upper() != MECHANISM:
            raise SaslError("Unsupported authentication mechanism")
        return Challenge(b"") if initial is None else self._begin(_decode(initial))

    def step(self, data: bytes) -> Challenge | Forward:
        """Process the peer's next line, without CRLF."""
        if data == b"*":
            raise SaslCancelled("Authentication cancelled")
        return self._end(_decode(data)) if self._nonces else self._begin(_decode(data))

    def _begin(self, data: bytes) -> Challenge:
        if len(data) != len(VERSION) + NONCE_BYTES + ID_BYTES or not data.startswith(VERSION):
            raise SaslError("Bad first message, or of another version")
        wanted = data[-ID_BYTES:]
        for secret in self._secrets:  # all are compared, so that the time says nothing
            if hmac.compare_digest(secret_id(secret), wanted):
                self._secret, self._known = secret, True
        self._nonces = data[len(VERSION) : -ID_BYTES] + self._nonce
        return Challenge(self._nonce + _proof(self._secret, b"owner", self._nonces, self._binding))

    def _end(self, data: bytes) -> Forward:
        if not PROOF_BYTES < len(data) <= PROOF_BYTES + FORWARD_BYTES_MAX:
            raise SaslError("Bad last message")
        forward = data[PROOF_BYTES:]
        right = _proof(self._secret, b"sender", self._nonces, self._binding, forward)
        if not hmac.compare_digest(data[:PROOF_BYTES], right) or not self._known:
            raise LinkRefused("forged" if self._known else "a secret that is not ours")
        try:
            return msgspec.msgpack.decode(forward, type=Forward)
        except msgspec.DecodeError as error:  # ValidationError is a kind of it
            raise SaslError("The forward cannot be read") from error


def _proof(secret: bytes, role: bytes, nonces: bytes, binding: bytes, forward: bytes = b"") -> bytes:
    """Return a proof. The length of each part comes before it, so that no two lists of
    parts give the same bytes."""
    parts = (MECHANISM.encode(), VERSION, role, nonces, binding, forward)
    return hmac.digest(secret, b"".join(len(part).to_bytes(4, "big") + part for part in parts), hashlib.sha256)


def _decode(line: bytes) -> bytes:
    return decode(line, LINE_BYTES_MAX)
