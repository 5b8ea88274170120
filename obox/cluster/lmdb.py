"""The directory of one host, in an LMDB file that several processes share.

Invariant: no transaction runs on the event loop, and each ends after a few rows. Reads
and writes have a thread each, so that a blocked write stops no read.

Before a write transaction a process takes an advisory lock (flock), and tries until the
deadline. So no process ever waits for LMDB's own mutex. If the writer was stopped
(SIGSTOP), the others get Unavailable, and no thread hangs. The kernel releases the lock
when a process dies, and LMDB's mutex is robust. So a writer that was killed blocks
nobody.

Diagnostics: a network file system, a file of another program and a path that cannot be
opened are ConfigError. A full map, a lock that is not free in time and whatever LMDB
says later are Unavailable, and logged once a minute with the path and the process.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple, TypeVar

import lmdb
import structlog

from obox.errors import ConfigError, Unavailable

from .directory import DEADLINE_S, Kind, Row, checked
from .mounts import MOUNTS, network_mount

log = structlog.get_logger()
T = TypeVar("T")

MAP_BYTES: Final = 256 << 20
"""The size of the LMDB file, which is sparse. 100,000 pinned users and their moves take
a third of it. All processes need the same value, so it is no setting.
"""

BATCH_ROWS: Final = 64
"""A write transaction has at most 64 rows. This is the number of groups of a directory
that a backend makes by itself."""

WAITING_MAX: Final = 4096
"""At most 4,096 writes may wait for the thread. More are refused."""

READERS_MAX: Final = 512
"""At most 512 processes may read the file at the same time."""

_LOCK_POLL_S: Final = 0.002
_LOG_EVERY_S: Final = 60.0
# timestamp and bytes of the key; then come the key and the value
HEAD: Final = Struct(">qH")
_FORMAT_KEY: Final = b"\0format"
_FORMAT: Final = b"1"
_KEY_BYTES_PLAIN: Final = 400  # LMDB allows 511 for the kind and the key
_FOREIGN: Final = (
    lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.IncompatibleError, lmdb.PageNotFoundError,
)  # fmt: skip


class _Put(NamedTuple):
    at: bytes
    key: str
    row: Row
    expires: float
    done: Future[None]


async def open_lmdb(path: Path, *, mounts: Path = MOUNTS, map_bytes: int = MAP_BYTES) -> LmdbDirectory:
    """Open the directory in the folder `path`; make it if there is none.

    mounts: the kernel's table of mounts. A process must not open a path twice at a
    time.
    Raises: ConfigError; Unavailable (another process has stopped while it opens it).
    """
    if kind := network_mount(path, mounts):
        raise ConfigError(
            f"cluster.directory: {path} is on a network file system ({kind}); LMDB serves the processes of one host, "
            "allowed: a local file system, or cassandra://host,host/keyspace"
        )
    directory = LmdbDirectory(path, map_bytes)
    try:
        await directory.open()
    except BaseException:
        await directory.close()
        raise
    return directory


class LmdbDirectory:
    """A `Directory`; made by `open_lmdb`."""

    def __init__(self, path: Path, map_bytes: int) -> None:
        self._path, self._map_bytes = path, map_bytes
        self._reads = ThreadPoolExecutor(1, "directory-read")
        self._writes = ThreadPoolExecutor(1, "directory-write")
        self._waiting: deque[_Put] = deque()
        self._closing = threading.Event()
        self._lock = -1  # no file descriptor
        self._inode = 0
        self._env: Any = None
        self._logged: dict[str, float] = {}

    async def open(self) -> None:
        """Raises as `open_lmdb` says."""
        await self._ask(self._writes, self._open)
        # The first read takes a place among the readers for this process.
        await self._ask(self._reads, lambda: self._get(_FORMAT_KEY))

    async def get(self, kind: Kind, key: str) -> Row | None:
        found = await self._ask(self._reads, lambda: self._get(place_of(kind, key)))
        return None if found is None else _unpack(found)[1]

    async def all(self, kind: Kind) -> dict[str, Row]:
        return await self._ask(self._reads, lambda: self._all(kind))

    async def put(self, kind: Kind, key: str, value: bytes, timestamp: int) -> None:
        row = checked(key, value, timestamp)
        if self._closing.is_set() or len(self._waiting) >= WAITING_MAX:
            raise Unavailable("too many writes wait for the directory; try again")
        done: Future[None] = Future()
        self._waiting.append(_Put(place_of(kind, key), key, row, time.monotonic() + DEADLINE_S, done))
        self._writes.submit(self._write_waiting)
        await self._answer(done)

    async def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.wrap_future(self._writes.submit(lambda: None))
                await asyncio.wrap_future(self._reads.submit(self._close))
        except TimeoutError:
            log.warning("directory's file is still in use and stays open", path=str(self._path))
        self._reads.shutdown(wait=False)
        self._writes.shutdown(wait=False)

    # -- on the loop ------------------------------------------------------------------

    async def _ask(self, thread: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        if self._closing.is_set():
            raise Unavailable("the directory is closed")
        return await self._answer(thread.submit(self._translated, call))

    async def _answer(self, future: Future[T]) -> T:
        try:
            # The thread has an earlier deadline, whose error has the reason.
            async with asyncio.timeout(DEADLINE_S + 1):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Unavailable("the directory's disk does not answer") from None

    # -- in the threads ---------------------------------------------------------------

    def _translated(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (lmdb.Error, OSError) as error:
            raise self._failed("the directory cannot be read", error=str(error)) from error

    def _failed(self, event: str, **words: object) -> Unavailable:
        """Return the error for the caller, with the reason as a note, since clients see
        its text; the log gets path and reason once a minute."""
        now = time.monotonic()
        if now - self._logged.get(event, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged[event] = now
            log.error(event, path=str(self._path), **words)
        failure = Unavailable(event)
        failure.add_note(", ".join([str(self._path), *map(str, words.values())]))
        return failure

    def _open(self) -> None:
        try:
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._path / "writer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cluster.directory: {self._path}: cannot open: {error}") from error
        with self._locked(time.monotonic() + DEADLINE_S):
            try:
                self._env = lmdb.open(
                    str(self._path), map_size=self._map_bytes, metasync=False, mode=0o600, max_readers=READERS_MAX,
                    max_spare_txns=1,  # the place among the readers stays: no mutex
                )  # fmt: skip
                self._env.reader_check()  # frees the places of dead processes
                _stretch(self._path / "data.mdb", self._env)
                self._check_format()
            except _FOREIGN as error:
                raise ConfigError(
                    f"cluster.directory: {self._path} has a file that cannot be read ({error}); stop all members, "
                    "remove the folder, and start them: they write their rows back"
                ) from error
            except (lmdb.Error, OSError) as error:
                raise ConfigError(f"cluster.directory: {self._path}: cannot open: {error}") from error
        self._inode = (self._path / "data.mdb").stat().st_ino

    def _check_format(self) -> None:
        with self._env.begin() as txn:
            found = txn.get(_FORMAT_KEY)
        if found is None:
            with self._env.begin(write=True) as txn:
                txn.put(_FORMAT_KEY, _FORMAT)
        elif found != _FORMAT:
            raise ConfigError(
                f"cluster.directory: {self._path} has format {found.decode(errors='replace')}, "
                f"this version reads {_FORMAT.decode()}"
            )

    def _close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _there(self) -> Any:
        """Return the environment. Raises Unavailable if its file has been removed."""
        try:
            inode = os.stat(self._path / "data.mdb").st_ino
        except FileNotFoundError:
            inode = 0
        if self._env is None or inode != self._inode:
            raise self._failed("the directory's file was removed or replaced, restart this process")
        return self._env

    def _get(self, at: bytes) -> bytes | None:
        with self._there().begin() as txn:
            found = txn.get(at)
            return None if found is None else bytes(found)

    def _all(self, kind: Kind) -> dict[str, Row]:
        prefix = place_of(kind, "")
        with self._there().begin() as txn, txn.cursor() as cursor:
            return dict(map(_unpack, _values(cursor, prefix)))

    def _write_waiting(self) -> None:
        """Write what waits, in one transaction."""
        puts: list[_Put] = []
        while self._waiting and len(puts) < BATCH_ROWS:
            put = self._waiting.popleft()
            if put.done.set_running_or_notify_cancel():
                puts.append(put)
        if not puts:
            return
        try:
            self._write(puts)
        except Unavailable as error:
            failure: Exception = error
        except lmdb.MapFullError:
            held = [line.split()[0] for line in self._env.readers().splitlines()[1:]]
            failure = self._failed("the directory is full", bytes_max=self._map_bytes, held_by_processes=held)
        except (lmdb.Error, OSError) as error:
            failure = self._failed("the directory cannot be written", error=str(error))
        except BaseException as error:
            for put in puts:
                put.done.set_exception(error)
            raise
        else:
            for put in puts:
                put.done.set_result(None)
            return
        for put in puts:
            put.done.set_exception(failure)

    def _write(self, puts: list[_Put]) -> None:
        with self._locked(max(put.expires for put in puts)):
            env = self._there()
            try:
                self.write_once(env, puts)
            except lmdb.MapFullError:
                env.reader_check()  # frees pages that a dead process was reading
                self.write_once(env, puts)

    def write_once(self, env: Any, puts: list[_Put]) -> None:
        with env.begin(write=True) as txn:
            for put in puts:
                found = txn.get(put.at)
                if put.row.beats(None if found is None else _unpack(found)[1]):
                    key = put.key.encode()
                    txn.put(put.at, HEAD.pack(put.row.timestamp, len(key)) + key + put.row.value)

    @contextmanager
    def _locked(self, deadline: float) -> Iterator[None]:
        """Be the only writer of all processes. Raises Unavailable at the deadline."""
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline or self._closing.is_set():
                    holder = os.pread(self._lock, 20, 0).decode(errors="replace").strip()
                    raise self._failed(
                        "another process keeps the directory from being written, end it", process=holder
                    ) from None
                time.sleep(_LOCK_POLL_S)
        try:
            os.pwrite(self._lock, f"{os.getpid():<20}".encode(), 0)
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def _stretch(data: Path, env: Any) -> None:
    """Make a truncated file as long as LMDB believes it to be. Missing pages would end
    the process (SIGBUS). LMDB reports pages of zeros as an error.
    """
    want = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if data.stat().st_size < want:
        os.truncate(data, want)


def place_of(kind: Kind, key: str) -> bytes:
    """Return the key in LMDB: kind, a zero byte, the key; long keys end in their
    hash."""
    plain = key.encode()
    if len(plain) > _KEY_BYTES_PLAIN:
        plain = plain[:_KEY_BYTES_PLAIN] + hashlib.sha256(plain).digest()
    return kind.encode() + b"\0" + plain


def _values(cursor: Any, prefix: bytes) -> Iterator[bytes]:
    if cursor.set_range(prefix):
        for at, value in cursor:
            if not at.startswith(prefix):
                return
            yield bytes(value)


def _unpack(stored: bytes) -> tuple[str, Row]:
    timestamp, length = HEAD.unpack_from(stored)
    end = HEAD.size + length
    return stored[HEAD.size : end].decode(), Row(stored[end:], timestamp)
