"""A proxy between a backend and a real S3 server that does what networks and servers do
on a bad day.

It forwards HTTP/1.1 requests as they are; `fault` may be changed at any time and holds
for requests that begin then.

    ""          nothing
    down        the port is closed, open connections are cut
    slowdown    503 SlowDown, nothing is done
    error       500 InternalError, nothing is done
    error_done  500 InternalError after the request has been done
    drop_done   the connection is cut after the request has been done
    hang        nothing is done, nothing is said
    late        done after late_s, answered then
    forbidden   403 AccessDenied
    conflict    409 ConditionalRequestConflict, nothing is done
    false_412   412 PreconditionFailed, nothing is done
    garbage     bytes that are no HTTP
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

FAULTS: Final = (
    "down",
    "slowdown",
    "error",
    "error_done",
    "drop_done",
    "hang",
    "late",
    "forbidden",
    "conflict",
    "false_412",
    "garbage",
)
_SAID: Final = {
    "slowdown": (503, "SlowDown"),
    "error": (500, "InternalError"),
    "error_done": (500, "InternalError"),
    "forbidden": (403, "AccessDenied"),
    "conflict": (409, "ConditionalRequestConflict"),
    "false_412": (412, "PreconditionFailed"),
}


class FaultProxy:
    """The proxy (see the text of the module).

    share: the part of the requests that meet the fault, 0 to 1. Only PUTs meet a
    conflict or a 412.
    """

    def __init__(self, endpoint_url: str, rng: random.Random) -> None:
        self._host, self._port = urlsplit(endpoint_url).hostname, urlsplit(endpoint_url).port
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.fault = ""
        self.share = 1.0
        self.late_s = 1.5
        self.met = 0

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the port and cut the open connections. `open` opens the same port
        again."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve a request. Return False if the connection must be closed."""
        head = await reader.readuntil(b"\r\n\r\n")
        body = await _body(reader, head)
        fault = self.fault if self._rng.random() < self.share else ""
        if fault in ("conflict", "false_412") and not head.startswith(b"PUT"):
            fault = ""
        self.met += bool(fault)
        match fault:
            case "hang":
                await asyncio.sleep(3600)
            case "late":
                await asyncio.sleep(self.late_s)
            case "garbage":
                writer.write(bytes(self._rng.randrange(128, 256) for _ in range(100)))
                await writer.drain()
                return False
            case "slowdown" | "error" | "forbidden" | "conflict" | "false_412":
                _say(writer, *_SAID[fault])
                await writer.drain()
                return True
        answer = await self._forward(head, body)
        if fault == "drop_done":
            return False
        if fault == "error_done":
            _say(writer, *_SAID[fault])
        else:
            writer.write(answer)
        await writer.drain()
        return fault != "" or b"connection: close" not in answer.lower()

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        """Forward a request over a new connection. Return the real server's answer."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HEAD") or answer.split(b" ", 2)[1] in (b"204", b"304"):
                return answer
            return answer + await _body(reader, answer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


def _say(writer: asyncio.StreamWriter, status: int, code: str) -> None:
    text = f"<Error><Code>{code}</Code><Message>made</Message></Error>".encode()
    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(text)) + text)


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """Read the body that belongs to a head, in the form in which it was sent."""
    if found := re.search(rb"\r\ncontent-length: *(\d+)", head, re.I):
        return await reader.readexactly(int(found[1]))
    if not re.search(rb"\r\ntransfer-encoding: *chunked", head, re.I):
        return b""
    whole = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        whole += line + await reader.readexactly(size + 2)
        if not size:
            return whole
