"""An event loop on virtual time: when no task can run, the clock jumps to the next
timer.

There are no threads here: `run_in_executor` (and so `asyncio.to_thread`) runs its call
at once. A context variable, which child tasks inherit, says to which `Host` a task
belongs. The tasks of a frozen host stand still, as those of a suspended machine do.

Invariant: with the same seed everything happens in the same order. A loop on which all
tasks wait and no timer runs is an error.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

HOST: contextvars.ContextVar[Host | None] = contextvars.ContextVar("host", default=None)
NOBODY = contextvars.Context()
RESOLUTION_S: Final = 1e-9
"""Timers that are not further apart run in the same turn."""


class Stuck(AssertionError):
    """All tasks wait, and nothing can ever wake them."""


class Host:
    """A machine whose tasks can be suspended."""

    def __init__(self) -> None:
        self.frozen = False
        self.held: list[_Call] = []
        self.on_death: Callable[[], None] | None = None
        """Called when the process is gone, before its tasks end."""
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """A dict keeps the order of insertion. The order of a set would depend on
        addresses."""
        self.context = contextvars.Context()
        self.context.run(HOST.set, self)

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        held, self.held = self.held, []
        loop.ready.extend(held)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that belongs to this machine."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    def die(self) -> None:
        """End the processes of this machine. Their tasks run again only to end: what
        they send or write has no effect."""
        if self.on_death is not None:
            self.on_death()
        for task in list(self.tasks):
            task.cancel()
        self.thaw()

    def ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)


class _Call:
    """A callback that will run, soon or at a time."""

    __slots__ = ("args", "callback", "context", "gone", "when_s")

    def __init__(self, callback: Any, args: tuple[Any, ...], context: Any, when_s: float = 0.0) -> None:
        self.callback, self.args, self.context, self.when_s = callback, args, context, when_s
        self.gone = False

    def cancel(self) -> None:
        self.gone = True
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        return self.gone

    def when(self) -> float:
        return self.when_s


class SimLoop(asyncio.BaseEventLoop):
    """asyncio's loop with a queue of its own in the place of the selector. A simulated
    life is some 50,000 callbacks, so that their cost decides how many lives are run."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ready: deque[_Call] = deque()
        self._timers: list[tuple[float, int, _Call]] = []
        self._timer_count = 0
        self._stopping = False
        self.failures: list[dict[str, Any]] = []
        self.net: Any = None
        """The network of the simulated machines (`wires.Net`), if there is one."""
        self.set_exception_handler(lambda _, context: self.failures.append(context))
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        call = _Call(callback, args, contextvars.copy_context() if context is None else context)
        self.ready.append(call)
        return call

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        call = _Call(callback, args, contextvars.copy_context() if context is None else context, when)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, call))
        return call

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as exc:
            future.set_exception(exc)
        return future

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **named: Any) -> Any:
        """Connect over the simulated network."""
        return await self.net.connect(factory, host)

    def _run_once(self) -> None:
        """Run everything that is ready. If nothing is, move the clock to the next timer
        first."""
        ready, timers = self.ready, self._timers
        if not ready and not self._stopping:
            while timers and timers[0][2].gone:
                heapq.heappop(timers)
            if not timers:
                raise Stuck("everybody waits, nobody sleeps")
            self.now = max(self.now, timers[0][0])
        until = self.now + RESOLUTION_S
        while timers and timers[0][0] < until:
            call = heapq.heappop(timers)[2]
            if not call.gone:
                ready.append(call)
        for _ in range(len(ready)):
            call = ready.popleft()
            if call.gone:
                continue
            host = call.context.get(HOST)
            if host is not None and host.frozen:
                host.held.append(call)
                continue
            try:
                call.context.run(call.callback, *call.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self.call_exception_handler({"message": f"Exception in callback {call.callback!r}", "exception": exc})


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, context: Any = None, **named: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(coro, loop=loop, context=context, **named)
    host = HOST.get() if context is None else context.get(HOST)
    if host is not None:
        host.tasks[task] = None
        task.add_done_callback(host.ended, context=NOBODY)
    return task


def simulate(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` to its end on a virtual clock. An error of a background task fails the
    run too."""
    loop = SimLoop()
    try:
        asyncio.set_event_loop(loop)
        result = loop.run_until_complete(work())
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
    for failure in loop.failures:
        raise AssertionError(f"failed unseen: {failure.get('message')}") from failure.get("exception")
    return result
