"""A worker: a backend that a supervisor starts, and that gets orders on standard input.

Invariant: a worker whose supervisor has ended stops in order. A reload has two steps.
First the worker checks the configuration, and reports the result. It uses the
configuration only after all workers have accepted it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from obox.backend import Backend
from obox.config import Config, load
from obox.errors import ConfigError
from obox.server import Reloaded

from . import orders
from .derive import of_worker
from .orders import Start

log = structlog.get_logger()

INPUT: Final = 0
"""The file descriptor with the supervisor's orders."""
READ_BYTES: Final = 65536


def start_given() -> Start:
    """Read what the supervisor has written to standard input. Raises ConfigError."""
    try:
        (length,) = orders.LENGTH.unpack(_exactly(orders.LENGTH.size))
        found = pickle.loads(_exactly(length))
    except (OSError, ValueError, EOFError, AttributeError, pickle.PickleError) as error:
        raise ConfigError("`obox worker` is started by `obox serve` alone") from error
    assert isinstance(found, Start)
    return found


def _exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := os.read(INPUT, count - len(data))):
            raise EOFError
        data += more
    return data


async def run(start: Start) -> int:
    """Serve until the supervisor ends it. Return the exit code."""

    def read() -> Config:
        config = start.config
        found = load(str(config.file) if config.file else None, os.environ, overrides=start.overrides)
        return of_worker(replace(found, server=replace(found.server, workers=start.workers)), start.number)

    # The supervisor stops all workers, or starts this worker again.
    backend = Backend(start.config, read=read, leaves=False)

    loading: list[asyncio.Future[None]] = []  # the loop would forget a task of its own

    def started(_: Backend) -> None:
        backend.admin.own_http = start.own_http
        _Obeying(backend).begin()
        # The supervisor asks for metrics, and waits for two seconds only.
        loading.append(asyncio.ensure_future(backend.http.load()))

    return await backend.run(started=started)


class _Obeying:
    """The part of a worker that follows the orders of the supervisor."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rest = b""
        self._decisions: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reloading: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Read orders from now on."""
        self._backend.lifecycle.on_reload("supervisor", self._decided)
        os.set_blocking(INPUT, False)
        asyncio.get_running_loop().add_reader(INPUT, self._read)

    def _read(self) -> None:
        try:
            data = os.read(INPUT, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(INPUT)
            log.warning("supervisor has ended, the worker stops")
            self._decisions.put(orders.DROP)
            self._backend.lifecycle.stop()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(*line.decode().split())

    def _obey(self, what: str, *names: str) -> None:
        joining = self._backend.parts.joining
        if what == orders.GONE and joining is not None:
            joining.membership.gone = frozenset(names)
        elif what == orders.RELOAD:
            self._reloading = asyncio.ensure_future(self._reload())
        elif what in (orders.USE, orders.DROP):
            self._decisions.put(what)

    async def _reload(self) -> None:
        while not self._decisions.empty():
            self._decisions.get_nowait()  # it belongs to a reload that was cancelled
        try:
            await self._backend.lifecycle.reloaded()
        except Exception as error:
            self._backend.notifier.send(f"{orders.ANSWER}={orders.REFUSED} {error}")

    def _decided(self) -> Callable[[], Reloaded]:
        """Wait until the supervisor has the results of all workers. The wait is in the
        thread that has checked the configuration. Raises ConfigError.
        """
        self._backend.notifier.send(f"{orders.ANSWER}={orders.PREPARED}")
        try:
            decision = self._decisions.get(timeout=2 * orders.ANSWER_S)
        except queue.Empty:
            decision = orders.DROP
        if decision != orders.USE:
            raise ConfigError("another worker refuses the configuration")
        return Reloaded
