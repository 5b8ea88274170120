"""Opening the LMDB environment.

Invariant: what `open_env` returns can be read and belongs to this process alone. An
environment that was written without sync is not trusted after the machine went down.
This module does not know what is stored, except the layout's version.
Diagnostics: an environment that LMDB or the layout refuses is renamed
`<path>.broken-<n>` with a warning, and an empty environment takes its place. Only the
newest broken environment is kept, because the bound of the cache holds for the disk as
a whole. A path that cannot be opened for other reasons (rights, no space, in use) is
`MetacacheError`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import structlog

from metacache._types import MetacacheBusy, MetacacheError
from metacache.layout import FORMAT, PAGE_BYTES, SPACE_KEY, u32, u64

log = structlog.get_logger()

# The stubs type every value as `bytes | memoryview`, whatever `buffers` says, and they
# do not export the handle of a database.
Txn = Any
Db = Any

MAP_BYTES_MIN = 8 << 20
_DATABASES = (b"users", b"boxes", b"blobs", b"fields", b"state")
_FORMAT_KEY = b"\0format"
_DAMAGE = (
    lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError, lmdb.PanicError,
    lmdb.IncompatibleError,
)  # fmt: skip


@dataclass(slots=True)
class Env:
    """The open environment with its databases. owner: the file that locks it."""

    path: Path
    owner: int
    lmdb: lmdb.Environment
    users: Db
    boxes: Db
    blobs: Db
    fields: Db
    state: Db

    def close(self) -> None:
        """Sync, remove the mark of an unsynced environment, and close."""
        try:
            self.lmdb.sync(True)
            _unsynced(self.path).unlink(missing_ok=True)
        finally:
            self.lmdb.close()
            os.close(self.owner)


class _Damaged(Exception):
    """The environment cannot be read, or must not be trusted."""


def read_space(env: Env, txn: Txn) -> int:
    """Return the accounted bytes of all users."""
    raw = txn.get(SPACE_KEY, db=env.state)
    return 0 if raw is None else int(u64.unpack(raw)[0])


def open_env(path: Path, *, map_bytes: int, sync: bool) -> Env:
    """Open the environment in the directory `path`; create it if there is none.

    Raises: MetacacheBusy (another process has it open), MetacacheError (no rights or no
    space).
    """
    try:
        return _open_once(path, map_bytes, sync)
    except _Damaged as damage:
        reason = str(damage)
    except OSError as error:
        raise MetacacheError(f"metacache {path}: cannot open: {error}") from error
    aside = _move_aside(path)
    log.warning(
        "metacache cannot be read, an empty metacache is created", path=str(path), moved_to=str(aside), reason=reason
    )
    try:
        return _open_once(path, map_bytes, sync)
    except (_Damaged, OSError) as error:
        raise MetacacheError(f"metacache {path}: cannot create: {error}") from error


def _map_bytes(data: Path, wanted: int) -> int:
    """Return the size of the map: a quarter above the file's, at least.

    The file may have grown under a larger limit, and a deletion always needs room.
    """
    try:
        there = data.stat().st_blocks * 512
    except FileNotFoundError:
        there = 0
    return max(MAP_BYTES_MIN, wanted, there + there // 4 + MAP_BYTES_MIN)


def _open_once(path: Path, map_bytes: int, sync: bool) -> Env:
    path.mkdir(parents=True, exist_ok=True)
    owner = os.open(path / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    env: lmdb.Environment | None = None
    try:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MetacacheBusy(f"metacache {path}: another process has it open") from error
        _check_boot(path, sync)
        try:
            env = lmdb.open(
                str(path), map_size=_map_bytes(path / "data.mdb", map_bytes), max_dbs=len(_DATABASES), sync=sync,
                mode=0o600, max_readers=64,
            )  # fmt: skip
            env.reader_check()
            _stretch(path / "data.mdb", env)
            handles = [env.open_db(name) for name in _DATABASES]
            _check_format(env, handles[-1])
        except _DAMAGE as error:
            raise _Damaged(str(error)) from error
        except lmdb.Error as error:
            raise MetacacheError(f"metacache {path}: cannot open: {error}") from error
        return Env(path, owner, env, *handles)
    except BaseException:
        if env is not None:
            env.close()
        os.close(owner)
        raise


def _stretch(data: Path, env: lmdb.Environment) -> None:
    """Make a file that was cut short as long as LMDB believes it to be.

    Its pages then read as zeros, which LMDB reports. Otherwise SIGBUS would kill the
    process. A sound file may be short as well: pages that were taken and given back
    within a transaction are never written.
    """
    want = (env.info()["last_pgno"] + 1) * PAGE_BYTES
    if data.stat().st_size < want:
        os.truncate(data, want)


def _check_format(env: lmdb.Environment, state: Db) -> None:
    with env.begin() as txn:
        found = txn.get(_FORMAT_KEY, db=state)
        if found is None and txn.stat(state)["entries"]:
            raise _Damaged("no format version")
    if found is None:
        with env.begin(write=True) as txn:
            txn.put(_FORMAT_KEY, u32(FORMAT), db=state)
    elif found != u32(FORMAT):
        raise _Damaged(f"format {found.hex()}, this version reads {FORMAT}")


def _unsynced(path: Path) -> Path:
    return path / "unsynced"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _check_boot(path: Path, sync: bool) -> None:
    """Refuse an environment that was open without sync when the machine went down.

    A process that was killed has lost nothing. A machine that went down may have
    written the pages in any order.
    """
    mark = _unsynced(path)
    try:
        written_under: str | None = mark.read_text().strip()
    except FileNotFoundError:
        written_under = None
    if written_under is not None and (written_under != _boot_id() or written_under == "unknown"):
        raise _Damaged("the machine went down while the environment was open without sync")
    if sync:
        return  # a mark of this boot stays until a close has synced everything
    with open(mark, "w") as file:
        file.write(_boot_id())
        file.flush()
        os.fsync(file.fileno())


def _move_aside(path: Path) -> Path:
    pattern = re.compile(re.escape(path.name) + r"\.broken-(\d+)")
    found = {int(m[1]): p for p in path.parent.iterdir() if (m := pattern.fullmatch(p.name))}
    for old in found.values():
        shutil.rmtree(old, ignore_errors=True)
    aside = path.with_name(f"{path.name}.broken-{max(found, default=0) + 1}")
    path.rename(aside)
    return aside
