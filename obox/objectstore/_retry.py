"""The only place that waits and tries again: deadline, attempts, pages and batches over
a driver.

A request has `deadline_s` for all its attempts and the pauses between them. The pause
before a retry is 50 ms, 200 ms, 500 ms, then 1 s each time, shortened by up to a
quarter at random, so that many clients do not come back at once. A store that is back
after an outage therefore gets a request within a second. The deadline is per request: a
LIST of a million keys is a thousand requests and may take longer.

A store may accept a request and never answer: a dead connection, a server that hangs.
While the store has not answered any request since an attempt began, another attempt is
made in parallel each second, on another connection. The attempt before it is given up,
except the first attempt. The first is kept until the deadline, since a slow store may
still answer it. While other requests get answers, an attempt that takes half of the
deadline gets a second attempt in parallel.

A LIST follows the store's own continuation to its end. If the continuation breaks, the
LIST begins again from the start, and keys that were named already are dropped: the code
relies neither on an order of the store, nor on the last key of a page.

Invariant: only transient failures (Unreachable, Truncated, a timeout) are tried again.
No attempt begins at or after the deadline. A PUT or copy that fails in the end is
Unreachable or Refused only if no attempt can have had its effect; else OutcomeUnknown.
An attempt that waited for a connection until its time was over was never sent: it had
no effect.
Cancellation passes at once.

This module does not know kinds of drivers, keys, or the codec.

Diagnostics: each retry is logged at debug (`retry`: op, key, attempt, pause, error).
Giving up is an exception, not a log line. `last_failure` is the error of the latest
failed attempt. Nothing is fatal.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from heapq import merge
from itertools import islice
from operator import lt
from typing import Any, Generic, Protocol, TypeVar

from obox.objectstore._driver import (
    REQUEST_KEYS_MAX,
    SENDING,
    Cursor,
    Driver,
    Kind,
    Names,
    ObjectInfo,
    Objects,
    Page,
    Sending,
)
from obox.objectstore._errors import OutcomeUnknown, Refused, Truncated, Unreachable
from obox.objectstore.stats import ATTEMPT

PAUSES_S: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)
"""The longest pause before each retry; the last value holds for all that follow."""

SILENCE_S = 1.0
"""Time without any answer of the store before another attempt is made in parallel."""

UPLOAD_BYTES_PER_S = 1 << 20
"""A PUT of many bytes gets as much more time before its silence counts: the uplink of a
small site.
"""

LIST_RESTARTS_MAX = 4
"""How often a LIST begins again without a new key in between."""

LIST_EMPTY_PAGES_MAX = 1000
"""A LIST ends after this number of consecutive pages that name no new key. Otherwise a
store that repeats the same pages would keep the caller for ever.
"""

SORTED_AT_ONCE = 10_000
"""Objects out of order that are sorted without letting others run."""

_JITTER = 0.25

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


class Timer(Protocol):
    """A timer of the loop, or a task on virtual time: it can be cancelled."""

    def cancel(self, /) -> Any: ...


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
        self.inner = inner
        self._deadline_s = deadline_s
        self._clock = clock
        self.sleep = sleep
        self._rng = rng
        self._log = log
        self._answered_at = clock()
        self.last_failure = ""

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._try(
            "put",
            key,
            lambda: self.inner.put(key, data, kind=kind),
            writes=True,
            silence_s=self._silence(len(data)),
        )

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._try("put", key, lambda: self.inner.replace(key, data, kind=kind))

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        if start < 0 or (end is not None and end < 0):
            raise ValueError(f"range {start}..{end}: no negative offsets")
        if end is not None and end <= start:
            return b""
        # Of a whole object nobody knows how long its body may take.
        silence_s = self._deadline_s / 2 if end is None else self._silence(end - start)
        return await self._try(
            "get", key, lambda: self.inner.get(key, kind=kind, start=start, end=end), silence_s=silence_s
        )

    async def list(
        self, prefix: str, *, kind: Kind, after: str = "", limit: int | None = None, exact: bool = False
    ) -> Objects:
        found = await self._listed(prefix, kind=kind, after=after, limit=limit, exact=exact)
        await _sort(found)
        return found if limit is None else found[:limit]

    async def list_as_stored(self, prefix: str, *, kind: Kind, after: str = "") -> Objects:
        return await self._listed(prefix, kind=kind, after=after, limit=None, exact=False)

    async def _listed(self, prefix: str, *, kind: Kind, after: str, limit: int | None, exact: bool) -> Objects:
        """Return objects below a prefix, in the order in which the store named them,
        each once."""
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r}: a prefix is empty or ends with /")
        found: dict[str, ObjectInfo] = {}
        listing = _Listing(self.inner, prefix, kind=kind, after=after, limit=limit, exact=exact)
        empty, restarts, pages = 0, 0, 0
        while not listing.ended and (limit is None or len(found) < limit):
            had = len(found)
            for info in listing.take(await self._try("list", prefix, listing.ask)):
                found.setdefault(info.key, info)
            if len(found) > had:
                empty, restarts, pages = 0, listing.restarts, listing.pages
                continue
            empty += 1
            # each time the LIST begins again, it first repeats the old pages
            most = LIST_EMPTY_PAGES_MAX + pages * LIST_RESTARTS_MAX
            if empty > most or listing.restarts - restarts > LIST_RESTARTS_MAX:
                raise Unreachable(f"list {prefix}: broken off again and again, the last time with {self.last_failure}")
        return list(found.values())

    async def list_names(self, prefix: str, *, kind: Kind) -> Names:
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r}: a prefix is empty or ends with /")
        return sorted(set(await self._try("list", prefix, lambda: self.inner.list_names(prefix, kind=kind))))

    async def delete(self, keys: Sequence[str], *, kind: Kind) -> None:
        for at in range(0, len(keys), REQUEST_KEYS_MAX):
            batch = keys[at : at + REQUEST_KEYS_MAX]

            def send(batch: Sequence[str] = batch) -> Coroutine[Any, Any, None]:
                return self.inner.delete_batch(batch, kind=kind)

            await self._try("delete", batch[0], send)

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        if self.inner.copies_create_only:
            await self._try("copy", target, lambda: self.inner.copy(source, target, kind=kind), writes=True)
        else:
            await self.put(target, await self.get(source, kind=kind), kind=kind)

    async def close(self) -> None:
        await self.inner.close()

    async def _try(
        self,
        op: str,
        key: str,
        call: Callable[[], Coroutine[Any, Any, T]],
        *,
        writes: bool = False,
        silence_s: float | None = None,
    ) -> T:
        """Return the result of the first attempt that succeeds. call: starts an
        attempt.
        """
        deadline = self._clock() + self._deadline_s
        left = self._deadline_s
        silence_s = self._silence(0) if silence_s is None else silence_s
        maybe_done = last = False
        number, before = 1, ""
        while True:
            failure: Unreachable | Truncated
            attempt = _Attempt(self, call, number, left, silence_s)
            token = ATTEMPT.set(number)
            try:
                return await attempt.result()
            except TimeoutError:
                said = f"no answer within {in_seconds(left)}" + (f"; before: {before}" if before else f" ({op} {key})")
                failure = Unreachable(said, maybe_done=attempt.first_sent)
            except (Unreachable, Truncated) as error:
                failure, before = error, str(error)
            except Refused as error:
                self.last_failure = str(error)
                # an earlier attempt may have had its effect
                if writes and (maybe_done or attempt.maybe_done):
                    raise OutcomeUnknown(f"unknown, then refused: {error}") from error
                raise
            finally:
                ATTEMPT.reset(token)
            self.last_failure = str(failure)
            maybe_done |= attempt.maybe_done or (isinstance(failure, Unreachable) and failure.maybe_done)
            left = deadline - self._clock()
            if left > 0 and not last:
                pause = PAUSES_S[min(number, len(PAUSES_S)) - 1] * (1 - _JITTER * self._rng.random())
                if pause >= left:
                    pause, last = left / 2, True
                self._log.debug(
                    "request retried", op=op, key=key, attempt=number, pause_s=round(pause, 3), error=str(failure)
                )
                await self.sleep(pause)
                left = deadline - self._clock()
                # on a machine under load the pause may have taken all that was left
                if left > 0:
                    number += 1
                    continue
            if writes and maybe_done:
                attempts = "1 attempt" if number == 1 else f"{number} attempts"
                raise OutcomeUnknown(f"unknown after {attempts}: {failure}") from failure
            raise failure

    def _silence(self, size: int) -> float:
        """Return how many seconds a request of `size` bytes may stay without an answer
        before another attempt starts in parallel.
        """
        return min(SILENCE_S, self._deadline_s / 2) + size / UPLOAD_BYTES_PER_S

    def note_answer(self) -> None:
        """Note that the store has answered."""
        self._answered_at = self._clock()

    def unanswered_since(self, at: float) -> bool:
        """Return whether no request has got an answer since then."""
        return self._answered_at <= at

    def now(self) -> float:
        return self._clock()

    def after(self, seconds: float, then: Callable[[], None]) -> Timer:
        """Call `then` later: by the loop's timer, or by an injected sleep (a virtual
        clock).
        """
        if self.sleep is asyncio.sleep:
            return asyncio.get_running_loop().call_later(seconds, then)

        async def wait() -> None:
            await self.sleep(seconds)
            then()

        return asyncio.ensure_future(wait())


def in_seconds(seconds: float) -> str:
    """Format a time for people: what was left of a deadline may be a few
    microseconds."""
    return f"{max(round(seconds, 1), 0.1):g} s"


class _Attempt(Generic[T]):
    """An attempt, and another in parallel while the store is silent; the first that has
    a result counts.
    """

    def __init__(
        self,
        owner: Retrying,
        call: Callable[[], Coroutine[Any, Any, T]],
        number: int,
        left_s: float,
        silence_s: float,
    ) -> None:
        self._owner = owner
        self._call = call
        self._number = number
        self._left_s = left_s
        self._silence_s = silence_s
        self._first = Sending()
        self._besides: list[Sending] = []
        self._parallel: asyncio.Task[T] | None = None
        self._answer: asyncio.Task[T] | None = None
        self._guard: asyncio.Timeout | None = None
        self._timer: Timer | None = None

    @property
    def first_sent(self) -> bool:
        return not self._first.held

    @property
    def maybe_done(self) -> bool:
        """Return whether another attempt than the counting one may have had its
        effect."""
        sent = any(not sending.held for sending in self._besides)
        return sent or (self._answer is not None and self.first_sent)

    async def result(self) -> T:
        """Raises TimeoutError if there is no result in time, else as the attempt that
        counts.
        """
        owner = self._owner
        self._began = owner.now()
        end = owner.after(self._left_s, self._stop)
        if self._silence_s < self._left_s:
            self._timer = owner.after(self._silence_s, self._check_silence)
        try:
            async with asyncio.timeout(None) as self._guard:
                token = SENDING.set(self._first)
                try:
                    answer = await self._call()
                except (Unreachable, Truncated, asyncio.CancelledError):
                    raise
                except Exception:
                    owner.note_answer()
                    raise
                finally:
                    SENDING.reset(token)
                owner.note_answer()
                return answer
        except TimeoutError:
            if self._answer is None:
                raise
            return self._answer.result()
        finally:
            self._guard = None
            end.cancel()
            if self._timer is not None:
                self._timer.cancel()
            if self._parallel is not None:
                self._parallel.cancel()

    def _stop(self) -> None:
        """End the first attempt: its time is over, or another has an answer."""
        if self._guard is not None and not self._guard.expired():
            self._guard.reschedule(asyncio.get_running_loop().time())

    def _check_silence(self) -> None:
        """If the store is silent, send the request once more."""
        if self._guard is None:
            return
        owner = self._owner
        self._timer = owner.after(self._silence_s, self._check_silence)
        if owner.unanswered_since(self._began):
            if self._parallel is not None:
                self._parallel.cancel()
        elif self._parallel is not None or owner.now() - self._began < self._left_s / 2:
            return
        self._number += 1
        # in the context of this timer, which the task inherits
        ATTEMPT.set(self._number)
        sending = Sending()
        SENDING.set(sending)
        self._besides.append(sending)
        task = self._parallel = asyncio.ensure_future(self._call())
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            return
        transient = isinstance(task.exception(), Unreachable | Truncated)
        if not transient:
            self._owner.note_answer()
        if task is not self._parallel or self._guard is None:
            return
        self._parallel = None
        if not transient:
            self._answer = task
            self._stop()


async def _sort(found: Objects) -> None:
    """Sort objects in place; a thread sorts many, in parts between which others run.

    Nearly every store lists in order, which takes a few milliseconds to see.
    """
    if len(found) <= SORTED_AT_ONCE or all(map(lt, found, islice(found, 1, None))):
        found.sort()
        return

    def sort() -> Objects:
        parts = (found[at : at + SORTED_AT_ONCE] for at in range(0, len(found), SORTED_AT_ONCE))
        # a single call of sort() would keep the interpreter's lock
        return list(merge(*map(sorted, parts)))

    found[:] = await asyncio.to_thread(sort)


class _Listing:
    """A LIST in progress, page by page; after a page that failed it begins again."""

    def __init__(self, inner: Driver, prefix: str, *, kind: Kind, after: str, limit: int | None, exact: bool) -> None:
        self.ended = False
        self.pages = 0
        self.restarts = 0
        self.inner = inner
        self._prefix = prefix
        self._kind: Kind = kind
        self._after = after
        self._limit = inner.page_keys if limit is None else min(limit, inner.page_keys)
        self._exact = exact
        self._cursor: Cursor = None

    async def ask(self) -> Page:
        """Send a request. It uses up the cursor from which it continues, whatever its
        result is.
        """
        cursor, self._cursor = self._cursor, None
        if cursor is None and self.pages:
            self.restarts += 1
        return await self.inner.list_page(
            self._prefix, kind=self._kind, after=self._after, limit=self._limit, cursor=cursor, exact=self._exact
        )

    def take(self, page: Page) -> Objects:
        """Continue from this page, the answer that counts."""
        self.pages += 1
        self._cursor = page.next
        self.ended = page.next is None
        return page.items
