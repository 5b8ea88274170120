"""The directory of the cache: names and format of its files, and all that blocks.

    offset  size  type    field
    0       4     bytes   magic "FSC1"
    4       4     u32 BE  CRC-32 of key and data
    8       8     u64 BE  data length
    16      4     u32 BE  key length
    20      k     UTF-8   key
    20 + k  n     bytes   data

    <path>/<hh>/<name>  name: 32 hex digits, BLAKE2b of the key; hh: its first two
    <path>/new          the file that is being written

A file is written as `new` and then renamed, so a killed process leaves a whole file or
none. Nothing is synced. After a power cut a file may be empty or partly zeros; its
checksum shows that, and the object is fetched again. A sync for each object would cost
more than the fetch that it saves.

Invariant: `read` returns data only for the full key and with the right checksum. It
removes files that are damaged or foreign.
This module does not know limits, the order of eviction, or threads. `read` may be
called in several threads at once, the other methods in a single one.
Diagnostics: a missing file is a miss, not an error. Every other `OSError` is returned
as text.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from pathlib import Path

from fscache.disk._disk import Done, Found, Got, Known, Listed, Listing, Step, Want

_HEADER = struct.Struct(">4sIQI")
HEADER_BYTES = 4 + 4 + 8 + 4
MAGIC = b"FSC1"
NAME_DIGITS = 32
BLOCK_BYTES = 4096  # file systems give whole blocks
MTIME_S = 0.001  # precision that a file system and a float keep
READ_BYTES_MAX = 1 << 30  # Linux reads at most 2 GiB less a page at once
_HEX = frozenset("0123456789abcdef")


def name_of(key: str) -> str:
    """Return the name of the key's file."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=NAME_DIGITS // 2).hexdigest()


def file_bytes(key: str, data_len: int) -> int:
    """Return the length of the file for an object."""
    return HEADER_BYTES + len(key.encode("utf-8", "surrogatepass")) + data_len


def disk_bytes(length: int) -> int:
    """Return what a file of that length takes on the disk: whole blocks."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


class Files:
    """The directory `path`. It need not exist, and may be removed at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = os.fspath(path)
        self._stamps: dict[str, int] = {}  # mtime of a directory after our change

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
        """Do the steps in order. After a failed removal nothing is written."""
        out: list[Done] = []
        touched: set[str] = set()
        room = True
        for step in steps:
            done = self.step(step, room)
            room = room and not done.kept
            out.append(done)
            touched.update(name[:2] for name in (*step.remove, step.name) if name)
        for prefix in touched:
            self._stamp(prefix)
        return out

    def step(self, step: Step, room: bool) -> Done:
        """Do a step; write only if there is room."""
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

    # ---- what others change ------------------------------------------------------------------------------------

    def _stamp(self, prefix: str) -> int | None:
        """Note a directory's modification time; None if the directory is missing."""
        try:
            stamp = os.stat(f"{self._root}/{prefix}").st_mtime_ns
        except OSError:
            self._stamps.pop(prefix, None)
            return None
        self._stamps[prefix] = stamp
        return stamp

    def changed_by_others(self) -> set[str]:
        """Return the directories that somebody else has changed since the last call."""
        before = dict(self._stamps)
        try:
            prefixes = set(self._directories())
        except OSError:
            prefixes = set()
        return {prefix for prefix in prefixes | set(before) if self._stamp(prefix) != before.get(prefix)}

    def compare(self, known: Mapping[str, Known], prefixes: AbstractSet[str] | None) -> Found:
        """Compare these directories (None: all) with what is known of them."""
        files, problem = self.scan(prefixes)
        added: list[Listed] = []
        changed: list[tuple[str, int]] = []
        missing = set(known)
        for file in files:
            _, name, length = file
            if name not in missing:
                added.append(file)
                continue
            missing.discard(name)
            if disk_bytes(length) != known[name].space:
                changed.append((name, length))
        return Found(added, list(missing), changed, problem)

    def scan(self, prefixes: AbstractSet[str] | None = None) -> Listing:
        """List the files of these directories (None: all), without foreign names."""
        problem = ""
        found: list[Listed] = []
        try:
            os.makedirs(self._root, 0o700, exist_ok=True)
            try:
                os.unlink(f"{self._root}/new")
            except FileNotFoundError:
                pass
            directories = self._directories()
        except OSError as error:
            return Listing(found, str(error))
        for prefix in directories:
            if prefixes is not None and prefix not in prefixes:
                continue
            self._stamp(prefix)
            try:
                self._scan_directory(prefix, found)
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = str(error)
        found.sort()
        return Listing(found, problem)

    def _directories(self) -> list[str]:
        with os.scandir(self._root) as entries:
            return [entry.name for entry in entries if len(entry.name) == 2 and _HEX.issuperset(entry.name)]

    def _scan_directory(self, prefix: str, found: list[Listed]) -> None:
        with os.scandir(f"{self._root}/{prefix}") as entries:
            for entry in entries:
                name = entry.name
                if len(name) == NAME_DIGITS and name.startswith(prefix) and _HEX.issuperset(name):
                    try:
                        stat = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # a reader has removed it, because it was damaged
                    found.append((stat.st_mtime, name, stat.st_size))


def _read(fd: int, want: Want) -> Got:
    """Read from an open file. Raises: OSError."""
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
    """Read `count` bytes, fewer only at the end of the file."""
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
