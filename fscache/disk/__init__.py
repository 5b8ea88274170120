"""Where the cache keeps its objects: a small interface, and files behind it.

`Disk` is what the cache asks of it. `FileDisk` implements it with a directory and a few
threads. A test passes a disk in memory, or a `FileDisk` over `Files` that fail.

Invariant: this room decides nothing. It does what the cache asks and says how that
went.
This module does not know limits, the order of eviction, or what is counted.
Diagnostics: no operating error is raised. The values say what failed; `DiskSlow` says
that the disk did not answer in time.
"""

from fscache.disk._disk import (
    Disk,
    DiskSlow,
    Done,
    Found,
    Got,
    Known,
    Listed,
    Listing,
    Step,
    Want,
)
from fscache.disk._files import BLOCK_BYTES, Files, disk_bytes, file_bytes, name_of
from fscache.disk._threads import TIMEOUT_S, FileDisk

__all__ = [
    "BLOCK_BYTES",
    "TIMEOUT_S",
    "Disk",
    "DiskSlow",
    "Done",
    "FileDisk",
    "Files",
    "Found",
    "Got",
    "Known",
    "Listed",
    "Listing",
    "Step",
    "Want",
    "disk_bytes",
    "file_bytes",
    "name_of",
]
