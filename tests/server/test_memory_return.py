"""Memory that the process has freed goes back to the system."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from obox.server import MemoryReturn
from obox.server.memory import WORK_S, allocator_trim

PIECES = 800
PIECE_BYTES = 100_000
"""Below the size that the allocator maps singly."""
MIB = 1 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(allocator_trim() is None, reason="needs a C library with malloc_trim")
async def test_what_a_thread_has_freed_goes_back() -> None:
    kept: list[bytes] = []

    def work() -> None:
        pieces = [b"\1" * PIECE_BYTES for _ in range(PIECES)]
        # The last piece pins all others below it in the arena of the thread.
        kept.append(pieces.pop())

    before = resident_bytes()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    held = resident_bytes() - before
    used = iter([0.0, WORK_S])
    task = asyncio.create_task(MemoryReturn(period_s=0, used=lambda: next(used, WORK_S)).run())
    for _ in range(2_000):
        await asyncio.sleep(0.005)
        if resident_bytes() - before < 10 * MIB:
            break
    task.cancel()
    assert held > 20 * MIB, "the allocator has kept nothing"
    assert resident_bytes() - before < 10 * MIB


THREADS = """
import threading
from pathlib import Path
from obox import main
from obox.server.memory import allocator_trim

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def work():
    together.wait()
    pieces = [b"x" * 100_000 for _ in range(200)]
    together.wait()
    pieces.clear()

async def run():
    # The allocator now takes a piece of this size for a usual one.
    mail = b"x" * (24 << 20)
    del mail
    before = resident()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    allocator_trim()()
    print(resident() - before)
    return 0

together = threading.Barrier(8)
main._run(run)
"""
"""Eight threads allocate 20 MB each at the same time, and free all of it."""


@pytest.mark.skipif(allocator_trim() is None, reason="needs a C library with malloc_trim")
def test_what_many_threads_have_freed_goes_back() -> None:
    got = subprocess.run([sys.executable, "-c", THREADS], check=True, capture_output=True, text=True)
    assert int(got.stdout) < 10 * MIB


async def test_a_process_that_does_nothing_gives_nothing_back() -> None:
    """Each look reads the CPU time once, and each return once more."""
    seen: list[int] = []
    looks = iter([0.0, WORK_S / 2, WORK_S, WORK_S, WORK_S * 1.5, WORK_S * 2.5, WORK_S * 2.5])
    count = 0

    def used() -> float:
        nonlocal count
        count += 1
        try:
            return next(looks)
        except StopIteration:
            raise asyncio.CancelledError from None

    with pytest.raises(asyncio.CancelledError):
        await MemoryReturn(lambda: seen.append(count), period_s=0, used=used).run()
    assert seen == [3, 6]


@pytest.mark.parametrize("module", ["obox/backend.py", "obox/front.py"])
def test_every_process_gives_memory_back(module: str) -> None:
    root = Path(__file__).parents[2]
    assert "create_task(MemoryReturn().run())" in (root / module).read_text()
