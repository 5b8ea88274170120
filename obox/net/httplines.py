"""The client's side of HTTP/1.1, for answers of `obox.server.http`: they have a length,
or come in chunks.

A failure is an OSError. This module does not know addresses, TLS, or what is requested.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

LINE_BYTES_MAX: Final = 64 << 20
"""A row of a verb, such as a mail that `fetch` shows."""
PIECE_BYTES: Final = 64 * 1024
HEAD_LINES_MAX: Final = 64
"""An answer has at most 64 header lines. obox sends five."""


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer, names in lower case. Raises
    OSError."""
    try:
        status = (await reader.readline()).decode("latin-1").split(" ", 2)
        if len(status) < 2 or not status[0].startswith("HTTP/1.") or not status[1].isdigit():
            raise ConnectionError("no answer")
        headers: dict[str, str] = {}
        for _ in range(HEAD_LINES_MAX):
            line = (await reader.readline()).decode("latin-1")
            if not line.strip():
                return int(status[1]), headers
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
    except ValueError as error:
        raise ConnectionError(f"the answer was cut short: {error}") from error
    raise ConnectionError("the answer has too many headers")


async def lines(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Yield the lines of the body behind `head`, as they arrive. Raises OSError."""
    parts: list[bytes] = []
    async for data in pieces(reader, headers):
        first, *rest = data.split(b"\n")
        parts.append(first)
        for line in rest:
            yield b"".join(parts)
            parts = [line]
    if any(parts):
        yield b"".join(parts)


async def pieces(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Yield the body behind `head`, in pieces of at most PIECE_BYTES as they arrive.
    Raises OSError."""
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    try:
        async for data in _chunks(reader) if chunked else _plain(reader, headers.get("content-length")):
            yield data
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise ConnectionError(f"the answer was cut short: {error}") from error


async def _plain(reader: asyncio.StreamReader, length: str | None) -> AsyncIterator[bytes]:
    left = None if length is None else int(length)
    while left is None or left > 0:
        data = await reader.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES))
        if not data:
            if left:
                raise ConnectionError("the answer was cut short")
            return
        if left is not None:
            left -= len(data)
        yield data


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readuntil(b"\n")).split(b";")[0], 16):
        if size < 0:
            raise ValueError("a chunk of negative size")
        async for data in _plain(reader, str(size)):
            yield data
        await reader.readexactly(2)
    while (await reader.readuntil(b"\n")).strip():
        pass  # trailers, which obox does not send
