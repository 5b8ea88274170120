"""`file:///dir`: a bucket in a local directory, durable and create-only.

A key is a path below the directory. A PUT has these steps: write a temporary file in
`.tmp`, fsync, link(2) to the final name (which fails if the name exists: create-only,
atomic, also between processes), unlink the temporary name, fsync the directory. A
thread writes PUTs that come at the same time as a group: a single fsync per directory
serves all of them. New directories are made durable from the parent down; a directory
that this process has not seen yet is treated as new.

An element of a key that is longer than ELEMENT_BYTES_MAX becomes nested directories,
each except the last with `~` at its end.

Invariant: a put that has returned is on the disk; a name never shows a partial object;
LIST shows no temporary files.

Crash gaps: before the link, a file remains in `.tmp`; it is removed when it is
TEMP_AGE_S old (another process may be using a younger file). Between link and answer,
an object remains that was not acknowledged, as with any store. A delete removes
directories that become empty; a PUT that finds its directory removed makes it again.

This module does not know the content. It does not work on file systems without link(2):
a PUT there is Refused.

Diagnostics: ENOSPC, EDQUOT, EIO, a bucket that is not mounted any more and every other
error that may pass are Unreachable. EACCES, EPERM, EROFS, a bucket that is a file, and
a key that is a directory of other keys are Refused. Removing temporary files fails
silently and is tried again at the next start. Nothing is logged.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from obox.objectstore._driver import Cursor, Kind, ObjectInfo, Page
from obox.objectstore._errors import AlreadyExists, Missing, Refused, StoreError, Truncated, Unreachable

ELEMENT_BYTES_MAX = 240
"""Longest name of a directory entry; file systems allow 255."""

TEMP_AGE_S = 3600.0
"""Age at which a temporary file is a leftover: no PUT takes that long."""

_TEMP = ".tmp"
_GROUP_MAX = 16
"""PUTs in a group: this bounds open files and the time that the first of them waits."""
_READERS = 4
_WRITERS = 4
"""Groups at a time: while some wait for their fsync, the next is written. More groups
were not faster when measured.
"""
_KNOWN_DIRECTORIES_MAX = 65536
_LINK_TRIES = 100
"""Attempts to make a directory and link into it, against deletes that remove it in
between.
"""

_REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ENOTDIR}
)

T = TypeVar("T")


class _Put:
    """A PUT on its way through a group."""

    __slots__ = ("data", "directory", "error", "fd", "future", "key", "linked", "loop", "path", "replaces", "temp")

    def __init__(self, key: str, path: str, data: bytes, *, replaces: bool = False) -> None:
        self.key = key
        self.replaces = replaces
        self.path = path
        self.directory = os.path.dirname(path)
        self.data = data
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.temp = ""
        self.fd = -1  # no file descriptor
        self.linked = False
        self.error: StoreError | None = None

    def answer(self) -> None:
        """Wake the caller, in its event loop."""
        if self.future.done():  # the task was cancelled meanwhile
            return
        if self.error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self.error)


class FileDriver:
    """A bucket in a directory, shared by any number of processes of one host."""

    copies_create_only = True
    creates_at_once = True
    page_keys = 16384
    """More than the limit of S3, because each page scans its directory from the start.
    """

    def __init__(self, root: str, *, rng: random.Random, wall: Callable[[], float] = time.time) -> None:
        """root: absolute; created at the first PUT. rng: names temporary files. wall:
        unix time, for old temporary files.
        """
        self._root = root.rstrip("/") or "/"
        self._temp = os.path.join(self._root, _TEMP)
        self._wall = wall
        self._token = f"{os.getpid():x}-{rng.randbytes(8).hex()}"
        self._serial = 0
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="obox-file-get")
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="obox-file-put")
        self._lock = threading.Lock()
        self._pending: deque[_Put] = deque()
        self._writing = 0
        # directory -> inode, durable with all its parents
        self._known: dict[str, int] = {}
        self._swept = False
        self._inode = 0
        """Inode of the root since it was first seen. Another inode there means that our
        directory is not mounted any more.
        """

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._queue(_Put(key, self._path(key), data))

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._queue(_Put(key, self._path(key), data, replaces=True))

    async def _queue(self, put: _Put) -> None:
        with self._lock:
            self._pending.append(put)
            start = self._writing < _WRITERS
            self._writing += start
        if start:
            self._writers.submit(self._write)
        await put.future

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        return await self._run(self._get, key, self._path(key), start, end)

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        return await self._run(self._page, prefix, max(after, cursor or ""), limit)

    async def list_names(self, prefix: str, *, kind: Kind) -> list[str]:
        return await self._run(self._names, prefix)

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        await self._run(self._delete, [(key, self._path(key, foreign=True)) for key in keys])

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        await self.put(target, await self.get(source, kind=kind), kind=kind)

    async def close(self) -> None:
        """Finish PUTs that have begun and stop the threads."""
        await asyncio.get_running_loop().run_in_executor(None, self._writers.shutdown)
        self._readers.shutdown(wait=False)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *args)

    def check_root(self) -> None:
        """Raises Unreachable if the root is gone, or is not the same directory as
        before.

        This is checked if something is missing: an unmounted bucket must not look like
        an empty bucket. Only the inode counts, because a device has another number when
        it is mounted again.
        """
        # read it first: another thread may make the root, and see it, at any time
        known = self._inode
        try:
            inode = os.stat(self._root).st_ino
        except FileNotFoundError:
            inode = 0
        except OSError as error:
            raise _failure(self._root, error, maybe_done=False) from error
        if not known:
            self._inode = self._inode or inode
        elif inode != known:
            raise Unreachable(f"{self._root} is not the directory that it was: is it mounted?", maybe_done=False)

    def _get(self, key: str, path: str, start: int, end: int | None) -> bytes:
        try:
            return _read(key, path, start, end)
        except Missing:
            self.check_root()
            raise

    def _path(self, key: str, *, foreign: bool = False) -> str:
        """Return the path of a key.

        foreign: also accept a key that LIST may name although we never write it.
        Raises: Refused for keys that a path cannot hold safely.
        """
        parts = [self._root]
        for element in key.split("/"):
            ours = foreign or (element.isascii() and element.isprintable())
            if not element or element[0] == "." or "\0" in element or not ours:
                raise Refused(f"key {key[:200]!r}: a directory holds elements of printable ASCII without a leading dot")
            if len(element) <= ELEMENT_BYTES_MAX:
                parts.append(element)
                continue
            chunks = [element[at : at + ELEMENT_BYTES_MAX] for at in range(0, len(element), ELEMENT_BYTES_MAX)]
            parts += [chunk + "~" for chunk in chunks[:-1]]
            parts.append(chunks[-1])
        return "/".join(parts)

    # Writing, in a writer thread

    def _write(self) -> None:
        """Write groups until nothing is pending."""
        while True:
            with self._lock:
                group = [self._pending.popleft() for _ in range(min(len(self._pending), _GROUP_MAX))]
                if not group:
                    self._writing -= 1
                    return
            try:
                self._write_group(group)
            except BaseException as error:  # a bug must not make callers wait for ever
                for put in group:
                    put.error = put.error or Unreachable(f"put {put.key}: {error!r}")
                raise
            finally:
                for loop in {put.loop for put in group}:
                    answers = [put for put in group if put.loop is loop]
                    try:
                        loop.call_soon_threadsafe(_answer_all, answers)
                    except RuntimeError:  # the caller's loop is closed: nobody waits
                        continue

    def _write_group(self, group: list[_Put]) -> None:
        try:
            self._prepare()
        except StoreError as error:
            for put in group:
                put.error = error
            return
        for put in group:
            self._step(put, self._write_temp)
        for put in group:
            self._step(put, self._sync_temp)
        directories: dict[str, list[_Put]] = {}
        for put in group:
            self._step(put, self._link)
            if put.linked:
                directories.setdefault(put.directory, []).append(put)
        for directory, puts in directories.items():
            try:
                self._sync_directory(directory)
            except FileNotFoundError:
                # what was linked there has been deleted since, together with the
                # directory
                continue
            except OSError as error:
                for put in puts:
                    put.error = _failure(f"put {put.key}", error, maybe_done=True)

    def _prepare(self) -> None:
        """Make `.tmp`, and remove old files in it once."""
        if self._swept:
            return
        self.check_root()
        self._swept = True
        try:
            os.makedirs(self._temp, exist_ok=True)
            self.check_root()
            with os.scandir(self._temp) as entries:
                for entry in entries:
                    if entry.stat().st_mtime < self._wall() - TEMP_AGE_S:
                        os.unlink(entry.path)
        except OSError:
            self._swept = os.path.isdir(self._temp)

    def _step(self, put: _Put, step: Callable[[_Put], None]) -> None:
        if put.error is not None:
            return
        try:
            step(put)
        except StoreError as error:
            put.error = error
        except OSError as error:
            put.error = _failure(f"put {put.key}", error, maybe_done=False)
        if put.error is not None and put.temp and not put.linked:
            self._drop_temp(put)

    def _write_temp(self, put: _Put) -> None:
        with self._lock:
            self._serial += 1
            serial = self._serial
        path = f"{self._temp}/{self._token}-{serial:x}"
        try:
            put.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            self._swept = False  # .tmp was removed: make it again
            self._prepare()
            put.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        put.temp = path
        view = memoryview(put.data)
        while view:
            view = view[os.write(put.fd, view) :]

    def _sync_temp(self, put: _Put) -> None:
        os.fsync(put.fd)
        os.close(put.fd)
        put.fd = -1

    def _link(self, put: _Put) -> None:
        """Give the file its name.

        linked: whether the directory must be synced before the answer, whatever the
        answer is.
        """
        try:
            self._link_into_place(put)
        except FileExistsError:
            if os.path.isdir(put.path):
                put.error = Refused(f"put {put.key}: other keys lie below it")
            elif os.path.isdir(put.directory):
                put.error = AlreadyExists(f"put {put.key}: there is an object already")
                # the existing file may belong to another process that has not synced it
                self._drop_temp(put)
            else:
                put.error = Refused(f"put {put.key}: it lies below another key")
                return
        except NotADirectoryError:
            put.error = Refused(f"put {put.key}: it lies below another key")
            return
        put.linked = True
        self._drop_temp(put)

    def _link_into_place(self, put: _Put) -> None:
        """Call link(2) after making missing directories.

        This is repeated if a delete removes a directory that is still empty.
        """
        for _ in range(_LINK_TRIES):
            try:
                self._name(put)
                return
            except FileNotFoundError:
                self.check_root()
                self._forget(put.directory)
            try:
                os.makedirs(put.directory, exist_ok=True)
            except FileNotFoundError:
                continue
        self._name(put)

    def _name(self, put: _Put) -> None:
        if not put.replaces:
            os.link(put.temp, put.path)
        elif os.path.isdir(put.path):
            raise FileExistsError(put.path)
        else:
            os.replace(put.temp, put.path)
            put.temp = ""

    def _forget(self, directory: str) -> None:
        """Note that a directory is missing. Its replacement, and the directories
        above, must be synced.
        """
        while not os.path.isdir(directory) and len(directory) > len(self._root):
            self._known.pop(directory, None)
            directory = os.path.dirname(directory)

    def _drop_temp(self, put: _Put) -> None:
        if put.fd >= 0:
            os.close(put.fd)
            put.fd = -1
        if put.temp:
            try:
                os.unlink(put.temp)
            except OSError:
                pass  # a leftover, which is removed later
            put.temp = ""

    def _sync_directory(self, directory: str) -> None:
        """Sync a directory, and its parents too if the directory is not known to be
        durable."""
        while True:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                inode = os.fstat(fd).st_ino
            finally:
                os.close(fd)
            # another inode: it was removed and made again
            if self._known.get(directory) == inode:
                return
            if len(self._known) >= _KNOWN_DIRECTORIES_MAX:
                self._known.clear()
            self._known[directory] = inode
            if directory == self._root:
                try:
                    fd = os.open(os.path.dirname(self._root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except PermissionError:
                    # not ours: somebody else has made the root, and may not have synced
                    # it
                    return
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                return
            directory = os.path.dirname(directory)

    # Deleting and listing, in a reader thread

    def _delete(self, keys: list[tuple[str, str]]) -> None:
        """Remove files and the directories that become empty."""
        directories: set[str] = set()
        for key, path in keys:
            try:
                os.unlink(path)
                directories.add(os.path.dirname(path))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            except OSError as error:
                raise _failure(f"delete {key}", error, maybe_done=True) from error
        for touched in directories:
            directory = touched
            try:
                while directory != self._root:
                    os.rmdir(directory)
                    self._known.pop(directory, None)
                    directory = os.path.dirname(directory)
            except OSError:
                pass  # not empty, or gone: both are fine
            self._sync_quietly(directory)

    def _sync_quietly(self, directory: str) -> None:
        """Sync after a removal. If a power cut loses the removal, the file is only
        removed again."""
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            os.fsync(fd)
        except OSError:
            pass
        finally:
            os.close(fd)

    def _page(self, prefix: str, after: str, limit: int) -> Page:
        directory = os.path.dirname(self._path(prefix + "x")) if prefix else self._root
        items: list[ObjectInfo] = []
        try:
            for key, path in _walk(directory, prefix, after):
                if len(items) == limit:
                    return Page(items, items[-1].key)
                try:
                    # a symbolic link is foreign: it may lead nowhere, or to itself
                    found = os.stat(path, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it was deleted meanwhile
                items.append(ObjectInfo(key, found.st_size, found.st_mtime))
        except OSError as error:
            raise _failure(f"list {prefix}", error, maybe_done=False) from error
        if not items:
            self.check_root()
        return Page(items, None)

    def _names(self, prefix: str) -> list[str]:
        directory = os.path.dirname(self._path(prefix + "x")) if prefix else self._root
        names: list[str] = []
        after = ""
        try:
            while (found := next(_walk(directory, prefix, after), None)) is not None:
                name, slash, _ = found[0][len(prefix) :].partition("/")
                names += [name] if slash else []
                # "0" follows "/": this is behind all of `name/`, whatever is below it
                after = f"{prefix}{name}0" if slash else found[0]
        except OSError as error:
            raise _failure(f"list {prefix}", error, maybe_done=False) from error
        if not names:
            self.check_root()
        return names


def _answer_all(puts: list[_Put]) -> None:
    for put in puts:
        put.answer()


def _failure(what: str, error: OSError, *, maybe_done: bool) -> StoreError:
    text = f"{what}: {error.strerror or error}"
    if error.errno in _REFUSED:
        return Refused(text)
    return Unreachable(text, maybe_done=maybe_done)


def _read(key: str, path: str, start: int, end: int | None) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"get {key}: no such object") from None
    except OSError as error:
        raise _failure(f"get {key}", error, maybe_done=False) from error
    try:
        size = os.fstat(fd).st_size
        wanted = max(min(size, size if end is None else end) - start, 0)
        data = os.pread(fd, wanted, start)
        while data and len(data) < wanted:
            more = os.pread(fd, wanted - len(data), start + len(data))
            if not more:
                break
            data += more
    except IsADirectoryError:
        raise Missing(f"get {key}: no such object") from None
    except OSError as error:
        raise _failure(f"get {key}", error, maybe_done=False) from error
    finally:
        os.close(fd)
    if len(data) != wanted:
        raise Truncated(f"get {key}: {len(data)} of {wanted} bytes")
    return data


def _walk(directory: str, prefix: str, after: str) -> Iterator[tuple[str, str]]:
    """Yield (key, path) below directory, in key order, key > after.

    Directories that lie before `after` are skipped.
    """
    try:
        with os.scandir(directory) as scan:
            entries = [(e.name, e.is_dir(follow_symlinks=False)) for e in scan if e.name[0] != "."]
    except (FileNotFoundError, NotADirectoryError):
        return
    rows: list[tuple[str, str, bool]] = []  # key or key prefix, name, is a directory
    parts_of_elements = False
    for name, is_directory in entries:
        key = prefix + name
        if is_directory:
            if len(name) == ELEMENT_BYTES_MAX + 1 and name[-1] == "~":
                parts_of_elements = True
                key = key[:-1]
            else:
                key += "/"
            if key > after or after.startswith(key):
                rows.append((key, name, True))
        elif key > after:
            rows.append((key, name, False))
    rows.sort()
    streams = (
        _walk(f"{directory}/{name}", key, after) if is_directory else iter([(key, f"{directory}/{name}")])
        for key, name, is_directory in rows
    )
    if parts_of_elements:  # keys below "aa…~" and keys below "aa…" itself interleave
        yield from heapq.merge(*streams)
    else:
        for stream in streams:
            yield from stream
