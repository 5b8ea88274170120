"""How long one turn of an event loop holds it: what no client may make longer than 50 ms.

A turn is measured in CPU time of the loop's thread, so that a busy machine does not lengthen it.
A call in another thread that keeps the interpreter's lock stops the loop as well and is no CPU time
of the loop's thread; `Turns.held_s` counts the CPU time of the whole process between two callbacks,
which includes it.

Use `with turns() as found:` round a test that runs its server in the test's own asyncio loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TURN_S_MAX = 0.05
"""Nothing that comes from outside may hold the loop for longer."""
HELD_S_MAX = 0.5
"""CPU time of all threads between two callbacks: a turn, and what threads may do beside it without the
interpreter's lock."""


@dataclass
class Turns:
    longest_s: float = 0.0
    longest: str = ""
    held_s: float = 0.0
    count: int = 0

    def check(self) -> None:
        """Fail if a turn was too long; the message names the callback."""
        assert self.count, "nothing ran on this loop"
        assert self.longest_s <= TURN_S_MAX, f"{self.longest} held the loop for {self.longest_s:.3f} s of CPU"
        assert self.held_s <= HELD_S_MAX, f"the loop got no turn during {self.held_s:.3f} s of CPU"


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

    def run(handle: asyncio.Handle) -> Any:
        begin = time.thread_time()
        try:
            return plain(handle)
        finally:
            took = time.thread_time() - begin
            found.count += 1
            if took > found.longest_s:
                found.longest_s, found.longest = took, _named(handle)

    last = time.process_time()

    def tick() -> None:
        nonlocal last, timer
        now = time.process_time()
        found.held_s, last = max(found.held_s, now - last), now
        timer = loop.call_later(tick_s, tick)

    timer = loop.call_later(tick_s, tick)
    asyncio.events.Handle._run = run  # type: ignore[method-assign]
    try:
        yield found
    finally:
        asyncio.events.Handle._run = plain  # type: ignore[method-assign]
        timer.cancel()
