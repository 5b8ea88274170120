"""HTTP requests to a worker over its unix sockets. A failure is an OSError."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from obox.net.httplines import LINE_BYTES_MAX, head, lines, pieces
from obox.unixsocket import short_name

PIECES_BYTES: Final = 256 * 1024
"""What is read ahead of the copies that a worker sends."""


class Place(Protocol):
    """A worker: its directory has the sockets."""

    @property
    def home(self) -> Path: ...


async def get(path: Path, target: str) -> bytes:
    """Return the body of an answer. Raises OSError."""
    return b"\n".join([line async for line in request(path, f"GET {target}", b"", "")])


async def request(path: Path, what: str, body: bytes, accept: str) -> AsyncIterator[bytes]:
    """Yield the lines of an answer as they arrive. Raises OSError."""
    async with _asked(path, what, body, accept, LINE_BYTES_MAX) as (status, headers, reader):
        if status != 200:
            raise ConnectionError(f"HTTP {status}")
        async for line in lines(reader, headers):
            yield line


class Answer(NamedTuple):
    status: int
    media_type: str
    body: AsyncIterator[bytes]
    """In pieces. Raises OSError."""


@asynccontextmanager
async def answer(path: Path, what: str) -> AsyncIterator[Answer]:
    """Ask, and read the answer in pieces. Raises OSError."""
    async with _asked(path, what, b"", "", PIECES_BYTES) as (status, headers, reader):
        yield Answer(status, headers.get("content-type", ""), pieces(reader, headers))


@asynccontextmanager
async def _asked(
    path: Path, what: str, body: bytes, accept: str, buffered: int
) -> AsyncIterator[tuple[int, dict[str, str], asyncio.StreamReader]]:
    with short_name(path) as name:
        reader, writer = await asyncio.open_unix_connection(name, limit=buffered)
    try:
        header = f"{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {accept or '*/*'}\r\n"
        if body:
            header += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        elif what.startswith("POST"):
            header += "Content-Length: 0\r\n"
        writer.write(header.encode() + b"\r\n" + body)
        status, headers = await head(reader)
        yield status, headers, reader
    finally:
        writer.transport.abort()
