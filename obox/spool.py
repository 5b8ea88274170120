"""Holds a mail while it arrives over LMTP or IMAP, and limits the memory of such mails.

A mail up to a limit stays in memory. A larger mail goes to an unnamed temporary file,
which is written and read in threads, so that a slow sender of a large mail costs no
memory. The file need not be durable: a mail is acknowledged only when it is in the
bucket. A crash leaves no file behind. If the disk fails, this mail fails with a
temporary error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import structlog

log = structlog.get_logger("obox.spool")

WRITE_BYTES = 256 << 10
"""Smallest piece that is written to the file. Each piece is a single call in a thread.
"""


class Spool:
    """Holds a single mail at a time.

    Call `add` with its bytes, `flush` when `add` asks for it, `take` at its end, and
    `reset` before the next mail.
    """

    def __init__(self, directory: Path | None, memory_bytes_max: int) -> None:
        self.failed = False
        self.size = 0
        self._directory = directory
        self._memory_bytes_max = memory_bytes_max
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._file: IO[bytes] | None = None

    @property
    def in_memory(self) -> bool:
        """Return whether no file has been needed."""
        return self._file is None

    def add(self, data: bytes) -> bool:
        """Add bytes. True: call `flush` before the next `add`."""
        if self.failed:
            return False
        self.size += len(data)
        self._parts.append(data)
        self._parts_bytes += len(data)
        return self._parts_bytes >= (WRITE_BYTES if self._file else self._memory_bytes_max + 1)

    async def flush(self) -> None:
        """Move the bytes in memory to the file."""
        parts, self._parts, self._parts_bytes = self._parts, [], 0
        try:
            await asyncio.to_thread(self._write, parts)
        except OSError as error:
            log.error("spool failed", directory=str(self._directory or ""), error=error.strerror)
            await self.reset()
            self.failed = True

    def take_memory(self) -> bytes:
        """Return the mail if it is in memory."""
        assert self._file is None
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def take(self) -> bytes:
        """Return the mail, from memory or the file. Raises: OSError."""
        if self._file is None:
            return self.take_memory()
        if self._parts:
            await self.flush()
        return await asyncio.to_thread(self._read)

    async def read(self, start: int, size: int) -> bytes:
        """Return a range of the mail, which `flush` has put into the file. Raises:
        OSError."""
        if self._file is None or self.failed:
            raise OSError("the spool has failed")
        data = await asyncio.to_thread(os.pread, self._file.fileno(), size, start)
        if len(data) != size:
            raise OSError("the spool is shorter than what was written")
        return data

    async def head(self, size: int) -> bytes | None:
        """Return the first bytes, at most `size`. None: the file cannot be read.

        A mail that is in a file is in there whole, by `flush`.
        """
        if self._file is None:
            return None if self.failed else self.take_memory()[:size]
        try:
            return await self.read(0, min(size, self.size))
        except OSError:
            return None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the whole mail in pieces, which costs no more memory than a piece.

        A mail that is in a file is in there whole, by `flush`. Raises: OSError.
        """
        if self._file is None:
            yield self.take_memory()
            return
        for start in range(0, self.size, WRITE_BYTES):
            yield await self.read(start, min(WRITE_BYTES, self.size - start))

    async def reset(self) -> None:
        """Discard the mail."""
        self._parts, self._parts_bytes, self.size, self.failed = [], 0, 0, False
        if self._file is not None:
            file, self._file = self._file, None
            await asyncio.to_thread(file.close)

    def close(self) -> None:
        """Do `reset` without a loop, at the end of a connection."""
        self._parts = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()

    def _write(self, parts: list[bytes]) -> None:
        if self._file is None:
            if self._directory is not None:
                self._directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - lives as long as the mail
        self._file.writelines(parts)
        self._file.flush()

    def _read(self) -> bytes:
        if self._file is None:
            raise OSError("the spool has failed")
        self._file.seek(0)
        return self._file.read()


class ByteBudget:
    """Limits the bytes that are held at a time. Claims are served in order.

    A claim above the limit counts as the whole limit.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Wait for `size` bytes, and release them at the end."""
        size = min(size, self.bytes_max)
        if self._waiting or self.used_bytes + size > self.bytes_max:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.used_bytes -= size
                else:
                    self._waiting.remove((size, turn))
                self._wake()
                raise
        else:
            self.used_bytes += size
        try:
            yield
        finally:
            self.used_bytes -= size
            self._wake()

    def _wake(self) -> None:
        while self._waiting and self.used_bytes + self._waiting[0][0] <= self.bytes_max:
            size, turn = self._waiting.popleft()
            self.used_bytes += size
            turn.set_result(None)


class Shares:
    """Bytes in use, of each user and of all. A claim that exceeds them fails at once.

    user_share: the share of all bytes that a user may have.
    """

    def __init__(self, bytes_max: int, user_share: int = 4) -> None:
        self.bytes_max = bytes_max
        self.user_bytes_max = bytes_max // user_share
        self.used = 0
        self._users: Counter[str] = Counter()

    def fits(self, user: str, size: int) -> bool:
        """Return whether `size` bytes are free for the user now."""
        return self.used + size <= self.bytes_max and self._users[user] + size <= self.user_bytes_max

    def take(self, user: str, size: int) -> bool:
        """Claim `size` bytes. Return False if fewer bytes are free."""
        if not self.fits(user, size):
            return False
        self.used += size
        self._users[user] += size
        return True

    def give(self, user: str, size: int) -> None:
        """Release claimed bytes."""
        self.used -= size
        self._users[user] -= size
        if not self._users[user]:
            del self._users[user]
