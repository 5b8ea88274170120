"""Certificates for "/tls" addresses and STARTTLS. The client's host name chooses one of
them, and a reload replaces them.

Invariant: certificates in use have been checked. They can be read, their keys match,
and their names are known. All connections get the same context object for the life of
the process. Its handshake callback takes the certificates that are in use at that
moment, so that a reload touches no listener and no open connection. A client that names
no host, or a host that no certificate has, gets the first certificate.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from obox.net.stream import Upgrade

if TYPE_CHECKING:
    from cryptography import x509

TICKETS = 2
"""TLS 1.3 session tickets that a handshake sends. It is the library's default."""


class TlsError(Exception):
    """A certificate or key cannot be used. The text is a single line that names the
    file."""


@dataclass(frozen=True, slots=True)
class _Set:
    """The certificates of one load. by_name: names in lower case, a wildcard as
    `*.domain`."""

    first: ssl.SSLContext
    digest: bytes
    """SHA-256 of the first certificate."""
    expires: float
    """Unix seconds at which the first of all certificates expires, also of those that
    have signed another."""
    by_name: dict[str, ssl.SSLContext]

    def choose(self, name: str | None) -> ssl.SSLContext:
        name = (name or "").lower().rstrip(".")
        wildcard = "*." + name.partition(".")[2]
        return self.by_name.get(name) or self.by_name.get(wildcard) or self.first


def _load(pairs: Sequence[tuple[Path, Path]]) -> _Set:
    # The import takes 15 ms, and a backend without certificates does without it.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    contexts: list[ssl.SSLContext] = []
    digests: list[bytes] = []
    by_name: dict[str, ssl.SSLContext] = {}
    expires = float("inf")
    for cert, key in pairs:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = TICKETS
        try:
            # With an empty pass phrase an encrypted key is refused. Without it the
            # library asks on a terminal.
            context.load_cert_chain(cert, key, password="")
            leaf, *signers = x509.load_pem_x509_certificates(cert.read_bytes())
        except ssl.SSLError as error:
            why = (
                "does not match"
                if error.reason == "KEY_VALUES_MISMATCH"
                else f"cannot be used ({error.reason or error})"
            )
            raise TlsError(f"tls.key {key} for tls.cert {cert}: {why}") from error
        except OSError as error:
            bad = next((path for path in (cert, key) if not path.is_file()), cert)
            raise TlsError(f"tls: {bad}: {error.strerror or error}") from error
        except ValueError as error:
            raise TlsError(f"tls.cert {cert}: {error}") from error
        contexts.append(context)
        digests.append(hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest())
        expires = min(expires, *(one.not_valid_after_utc.timestamp() for one in (leaf, *signers)))
        for name in _names(leaf):
            by_name.setdefault(name.lower(), context)
    return _Set(contexts[0], digests[0], expires, by_name)


def _names(leaf: x509.Certificate) -> list[str]:
    """Return the DNS names of a certificate, or its subject if it has no DNS names.

    RFC 9525 §2.
    """
    from cryptography import x509  # `_load` says why

    try:
        return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.DNSName
        )
    except x509.ExtensionNotFound:
        return [str(part.value) for part in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]


class Certificates:
    """The certificates of the process.

    context: the context for listeners and STARTTLS. Reloads do not replace the object.
    Raises: TlsError, from the constructor and from `prepare`.
    """

    def __init__(self, certs: Sequence[Path], keys: Sequence[Path]) -> None:
        self.current = self.prepare(certs, keys)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        self.context.num_tickets = TICKETS
        # A handshake needs a certificate to start with.
        self.context.load_cert_chain(certs[0], keys[0], password="")
        self.context.sni_callback = self._choose

    @staticmethod
    def prepare(certs: Sequence[Path], keys: Sequence[Path]) -> _Set:
        """Read and check certificates without using them yet. It blocks on the
        files."""
        if not certs or len(certs) != len(keys):
            raise TlsError("tls.cert and tls.key differ in number; allowed: one key for each certificate")
        return _load(list(zip(certs, keys, strict=True)))

    @property
    def digest(self) -> bytes:
        """Return SHA-256 of the certificate that a client gets if it names no host.

        The trusted link is bound to it. RFC 5929 §4 (tls-server-end-point).
        """
        return self.current.digest

    def figures(self) -> dict[str, float]:
        """Return numbers for metrics."""
        return {"certificate_expiry_seconds": self.current.expires - time.time()}

    def use(self, loaded: _Set) -> None:
        """Use what `prepare` has read for every handshake from now on."""
        self.current = loaded

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self.current.choose(name)


def starttls(context: Callable[[], ssl.SSLContext], handshake_s: float) -> Upgrade:
    """Return a function that starts TLS on a connection in clear.

    context: called for each handshake; returns the context to use. handshake_s: the
    time limit of a handshake, from the first byte to the last.
    """

    async def upgrade(transport: asyncio.Transport, protocol: asyncio.Protocol) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        new = await loop.start_tls(transport, protocol, context(), server_side=True, ssl_handshake_timeout=handshake_s)
        if new is None:
            raise ConnectionResetError("the connection was lost during the handshake")
        return new

    return upgrade
