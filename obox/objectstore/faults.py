"""A driver that fails on purpose: seeded, in percent per operation, or by script.

It wraps another driver, below statistics and retries
(`open_store(..., wrap=lambda d: FaultyDriver(d, rng=...))`).

    error     the request does not reach the store
    lost      the request is done, its answer is lost
    delay     the request is done after `delay_s`
    late      PUT and copy: an error now; the request is done after `late_s`, unless
              the key is taken by then
    late_hang the same, but without any answer
    truncate  GET: the body is shortened
    hang      the request is not done, and no answer comes until the caller gives up
    refused   the store refuses
    missing   GET: the store says that there is no such object, although there is
    outage    a switch: nothing reaches the store while it is on

Invariant: the same seed and the same order of requests give the same faults. A rate of
0 changes nothing. Without faults it behaves as its inner driver.

This module does not use real time. Delays go through `sleep`, late requests through
`later`.

Diagnostics: `history` has every fault that was made, as (op, key, fault). Print it with
the seed when a test fails.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from obox.objectstore._driver import Around, Cursor, Driver, Kind, Page
from obox.objectstore._errors import AlreadyExists, Missing, Refused, Truncated, Unreachable
from obox.objectstore.stats import Op

Fault = Literal["error", "lost", "delay", "late", "late_hang", "truncate", "hang", "refused", "missing"]

Later = Callable[[float, Callable[[], Coroutine[Any, Any, None]]], None]
"""Runs a request after a number of seconds, without anybody waiting for it."""

T = TypeVar("T")

_WRITES: frozenset[Op] = frozenset({"put", "copy"})


@dataclass(frozen=True)
class Rates:
    """Percent of requests with each fault; together at most 100."""

    error: float = 0
    lost: float = 0
    delay: float = 0
    late: float = 0
    late_hang: float = 0
    truncate: float = 0
    hang: float = 0
    refused: float = 0
    missing: float = 0


@dataclass
class Script:
    """A fault for the next requests that match; `left` counts down."""

    op: Op
    key: re.Pattern[str]
    fault: Fault
    left: int
    seconds: float | None = None


class Made(NamedTuple):
    """A fault that was made."""

    op: Op
    key: str
    fault: str


@dataclass
class Plan:
    """The faults to make; may be changed at any time.

    rates: per operation; `every` holds for operations that are not in it.
    """

    every: Rates = Rates()
    rates: Mapping[Op, Rates] = field(default_factory=dict)
    delay_s: tuple[float, float] = (0.01, 2.0)
    late_s: tuple[float, float] = (1.0, 60.0)
    outage: bool = False


class FaultyDriver(Around):
    """A driver with faults. `plan` may be changed while it runs."""

    def __init__(
        self,
        inner: Driver,
        *,
        rng: random.Random,
        plan: Plan | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        later: Later | None = None,
    ) -> None:
        """later: schedules late requests; by default a task that sleeps by `sleep` and
        that `close` ends.
        """
        super().__init__(inner)
        self.plan = plan if plan is not None else Plan()
        self.history: list[Made] = []
        self._rng = rng
        self._sleep = sleep
        self._later = later if later is not None else self._later_in_a_task
        self._tasks: set[asyncio.Task[None]] = set()
        self.scripts: list[Script] = []

    def fail_next(
        self, op: Op, key: str = "", fault: Fault = "error", *, times: int = 1, seconds: float | None = None
    ) -> None:
        """Script a fault for the next requests of op whose key matches the regex.

        The key is the prefix of a LIST, and the first key of a DELETE. seconds: of a
        delay, or until a late request is done; by default as in the plan.
        """
        self.scripts.append(Script(op, re.compile(key), fault, times, seconds))

    async def drain(self) -> None:
        """Wait until all late requests that run as tasks are done."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._do("put", key, lambda: self.inner.put(key, data, kind=kind))

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._do("put", key, lambda: self.inner.replace(key, data, kind=kind))

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        return await self._do("get", key, lambda: self.inner.get(key, kind=kind, start=start, end=end))

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        def page() -> Coroutine[Any, Any, Page]:
            return self.inner.list_page(prefix, kind=kind, after=after, limit=limit, cursor=cursor, exact=exact)

        return await self._do("list", prefix, page)

    async def list_names(self, prefix: str, *, kind: Kind) -> list[str]:
        return await self._do("list", prefix, lambda: self.inner.list_names(prefix, kind=kind))

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        await self._do("delete", keys[0], lambda: self.inner.delete_batch(keys, kind=kind))

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        await self._do("copy", target, lambda: self.inner.copy(source, target, kind=kind))

    async def close(self) -> None:
        """Drop late requests that are not done yet, and close the inner driver."""
        for task in self._tasks:
            task.cancel()
        await self.drain()
        await self.inner.close()

    async def _do(  # noqa: C901 - each kind of fault has its moment in one request
        self, op: Op, key: str, call: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        if self.plan.outage:
            self.history.append(Made(op, key, "outage"))
            raise Unreachable(f"{op} {key}: outage (made)", maybe_done=False)
        fault, seconds = self._choose(op, key)
        if fault is None:
            return await call()
        self.history.append(Made(op, key, fault))
        what = f"{op} {key}: {fault} (made)"
        match fault:
            case "error":
                raise Unreachable(what, maybe_done=False)
            case "refused":
                raise Refused(what)
            case "missing":
                raise Missing(what)
            case "hang":
                await _never()
            case "delay":
                await self._sleep(self._seconds(seconds, self.plan.delay_s))
                return await call()
            case "lost":
                try:
                    await call()
                except (AlreadyExists, Missing):
                    pass  # that answer is lost as well
                raise Unreachable(what)
            case "truncate":
                await call()
                raise Truncated(what)
            case "late" | "late_hang":

                async def do_late() -> None:
                    try:
                        await call()
                    except (AlreadyExists, Missing):
                        self.history.append(Made(op, key, f"{fault}: refused"))
                    else:
                        self.history.append(Made(op, key, f"{fault}: done"))

                self._later(self._seconds(seconds, self.plan.late_s), do_late)
                if fault == "late_hang":
                    await _never()
                raise Unreachable(what)

    def _choose(self, op: Op, key: str) -> tuple[Fault | None, float | None]:
        for script in self.scripts:
            if script.op == op and script.key.search(key):
                script.left -= 1
                if script.left <= 0:
                    self.scripts.remove(script)
                return script.fault, script.seconds
        rates = self.plan.rates.get(op, self.plan.every)
        chances: list[tuple[Fault, float]] = [
            ("error", rates.error),
            ("lost", rates.lost),
            ("delay", rates.delay),
            ("late", rates.late if op in _WRITES else 0),
            ("late_hang", rates.late_hang if op in _WRITES else 0),
            ("truncate", rates.truncate if op == "get" else 0),
            ("hang", rates.hang),
            ("refused", rates.refused),
            ("missing", rates.missing if op == "get" else 0),
        ]
        drawn = self._rng.random() * 100
        for fault, percent in chances:
            if drawn < percent:
                return fault, None
            drawn -= percent
        return None, None

    def _seconds(self, scripted: float | None, span: tuple[float, float]) -> float:
        return self._rng.uniform(*span) if scripted is None else scripted

    def _later_in_a_task(self, seconds: float, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            await self._sleep(seconds)
            await call()

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _never() -> NoReturn:
    """Wait until cancelled."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("the future is never set")
