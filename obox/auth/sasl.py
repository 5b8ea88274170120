"""SASL server side without I/O: base64 lines in, a challenge or credentials out. RFC
4422.

PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login, which old Outlook uses). The
exchange checks only the form. `obox.auth.authenticator` checks who the user is and
whether the password fits. An object serves a single exchange.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

LINE_BYTES_MAX = 8192
"""Longest base64 line: four times a user name of 200 and a password of 1024 bytes."""

_MECHANISMS = ("PLAIN", "LOGIN")


class SaslError(Exception):
    """A mistake of the client; the text may be shown to it. IMAP answers BAD, POP3
    -ERR, SMTP and LMTP 501.
    """


class SaslCancelled(SaslError):
    """The client sent `*`. RFC 4422 §3.5; RFC 9051 §6.2.2."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the server asks next.

    `data`: as the mechanism defines it. `wire`: as it is sent, without `+ ` and CRLF.
    """

    data: bytes

    @property
    def wire(self) -> bytes:
        """Return the data in base64."""
        return base64.b64encode(self.data)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user and password that the client sent: not normalised, not checked."""

    user: str
    password: str = field(repr=False)


def mechanisms(tls: bool) -> tuple[str, ...]:
    """Return names to advertise. Both mechanisms send the password readably, so none
    without TLS.

    The caller decides what counts as TLS; Dovecot treats a loopback peer as secured.
    """
    return _MECHANISMS if tls else ()


class SaslServer:
    """An exchange: `start`, then `step` for each line of the client.

    It ends with Credentials or SaslError.
    """

    def __init__(self) -> None:
        self._mechanism = ""
        self._user: str | None = None

    def start(self, mechanism: str, initial: bytes | None = None) -> Challenge | Credentials:
        """Begin. `initial`: the initial response in base64, `=` for an empty response
        (RFC 4959 §3), None for none.
        """
        name = mechanism.upper()
        if name not in _MECHANISMS:
            raise SaslError("Unsupported authentication mechanism")
        if self._mechanism:
            raise SaslError("Authentication is already under way")
        self._mechanism = name
        if initial is None:
            return Challenge(b"" if name == "PLAIN" else b"Username:")
        return self._respond(b"" if initial == b"=" else decode(initial))

    def step(self, data: bytes) -> Challenge | Credentials:
        """Process the client's next line, without CRLF."""
        if not self._mechanism:
            raise SaslError("No authentication is under way")
        if data == b"*":
            raise SaslCancelled("Authentication cancelled")
        return self._respond(decode(data))

    def _respond(self, data: bytes) -> Challenge | Credentials:
        if self._mechanism == "PLAIN":
            return _plain(data)
        text = _text(data)
        if self._user is None:
            if not text:
                raise SaslError("User name is empty")
            self._user = text
            return Challenge(b"Password:")
        return Credentials(self._user, text)


def _plain(data: bytes) -> Credentials:
    # RFC 4616 §2: message = [authzid] UTF8NUL authcid UTF8NUL passwd
    parts = data.split(b"\0")
    if len(parts) != 3:
        raise SaslError("PLAIN response does not have three parts")
    authzid, authcid, password = (_text(part) for part in parts)
    if not authcid:
        raise SaslError("User name is empty")
    if authzid and authzid != authcid:
        raise SaslError("Authorization as another user is not supported")
    return Credentials(authcid, password)


def decode(line: bytes, most: int = LINE_BYTES_MAX) -> bytes:
    """Decode a line of the client in base64. Raises: SaslError."""
    if len(line) > most:
        raise SaslError("Authentication data is too long")
    try:
        return base64.b64decode(line, validate=True)
    except binascii.Error as error:
        raise SaslError("Invalid base64 data") from error


def _text(data: bytes) -> str:
    if b"\0" in data:
        raise SaslError("Authentication data has a NUL")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SaslError("Authentication data is not UTF-8") from error
