"""The process from start to stop: signals, reload, drain, watchdog, delay of the loop.

    starting --run()--> serving
    serving --SIGHUP--> serving: all is loaded and checked, then used, or nothing is
    serving --SIGTERM, SIGINT, SIGUSR1--> draining
    draining --all drained or out of time--> stopped

Invariant: mail is durable before it is acknowledged, so a drain that is cut short loses
work but no mail. Drains run in the order of registration, and share a time limit. A
second signal ends the drain that runs and gives each later drain `HURRY_S`. The exit
code is 0 in both cases. SIGUSR1 stops the process for a restart on the same disk: then
a drain may leave work for the next start if the local state is safe (`returning`).
"""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from obox.errors import Unavailable
from obox.server.notify import Notifier

# This holds for each drain after a second signal. It is a round trip to the bucket.
HURRY_S = 2.0
LAG_INTERVAL_S = 0.25  # between measurements of the loop's delay
_ENDING = "the backend is stopping"
# the limit if the system has none; no process serves a million sessions
OPEN_FILES_MAX = 1 << 20
LAG_LOG_S = 0.5  # longer delays are logged; the goal is 50 ms

Drain = Callable[[], Awaitable[None]]


class Reloaded(NamedTuple):
    """Names of changed settings: those in use from now on, and those that wait for a
    restart."""

    applied: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


Prepare = Callable[[], Callable[[], Reloaded]]


class Lifecycle:
    """State of the process.

    draining: /readyz answers 503. returning: the stop is for a restart on the same
    disk.

    drain_timeout_s: time limit of all drains together; a change counts for a later
    stop.
    """

    def __init__(self, *, log: Any, notifier: Notifier, drain_timeout_s: float) -> None:
        self.draining = False
        self.returning = False
        self._log = log
        self._notifier = notifier
        self.drain_timeout_s = drain_timeout_s
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reload = asyncio.Event()
        self._asking: list[asyncio.Future[Reloaded]] = []
        self._drains: list[tuple[str, Drain]] = []
        self._reloads: list[tuple[str, Prepare]] = []

    def on_stop(self, name: str, drain: Drain) -> None:
        """Register work for the stop, in order: stop accepting, finish commands, flush,
        close.
        """
        self._drains.append((name, drain))

    def on_reload(self, name: str, prepare: Prepare) -> None:
        """Register for SIGHUP. prepare: loads and checks in a thread, and returns a
        function that uses the result. If it raises, everything stays as it is.
        """
        self._reloads.append((name, prepare))

    def stop(self) -> None:
        """Do what SIGTERM does: drain. The second call shortens the drains."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def stop_to_return(self) -> None:
        """Do what SIGUSR1 does. During a stop it shortens the drains, as another
        SIGTERM would."""
        self.returning = self.returning or not self._stop.is_set()
        self.stop()

    def reload(self) -> None:
        """Do what SIGHUP does."""
        self._reload.set()

    async def reloaded(self) -> Reloaded:
        """Reload, and return when it is done.

        Raises what was wrong; then nothing has changed. Raises Unavailable if the
        process stops.
        """
        if self._stop.is_set():
            raise Unavailable(_ENDING)
        asked: asyncio.Future[Reloaded] = asyncio.get_running_loop().create_future()
        self._asking.append(asked)
        self._reload.set()
        return await asked

    async def run(self, *, signals: bool = True, status: str = "") -> int:
        """Report READY, serve until a signal or `stop`, and drain. Returns the exit
        code."""
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGUSR1: self.stop_to_return,
            signal.SIGHUP: self.reload,
        }
        if not signals:
            handlers = {}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            self._notifier.ready(status)
            async with asyncio.TaskGroup() as tasks:
                watchdog = tasks.create_task(self._watchdog())
                reloads = tasks.create_task(self._reload_loop(status))
                await self._stop.wait()
                reloads.cancel()
                await self._drain()
                watchdog.cancel()
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)
        return 0

    async def _drain(self) -> None:
        self.draining = True
        self._notifier.stopping("draining", within_s=self.drain_timeout_s + HURRY_S * (len(self._drains) + 1))
        self._log.info("stopping", drain_timeout_s=self.drain_timeout_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.drain_timeout_s
        for name, drain in self._drains:
            hurried = self._hurry.is_set()
            left = max(deadline - loop.time(), HURRY_S)
            try:
                async with asyncio.timeout(HURRY_S if hurried else left):
                    await self._until_hurried(drain, hurried)
            except TimeoutError:
                self._log.warning("drain cut short", step=name)
            except Exception:
                self._log.exception("drain failed", step=name)
        self._log.info("stopped")

    async def _until_hurried(self, drain: Drain, hurried: bool) -> None:
        if hurried:
            return await drain()
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(_awaited(drain))
            signalled = tasks.create_task(self._hurry.wait())
            done, _ = await asyncio.wait({work, signalled}, return_when=asyncio.FIRST_COMPLETED)
            signalled.cancel()
            work.cancel()  # this has no effect on a task that is done
        if work not in done:
            raise TimeoutError

    async def _reload_loop(self, status: str) -> None:
        asked: list[asyncio.Future[Reloaded]] = []
        try:
            while True:
                await self._reload.wait()
                self._reload.clear()
                asked, self._asking = self._asking, []
                self._notifier.reloading()
                try:
                    done = await self._reload_once()
                except Exception as error:
                    _answer(asked, error)
                else:
                    _answer(asked, done)
                self._notifier.ready(status)
        finally:
            _answer([*asked, *self._asking], Unavailable(_ENDING))

    async def _reload_once(self) -> Reloaded:
        name = ""
        try:
            uses = []
            for name, prepare in self._reloads:  # noqa: B007 - the name is for the log line
                uses.append(await asyncio.to_thread(prepare))
            done = [use() for use in uses]
        except Exception as error:
            self._log.error("reload failed, the old configuration stays", step=name, error=str(error))
            raise
        applied = tuple(setting for one in done for setting in one.applied)
        waiting = tuple(setting for one in done for setting in one.waiting)
        self._log.info("configuration reloaded", settings=list(applied))
        if waiting:
            self._log.warning("configuration reloaded, some changes wait for a restart", settings=list(waiting))
        return Reloaded(applied, waiting)

    async def _watchdog(self) -> None:
        """Report from the loop that it runs. The service manager restarts a process
        that hangs."""
        while self._notifier.watchdog_interval_s:
            self._notifier.watchdog()
            await asyncio.sleep(self._notifier.watchdog_interval_s)


def raise_open_files_limit() -> int:
    """Raise the limit of open files from the soft limit, often 1024, to the hard limit,
    and return it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, OPEN_FILES_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return hard


def _answer(asked: list[asyncio.Future[Reloaded]], answer: Reloaded | Exception) -> None:
    """Answer the callers that still wait."""
    for future in asked:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


async def _awaited(drain: Drain) -> None:
    await drain()


class LoopLag:
    """Measures the delay of the loop's timers. observe: called with each delay in
    seconds.
    """

    def __init__(self, *, observe: Callable[[float], None], log: Any, interval_s: float = LAG_INTERVAL_S) -> None:
        self._observe = observe
        self._log = log
        self._interval_s = interval_s

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._interval_s
            await asyncio.sleep(self._interval_s)
            lag = max(0.0, loop.time() - due)
            self._observe(lag)
            if lag > LAG_LOG_S:
                self._log.warning("event loop was late", ms=round(lag * 1000))
