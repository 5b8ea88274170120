"""Events of directories, from the kernel by way of watchdog.

The kernel is not asked for each write. A directory may also have a log, which gets a
line for each mail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

KINDS: Final = [
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
]
"""A file that was written in place is heard of when its writer closes it."""


class Watching(FileSystemEventHandler):
    """Observes names in directories, without their subdirectories.

    places: for each directory the names that matter.
    """

    def __init__(self, places: Mapping[str, frozenset[str]], moved: Callable[[], None]) -> None:
        self.places = places
        self._moved = moved
        self._observer = Observer()

    def start(self) -> None:
        for place in sorted(self.places):
            self._observer.schedule(self, place, event_filter=list(KINDS))
        self._observer.start()

    def stop(self) -> None:
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if any(self._matters(os.fsdecode(path)) for path in (event.src_path, event.dest_path) if path):
            self._moved()

    def _matters(self, path: str) -> bool:
        place, name = os.path.split(path)
        return path in self.places or name in self.places.get(place, frozenset())
