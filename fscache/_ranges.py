"""Parts of large objects: pieces of PIECE_BYTES that are cached like objects.

A piece has the key "<key>#<number>". An object that is larger than the cache would take
in is read in parts only, and a client that reads it part by part fetches each piece
once.

Invariant: a piece is the object's bytes [number * PIECE_BYTES, (number + 1) *
PIECE_BYTES), fewer only at the object's end.
This module does not know what the ranges mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

PIECE_BYTES = 64 << 10  # little is read beside the range; neighbours share a fetch
OBJECTS_MAX = 10_000  # large objects remembered

FetchRange = Callable[[int, int], Awaitable[bytes]]


class Objects(Protocol):
    """What is asked of the cache here; see `fscache.Fscache`."""

    def peek(self, key: str) -> bool: ...

    async def read(self, key: str, start: int, end: int) -> bytes | None: ...

    async def get(self, key: str, fetch: Callable[[], Awaitable[bytes]]) -> bytes: ...


class Pieces:
    """How many pieces each object may have, so that a drop finds them.

    The pieces of an earlier process are not known; they stay until they are evicted.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def note(self, key: str, count: int) -> None:
        """Remember that the object may have pieces 0 to `count` - 1."""
        self._counts[key] = max(self._counts.get(key, 0), count)
        if len(self._counts) > OBJECTS_MAX:
            del self._counts[next(iter(self._counts))]

    def take(self, key: str) -> list[str]:
        """Return the keys of an object's known pieces, and forget them."""
        return [f"{key}#{number}" for number in range(self._counts.pop(key, 0))]


class _Run:
    """Neighbouring pieces that are missing. The first to be read fetches all."""

    def __init__(self, low: int, high: int, fetch: FetchRange) -> None:
        self._low, self._high, self._fetch = low, high, fetch
        self._task: asyncio.Future[bytes] | None = None
        self._waiting = 0

    async def piece(self, number: int) -> bytes:
        if self._task is None:
            self._task = asyncio.ensure_future(self._fetch(self._low * PIECE_BYTES, self._high * PIECE_BYTES))
        self._waiting += 1
        try:
            await asyncio.wait([self._task])
        finally:
            self._waiting -= 1
            if not self._waiting and not self._task.done():
                self._task.cancel()
        at = (number - self._low) * PIECE_BYTES
        return self._task.result()[at : at + PIECE_BYTES]


async def read_range(objects: Objects, pieces: Pieces, key: str, start: int, end: int, *, fetch: FetchRange) -> bytes:
    """Return bytes [start, end) of an object; see `Fscache.read_range`."""
    start = max(start, 0)
    if end <= start:
        return b""
    if objects.peek(key) and (data := await objects.read(key, start, end)) is not None:
        return data
    numbers = range(start // PIECE_BYTES, -(-end // PIECE_BYTES))
    runs: dict[int, _Run] = {}
    missing: list[int] = []
    for number in (*numbers, None):
        if number is not None and not objects.peek(f"{key}#{number}"):
            missing.append(number)
        elif missing:
            run = _Run(missing[0], missing[-1] + 1, fetch)
            runs.update((piece, run) for piece in missing)
            missing = []
    pieces.note(key, numbers.stop)

    def of(number: int) -> Callable[[], Awaitable[bytes]]:
        # A piece that `peek` announced may be damaged: then it is fetched alone.
        run = runs.get(number) or _Run(number, number + 1, fetch)
        return lambda: run.piece(number)

    parts = await asyncio.gather(*(objects.get(f"{key}#{number}", of(number)) for number in numbers))
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    return whole[start - numbers.start * PIECE_BYTES : end - numbers.start * PIECE_BYTES]
