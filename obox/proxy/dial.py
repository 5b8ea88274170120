"""A connection to a backend: the address, TLS, and the binding of the link.

If the backend is on another machine, the connection goes to its port with TLS. If it
has no such port, STARTTLS follows. On this machine the port without TLS is used. This
module does not check certificates. The proof of the link covers the certificate that
was shown, which is stronger than a check of its name.

Diagnostics: a failure is an OSError (TimeoutError is a kind of OSError).
"""

from __future__ import annotations

import asyncio
import ssl
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from obox.cluster import There
from obox.net import is_loopback
from obox.net.dialogue import Dialogue
from obox.unixsocket import short_name

CONNECT_S: Final = 2.0
"""The time for a connection to a backend, and for the handshake. Backends are near."""
UNIX: Final = "unix:"


class Place(NamedTuple):
    """Where to connect. tls: TLS begins with the first byte. path: the unix socket, or
    None."""

    host: str
    port: int
    tls: bool
    path: Path | None = None


def place_of(there: There, listener: str) -> Place:
    """Return the place of a backend's listener.

    A unix socket is `listener.sock` in the directory. Raises: ConnectionRefusedError,
    the backend has no such listener.
    """
    if there.address.startswith(UNIX):
        return Place("", 0, False, Path(there.address.removeprefix(UNIX)) / f"{listener}.sock")
    clear, secure = there.ports.get(listener, 0), there.ports.get(f"{listener}s", 0)
    if secure and not (clear and is_loopback(there.address)):
        return Place(there.address, secure, True)
    if not clear:
        raise ConnectionRefusedError(f"{there.backend} has no listener for {listener}")
    return Place(there.address, clear, False)


async def dial(place: Place) -> Dialogue:
    """Connect. Do the handshake if TLS begins at once. Raises: OSError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_S):
        if place.path is not None:
            with short_name(place.path) as name:
                _, dialogue = await loop.create_unix_connection(Dialogue, name)
        else:
            _, dialogue = await loop.create_connection(Dialogue, place.host, place.port)
        try:
            if place.tls:
                await dialogue.start_tls(context(), CONNECT_S)
        except BaseException:
            dialogue.abort()
            raise
    return dialogue


def binding(dialogue: Dialogue) -> bytes:
    """Return what the proof of the link is bound to: the certificate of the connection,
    b"" if there is none.

    Raises: ConnectionRefusedError, for a connection without TLS to another machine.
    """
    if dialogue.tls:
        return dialogue.certificate
    if not dialogue.local:
        raise ConnectionRefusedError("the backend is another machine and offers no TLS")
    return b""


@cache
def context() -> ssl.SSLContext:
    """Return a TLS context that does not check certificates; see the module's text."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made
