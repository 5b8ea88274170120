"""Users take turns, however many connections each has."""

from __future__ import annotations

import asyncio
from collections import Counter

from patience import PATIENT_S

from obox.lanes import Lanes


async def test_a_user_with_many_connections_gets_no_more_turns_than_others() -> None:
    lanes = Lanes()
    order: list[str] = []

    async def work(user: str, name: str) -> None:
        for _ in range(10):
            await lanes.turn(user)
            order.append(name)

    many = [asyncio.ensure_future(work("anna", f"anna{i}")) for i in range(48)]
    await work("ben", "ben")
    between, counted = 0, []
    for name in order:
        between = 0 if name == "ben" else between + 1
        counted.append(between)
    assert max(counted) <= 3
    await asyncio.gather(*many)
    assert set(Counter(order).values()) == {10}
    first = [name for name in order if name != "ben"][:48]
    assert len(set(first)) == 48, "in turn among themselves too"
    await asyncio.sleep(0)
    assert len(lanes) == 0


async def test_who_is_cancelled_holds_nobody_up() -> None:
    lanes = Lanes()
    waiting = [asyncio.ensure_future(lanes.turn("anna")) for _ in range(5)]
    await asyncio.sleep(0)
    for task in waiting[:4]:
        task.cancel()
    await asyncio.wait_for(waiting[4], PATIENT_S)
    await asyncio.sleep(0)
    assert len(lanes) == 0


async def test_nobody_s_connections_do_not_wait_for_each_other() -> None:
    lanes = Lanes()
    done = [asyncio.ensure_future(lanes.turn("")) for _ in range(5)]
    for _ in range(2):
        await asyncio.sleep(0)
    assert all(task.done() for task in done)
