"""An IMAP client that does as little as possible.

It reads all bytes and searches the tagged line at their end. Both servers get the same
client, and its cost must not dominate.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence

READ_BYTES = 1 << 20
LINE_BYTES = 4096
"""A tagged line is shorter. That of LOGIN has all capabilities."""

_TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_TRUSTING.check_hostname = False
_TRUSTING.verify_mode = ssl.CERT_NONE


class Refused(Exception):
    """The server answered NO or BAD."""


class Imap:
    """A connection."""

    def __init__(self, port: int, user: str, password: str, *, tls: bool = False) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self._socket = _TRUSTING.wrap_socket(self._socket)
        self._buffer = bytearray(READ_BYTES)
        self._serial = 0
        self._line()
        self.command(f"LOGIN {user} {password}")

    def _line(self) -> bytes:
        data = b""
        while not data.endswith(b"\n"):
            got = self._socket.recv(4096)
            if not got:
                raise ConnectionError("the server has closed the connection")
            data += got
        return data

    def command(self, text: str, *, literal: bytes | None = None) -> tuple[float, int]:
        """Send a command and read its whole answer.

        Returns milliseconds and octets; raises Refused.
        """
        self._serial += 1
        tag = b"zQ%06d " % self._serial
        data = tag + text.encode() + b"\r\n"
        if literal is not None:
            data = b"%b%b {%d+}\r\n%b\r\n" % (tag, text.encode(), len(literal), literal)
        begin = time.perf_counter()
        self._socket.sendall(data)
        octets, tail = self._answer(tag)
        spent = (time.perf_counter() - begin) * 1000
        if not tail.startswith(tag + b"OK"):
            raise Refused(f"{text[:60]}: {tail[:200].decode(errors='replace')}")
        return spent, octets

    def pipeline(self, texts: Sequence[str]) -> float:
        """Send commands at once, and read all answers.

        Returns milliseconds for a command; raises Refused if the last is refused.
        """
        first = self._serial + 1
        self._serial += len(texts)
        data = "".join(f"zQ{first + at:06d} {text}\r\n" for at, text in enumerate(texts)).encode()
        begin = time.perf_counter()
        self._socket.sendall(data)
        tag = b"zQ%06d " % self._serial
        _, tail = self._answer(tag)
        spent = (time.perf_counter() - begin) * 1000
        if not tail.startswith(tag + b"OK"):
            raise Refused(f"{texts[-1][:60]}: {tail[:200].decode(errors='replace')}")
        return spent / len(texts)

    def _answer(self, tag: bytes) -> tuple[int, bytes]:
        octets, tail = 0, b""
        view, buffer = memoryview(self._buffer), self._buffer
        while True:
            got = self._socket.recv_into(view)
            if not got:
                raise ConnectionError("the server has closed the connection")
            octets += got
            tail = (tail + buffer[max(0, got - LINE_BYTES) : got])[-LINE_BYTES:]
            if tail.endswith(b"\r\n"):
                last = bytes(tail[tail.rfind(b"\n", 0, -1) + 1 :])
                if last.startswith(tag):
                    return octets, last

    def idle(self) -> None:
        """Enter IDLE and stay in it."""
        self._socket.sendall(b"zI IDLE\r\n")
        self._line()

    def close(self) -> None:
        self._socket.close()
