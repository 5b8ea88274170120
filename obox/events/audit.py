"""The audit log: each event as a line of JSON at the end of a file.

Invariant: a line is on the disk before its event counts as handled. The file is opened
for each line, so that it can be rotated at any time. It is not limited here; rotate it.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import msgspec

from .event import Event

MODE = 0o600
"""Events say who gets mail when."""


class Audit:
    """The listener of the group `audit`."""

    def __init__(self, path: Path, threads: Executor) -> None:
        self._path, self._threads = path, threads

    async def handle(self, event: Event) -> None:
        """Append an event. Raises OSError."""
        line = {"id": event.identity, **msgspec.to_builtins(event)}
        await asyncio.get_running_loop().run_in_executor(self._threads, self._append, line)

    def _append(self, line: dict[str, Any]) -> None:
        data = msgspec.json.encode(line) + b"\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            if os.write(file, data) != len(data):
                raise OSError("the disk is full")
            os.fsync(file)
        finally:
            os.close(file)
