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
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

HOST: contextvars.ContextVar[Host | None] = contextvars.ContextVar("host", default=None)
NOBODY = contextvars.Context()


class Stuck(AssertionError):
    """All tasks wait, and nothing can ever wake them."""


class Host:
    """A machine whose tasks can be suspended."""

    def __init__(self) -> None:
        self.frozen = False
        self.held: list[_Gate] = []
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
        held, self.held = self.held, []
        for gate in held:
            if not gate.cancelled():
                loop.call_soon(gate.callback, *gate.args, context=gate.context)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that belongs to this machine."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())


class _Gate:
    """A callback of a host's task."""

    __slots__ = ("args", "callback", "context", "handle", "host")

    def __init__(self, host: Host, callback: Callable[..., Any], args: tuple[Any, ...], context: Any) -> None:
        self.host, self.callback, self.args, self.context = host, callback, args, context
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        if self.host.frozen:
            self.host.held.append(self)
        else:
            self.callback(*self.args)

    def cancelled(self) -> bool:
        return self.handle is not None and self.handle.cancelled()


class _Selector(selectors.SelectSelector):
    """A selector without I/O. Instead of waiting it moves the clock."""

    loop: SimLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("everybody waits, nobody sleeps")
        if timeout > 0:
            self.loop.now += timeout
        return []


class SimLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))
        self.set_task_factory(_make_task)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        host = HOST.get() if context is None else context.get(HOST)
        if host is None:
            return super().call_soon(callback, *args, context=context)
        context = contextvars.copy_context() if context is None else context
        gate = _Gate(host, callback, args, context)
        gate.handle = super().call_soon(gate, context=context)
        return gate.handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        host = HOST.get() if context is None else context.get(HOST)
        if host is None:
            return super().call_at(when, callback, *args, context=context)
        context = contextvars.copy_context() if context is None else context
        gate = _Gate(host, callback, args, context)
        gate.handle = handle = super().call_at(when, gate, context=context)
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as exc:
            future.set_exception(exc)
        return future


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, context: Any = None) -> asyncio.Task[Any]:
    task = asyncio.Task(coro, loop=loop, context=context)
    host = HOST.get() if context is None else context.get(HOST)
    if host is not None:
        host.tasks[task] = None
        task.add_done_callback(lambda task: host.tasks.pop(task, None), context=NOBODY)
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
