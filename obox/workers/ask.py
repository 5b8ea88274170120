"""HTTP requests to a worker over its unix sockets. A failure is an OSError."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from obox.net.httplines import LINE_BYTES_MAX, head, lines
from obox.unixsocket import short_name


class Place(Protocol):
    """A worker: its directory has the sockets."""

    @property
    def home(self) -> Path: ...


async def get(path: Path, target: str) -> bytes:
    """Return the body of an answer. Raises OSError."""
    return b"\n".join([line async for line in request(path, f"GET {target}", b"", "")])


async def request(path: Path, what: str, body: bytes, accept: str) -> AsyncIterator[bytes]:
    """Yield the lines of an answer as they arrive. Raises OSError."""
    with short_name(path) as name:
        reader, writer = await asyncio.open_unix_connection(name, limit=LINE_BYTES_MAX)
    try:
        header = f"{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {accept or '*/*'}\r\n"
        if body:
            header += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(header.encode() + b"\r\n" + body)
        status, headers = await head(reader)
        if status != 200:
            raise ConnectionError(f"HTTP {status}")
        async for line in lines(reader, headers):
            yield line
    finally:
        writer.transport.abort()
