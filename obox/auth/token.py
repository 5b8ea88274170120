"""A password that a member makes for one login of one user at the owner.

A front end that does not know the trusted link (nginx) asks a member whether a password
is right. The answer has this token, which the front end sends to the owner as the
password. So no backend has to check the password again, and the owner gets the address
of the client.

    prefix  base64url(proof 32 | expiry 8 | nonce 16 | forward)

Invariant: the proof is made with the secret of the link, over everything behind it. A
token serves a single login until its expiry. This module does no I/O, and does not know
users.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from obox.auth.link import FORWARD_BYTES_MAX, PROOF_BYTES, Forward, LinkRefused

PREFIX: Final = "X-OBOX-TOKEN."
TOKEN_S: Final = 30.0
"""The front end must log in at the owner within this time after the answer. Clocks may
differ by some seconds."""
TOKENS_MAX: Final = 100_000
"""At most 100,000 used tokens are remembered: 3,000 logins a second for TOKEN_S."""
NONCE_BYTES: Final = 16
_EXPIRY: Final = slice(PROOF_BYTES, PROOF_BYTES + 8)
_HEAD: Final = PROOF_BYTES + 8 + NONCE_BYTES


def make_token(secret: bytes, forward: Forward, *, now: float, nonce: bytes) -> str:
    """Return a token. now: unix seconds. nonce: NONCE_BYTES fresh random bytes."""
    body = int(now + TOKEN_S).to_bytes(8, "big") + nonce + msgspec.msgpack.encode(forward)
    return PREFIX + base64.urlsafe_b64encode(_proof(secret, body) + body).decode("ascii")


class UsedTokens:
    """The tokens that were used. `read` accepts each token once."""

    def __init__(self) -> None:
        self._used: OrderedDict[bytes, int] = OrderedDict()  # proof -> expiry

    def __len__(self) -> int:
        return len(self._used)

    def read(self, secrets: Sequence[bytes], token: str, *, user: str, now: float) -> Forward:
        """Return what a token says about a client.

        user: the user who logs in with it. Raises: LinkRefused.
        """
        text = token.removeprefix(PREFIX)
        if len(text) > 4 * (_HEAD + FORWARD_BYTES_MAX):
            raise LinkRefused("a token that is too long")
        try:
            data = base64.b64decode(text, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise LinkRefused("no token") from error
        proof, body = data[:PROOF_BYTES], data[PROOF_BYTES:]
        fits = [hmac.compare_digest(proof, _proof(secret, body)) for secret in secrets]
        if len(data) <= _HEAD or not any(fits):
            raise LinkRefused("a forged token")
        expiry = int.from_bytes(data[_EXPIRY], "big")
        if not now <= expiry <= now + 2 * TOKEN_S:
            raise LinkRefused("a token that has expired")
        if proof in self._used:
            raise LinkRefused("a token that was used before")
        forward = msgspec.msgpack.decode(data[_HEAD:], type=Forward)
        if forward.user != user:
            raise LinkRefused("a token of another user")
        self._remember(proof, expiry, now)
        return forward

    def _remember(self, proof: bytes, expiry: int, now: float) -> None:
        self._used[proof] = expiry
        while self._used and next(iter(self._used.values())) < now:
            self._used.popitem(last=False)
        if len(self._used) > TOKENS_MAX:
            raise LinkRefused("too many tokens at once")


def _proof(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, PREFIX.encode() + body, hashlib.sha256)
