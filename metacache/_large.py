"""Loads local copies that are too large for the caller's thread.

Invariant: the result is that of `Metacache.load` at the time of the return.
This module does not know what a copy contains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from metacache._disk import Disk
from metacache._types import Copy
from metacache._writer import Writer
from metacache.operations import fold_copy, size_of

LOAD_INLINE_BYTES = 1 << 20  # copying takes a millisecond


class Large:
    """See the module's text. load: loads a small copy."""

    def __init__(self, disk: Disk, writer: Writer, load: Callable[[str, str], Copy | None]) -> None:
        self._disk = disk
        self._writer = writer
        self._load = load

    async def load(self, user: str, box: str) -> Copy | None:
        """Return the box's copy. Threads read a copy of more than LOAD_INLINE_BYTES, so
        that nobody else waits for it. Raises: MetacacheError."""
        with self._disk.snapshot() as txn:
            nbytes = self._disk.copy_bytes(txn, user, box)
            ops = self._writer.pending(txn, user, box)
        if nbytes + sum(map(size_of, ops)) <= LOAD_INLINE_BYTES:
            return self._load(user, box)
        while True:
            # No transaction begins meanwhile, because the writer's thread reads.
            copy, seen = await self._writer.run(lambda: self._read(user, box))
            if self._writer.written_txn_id <= seen:
                break
        ops = self._writer.pending_above(seen, user, box)
        self._writer.touch(user, box)
        return await asyncio.to_thread(fold_copy, copy, ops) if ops else copy

    def _read(self, user: str, box: str) -> tuple[Copy | None, int]:
        with self._disk.snapshot() as txn:
            return self._disk.load(txn, user, box), txn.id()
