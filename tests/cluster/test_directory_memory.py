"""The directory in memory and the faults that it simulates. The simulation of the
cluster relies on these faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sim.loop import simulate

from obox.cluster import Directory, Faults, Kind, MemoryDirectory, MemoryReplica, Row
from obox.errors import Unavailable

NOW = 1_800_000_000_000_000


def replica() -> MemoryReplica:
    return MemoryReplica(asyncio.get_running_loop().time)


def way(to: MemoryReplica, seed: int = 0, **faults: Any) -> MemoryDirectory:
    return MemoryDirectory(to, sleep=asyncio.sleep, rng=random.Random(seed), faults=Faults(**faults))


async def outcomes(directory: Directory, count: int, work: Callable[[int], Coroutine[Any, Any, object]]) -> int:
    """Return how many of `count` calls raised Unavailable."""
    failed = 0
    for number in range(count):
        try:
            await work(number)
        except Unavailable:
            failed += 1
    return failed


def test_what_is_cut_answers_nothing_and_others_go_on() -> None:
    async def story() -> None:
        rows = replica()
        one, other = way(rows, cut=True), way(rows)
        for work in (one.get(Kind.PINS, "a"), one.all(Kind.PINS), one.put(Kind.PINS, "a", b"", NOW)):
            with pytest.raises(Unavailable):
                await work
        assert await other.all(Kind.PINS) == {}
        one.faults.cut = False
        await one.put(Kind.PINS, "a", b"x", NOW)
        assert await other.get(Kind.PINS, "a") == Row(b"x", NOW)

    simulate(story)


def test_lost_writes_are_acknowledged_and_not_there() -> None:
    async def story() -> None:
        rows = replica()
        one = way(rows, lost=0.5)
        assert await outcomes(one, 100, lambda n: one.put(Kind.PINS, str(n), b"", NOW)) == 0
        assert 30 < len(rows.rows()) < 70

    simulate(story)


def test_unanswered_writes_are_there_or_not() -> None:
    async def story() -> None:
        rows = replica()
        one = way(rows, unanswered=1.0)
        assert await outcomes(one, 100, lambda n: one.put(Kind.PINS, str(n), b"", NOW)) == 100
        assert 30 < len(rows.rows()) < 70

    simulate(story)


def test_reads_fail_and_show_old_rows() -> None:
    async def story() -> None:
        rows = replica()
        writer, reader = way(rows), way(rows, failed=0.3, old=0.5, old_s=10.0)
        seen = set()
        for number in range(1, 101):
            await writer.put(Kind.PINS, "a", b"%d" % number, NOW + number)
            await asyncio.sleep(1)
            try:
                row = await reader.get(Kind.PINS, "a")
            except Unavailable:
                seen.add("failed")
                continue
            seen.add(number - int(row.value) if row else "none")
        assert {"failed", 0, 3, 9} <= seen
        assert max(age for age in seen if isinstance(age, int)) <= 10

    simulate(story)


def test_a_restore_shows_yesterday_and_takes_new_writes() -> None:
    async def story() -> None:
        rows = replica()
        one = way(rows)
        await one.put(Kind.PINS, "a", b"1", NOW)
        yesterday = rows.rows()
        await one.put(Kind.PINS, "a", b"2", NOW + 1)
        await one.put(Kind.PINS, "b", b"2", NOW + 1)
        rows.restore(yesterday)
        assert await one.all(Kind.PINS) == {"a": Row(b"1", NOW)}
        await one.put(Kind.PINS, "a", b"3", NOW + 2)
        assert await one.all(Kind.PINS) == {"a": Row(b"3", NOW + 2)}

    simulate(story)


def test_two_sites_exchange_writes_late_and_after_a_cut() -> None:
    async def story() -> None:
        here, there = replica(), replica()
        link = here.join(there, 2.0)
        one, other = way(here), way(there)
        await one.put(Kind.PINS, "a", b"here", NOW)
        assert await other.all(Kind.PINS) == {}
        await asyncio.sleep(2.5)
        assert await other.all(Kind.PINS) == {"a": Row(b"here", NOW)}
        link.cut = True
        await one.put(Kind.PINS, "a", b"1", NOW + 1)
        await other.put(Kind.PINS, "a", b"2", NOW + 2)
        await other.put(Kind.PINS, "b", b"2", NOW + 2)
        await asyncio.sleep(60)
        assert (await one.get(Kind.PINS, "a"), await other.get(Kind.PINS, "a")) == (
            Row(b"1", NOW + 1),
            Row(b"2", NOW + 2),
        )
        link.cut = False
        for site in (one, other):
            assert await site.all(Kind.PINS) == {"a": Row(b"2", NOW + 2), "b": Row(b"2", NOW + 2)}

    simulate(story)


def test_the_same_seed_is_the_same_story() -> None:
    async def story() -> list[object]:
        one = way(replica(), 7, lost=0.3, unanswered=0.2, failed=0.2, old=0.5, latency_s=0.1)
        seen: list[object] = []
        for number in range(200):
            try:
                await one.put(Kind.PINS, str(number % 5), b"%d" % number, NOW + number)
                seen.append(sorted((await one.all(Kind.PINS)).items()))
            except Unavailable as error:
                seen.append(str(error))
        seen.append(asyncio.get_running_loop().time())
        return seen

    assert simulate(story) == simulate(story)
