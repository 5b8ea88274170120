"""Which engine a member's directory is in, by `[cluster] directory`."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from obox.errors import ConfigError

from .directory import Directory

LOCAL: Final = "local"
FOLDER: Final = "cluster"
"""Of `local`, below state_dir."""


async def open_directory(url: str, state_dir: Path, *, password_file: Path | None = None) -> Directory:
    """url: "local", lmdb:///path or cassandra://…; password_file: of the role in
    Cassandra.

    Raises: ConfigError; Unavailable (LMDB: another process stands still as it opens).
    """
    scheme = urlsplit(url).scheme
    if url == LOCAL or scheme == "lmdb":
        from .lmdb import open_lmdb

        return await open_lmdb(state_dir / FOLDER if url == LOCAL else Path(unquote(urlsplit(url).path)))
    if scheme == "cassandra":
        from .cassandra import open_cassandra

        return open_cassandra(url, password_file)
    raise ConfigError(f"cluster.directory: {scheme or url}; allowed: local, lmdb:///path or cassandra://host/keyspace")
