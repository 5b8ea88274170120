"""What the kernel says of some directories, by watchdog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

_READ_ONLY: Final = frozenset({"opened", "closed_no_write"})


class Watching(FileSystemEventHandler):
    """One observer of some directories, not of what is below them."""

    def __init__(self, places: set[str], moved: Callable[[], None]) -> None:
        self.places = places
        self._moved = moved
        self._observer = Observer()

    def start(self) -> None:
        for place in sorted(self.places):
            self._observer.schedule(self, place)
        self._observer.start()

    def stop(self) -> None:
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in _READ_ONLY:
            self._moved()
