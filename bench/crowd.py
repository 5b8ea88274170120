"""Connections that take their work from a common iterator, all at the same time on one
loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast


class Worker(asyncio.Protocol):
    """A connection.

    It calls `finish` if there is no more work, and `fail` if the server does something
    unexpected.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(exc or ConnectionError("the server has closed the connection"))


async def work(port: int, workers: Sequence[Worker]) -> float:
    """Connect all workers and wait until each is done; returns seconds.

    Raises the failure of a worker, or OSError.
    """

    async def one(worker: Worker) -> None:
        await asyncio.get_running_loop().create_connection(lambda: worker, "127.0.0.1", port)
        try:
            await worker.done
        finally:
            worker.transport.abort()

    begin = time.perf_counter()
    await asyncio.gather(*map(one, workers))
    return time.perf_counter() - begin
