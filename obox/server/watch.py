"""Watches files that are replaced while the process runs, such as renewed certificates.

The kernel reports that something changed in a directory (watchdog). Then the files
themselves are compared, so that it does not matter how they are replaced. A file may be
written in place, another file may be renamed to its name, or a symbolic link may be
changed.

Invariant: `changed` runs once after none of the files has changed for QUIET_S, and
never twice at the same time. Other files of the same directories do not matter, however
often they are written. This module does not know what the files contain. Diagnostics: a
directory that cannot be watched is logged once. The operator can still send SIGHUP.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

QUIET_S: Final = 1.0
"""How long no file may change before `changed` runs. A certificate and its key are two
files, which are replaced one after the other."""

LINKS_MAX: Final = 8


class FileWatch:
    """See the module's text. log: a bound logger."""

    def __init__(
        self, files: Sequence[Path], changed: Callable[[], Awaitable[None]], *, log: Any, quiet_s: float = QUIET_S
    ) -> None:
        self.watched = files
        self._changed = changed
        self._log = log
        self._quiet_s = quiet_s
        self._moved = asyncio.Event()
        self._known = _stamps(files)

    def follow(self, files: Sequence[Path]) -> None:
        """Watch other files from now on. Their present contents count as known."""
        self.watched, self._known = files, _stamps(files)
        self._moved.set()

    async def run(self) -> None:
        """Watch until cancelled. Without files it only waits."""
        if not self.watched:
            return
        # The import takes 5 ms, which a backend that watches nothing does not spend.
        from ._watching import Watching

        loop = asyncio.get_running_loop()
        watching = None
        try:
            while True:
                places = _places(self.watched)
                if watching is None or watching.places != places:
                    if watching is not None:
                        await asyncio.to_thread(watching.stop)
                    watching = Watching(places, lambda: _set_event(loop, self._moved))
                    try:
                        await asyncio.to_thread(watching.start)
                    except OSError as error:
                        self._log.warning("changed files cannot be watched, SIGHUP reads them again", error=str(error))
                        return
                    # The comparison below finds changes from before the watch began.
                else:
                    await self._moved.wait()
                self._moved.clear()
                while await self._still_changing():
                    pass
                now = _stamps(self.watched)
                if now != self._known:
                    self._known = now
                    await self._changed()
        finally:
            if watching is not None:
                await asyncio.shield(asyncio.to_thread(watching.stop))

    async def _still_changing(self) -> bool:
        """Return whether a file has changed within QUIET_S."""
        try:
            async with asyncio.timeout(self._quiet_s):
                await self._moved.wait()
        except TimeoutError:
            return False
        self._moved.clear()
        return True


def _set_event(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set the event from the observer's thread, which may outlive the loop."""
    try:
        loop.call_soon_threadsafe(event.set)
    except RuntimeError:
        pass


def _places(files: Sequence[Path]) -> dict[str, frozenset[str]]:
    """Return the directories of the files and of each symbolic link in their paths, and
    for each directory the names in it that matter."""
    out: dict[str, frozenset[str]] = {}
    for file in files:
        at = Path(os.path.abspath(file))
        for _ in range(LINKS_MAX):
            links = [above for above in at.parents if above.is_symlink()]
            for one in (at, *links):
                if one.parent.is_dir():
                    out[str(one.parent)] = out.get(str(one.parent), frozenset()) | {one.name}
            if not at.is_symlink():
                break
            at = Path(os.path.normpath(at.parent / at.readlink()))
    return out


def _stamps(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """Return what identifies each file, so that a replacement is noticed; None if it is
    missing.
    """
    out: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            stat = file.stat()
            out.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            out.append(None)
    return out
