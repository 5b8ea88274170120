"""The cache's files: format, names, and everything that blocks. Runs in threads only.

    offset  size  type    field
    0       4     bytes   magic "FSC1"
    4       4     u32 BE  CRC-32 of key and data
    8       8     u64 BE  data length
    16      4     u32 BE  key length
    20      k     UTF-8   key
    20 + k  n     bytes   data

    <path>/<hh>/<name>    name: 32 hex digits, BLAKE2b of the key; hh: its first two, so a directory holds a 256th
    <path>/new            the one file being written

A file lands by temp and rename, so a killed process leaves a whole file or none. Nothing is synced: after a power cut a
file may be empty or partly zeros, its checksum says so, and the object is fetched again. A sync per object would cost
more than the fetch that it saves.

Invariant: `read` returns data only for the full key and with the right checksum; what is damaged or foreign is removed.
Refuses to know: limits and order of eviction.
Diagnostics: a missing file is a miss, not an error. Other `OSError`s are returned for the caller to count.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

_HEADER = struct.Struct(">4sIQI")
HEADER_BYTES = 4 + 4 + 8 + 4
MAGIC = b"FSC1"
NAME_DIGITS = 32
BLOCK_BYTES = 4096  # file systems give whole blocks
MTIME_S = 0.001  # how exactly a file system and a float keep it
READ_BYTES_MAX = 1 << 30  # Linux reads at most 2 GiB less a page at once
_HEX = frozenset("0123456789abcdef")


def name_of(key: str) -> str:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=NAME_DIGITS // 2).hexdigest()


def file_bytes(key: str, data_len: int) -> int:
    """The length of the file for an object."""
    return HEADER_BYTES + len(key.encode("utf-8", "surrogatepass")) + data_len


def disk_bytes(length: int) -> int:
    """What a file of that length takes on disk."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


class Want(NamedTuple):
    """One file to read: all of it, or the range [start, end) of one whose checksum has been seen."""

    key: str
    name: str
    start: int = 0
    end: int | None = None
    verified: bool = False
    touch: float | None = None  # new mtime: the order of eviction survives a restart by it
    space: int = 0  # the file is at most so long, so that one read takes all of it; 0: not known
    mtime: float | None = None  # as it should be: a file that somebody else has written is checked again


class Got(NamedTuple):
    """What a read found: the data and the file's length; or a miss, its error if any, and whether the file is gone."""

    data: bytes | None
    length: int = 0
    error: str = ""
    gone: bool = False


class Step(NamedTuple):
    """Files to remove, then one file to write, if any."""

    remove: Sequence[str]
    name: str = ""
    key: str = ""
    data: bytes = b""
    mtime: float = 0.0


class Done(NamedTuple):
    """What a step left: files that could not be removed, whether the file was written, the last error."""

    kept: list[str]
    written: bool
    error: str


class Known(Protocol):
    @property
    def space(self) -> int: ...


class Found(NamedTuple):
    """What a directory has beside what was known: (mtime, name, length) of others, names that are missing, (name,
    length) of those whose size differs."""

    added: list[tuple[float, str, int]]
    gone: list[str]
    changed: list[tuple[str, int]]
    problem: str


