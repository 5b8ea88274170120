"""Connections that take their work from one iterator, all at once on one loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast


class Worker(asyncio.Protocol):
    """One connection; `finish` when there is no more work, `fail` when the server does not do what it should."""

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
    """Connect all of them, wait until each is done; returns seconds. Raises what one of them fails with, OSError."""

    async def one(worker: Worker) -> None:
        await asyncio.get_running_loop().create_connection(lambda: worker, "127.0.0.1", port)
        try:
            await worker.done
        finally:
            worker.transport.abort()

    begin = time.perf_counter()
    await asyncio.gather(*map(one, workers))
    return time.perf_counter() - begin
