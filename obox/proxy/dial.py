"""A connection to a backend: the address, TLS, and the binding of the link.

The port under TLS is taken where there is one and the backend is another machine;
without one STARTTLS is asked for. On this machine the port in clear will do. No
certificate is checked here: the link's proof covers the certificate that was shown, and
so says more than a name does.

Diagnostics: what fails is an OSError (TimeoutError is one of them).
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
"""For a backend to take a connection, and for a handshake: one in the next rack."""
UNIX: Final = "unix:"


class Place(NamedTuple):
    """Where to connect. tls: from the first byte. path: of a unix socket, or None."""

    host: str
    port: int
    tls: bool
    path: Path | None = None


def place_of(there: There, listener: str) -> Place:
    """Where a backend's listener is.

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
    """Connect, and shake hands where TLS begins at once. Raises: OSError."""
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
    """What the link's proof is bound to.

    Raises: ConnectionRefusedError, for a connection in clear to another machine.
    """
    if dialogue.tls:
        return dialogue.certificate
    if not dialogue.local:
        raise ConnectionRefusedError("the backend is another machine and offers no TLS")
    return b""


@cache
def context() -> ssl.SSLContext:
    """TLS without names: see the module's text."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made
