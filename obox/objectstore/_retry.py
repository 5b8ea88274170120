"""The one place that waits and tries again: deadline, retries, pages and batches over a driver.

A request has `deadline_s` for all its attempts and the pauses between them. Pauses are at most 50 ms, 500 ms, 5 s and
10 s, each shortened by up to a quarter at random, so that many clients do not come back at once; a pause that would not
fit into the deadline is cut to half of what is left. Attempts that may safely be cut short (everything but PUT and
copy) get half of the deadline at first, so that a dead connection costs a retry and not the answer.
The deadline is per request: a LIST of a million keys is a thousand requests and may take longer.

Invariant: only what is transient (Unreachable, Truncated, a timeout) is tried again. A PUT or copy that fails in the
end is Unreachable or Refused only when no attempt can have had its effect; else OutcomeUnknown. Cancellation passes
at once.

Refuses to know: what a driver is, keys, codec.

Diagnostics: each retry is logged at debug (`retry`: op, key, attempt, pause, error); giving up is an exception, not a
log line. Nothing is fatal.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from obox.objectstore._driver import REQUEST_KEYS_MAX, Driver, Kind, ObjectInfo, Page
from obox.objectstore._errors import OutcomeUnknown, Refused, Truncated, Unreachable
from obox.objectstore.stats import ATTEMPT

PAUSES_S: tuple[float, ...] = (0.05, 0.5, 5.0, 10.0)
"""The longest pause before each retry: four retries, five attempts."""

_JITTER = 0.25

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


class Retrying:
    """An ObjectStore over a Driver."""

    def __init__(
        self,
        inner: Driver,
        *,
        deadline_s: float,
        clock: Callable[[], float],
        sleep: Sleep,
        rng: random.Random,
        log: Any,
    ) -> None:
        self._inner = inner
        self._deadline_s = deadline_s
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._log = log

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._try("put", key, lambda: self._inner.put(key, data, kind=kind), writes=True)

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._try("put", key, lambda: self._inner.replace(key, data, kind=kind))

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        if start < 0 or (end is not None and end < 0):
            raise ValueError(f"range {start}..{end}: no negative offsets")
        if end is not None and end <= start:
            return b""
        return await self._try("get", key, lambda: self._inner.get(key, kind=kind, start=start, end=end))

    async def list(self, prefix: str, *, kind: Kind, after: str = "", limit: int | None = None) -> list[ObjectInfo]:
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r}: a prefix is empty or ends with /")
        found: list[ObjectInfo] = []
        more = limit is None or limit > 0
        while more:
            ask = self._inner.page_keys if limit is None else min(limit - len(found), self._inner.page_keys)

            def page(after: str = after, ask: int = ask) -> Coroutine[Any, Any, Page]:
                return self._inner.list_page(prefix, kind=kind, after=after, limit=ask)

            items, more = await self._try("list", prefix, page)
            found += items
            if not items or len(found) == limit:
                break
            after = items[-1].key
        return found

    async def delete(self, keys: Sequence[str], *, kind: Kind) -> None:
        for at in range(0, len(keys), REQUEST_KEYS_MAX):
            batch = keys[at : at + REQUEST_KEYS_MAX]

            def send(batch: Sequence[str] = batch) -> Coroutine[Any, Any, None]:
                return self._inner.delete_batch(batch, kind=kind)

            await self._try("delete", batch[0], send)

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        if self._inner.copies_create_only:
            await self._try("copy", target, lambda: self._inner.copy(source, target, kind=kind), writes=True)
        else:
            await self.put(target, await self.get(source, kind=kind), kind=kind)

    async def close(self) -> None:
        await self._inner.close()

    async def _try(self, op: str, key: str, call: Callable[[], Coroutine[Any, Any, T]], *, writes: bool = False) -> T:
        """Return what the first attempt that succeeds returns. call: starts one attempt."""
        deadline = self._clock() + self._deadline_s
        maybe_done = False
        attempt = 1
        while True:
            left = deadline - self._clock()
            patience = left if writes or attempt > 1 else left / 2
            failure: Unreachable | Truncated
            token = ATTEMPT.set(attempt)
            try:
                return await self._bounded(call(), patience)
            except TimeoutError:
                failure = Unreachable(f"{op} {key}: no answer within {patience:.3g} s")
            except (Unreachable, Truncated) as error:
                failure = error
            except Refused as error:
                if maybe_done and writes:  # an earlier attempt may have had its effect
                    raise OutcomeUnknown(f"{op} {key}: unknown, then refused: {error}") from error
                raise
            finally:
                ATTEMPT.reset(token)
            maybe_done = maybe_done or (isinstance(failure, Unreachable) and failure.maybe_done)
            left = deadline - self._clock()
            if attempt > len(PAUSES_S) or left <= 0:
                if writes and maybe_done:
                    raise OutcomeUnknown(f"{op} {key}: unknown after {attempt} attempts: {failure}") from failure
                raise failure
            pause = PAUSES_S[attempt - 1] * (1 - _JITTER * self._rng.random())
            if pause >= left:
                pause = left / 2
            self._log.debug("retry", op=op, key=key, attempt=attempt, pause=round(pause, 3), error=str(failure))
            await self._sleep(pause)
            attempt += 1

    async def _bounded(self, call: Coroutine[Any, Any, T], seconds: float) -> T:
        """Return call's result; cancel it and raise TimeoutError when it takes longer.

        With a sleep of one's own (a virtual clock), that measures the time; else the loop's timer, which is cheaper.
        """
        if self._sleep is asyncio.sleep:
            async with asyncio.timeout(seconds):
                return await call
        task = asyncio.ensure_future(call)
        timer = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise TimeoutError
        finally:
            task.cancel()
            timer.cancel()
            await asyncio.wait({task, timer})
            if not task.cancelled():
                task.exception()  # seen: a failure that comes after the timer is no news
