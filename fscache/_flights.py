"""Fetches under way: each name has at most a single fetch, which all waiting readers
share.

Invariant: the fetch runs as long as somebody waits for it. The last waiter who leaves
cancels it.
This module does not know where the data goes.
Diagnostics: what the fetch raises is raised to all who wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fscache._types import FscacheError


@dataclass(slots=True)
class _Flight:
    """A fetch. store: false once the key was put or dropped meanwhile."""

    task: asyncio.Task[bytes]
    waiters: int = 0
    store: bool = True


class Flights:
    """The fetches by name."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}

    async def join(self, name: str, fetch: Callable[[], Awaitable[bytes]], fetched: Callable[[bytes], None]) -> bytes:
        """Wait for the fetch of `name`; begin it if there is none.

        fetched: is called with the data, unless `supersede` was called meanwhile.
        Raises: FscacheError if the fetch was cancelled; else what the fetch raises.
        """
        flight = self._flights.get(name)
        if flight is None:
            task = asyncio.get_running_loop().create_task(self._fly(name, fetch, fetched))
            flight = self._flights[name] = _Flight(task)
            # Read the exception even if nobody waits any more: asyncio would complain.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        flight.waiters += 1
        try:
            await asyncio.wait([flight.task])
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                flight.task.cancel()
                if self._flights.get(name) is flight:
                    del self._flights[name]
        if flight.task.cancelled():
            raise FscacheError("fscache: the fetch was cancelled")
        return flight.task.result()

    async def _fly(self, name: str, fetch: Callable[[], Awaitable[bytes]], fetched: Callable[[bytes], None]) -> bytes:
        me = asyncio.current_task()
        try:
            data = await fetch()
            flight = self._flights.get(name)
            if flight is not None and flight.task is me and flight.store:
                fetched(data)
            return data
        finally:
            flight = self._flights.get(name)
            if flight is not None and flight.task is me:
                del self._flights[name]

    def supersede(self, name: str) -> None:
        """Do not store what the fetch under way brings: the key was put or dropped."""
        if (flight := self._flights.get(name)) is not None:
            flight.store = False

    def cancel(self) -> None:
        """Cancel all fetches."""
        for flight in self._flights.values():
            flight.task.cancel()
