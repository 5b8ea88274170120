"""What keeps a mail while it is received: memory or a file, within a budget."""

from __future__ import annotations

import asyncio
from pathlib import Path

from patience import PATIENT_S

from obox.spool import ByteBudget, Spool


async def test_byte_budget() -> None:
    budget = ByteBudget(10)
    order: list[str] = []

    async def user(name: str, size: int, gate: asyncio.Event) -> None:
        async with budget.hold(size):
            order.append(name)
            await gate.wait()

    gates = [asyncio.Event() for _ in range(4)]
    tasks = [asyncio.create_task(user(f"{n}", size, gates[n])) for n, size in enumerate([6, 100, 3, 4])]
    await asyncio.sleep(0)
    # Task 1 counts as if it used the whole budget. Task 2 would fit, but has to wait
    # behind task 1.
    assert order == ["0"]
    tasks[1].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["0", "2"]
    gates[0].set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["0", "2", "3"]
    for gate in gates:
        gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(PATIENT_S), budget.hold(10):
        pass


async def test_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10)
    assert not spool.add(b"x" * 10)
    assert spool.in_memory
    assert spool.add(b"y")
    await spool.flush()
    assert not spool.in_memory
    assert not spool.add(b"z")
    assert await spool.take() == b"x" * 10 + b"yz"
    await spool.reset()
    assert spool.in_memory
    assert spool.size == 0
    assert await spool.take() == b""
