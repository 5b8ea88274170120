"""DEFLATE in both directions of a connection. RFC 1951, RFC 4978.

What the client sends is inflated a piece at a time, when the driver has used the piece
before. So a client whose input inflates to a thousand times its size gets no more
memory and no more time than a client that sends as much. Output is compressed while it
is handed over, with a small window. The compressor of an idle connection is dropped: a
new compressor continues the stream, because each output ends with a flush.

Diagnostics: input that does not inflate ends the connection (ConnectionResetError).
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from typing import Any, Final, cast

from .stream import Stream

INFLATED_BYTES: Final = 64 * 1024
"""Octets that are inflated at a time: as many as a connection reads ahead."""
DEFLATED_BYTES: Final = 64 * 1024
"""Octets that are compressed in one call."""
WINDOW_BITS: Final = 13
"""Window of the compressor. It takes 32 KiB, and as much for its tables."""
_MEMORY_LEVEL: Final = 6
_LEVEL: Final = 1
"""Level 6 takes twice as long for a seventh less."""


class Inflater:
    """What the client sends."""

    __slots__ = ("_more", "_waiting", "inflate")

    def __init__(self) -> None:
        self.inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._waiting: deque[bytes] = deque()
        self._more = False
        """Whether the last piece was full, so that more may follow without input."""

    def add(self, data: bytes) -> None:
        self._waiting.append(data)

    def read(self) -> bytes:
        """Return the next octets, at most INFLATED_BYTES, or none if the client has to
        send more. Raises: ConnectionResetError."""
        while True:
            data = self.inflate.unconsumed_tail
            if not data and not self._more:
                if not self._waiting:
                    return b""
                data = self._waiting.popleft()
            try:
                piece = self.inflate.decompress(data, INFLATED_BYTES)
            except zlib.error as error:
                raise ConnectionResetError("compressed input is damaged") from error
            self._more = len(piece) == INFLATED_BYTES
            if piece:
                return piece
            if self.inflate.eof:
                raise ConnectionResetError("compressed input has ended")


class Deflated:
    """A transport whose output is compressed."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.deflate: Any = None

    def write(self, data: bytes) -> None:
        if self.deflate is None:
            self.deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)
        deflate = self.deflate
        out = [deflate.compress(data[at : at + DEFLATED_BYTES]) for at in range(0, len(data), DEFLATED_BYTES)]
        out.append(deflate.flush(zlib.Z_SYNC_FLUSH))
        self._transport.write(b"".join(out))

    def rest(self) -> None:
        """Release the compressor until there is output again."""
        self.deflate = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def begin(stream: Stream) -> tuple[Inflater, Deflated]:
    """Compress all output of a stream that is not gathered yet. Returns what inflates
    its input. Raises: ConnectionResetError if the client is gone."""
    stream.send()
    if stream._transport is None:
        raise ConnectionResetError("the client is gone")
    deflated = Deflated(stream._transport)
    stream._transport = cast(asyncio.Transport, deflated)
    return Inflater(), deflated
