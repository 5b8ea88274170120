"""What the cache asks of a disk: the interface, and the values that cross it.

A disk holds files. A file has a name (32 hex digits, `name_of` the key), a key, data,
and a modification time that the cache chooses: the order of eviction survives a restart
by it. Changes run in the order of the calls, never two at a time. Reads run beside
them.

Invariant: `read` returns data only for the full key and with the right checksum.
This module does not know why a file is written or removed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class DiskSlow(Exception):
    """The disk did not answer in time. The text is for the log."""


class Want(NamedTuple):
    """A file to read: all of it, or the bytes [start, end) of its data."""

    key: str
    name: str
    start: int = 0
    end: int | None = None
    verified: bool = False
    """This process has seen the right checksum, so a range needs no second check."""
    touch: float | None = None
    """The new modification time, if it is to change."""
    space: int = 0
    """The most bytes that the file has, so that a single read takes all. 0: unknown."""
    mtime: float | None = None
    """The expected modification time. A file with another time is checked again."""


class Got(NamedTuple):
    """What a read found: data and the file's length, or a miss."""

    data: bytes | None
    length: int = 0
    error: str = ""
    """Why there is no data. Empty if the file is simply missing."""
    gone: bool = False
    """There is no such file any more: it was missing, or it was damaged and removed."""


class Step(NamedTuple):
    """Files to remove, then at most a single file to write."""

    remove: Sequence[str]
    name: str = ""
    key: str = ""
    data: bytes = b""
    mtime: float = 0.0


class Done(NamedTuple):
    """What a step did: the files that it could not remove, whether it wrote its file,
    and the last error."""

    kept: list[str]
    written: bool
    error: str


Listed = tuple[float, str, int]
"""A file as a scan found it: modification time, name, length in bytes. A plain tuple,
for there may be a million."""


class Listing(NamedTuple):
    """All files, the longest untouched first, and the last error of the scan."""

    files: list[Listed]
    problem: str


class Known(Protocol):
    """What the cache knows of a file, as far as a comparison needs it."""

    @property
    def space(self) -> int:
        """Return bytes in whole blocks."""
        ...


class Found(NamedTuple):
    """How the files differ from what was known. `changed`: (name, length in bytes)."""

    added: list[Listed]
    gone: list[str]
    changed: list[tuple[str, int]]
    problem: str


class Disk(Protocol):
    """Files by name. It belongs to a single cache, which calls `open` first."""

    @property
    def name(self) -> str:
        """Return where the files are, for the log."""
        ...

    @property
    def timeout_s(self) -> float:
        """How long the cache should wait for an operation before it goes on without."""
        ...

    def open(self, digest: Callable[[Listing], T], read_ended: Callable[[], None]) -> Future[T]:
        """List all files, before any change; the result is that of `digest`.

        digest: runs where the listing runs, so that an index of a million files does
        not hold the event loop. read_ended: is called in the loop after each read.
        There may be no event loop yet, hence a future of `concurrent.futures`.
        """
        ...

    def read(self, want: Want) -> Awaitable[Got]:
        """Read a file. Raises: DiskSlow."""
        ...

    def read_many(self, wants: Sequence[Want]) -> Awaitable[list[Got]]:
        """Read files, all in the same hop. Raises: DiskSlow."""
        ...

    def reading(self) -> AbstractSet[str]:
        """The names of files that are being read, slow reads included.

        Such a file takes its room until its read has ended, even if it were removed.
        """
        ...

    def change(self, steps: Sequence[Step]) -> Awaitable[list[Done]]:
        """Do the steps in order. After a file that could not be removed nothing is
        written in this call, because the cache has counted on its room."""
        ...

    def hangs(self) -> bool:
        """Return whether a `change` has taken longer than `timeout_s`."""
        ...

    def changed_by_others(self) -> Awaitable[set[str]]:
        """Ask which directories somebody else has changed since the last call. A
        directory is named by the first two digits of its files' names."""
        ...

    def compare(self, known: Mapping[str, Known], prefixes: AbstractSet[str] | None) -> Awaitable[Found]:
        """Compare these directories (None: all) with what is known of them."""
        ...

    async def close(self, *, wait: bool) -> None:
        """Give up the files. wait: until what is under way has ended."""
        ...
