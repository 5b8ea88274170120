"""Parts of large objects: kept as pieces of PIECE_BYTES, each an object of its own with the key "<key>#<number>".

An object larger than the cache would take in is read in parts only; a client that reads it part by part needs each
piece once.

Invariant: a piece is the object's bytes [number * PIECE_BYTES, (number + 1) * PIECE_BYTES), fewer only at its end.
Refuses to know: what the ranges mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fscache._cache import Fscache

PIECE_BYTES = 64 << 10  # little is read beside what was asked for; neighbours come in one request


OBJECTS_MAX = 10_000  # large objects remembered


class Pieces:
    """Which objects have pieces, so that a drop finds them; those of an earlier process stay until they are evicted."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def note(self, key: str, count: int) -> None:
        self._counts[key] = max(self._counts.get(key, 0), count)
        if len(self._counts) > OBJECTS_MAX:
            del self._counts[next(iter(self._counts))]

    def take(self, key: str) -> list[str]:
        """The keys of an object's pieces, as far as they are known; forgotten now."""
        return [f"{key}#{number}" for number in range(self._counts.pop(key, 0))]


class _Run:
    """Neighbouring pieces that are missing: one fetch for all of them, begun by the first that needs it."""

    def __init__(self, low: int, high: int, fetch: Callable[[int, int], Awaitable[bytes]]) -> None:
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


async def read_range(
    cache: Fscache, key: str, start: int, end: int, fetch: Callable[[int, int], Awaitable[bytes]]
) -> bytes:
    """See `Fscache.read_range`."""
    start = max(start, 0)
    if end <= start:
        return b""
    if cache.peek(key) and (data := await cache.read(key, start, end)) is not None:
        return data
    numbers = range(start // PIECE_BYTES, -(-end // PIECE_BYTES))
    runs: dict[int, _Run] = {}
    missing: list[int] = []
    for number in (*numbers, None):
        if number is not None and not cache.peek(f"{key}#{number}"):
            missing.append(number)
        elif missing:
            run = _Run(missing[0], missing[-1] + 1, fetch)
            runs.update((one, run) for one in missing)
            missing = []
    cache.pieces.note(key, numbers.stop)

    def of(number: int) -> Callable[[], Awaitable[bytes]]:
        run = runs.get(number) or _Run(number, number + 1, fetch)  # peek was wrong: alone
        return lambda: run.piece(number)

    parts = await asyncio.gather(*(cache.get(f"{key}#{number}", of(number)) for number in numbers))
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    return whole[start - numbers.start * PIECE_BYTES : end - numbers.start * PIECE_BYTES]
