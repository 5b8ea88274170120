"""The common part of the fuzzers: a seed, an end, and what must hold whatever was sent.

`OBOX_FUZZ_SECONDS` says how long each fuzzer runs. `OBOX_FUZZ_SEED` repeats a run that
failed, whose seed is printed.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import random
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from turns import turns

from obox.errors import InUse
from obox.store import MailStore
from obox.store.backend.upload import unload
from obox.store.user import search

MEMORY_BYTES_MAX = 10 << 20
"""The memory after a scenario may be larger by 10 MiB than after the first scenario,
which loads code and fills caches."""
MALLOC_BYTES = 128 << 10
"""malloc returns free memory above this size to the system. By itself it raises the
limit up to 64 MiB, for the arena of each thread, whenever a large block is freed. So
the memory of the process would show how large the arenas once were, and not what the
server holds."""
_LIBC = ctypes.CDLL(None)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SCENARIO_S = 20.0
"""The longest time of a scenario."""
SCENARIOS_MIN = 3
REST_S = 30.0


@contextmanager
def seeded() -> Iterator[random.Random]:
    """Return a random generator. Its seed is printed if the block fails."""
    seed = int(os.environ.get("OBOX_FUZZ_SEED") or secrets.randbits(32))
    try:
        yield random.Random(seed)
    except BaseException:
        print(f"repeat with OBOX_FUZZ_SEED={seed}")
        raise


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.found.append(record.getMessage() + (f": {record.exc_info[1]!r}" if record.exc_info else ""))


@contextmanager
def no_traceback() -> Iterator[None]:
    """Assert that neither obox's log, nor uvicorn's, nor the loop's exception handler
    has an error. Other lines are dropped, so that the log takes no memory."""
    handler, failures, bad = _Records(), [], []

    def keep(logger: Any, method: str, entry: Any) -> Any:
        if method in ("error", "critical", "exception") or entry.get("exc_info"):
            bad.append(entry)
        raise structlog.DropEvent

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    logging.getLogger().addHandler(handler)
    processors = structlog.get_config()["processors"]
    plain = processors.copy()
    # The list is changed in place, because existing loggers refer to it.
    processors[:] = [structlog.processors.add_log_level, keep]
    try:
        yield
    finally:
        processors[:] = plain
        logging.getLogger().removeHandler(handler)
        loop.set_exception_handler(None)
    assert not bad, bad[0]
    assert not handler.found, handler.found[0]
    assert not failures, repr(failures[0])


def memory_bytes() -> int:
    """Return the memory of this process without files. Garbage is collected first, and
    malloc gives its free memory back. Free memory in the interpreter's arenas does not
    count: a single object prevents that an arena is given back."""
    for limit in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        _LIBC.mallopt(limit, MALLOC_BYTES)
    gc.collect()
    _LIBC.malloc_trim(0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return (int(line.split()[1]) << 10) - _free_in_arenas()
    raise AssertionError("no Anonymous line")


def _free_in_arenas() -> int:
    """Return the bytes of the interpreter's arenas that no object uses. Python prints
    them to the file descriptor of stderr, and has no other function for them."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        text = file.read().decode()
    found = re.findall(
        r"^(?:# bytes in available blocks|\d+ unused pools \* \d+ bytes) += +([\d,]+)$", text, re.MULTILINE
    )
    assert len(found) == 2, text
    return sum(int(size.replace(",", "")) for size in found)


async def at_rest(store: MailStore) -> None:
    """Unload all users, as an idle backend does, and empty the caches whose size has a
    limit of its own. No session may be left."""
    async with asyncio.timeout(REST_S):
        while store.users:
            for sid in list(store.users):
                try:
                    await unload(store, sid, upload=True)
                except InUse:
                    # A connection that was cut has not ended yet.
                    await asyncio.sleep(0.01)
    store.env.recent.clear()
    search.MEMO.__init__()  # type: ignore[misc]  # as if nobody had searched before


LONG_RUN: Final = 100
"""In a run of more scenarios the memory is compared with that of the first half. The
fuzzer of mails starts a backend in each scenario: caches that have a limit of their own
take 10 MB more after 180 of them, and hardly grow from then on."""