class Files:
    """The directory; it need not exist, and may go at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = os.fspath(path)
        self._stamps: dict[str, int] = {}  # mtime of each directory after our own last change

    def _file(self, name: str) -> str:
        return f"{self._root}/{name[:2]}/{name}"

    # ---- reading -----------------------------------------------------------------------------------------------

    def read_many(self, wants: Iterable[Want]) -> list[Got]:
        return [self.read(want) for want in wants]

    def read(self, want: Want) -> Got:
        path = self._file(want.name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return Got(None, gone=True)
        except OSError as error:
            return Got(None, error=str(error))
        try:
            got = _read(fd, want)
            if got.data is not None:
                if want.touch is not None:
                    os.utime(fd, (want.touch, want.touch))
                return got
        except OSError as error:
            return Got(None, error=str(error))
        finally:
            os.close(fd)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            return Got(None, error=f"{got.error}; {error}")
        return got._replace(gone=True)

    # ---- changing ----------------------------------------------------------------------------------------------

    def run(self, steps: Iterable[Step]) -> list[Done]:
        """Do the steps in order. Once a file could not be removed nothing is written: its room was counted on."""
        out: list[Done] = []
        touched: set[str] = set()
        room = True
        for step in steps:
            done = self._step(step, room)
            room = room and not done.kept
            out.append(done)
            touched.update(name[:2] for name in (*step.remove, step.name) if name)
        for prefix in touched:
            self._stamp(prefix)
        return out

    def _stamp(self, prefix: str) -> int | None:
        """Note a directory's time of change; None if it is not there."""
        try:
            stamp = os.stat(f"{self._root}/{prefix}").st_mtime_ns
        except OSError:
            self._stamps.pop(prefix, None)
            return None
        self._stamps[prefix] = stamp
        return stamp

    def disturbed(self) -> set[str]:
        """The directories that somebody else has changed since the last call. In the changing thread."""
        before = dict(self._stamps)
        try:
            with os.scandir(self._root) as entries:
                prefixes = {entry.name for entry in entries if len(entry.name) == 2 and _HEX.issuperset(entry.name)}
        except OSError:
            prefixes = set()
        return {prefix for prefix in prefixes | set(before) if self._stamp(prefix) != before.get(prefix)}

    def compare(self, known: Mapping[str, Known], prefixes: set[str] | None) -> Found:
        """What these directories (None: all) have, against what is known of them. In the changing thread."""
        found, problem = self.scan(prefixes)
        added, changed = [], []
        missing = set(known)
        for mtime, name, length in found:
            if name not in missing:
                added.append((mtime, name, length))
                continue
            missing.discard(name)
            if disk_bytes(length) != known[name].space:
                changed.append((name, length))
        return Found(added, list(missing), changed, problem)

    def _step(self, step: Step, room: bool) -> Done:
        kept: list[str] = []
        problem = ""
        for name in step.remove:
            try:
                os.unlink(self._file(name))
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                kept.append(name)
                problem = str(error)
        if not step.name or kept or not room:
            return Done(kept, False, problem)
        try:
            self._write(step)
        except OSError as error:
            return Done(kept, False, str(error))
        return Done(kept, True, "")

    def _write(self, step: Step) -> None:
        key = step.key.encode("utf-8", "surrogatepass")
        head = _HEADER.pack(MAGIC, zlib.crc32(step.data, zlib.crc32(key)), len(step.data), len(key)) + key
        temp = f"{self._root}/new"
        try:
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            os.makedirs(self._root, 0o700, exist_ok=True)
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                _write_all(fd, head, step.data)
                os.utime(fd, (step.mtime, step.mtime))
            finally:
                os.close(fd)
            path = self._file(step.name)
            try:
                os.rename(temp, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                os.rename(temp, path)
        except OSError:
            try:
                os.unlink(temp)
            except OSError:
                pass  # the next write truncates it
            raise

    # ---- scanning ----------------------------------------------------------------------------------------------

    def scan(self, prefixes: set[str] | None = None) -> tuple[list[tuple[float, str, int]], str]:
        """All files (in these directories) as (mtime, name, length), oldest first, and the last error.

        Foreign names are left alone.
        """
        problem = ""
        found: list[tuple[float, str, int]] = []
        try:
            os.makedirs(self._root, 0o700, exist_ok=True)
            try:
                os.unlink(f"{self._root}/new")
            except FileNotFoundError:
                pass
            with os.scandir(self._root) as entries:
                dirs = [entry.name for entry in entries if len(entry.name) == 2 and _HEX.issuperset(entry.name)]
            if prefixes is not None:
                dirs = [name for name in dirs if name in prefixes]
        except OSError as error:
            return found, str(error)
        for prefix in dirs:
            self._stamp(prefix)
            try:
                with os.scandir(f"{self._root}/{prefix}") as entries:
                    for entry in entries:
                        name = entry.name
                        if len(name) == NAME_DIGITS and name.startswith(prefix) and _HEX.issuperset(name):
                            try:
                                stat = entry.stat(follow_symlinks=False)
                            except FileNotFoundError:
                                continue  # a reader has removed it: damaged
                            found.append((stat.st_mtime, name, stat.st_size))
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = str(error)
        found.sort()
        return found, problem


def _read(fd: int, want: Want) -> Got:
    key = want.key.encode("utf-8", "surrogatepass")
    head_len = HEADER_BYTES + len(key)
    verified = want.verified and (want.mtime is None or abs(os.fstat(fd).st_mtime - want.mtime) < MTIME_S)
    if verified:
        raw = os.read(fd, head_len)
    else:
        size = want.space or os.fstat(fd).st_size
        raw = os.read(fd, size + 1) if size < READ_BYTES_MAX else _read_exactly(fd, size + 1)
    if len(raw) < head_len or raw[HEADER_BYTES:head_len] != key:
        return Got(None, error=f"{want.name}: damaged or foreign header")
    magic, crc, data_len, key_len = _HEADER.unpack_from(raw)
    if magic != MAGIC or key_len != len(key):
        return Got(None, error=f"{want.name}: damaged or foreign header")
    length = head_len + data_len
    if verified:
        start = min(max(want.start, 0), data_len)
        end = data_len if want.end is None else min(max(want.end, start), data_len)
        os.lseek(fd, head_len + start, os.SEEK_SET)
        data = _read_exactly(fd, end - start)
        if len(data) != end - start:
            return Got(None, error=f"{want.name}: shorter than its header says")
        return Got(data, length)
    if len(raw) != length:
        return Got(None, error=f"{want.name}: not as long as its header says")
    data = raw[head_len:]
    if zlib.crc32(data, zlib.crc32(key)) != crc:
        return Got(None, error=f"{want.name}: checksum does not match")
    if want.start > 0 or want.end is not None:
        data = data[max(want.start, 0) : want.end if want.end is None else max(want.end, 0)]
    return Got(data, length)


def _read_exactly(fd: int, count: int) -> bytes:
    """`count` bytes, fewer only at the end of the file."""
    data = os.read(fd, min(count, READ_BYTES_MAX))
    if len(data) == count:
        return data
    parts = [data]
    left = count - len(data)
    while left and parts[-1]:
        parts.append(os.read(fd, min(left, READ_BYTES_MAX)))
        left -= len(parts[-1])
    return b"".join(parts)


def _write_all(fd: int, head: bytes, data: bytes) -> None:
    done = os.writev(fd, [head, data])
    if done < len(head):
        raise OSError(f"wrote {done} bytes of {len(head)}")
    view = memoryview(data)
    done -= len(head)
    while done < len(data):
        done += os.write(fd, view[done:])
