"""The choice of the directory's engine, by `[cluster] directory`."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from obox.errors import ConfigError

from .directory import Directory

LOCAL: Final = "local"
FOLDER: Final = "cluster"
"""The folder below state_dir that `local` means."""


def file_of(url: str, state_dir: Path) -> Path | None:
    """Return the folder of a directory in LMDB; None for Cassandra."""
    if url == LOCAL:
        return state_dir / FOLDER
    return Path(unquote(urlsplit(url).path)) if urlsplit(url).scheme == "lmdb" else None


def plain_url(url: str) -> str:
    """Return the URL without user and password, for people."""
    parts = urlsplit(url)
    return url if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


async def open_directory(url: str, state_dir: Path, *, password_file: Path | None = None) -> Directory:
    """Open a directory. url: "local", lmdb:///path or cassandra://…; password_file: has
    the password of the role in Cassandra.

    Raises: ConfigError; Unavailable (LMDB: another process has stopped while it opens).
    """
    scheme = urlsplit(url).scheme
    if (file := file_of(url, state_dir)) is not None:
        from .lmdb import open_lmdb

        return await open_lmdb(file)
    if scheme == "cassandra":
        from .cassandra import open_cassandra

        return open_cassandra(url, password_file)
    raise ConfigError(f"cluster.directory: {scheme or url}; allowed: local, lmdb:///path or cassandra://host/keyspace")
