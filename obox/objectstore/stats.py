"""Counts every request that is sent to the store, and logs the slow requests.

Requests are what a bucket costs. Tests assert their number per operation, /metrics
shows it, and `(op, kind)` is its label.

Invariant: a call to a driver counts as one request when it ends, however it ends. The
numbers only grow. Answers on which callers rely (AlreadyExists, Missing) are no errors;
everything else that raises is an error, including a cancelled request.

This module does not know metrics libraries or retries (they are above: a retried PUT
counts as two).

Diagnostics: a request slower than slow_s is logged as a warning, `slow request`, with
op, kind, key, ms, attempt, ok. Requests of probes are not logged; the prober reports
how long they took. Nothing here fails.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from obox.objectstore._driver import PROBES, Around, Cursor, Driver, Kind, Page
from obox.objectstore._errors import AlreadyExists, Missing

Op = Literal["put", "get", "list", "delete", "head", "copy"]
OPS: tuple[Op, ...] = get_args(Op)
KINDS: tuple[Kind, ...] = get_args(Kind)

BUCKETS_S: tuple[float, ...] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram; slower requests are in an additional bucket."""

ATTEMPT: ContextVar[int] = ContextVar("obox_objectstore_attempt", default=1)
"""The attempt of the retry layer to which this request belongs, for the log of slow
requests only.
"""


@dataclass(slots=True)
class Counter:
    """Numbers of an (op, kind).

    buckets[i]: requests of at most BUCKETS_S[i], not cumulated.
    """

    requests: int = 0
    errors: int = 0
    bytes: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))


Snapshot = dict[tuple[Op, Kind], Counter]


class Stats:
    """The counters of a store. `op` or `kind` of None means all of them."""

    def __init__(self, counters: Snapshot | None = None) -> None:
        self.counters: Snapshot = {} if counters is None else counters

    def record(self, op: Op, kind: Kind, *, seconds: float, size: int, error: bool) -> None:
        """Count a request."""
        counter = self.counters.get((op, kind))
        if counter is None:
            counter = self.counters[op, kind] = Counter()
        counter.requests += 1
        counter.errors += error
        counter.bytes += size
        counter.seconds += seconds
        counter.buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def count(self, op: Op | None = None, kind: Kind | None = None) -> int:
        """Return the number of requests."""
        return sum(counter.requests for counter in self._select(op, kind))

    def errors(self, op: Op | None = None, kind: Kind | None = None) -> int:
        """Return the number of requests that failed."""
        return sum(counter.errors for counter in self._select(op, kind))

    def bytes(self, op: Op | None = None, kind: Kind | None = None) -> int:
        """Return the bytes of payload that were sent (PUT) or received (GET)."""
        return sum(counter.bytes for counter in self._select(op, kind))

    def snapshot(self) -> Snapshot:
        """Return a copy of all counters."""
        return {
            key: Counter(c.requests, c.errors, c.bytes, c.seconds, c.buckets[:]) for key, c in self.counters.items()
        }

    def since(self, before: Snapshot) -> Stats:
        """Return what has been counted since a snapshot."""
        grown: Snapshot = {}
        for key, now in self.counters.items():
            old = before.get(key) or Counter()
            if now.requests != old.requests:
                grown[key] = Counter(
                    now.requests - old.requests,
                    now.errors - old.errors,
                    now.bytes - old.bytes,
                    now.seconds - old.seconds,
                    [a - b for a, b in zip(now.buckets, old.buckets, strict=True)],
                )
        return Stats(grown)

    def requests(self) -> dict[tuple[Op, Kind], int]:
        """Return the number of requests by (op, kind), which a test compares with a
        literal.
        """
        return {key: counter.requests for key, counter in self.counters.items() if counter.requests}

    def _select(self, op: Op | None, kind: Kind | None) -> list[Counter]:
        return [c for (o, k), c in self.counters.items() if op in (None, o) and kind in (None, k)]

    def __repr__(self) -> str:
        return f"Stats({self.requests()})"


class Counted(Around):
    """A driver whose requests are counted and, when slow, logged."""

    def __init__(self, inner: Driver, stats: Stats, *, clock: Callable[[], float], slow_s: float, log: Any) -> None:
        self.stats = stats
        super().__init__(inner)
        self._clock = clock
        self._slow_s = slow_s
        self._log = log

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        begun, error = self._clock(), True
        try:
            await self.inner.put(key, data, kind=kind)
            error = False
        except AlreadyExists:
            error = False
            raise
        finally:
            self._end("put", kind, key, begun, size=len(data), error=error)

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        begun, error = self._clock(), True
        try:
            await self.inner.replace(key, data, kind=kind)
            error = False
        finally:
            self._end("put", kind, key, begun, size=len(data), error=error)

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        begun, error, size = self._clock(), True, 0
        try:
            data = await self.inner.get(key, kind=kind, start=start, end=end)
            error, size = False, len(data)
            return data
        except Missing:
            error = False
            raise
        finally:
            self._end("get", kind, key, begun, size=size, error=error)

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        begun, error = self._clock(), True
        try:
            page = await self.inner.list_page(prefix, kind=kind, after=after, limit=limit, cursor=cursor, exact=exact)
            error = False
            return page
        finally:
            self._end("list", kind, prefix, begun, size=0, error=error)

    async def list_names(self, prefix: str, *, kind: Kind) -> list[str]:
        begun, error = self._clock(), True
        try:
            names = await self.inner.list_names(prefix, kind=kind)
            error = False
            return names
        finally:
            self._end("list", kind, prefix, begun, size=0, error=error)

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        begun, error = self._clock(), True
        try:
            await self.inner.delete_batch(keys, kind=kind)
            error = False
        finally:
            self._end("delete", kind, keys[0], begun, size=0, error=error)

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        begun, error = self._clock(), True
        try:
            await self.inner.copy(source, target, kind=kind)
            error = False
        except (AlreadyExists, Missing):
            error = False
            raise
        finally:
            self._end("copy", kind, target, begun, size=0, error=error)

    async def close(self) -> None:
        await self.inner.close()

    def _end(self, op: Op, kind: Kind, key: str, begun: float, *, size: int, error: bool) -> None:
        seconds = self._clock() - begun
        self.stats.record(op, kind, seconds=seconds, size=size, error=error)
        if seconds > self._slow_s and f"/{PROBES}" not in f"/{key}":
            self._log.warning(
                "slow request", op=op, kind=kind, key=key, ms=round(seconds * 1000), attempt=ATTEMPT.get(), ok=not error
            )
