"""Free memory is given back to the system.

The allocator of the C library keeps what threads have freed. Large mails that were
parsed, compressed or searched would leave hundreds of megabytes behind. `malloc_trim`
gives such memory back. It takes some milliseconds in a thread of its own, and a tenth
of a millisecond if there is nothing to give back.

By default threads have arenas of their own. `malloc_trim` gives the end of the first
arena back, and not the end of the others, which may be 64 MiB each. So all threads use
one arena here. docs/decisions/0019-memory-that-comes-back.md has the figures.

A C library without these functions is left alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable
from typing import Final

PERIOD_S: Final = 30.0
"""The time between two returns of memory."""
WORK_S: Final = 0.5
"""A process that has used less CPU time than this since the last return frees nothing
worth the pages that are touched."""


_M_ARENA_MAX: Final = -8
"""mallopt(3)."""


def one_arena() -> None:
    """Let all threads use one arena. Call it before there are threads."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        pass


def allocator_trim() -> Callable[[], object] | None:
    """Return the function of the C library that gives free memory back, or None."""
    try:
        function = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_size_t]
    function.restype = ctypes.c_int
    return lambda: function(0)


class MemoryReturn:
    """Gives memory back from time to time. used: CPU seconds of the process."""

    def __init__(
        self,
        trim: Callable[[], object] | None = None,
        *,
        period_s: float = PERIOD_S,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._trim = allocator_trim() if trim is None else trim
        self._period_s = period_s
        self._used = used

    async def run(self) -> None:
        """Give memory back until cancelled."""
        if self._trim is None:
            return
        before = self._used()
        while True:
            await asyncio.sleep(self._period_s)
            if self._used() - before >= WORK_S:
                await asyncio.to_thread(self._trim)
                before = self._used()
