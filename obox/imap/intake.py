"""The mails of an APPEND while they arrive. Small mails are in memory and larger mails
in a file, all of them within budgets.

Theory of operation. The parser asks `admit` before it takes a literal that holds a
mail. What a session, a user and the process may hold in memory is counted
(`Intake.memory`); a mail that does not fit goes to the spool file of its command, which
has a budget as well (`Intake.disk`). Its bytes are counted as they arrive. When the
command is complete its mails are read back, one large mail at a time, for which the
command waits its turn (`Intake.reading`).

Invariant: what a command has claimed is released when its Incoming is closed or is not
referenced any more. A command that was cut off may still have a PUT under way that
reads from the file. So the file exists as long as its mails.

Diagnostics: if the disk fails, the command fails with [UNAVAILABLE]. If a budget is
used up, it fails with [LIMIT].
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from obox.errors import Limit, Temporary
from obox.spool import ByteBudget, Shares, Spool

MAIL_MEMORY_BYTES: Final = 1 << 20
"""A mail up to this size may stay in memory, as in LMTP."""
SESSION_MEMORY_BYTES: Final = 4 << 20
"""Bytes of an APPEND's mails that stay in memory together."""
COPIES: Final = 2
"""A mail that is being stored is in memory twice: its bytes, and the object that is
made of them."""
TRY_LATER: Final = "Too many mails are on their way, try again later"


class Intake:
    """The budgets of a server, shared by its sessions."""

    def __init__(self, directory: Path | None, memory_bytes_max: int, spool_bytes_max: int) -> None:
        """directory: the directory of spool files. None: the system's directory for
        temporary files."""
        self.directory = directory
        self.memory = Shares(memory_bytes_max)
        self.disk = Shares(spool_bytes_max)
        self._reading = ByteBudget(memory_bytes_max)
        self._reading_of: WeakValueDictionary[str, ByteBudget] = WeakValueDictionary()

    def incoming(self, user: str) -> Incoming:
        """Make an Incoming for the mails of a command."""
        return Incoming(self, user)

    @contextlib.asynccontextmanager
    async def reading(self, user: str, size: int) -> AsyncIterator[None]:
        """Wait until a mail of `size` bytes may be in memory as a whole.

        Half of the budget is for other users.
        """
        mine = self._reading_of.get(user)
        if mine is None:
            mine = self._reading_of[user] = ByteBudget(self._reading.bytes_max // 2)
        async with mine.hold(size * COPIES), self._reading.hold(size * COPIES):
            yield


class Incoming:
    """The mails of a command.

    Used by the parser: `admit`, then `add` until the literal is complete, then `end`.
    """

    def __init__(self, intake: Intake, user: str) -> None:
        self.spooling = False
        """Whether the literal that was admitted last goes to the file."""
        self.largest = 0
        """Bytes of the largest mail in the file."""
        self.one = asyncio.Lock()
        """Held while a large mail of several mails is in memory."""
        self._intake = intake
        self._user = user
        self._memory = 0
        self._disk = 0
        self._begin = 0
        self._full = False
        self._spool: Spool | None = None

    def admit(self, size: int) -> bool:
        """Return whether a mail of `size` bytes is accepted. It sets `spooling`."""
        intake = self._intake
        small = size <= MAIL_MEMORY_BYTES and self._memory + size <= SESSION_MEMORY_BYTES
        if small and intake.memory.take(self._user, size):
            self._memory += size
            self.spooling = False
            return True
        if not intake.disk.fits(self._user, size):
            return False
        if self._spool is None:
            self._spool = Spool(intake.directory, 0)
        self.spooling = True
        self._begin = self._disk
        return True

    def add(self, data: bytes) -> bool:
        """Take bytes of the mail. Returns True if `flush` has to follow before more is
        read."""
        assert self._spool is not None
        if self._full or not self._intake.disk.take(self._user, len(data)):
            self._full = True
            return False
        self._disk += len(data)
        return self._spool.add(data)

    def end(self) -> Spooled:
        """Return the mail that is complete now."""
        size = self._disk - self._begin
        self.largest = max(self.largest, size)
        return Spooled(self, self._begin, size)

    async def flush(self) -> None:
        """Move the bytes that have arrived to the file."""
        if self._spool is not None and not self._spool.failed:
            await self._spool.flush()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Wait until the mails may be read back, a single large mail at a time.

        Raises: Limit, Temporary.
        """
        if self._full:
            raise Limit(TRY_LATER)
        if self._spool is None:
            yield
            return
        await self.flush()
        if self._spool.failed:
            raise Temporary(TRY_LATER)
        async with self._intake.reading(self._user, self.largest):
            yield

    async def read(self, start: int, size: int) -> bytes:
        """Raises: Temporary."""
        assert self._spool is not None
        try:
            return await self._spool.read(start, size)
        except OSError as error:
            self._spool.failed = True
            raise Temporary(TRY_LATER) from error

    @property
    def lost(self) -> bool:
        """Return whether the file cannot be read any more."""
        return self._spool is not None and self._spool.failed

    async def discard(self) -> None:
        """Release what was claimed, because all mails are stored.

        Closes the file in a thread.
        """
        if self._spool is not None:
            await self._spool.reset()
        self.close()

    def close(self) -> None:
        """Release what was claimed. Idempotent."""
        self._intake.memory.give(self._user, self._memory)
        self._intake.disk.give(self._user, self._disk)
        self._memory = self._disk = 0
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def __del__(self) -> None:
        self.close()


class Spooled:
    """A mail in the file of its command; `obox.store.api.Source`."""

    __slots__ = ("_begin", "_incoming", "_size")

    def __init__(self, incoming: Incoming, begin: int, size: int) -> None:
        self._incoming, self._begin, self._size = incoming, begin, size

    def __len__(self) -> int:
        return self._size

    @property
    def lost(self) -> bool:
        return self._incoming.lost

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[bytes]:
        """Return the mail in memory.

        Of the large mails of a command, a single mail is open at a time. Raises:
        Temporary.
        """
        if self._size <= MAIL_MEMORY_BYTES:
            yield await self._incoming.read(self._begin, self._size)
            return
        async with self._incoming.one:
            yield await self._incoming.read(self._begin, self._size)
