"""A name that two backends use: the start sees whether the other one lives."""

from __future__ import annotations

import asyncio

import pytest

from obox.cluster import Beat, Kind, Member, MemoryDirectory, MemoryReplica, encode
from obox.cluster.twin import CHANGES, STILL_S, refuse_twin
from obox.errors import NameTaken

THERE = Member("backend", "default", "one.example.org", {"lmtp": 24, "imap": 143})
HERE = Member("backend", "default", "two.example.org", {"imap": 1143})


class World:
    """A directory with the beat of a backend `mail1`, which changes at some seconds."""

    def __init__(self, beats: set[int], *, ending: bool = False) -> None:
        self.now, self.slept = 1000.0, 0.0
        self.beats, self.ending, self.counter = beats, ending, 7
        self.directory = MemoryDirectory(MemoryReplica(lambda: self.now), sleep=asyncio.sleep)

    async def write(self) -> None:
        self.counter += 1
        beat = Beat(self.counter, "boot-of-another", ending=self.ending)
        await self.directory.put(Kind.BEATS, "mail1", encode(beat), self.counter)

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        if self.slept in self.beats:
            await self.write()

    async def start(self, *earlier: str) -> None:
        await refuse_twin(self.directory, "mail1", HERE, was_ours=earlier.__contains__, sleep=self.sleep)


async def test_a_backend_that_lives_keeps_its_name_and_both_addresses_are_named() -> None:
    world = World(set(range(1, 100)))
    await world.directory.put(Kind.MEMBERS, "mail1", encode(THERE), 1)
    await world.write()
    with pytest.raises(NameTaken) as caught:
        await world.start("boot-of-mine")
    assert str(caught.value) == (
        "cluster.backend: another backend is mail1, at one.example.org imap 143 lmtp 24, and lives; "
        "this one is at two.example.org imap 1143; allowed: a name for each backend"
    )
    assert world.slept == CHANGES


@pytest.mark.parametrize("beats", [set(), {1}, {1, 3}], ids=["still", "a late write", "two late writes"])
async def test_a_name_whose_owner_has_died_is_free(beats: set[int]) -> None:
    world = World(beats)
    await world.write()
    await world.start()
    assert world.slept == STILL_S + max(beats, default=0)


async def test_nobody_waits_for_an_earlier_process_of_the_same_state_directory() -> None:
    world = World(set(range(1, 100)))
    await world.write()
    await world.start("boot-of-another")
    assert world.slept == 0


async def test_nobody_waits_for_a_backend_that_stopped_in_order_or_was_never_there() -> None:
    world = World(set(range(1, 100)), ending=True)
    await world.start()
    await world.write()
    await world.start()
    await world.directory.put(Kind.BEATS, "mail1", b"\xc1", 10**18)
    await world.start()
    assert world.slept == 0
