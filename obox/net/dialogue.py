"""A conversation with another server, line by line, until its transport is taken over.

It keeps up to `AHEAD_BYTES` of what has come; beyond that reading pauses. `take` gives
the transport, and the bytes behind the last line, to the protocol that continues.

Diagnostics: every failure of the network is an OSError. The owner sets deadlines. This
module does not know what the lines mean.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from typing import Any, Final, cast

from obox.net.registry import is_loopback

LINE_BYTES_MAX: Final = 16_384
"""The longest line of an answer. A list of capabilities has some 500 bytes."""
AHEAD_BYTES: Final = 65_536
"""At most 64 KiB may have come that nobody has asked for yet."""
KEEPALIVE_IDLE_S: Final = 60
"""After this silence the kernel asks whether the peer is still there."""
KEEPALIVE_EVERY_S: Final = 10
USER_TIMEOUT_S: Final = 30
"""A peer must acknowledge what was sent within this time, or the kernel ends the
connection."""


class Dialogue(asyncio.Protocol):
    """See the module's text. Give it to `create_connection`."""

    __slots__ = (
        "_buffer",
        "_drained",
        "_eof",
        "_error",
        "_held",
        "_lost",
        "_paused",
        "_waiter",
        "transport",
    )

    def __init__(self) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._eof = self._lost = self._held = self._paused = False
        self._error: Exception | None = None

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        watch(self.transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > AHEAD_BYTES and not self._held:
            self._held = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._eof = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._eof = True
        self._error = exc
        self._wake()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        for waiter in (self._waiter, self._drained):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    # -- for its owner ---------------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """Return the server's address; "" for a unix socket."""
        peer = self.transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) and peer else ""

    @property
    def local(self) -> bool:
        """Return whether the server is on this machine."""
        return is_loopback(self.peer)

    @property
    def certificate(self) -> bytes:
        """Return SHA-256 of the server's certificate; b"" without TLS."""
        tls = self.transport.get_extra_info("ssl_object")
        found = tls.getpeercert(binary_form=True) if tls is not None else None
        return hashlib.sha256(found).digest() if found else b""

    @property
    def tls(self) -> bool:
        return self.transport.get_extra_info("ssl_object") is not None

    async def line(self) -> bytes:
        """Return the server's next line, without CRLF.

        Raises: ConnectionResetError, also for a line of more than LINE_BYTES_MAX.
        """
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LINE_BYTES_MAX:
                raise ConnectionResetError("the server's line is too long")
            if self._eof:
                raise ConnectionResetError(str(self._error or "the server closed the connection"))
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        if self._held and len(self._buffer) <= AHEAD_BYTES and not self._lost:
            self._held = False
            self.transport.resume_reading()
        return line

    async def send(self, data: bytes) -> None:
        """Send; wait for a server that does not read. Raises: ConnectionResetError."""
        if not self._lost:
            self.transport.write(data)
        while self._paused and not self._lost:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        if self._lost:
            raise ConnectionResetError(str(self._error or "the server closed the connection"))

    async def start_tls(self, context: ssl.SSLContext, handshake_s: float) -> None:
        """Continue under TLS.

        No name is sent, so that the server shows its first certificate. Raises:
        OSError.
        """
        self._buffer.clear()
        loop = asyncio.get_running_loop()
        made = await loop.start_tls(self.transport, self, context, ssl_handshake_timeout=handshake_s)
        if made is None:
            raise ConnectionResetError("the connection was lost during the handshake")
        self.transport = made

    def take(self) -> tuple[asyncio.Transport, bytes]:
        """Return the transport, and what has come behind the last line.

        Raises: ConnectionResetError, the server is gone.
        """
        if self._lost or self._eof:
            raise ConnectionResetError("the server closed the connection")
        if self._held:
            self._held = False
            self.transport.resume_reading()
        rest = bytes(self._buffer)
        self._buffer.clear()
        return self.transport, rest

    def close(self) -> None:
        """Send what is left, and close."""
        if self.transport is not None and not self._lost:
            self.transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self.transport is not None and not self._lost:
            self.transport.abort()


def watch(transport: asyncio.BaseTransport) -> None:
    """Notice a peer that is gone, even if nothing is sent for hours."""
    sock: Any = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_S * 1000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
