"""Events of directories, from the kernel by way of watchdog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

_READ_ONLY: Final = frozenset({"opened", "closed_no_write"})


class Watching(FileSystemEventHandler):
    """Observes directories without their subdirectories."""

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