class Held:
    """The memory after each scenario, which must come back to that after the first.

    first: how many scenarios are the first, which load code and fill caches.
    """

    def __init__(self, first: int = 1) -> None:
        self.bytes: list[int] = []
        self._first = first

    def check(self) -> None:
        """Measure the memory after a scenario."""
        self.bytes.append(memory_bytes())
        count = len(self.bytes)
        grown = self.bytes[-1] - max(self.bytes[: self._first if count <= LONG_RUN else count // 2])
        assert grown <= MEMORY_BYTES_MAX, f"{grown} bytes more after {len(self.bytes)} scenarios: {self}"

    def __str__(self) -> str:
        return " ".join(f"{size / (1 << 20):.1f}" for size in self.bytes[-20:]) + " MiB"


async def drive(
    seconds: float, one: Callable[[], Awaitable[object]], at_once: int = 4, *, rest: Callable[[], Awaitable[None]]
) -> int:
    """Run `one` again and again, several at a time, until the time is over. Return how
    often it ran.

    The time is divided into scenarios. After each of them all connections are closed,
    and `rest` waits until the server holds nothing of users. Then the memory must be
    that after the first scenario. The turns of the loop are measured in all scenarios.
    """
    count = 0

    async def scenario(end: float) -> None:
        async def again() -> None:
            nonlocal count
            while time.monotonic() < end:
                await one()
                count += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(again(), name="client")
        # Connections that were cut end in this time.
        await asyncio.sleep(0.1)
        await rest()

    for _ in range(20):
        await one()
    gc.collect()
    # Garbage of the test's own modules must not be collected in a turn that is
    # measured.
    gc.freeze()
    # The collection must not run in a turn that is measured.
    await asyncio.sleep(0)
    held = Held()
    with no_traceback(), turns(mine=False) as found:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end or len(held.bytes) < 2:
            await scenario(now + min(SCENARIO_S, seconds / SCENARIOS_MIN))
            held.check()
    gc.unfreeze()
    print(f"memory after each scenario: {held}")
    found.check()
    return count


class Wire:
    """A connection that is written in pieces and read to its end at the same time."""

    def __init__(self, rng: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._rng = rng
        self.reader = reader
        self.writer = writer
        self.got = bytearray()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while data := await self.reader.read(65536):
                self.got += data
        except OSError:
            # A reset counts as an end.
            pass

    async def send(self, data: bytes) -> None:
        """Send the bytes, cut at any places or not at all."""
        at = 0
        while at < len(data) and not self._reading.done():
            size = len(data) if self._rng.random() < 0.5 else self._rng.randint(1, 1 + len(data) // 2)
            self.writer.write(data[at : at + size])
            at += size
            try:
                await self.writer.drain()
            except OSError:
                return
            if self._rng.random() < 0.3:
                await asyncio.sleep(0)

    async def end(self) -> bytes:
        """End the connection in a random way. Return everything that was answered."""
        how = self._rng.choice(("eof", "eof", "close", "abort"))
        try:
            if how == "eof" and self.writer.can_write_eof():
                self.writer.write_eof()
                await asyncio.wait([self._reading], timeout=self._rng.choice((0.0, 0.05, 0.5)))
        except OSError:
            pass
        self.writer.transport.abort() if how == "abort" else self.writer.close()
        await asyncio.wait([self._reading], timeout=5)
        self._reading.cancel()
        return bytes(self.got)


def strange_text(rng: random.Random, most: int = 40) -> str:
    """Return text that might be used as a name: with combining marks, control
    characters, half surrogates or right-to-left characters, or very long."""
    alphabet: Any = rng.choice(
        (
            "abcXYZ09",
            "aé\u0301\u0316ßİıſﬁ\u212a",
            "\u0301\u0316\u0327",
            "日本語\U0001f600\U000e0041",
            "\x00\x01\x1b\x7f\x9b\r\n\t ",
            "/.\\%*&-~#+@:;,<>()[]{}\"'",
            "\u202e\u200b\u2028\ufdfa\ufffe",
            "aA@/. \u0301",
        )
    )
    size = rng.choice((0, 1, 2, 3, 8, most, most, 200, 201, 255, 256, 1000, 5000))
    return "".join(rng.choice(alphabet) for _ in range(size))
