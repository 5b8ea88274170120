"""The last good answer of the directory, in a local file. A member that starts while
the directory does not answer uses it.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

log = structlog.get_logger()

FORMAT: Final = 1


class Kept(msgspec.Struct, frozen=True):
    """What a member keeps of the directory.

    at: unix seconds of the answer; rows: value and timestamp, by kind and key.
    """

    at: float
    rows: dict[str, dict[str, tuple[bytes, int]]]
    format: int = FORMAT


class Keeper(Protocol):
    """The place where a member keeps the last good answer."""

    def load(self) -> Kept | None:
        """Return what was kept, None if nothing can be read."""

    async def save(self, kept: Kept) -> None:
        """Replace what was kept. Raises OSError."""


class KeptFile:
    """A `Keeper` in a file, which is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Kept | None:
        try:
            found = msgspec.msgpack.decode(self._path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("saved copy of the directory cannot be read", path=str(self._path), error=str(error))
            return None
        return found if found.format == FORMAT else None

    async def save(self, kept: Kept) -> None:
        await asyncio.to_thread(self._write, kept)

    def _write(self, kept: Kept) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(fresh, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(msgspec.msgpack.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._path)
