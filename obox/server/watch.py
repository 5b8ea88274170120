"""Files that others replace while the process runs: certificates that were renewed.

The kernel reports that something changed in a directory (watchdog). Then the files
themselves are compared, so that the way of the replacement does not matter: a file may
be written in place, another may be renamed over it, or a symbolic link may point
elsewhere.

Invariant: `changed` runs once after no file has changed for SETTLE_S, and never twice
at the same time.
Refuses to know: what is in the files. Diagnostics: a directory that cannot be watched
is logged once; the operator can still send SIGHUP.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

SETTLE_S: Final = 1.0
"""A certificate and its key are two files: they come one after the other."""

LINKS_MAX: Final = 8


class FileWatch:
    """See the module's text. log: a bound logger."""

    def __init__(
        self, files: Sequence[Path], changed: Callable[[], Awaitable[None]], *, log: Any, settle_s: float = SETTLE_S
    ) -> None:
        self._files = files
        self._changed = changed
        self._log = log
        self._settle_s = settle_s
        self._moved = asyncio.Event()
        self._known = _stamps(files)

    def follow(self, files: Sequence[Path]) -> None:
        """Watch other files from now on; they are as their user knows them."""
        self._files, self._known = files, _stamps(files)
        self._moved.set()

    async def run(self) -> None:
        """Watch until cancelled; with no files there is nothing to do."""
        if not self._files:
            return
        # 5 ms of the start of a backend that has nothing to watch.
        from ._watching import Watching

        loop = asyncio.get_running_loop()
        watching = None
        try:
            while True:
                places = _directories(self._files)
                if watching is None or watching.places != places:
                    if watching is not None:
                        await asyncio.to_thread(watching.stop)
                    watching = Watching(places, lambda: _tell(loop, self._moved))
                    try:
                        await asyncio.to_thread(watching.start)
                    except OSError as error:
                        self._log.warning("cannot watch for changed files, SIGHUP rereads them", error=str(error))
                        return
                    # What changed before the watch began is seen by the comparison
                    # below.
                else:
                    await self._moved.wait()
                self._moved.clear()
                while await self._restless():
                    pass
                now = _stamps(self._files)
                if now != self._known:
                    self._known = now
                    await self._changed()
        finally:
            if watching is not None:
                await asyncio.shield(asyncio.to_thread(watching.stop))

    async def _restless(self) -> bool:
        """Whether something moved within the settling time."""
        try:
            async with asyncio.timeout(self._settle_s):
                await self._moved.wait()
        except TimeoutError:
            return False
        self._moved.clear()
        return True


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Out of the observer's thread, which may outlive the loop."""
    try:
        loop.call_soon_threadsafe(event.set)
    except RuntimeError:
        pass


def _directories(files: Sequence[Path]) -> set[str]:
    """Where the files lie, and each symbolic link on the way to them."""
    out: set[str] = set()
    for file in files:
        at = Path(os.path.abspath(file))
        for _ in range(LINKS_MAX):
            if at.parent.is_dir():
                out.add(str(at.parent))
            if not at.is_symlink():
                break
            at = Path(os.path.normpath(at.parent / at.readlink()))
    return out


def _stamps(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """What tells one file from another under the same name; None for one that is not
    there.
    """
    out: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            stat = file.stat()
            out.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            out.append(None)
    return out
