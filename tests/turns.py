"""How long one turn of an event loop holds it: what no client may make longer than 50 ms.

A turn is measured in CPU time of the loop's thread, so that waiting for a processor does not lengthen
it. Two things are taken out that are no fault of the callback: collections of the garbage of a large
test process, and that a processor which is shared does less in the same time. For the latter a short
piece of work of known size runs beside the test; `Turns.slowdown` is how much longer than at its best
it took.

A call in another thread that keeps the interpreter's lock stops the loop as well and is no CPU time
of the loop's thread; `Turns.held_s` counts the CPU time of the whole process between two callbacks,
which includes it.

Use `with turns() as found:` round a test that runs its server in the test's own asyncio loop.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

TURN_S_MAX = 0.05
"""Nothing that comes from outside may hold the loop for longer."""
HELD_S_MAX = 0.5
"""CPU time of all threads between two callbacks: a turn, and what threads may do beside it without the
interpreter's lock."""


_TEXT: Final = bytes(range(256)) * 64
_best_s = float("inf")


def _sample() -> float:
    """CPU seconds of a piece of work, some 0.1 ms; the best of the process is remembered."""
    global _best_s  # noqa: PLW0603 - the best speed is the machine's, whichever test saw it
    begin = time.thread_time()
    for _ in range(20):
        {n: n for n in range(40)}
        _TEXT.lower()
    took = time.thread_time() - begin
    _best_s = min(_best_s, took)
    return took


@dataclass
class Turns:
    longest_s: float = 0.0
    longest: str = ""
    held_s: float = 0.0
    count: int = 0
    samples: list[float] = field(default_factory=list)

    @property
    def slowdown(self) -> float:
        """What a shared processor makes of a turn: the slow tenth of the samples beside the best there was."""
        return max(1.0, sorted(self.samples)[len(self.samples) * 9 // 10] / _best_s)

    def check(self) -> None:
        """Fail if a turn was too long; the message names the callback."""
        assert self.count, "nothing ran on this loop"
        self.samples += [_sample() for _ in range(20)]
        longest, held = self.longest_s / self.slowdown, self.held_s / self.slowdown
        assert longest <= TURN_S_MAX, f"{self.longest} held the loop for {longest:.3f} s of CPU ({self.slowdown:.1f})"
        assert held <= HELD_S_MAX, f"the loop got no turn during {held:.3f} s of CPU ({self.slowdown:.1f})"


def _named(handle: asyncio.Handle) -> str:
    """The callback, and of a task its coroutine and the innermost frame where it waits now."""
    task = getattr(handle._callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(handle)[:300]
    inner: Any = task.get_coro()
    while (awaited := getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)) is not None:
        inner = awaited
    return f"{task!r:.300} (now in {inner!r:.100})"


@contextmanager
def turns(tick_s: float = 0.005) -> Iterator[Turns]:
    """Measure each callback of the running asyncio loop (not uvloop's, which are compiled)."""
    found = Turns()
    loop = asyncio.get_running_loop()
    plain = asyncio.events.Handle._run
    collecting = collected = 0.0

    def collection(phase: str, _: dict[str, int]) -> None:
        nonlocal collecting, collected
        if phase == "start":
            collecting = time.thread_time()
        else:
            collected += time.thread_time() - collecting

    def run(handle: asyncio.Handle) -> Any:
        begin = time.thread_time() - collected
        try:
            return plain(handle)
        finally:
            took = time.thread_time() - collected - begin
            found.count += 1
            if took > found.longest_s:
                found.longest_s, found.longest = took, _named(handle)

    last = time.process_time()

    def tick() -> None:
        nonlocal last, timer
        now = time.process_time()
        found.held_s, last = max(found.held_s, now - last), now
        found.samples.append(_sample())
        timer = loop.call_later(tick_s, tick)

    timer = loop.call_later(tick_s, tick)
    asyncio.events.Handle._run = run  # type: ignore[method-assign]
    gc.callbacks.append(collection)
    try:
        yield found
    finally:
        gc.callbacks.remove(collection)
        asyncio.events.Handle._run = plain  # type: ignore[method-assign]
        timer.cancel()
