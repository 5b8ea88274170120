"""HTTP requests to a worker over its unix sockets.

The answers are those of our own server (`obox.server.http`): with a length, or in
chunks. What fails is an OSError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

from obox.unixsocket import short_name

LINE_BYTES_MAX: Final = 64 << 20
"""A row of a verb, such as a mail that `fetch` shows."""


class Place(Protocol):
    """A worker: its directory has the sockets."""

    @property
    def home(self) -> Path: ...


async def get(path: Path, target: str) -> bytes:
    """The body of an answer. Raises OSError."""
    return b"\n".join([line async for line in request(path, f"GET {target}", b"", "")])


async def request(path: Path, what: str, body: bytes, accept: str) -> AsyncIterator[bytes]:
    """The lines of an answer, as they arrive. Raises OSError."""
    with short_name(path) as name:
        reader, writer = await asyncio.open_unix_connection(name, limit=LINE_BYTES_MAX)
    try:
        header = f"{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {accept or '*/*'}\r\n"
        if body:
            header += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(header.encode() + b"\r\n" + body)
        status = await reader.readline()
        chunked = False
        while (line := await reader.readline()) not in (b"\r\n", b""):
            chunked = chunked or line.lower().replace(b" ", b"") == b"transfer-encoding:chunked\r\n"
        if b" 200 " not in status:
            raise ConnectionError(status.decode(errors="replace").strip() or "no answer")
        parts: list[bytes] = []
        async for data in _chunks(reader) if chunked else _plain(reader):
            first, *lines = data.split(b"\n")
            parts.append(first)
            for line in lines:
                yield b"".join(parts)
                parts = [line]
        if any(parts):
            yield b"".join(parts)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise ConnectionError(f"the answer was cut short: {error}") from error
    finally:
        writer.transport.abort()


async def _plain(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(65536):
        yield data


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readuntil(b"\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
