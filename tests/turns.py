"""How long a single turn of an event loop holds it. A client must not be able to make a
turn longer than 50 ms.

A turn is measured in CPU time of the loop's thread, so that waiting for a processor
does not lengthen it. Two effects that are no fault of the callback are taken out. The
garbage of a large test process is not collected during the measurement. And a processor
that is shared does less in the same time: a short piece of work of known size runs
beside the test, and `Turns.slowdown` is the ratio of its time to its best time.

A call in another thread that keeps the interpreter's lock stops the loop as well, and
uses no CPU time of the loop's thread. `Turns.held_s` counts the CPU time of the whole
process between two callbacks, which includes such a call. The objects of all earlier
tests are frozen during the measurement, so that a garbage collection in such a thread
does not count them.

Use `with turns() as found:` round a test that runs its server in the test's own asyncio
loop. At its end the three longest turns are printed: the callback of each, and its
place in the code when a thread looked every few milliseconds.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

TURN_S_MAX = 0.05
"""Nothing that comes from outside may hold the loop for a longer time."""
HELD_S_MAX = 0.5
"""The CPU time of all threads between two callbacks: a turn, and the work of threads
beside it that does not need the interpreter's lock."""
LONGEST_COUNT: Final = 3
"""Turns that are remembered and named."""
SAMPLES_MAX: Final = 20_000
LOOK_S: Final = 0.006
FRAMES_COUNT: Final = 7
"""Frames of the stack that are named, the innermost last."""

_TEXT: Final = bytes(range(256)) * 64
_best_s = float("inf")


def _sample() -> float:
    """Return the CPU seconds of a piece of work that takes some 0.1 ms. The best time
    of the process is remembered."""
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
    longest: list[tuple[float, int, str]] = field(default_factory=list)
    """The LONGEST_COUNT longest turns: seconds, the number of the turn, the callback.
    It is a heap with the shortest turn first."""
    held_s: float = 0.0
    count: int = 0
    samples: list[float] = field(default_factory=list)
    """Seconds of the work of known size; in a long measurement, of each n-th."""
    _ticks: int = 0
    _stride: int = 1
    seen: tuple[int, str] = (-1, "")
    """The place in the code of a turn that took long, and how many turns came before
    it."""

    @property
    def longest_s(self) -> float:
        return max((took for took, _, _ in self.longest), default=0.0)

    def add(self, took: float, handle: asyncio.Handle) -> None:
        """Count a turn; remember its callback if the turn is one of the longest."""
        seen = self.seen[1] if self.seen[0] == self.count else ""
        self.count += 1
        if len(self.longest) < LONGEST_COUNT:
            heapq.heappush(self.longest, (took, self.count, f"{_named(handle)}{seen}"))
        elif took > self.longest[0][0]:
            heapq.heapreplace(self.longest, (took, self.count, f"{_named(handle)}{seen}"))

    def sample(self) -> None:
        """Measure the work of known size. Of a long measurement a part is kept, so that
        it takes no memory."""
        self._ticks += 1
        if self._ticks % self._stride:
            return
        self.samples.append(_sample())
        if len(self.samples) >= SAMPLES_MAX:
            del self.samples[::2]
            self._stride *= 2

    def look(self, thread_id: int, over: threading.Event) -> None:
        """Run in a thread. Note the place of a turn that is still running at the next
        look."""
        turn = -1
        while not over.wait(LOOK_S):
            if turn == self.count and self.seen[0] != turn and (frame := sys._current_frames().get(thread_id)):
                try:
                    lines = traceback.extract_stack(frame)[-FRAMES_COUNT:]
                except AttributeError:
                    # The thread runs, and its frames may end meanwhile.
                    continue
                self.seen = turn, " in " + " > ".join(f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in lines)
            turn = self.count

    def report(self) -> str:
        """Return the longest turns, a line for each."""
        lines = [f"{took * 1000:.1f} ms, turn {number}: {name}" for took, number, name in sorted(self.longest)[::-1]]
        return f"longest of {self.count} turns (slowdown {self.slowdown:.1f}):\n  " + "\n  ".join(lines)

    @property
    def slowdown(self) -> float:
        """Return how much a shared processor lengthens a turn: the slow tenth of the
        samples divided by the best time."""
        if not self.samples:
            return 1.0
        return max(1.0, sorted(self.samples)[len(self.samples) * 9 // 10] / _best_s)

    def check(self, *, held: bool = True) -> None:
        """Fail if a turn was too long; the message names the callback.

        held: also if the loop got no turn while threads worked. Leave it out where
        threads work without the interpreter's lock: on a loaded machine they may have
        the processor while the loop waits for it.
        """
        assert self.count, "nothing ran on this loop"
        self.samples += [_sample() for _ in range(20)]
        longest, waited = self.longest_s / self.slowdown, self.held_s / self.slowdown
        assert longest <= TURN_S_MAX, f"a turn of {longest:.3f} s of CPU; {self.report()}"
        if held:
            assert waited <= HELD_S_MAX, f"the loop got no turn during {waited:.3f} s of CPU ({self.slowdown:.1f})"


def _callback_of(handle: asyncio.Handle) -> object:
    """Return what a handle calls. asyncio has no public name for it."""
    return getattr(handle, "_callback")  # noqa: B009 - no stub knows the attribute


def _named(handle: asyncio.Handle) -> str:
    """Return the name of the callback. For a task also return its coroutine and the
    innermost frame where it waits."""
    task = getattr(_callback_of(handle), "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(handle)[:300]
    inner: Any = task.get_coro()
    while (awaited := getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)) is not None:
        inner = awaited
    return f"{task!r:.300} (now in {inner!r:.100})"


@contextmanager
def turns(tick_s: float = 0.005, *, mine: bool = True) -> Iterator[Turns]:
    """Measure each callback of the running asyncio loop (not uvloop's, which are
    compiled).

    mine: the caller's own task counts as well. A test whose task is the client sets it
    to False. The measurement then also leaves out tasks with the name "client".
    """
    found = Turns()
    loop = asyncio.get_running_loop()
    plain = asyncio.events.Handle._run
    collecting = collected = 0.0
    me = None if mine else asyncio.current_task()

    def collection(phase: str, _: dict[str, int]) -> None:
        nonlocal collecting, collected
        if phase == "start":
            collecting = time.thread_time()
        else:
            collected += time.thread_time() - collecting

    def run(handle: asyncio.Handle) -> Any:
        task = None if mine else getattr(_callback_of(handle), "__self__", None)
        if task is not None and (task is me or (isinstance(task, asyncio.Task) and task.get_name() == "client")):
            return plain(handle)
        begin = time.thread_time() - collected
        try:
            return plain(handle)
        finally:
            took = time.thread_time() - collected - begin
            found.add(took, handle)

    last = time.process_time()

    def tick() -> None:
        nonlocal last
        now = time.process_time()
        found.held_s, last = max(found.held_s, now - last), now
        found.sample()
        timers[0] = loop.call_later(tick_s, tick)

    timers = [loop.call_later(tick_s, tick)]
    asyncio.events.Handle._run = run  # type: ignore[method-assign,assignment]  # counts the turns of the loop
    gc.callbacks.append(collection)
    gc.freeze()
    over = threading.Event()
    looking = threading.Thread(target=found.look, args=(threading.get_ident(), over), daemon=True)
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()
        gc.unfreeze()
        gc.callbacks.remove(collection)
        asyncio.events.Handle._run = plain  # type: ignore[method-assign]  # counts the turns of the loop
        timers[0].cancel()
        print(found.report())
