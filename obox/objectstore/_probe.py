"""Checks what obox needs of a store: a PUT that creates or is refused, also if several
come at the same time.

Some stores refuse a second PUT of an existing key, but let several PUTs succeed that
come together: two backends would then overwrite each other's mails. So at the first
start with a bucket RACERS writers race for each of ROUNDS keys. That is 160 PUTs and
takes from 20 ms to 7 s, so the caller remembers a bucket that has passed. SeaweedFS is
the slow one: who waits there for a key looks once a second whether the key is free.

A PUT that was slow has been sent again, and its first attempt may land after our
DELETE. `sweep` therefore looks again, a few times, after a race that sent PUTs again.

This module does not know the content of objects.

Diagnostics: ConfigError, in one line, for a store that must not be used with these
settings; StoreError kinds if there is no answer. Probes remove their objects. If they
are cancelled, they end at once and leave their objects below `_probe/`: a store that
does not answer must not delay a stop.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Final, NamedTuple

from obox.errors import ConfigError
from obox.objectstore._driver import PROBES, ObjectStore
from obox.objectstore._errors import AlreadyExists, OutcomeUnknown, Refused, StoreError
from obox.objectstore._open import OpenStore
from obox.objectstore.stats import Stats

RACERS: Final = 8
"""Writers for a key."""

ROUNDS: Final = 20
"""Keys. We have seen a store that was right in 9 rounds of 20: the chance that it
passes all of them is one in 10^6.
"""

ROUNDS_AT_ONCE: Final = 20
"""So that 32 requests are in progress, each on a connection of its own."""


LEFT_S: Final = 3600.0
"""Age of probes that nobody works on any more."""

SWEEP_PAUSES_S: tuple[float, ...] = (1.0, 2.0, 4.0)
"""How long `sweep` waits for late PUTs before it looks again."""


class Raced(NamedTuple):
    """The result of a race.

    rounds: their number. one_winner: rounds in which exactly one PUT succeeded. most:
    winners of a single key. replaced: rounds after which the object was not the
    winner's. late: PUTs were sent again, and their first attempts may still land.
    """

    rounds: int
    one_winner: int
    most: int
    replaced: int
    late: bool

    @property
    def fit(self) -> bool:
        """No key had two winners. A round without a winner is harmless: the winner's
        answer was lost.
        """
        return self.most <= 1 and not self.replaced

    def __str__(self) -> str:
        text = f"{self.one_winner} of {self.rounds} rounds of {RACERS} writers had exactly one winner"
        if self.most > 1:
            text += f", one had {self.most}"
        return text + (f"; in {self.replaced} the object was replaced" if self.replaced else "")


async def race(store: ObjectStore, prefix: str) -> Raced:
    """Let RACERS write each of ROUNDS keys below prefix at the same time.

    Removes the keys; late PUTs may make them again: see `sweep`. Raises StoreError
    kinds.
    """
    stats = store.stats if isinstance(store, OpenStore) else Stats()
    before = stats.count("put", "format")
    gate = asyncio.Semaphore(ROUNDS_AT_ONCE)

    async def write(key: str, data: bytes) -> bool | None:
        """Return True if the PUT succeeded, None if nobody knows."""
        try:
            await store.put(key, data, kind="format")
        except AlreadyExists:
            return False
        except OutcomeUnknown:
            return None
        return True

    async def one_round(key: str) -> tuple[int, bool]:
        async with gate:
            said = await asyncio.gather(*(write(key, b"%d" % racer) for racer in range(RACERS)))
            there = await store.get(key, kind="format")
        return said.count(True), True in said and said[int(there)] is False

    keys = [f"{prefix}{number:02}" for number in range(ROUNDS)]
    try:
        rounds = await asyncio.gather(*map(one_round, keys))
    finally:
        with suppress(StoreError):
            await store.delete(keys, kind="format")
    winners = Counter(count for count, _ in rounds)
    late = stats.count("put", "format") - before > RACERS * ROUNDS
    return Raced(ROUNDS, winners[1], max(winners), sum(replaced for _, replaced in rounds), late)


async def sweep(store: ObjectStore, prefix: str, *, now: float, late: bool) -> None:
    """Remove the objects below the prefix, and what interrupted probes have left.

    late: PUTs may still land, so look again after each of SWEEP_PAUSES_S. So it does
    while there is something below the prefix. Raises StoreError kinds.
    """
    for pause in (*SWEEP_PAUSES_S, None):
        found = await store.list(PROBES, kind="format")
        left = [info.key for info in found if info.key.startswith(prefix) or info.modified < now - LEFT_S]
        await store.delete(left, kind="format")
        if pause is None or not (late or any(key.startswith(prefix) for key in left)):
            return
        await asyncio.sleep(pause)


async def probe(store: OpenStore, *, rng: random.Random | None = None) -> None:
    """Check that the store supports create-only PUT, and find out whether it does so
    for copies.

    Raises: ConfigError if it does not and conditional_put is not "off"; StoreError
    kinds if there is no answer.
    """
    name = f"{PROBES}{(rng or random.SystemRandom()).randbytes(16).hex()}"
    first, second = f"{name}.a", f"{name}.b"
    try:
        await _check(store, first, second)
    except (StoreError, ConfigError):
        with suppress(StoreError):
            await store.delete([first, second], kind="format")
        raise
    await store.delete([first, second], kind="format")


def needs_race(store: OpenStore) -> bool:
    """Return False if the store is known to let one PUT succeed, or if the settings do
    not ask for it."""
    return store.settings.conditional_put == "on" and not store.driver.creates_at_once


async def require_one_winner(store: OpenStore, *, now: float, rng: random.Random | None = None) -> None:
    """Race writers for keys, and remove what interrupted probes have left. now: unix
    seconds.

    Raises: ConfigError if a key has two winners; StoreError kinds if there is no
    answer.
    """
    prefix = f"{PROBES}{(rng or random.SystemRandom()).randbytes(16).hex()}/"
    result = await race(store, prefix)
    with suppress(StoreError):  # what is left now is removed by the next sweep
        await sweep(store, prefix, now=now, late=result.late)
    if not result.fit:
        raise ConfigError(
            f'storage.url = "{store.settings.url}": of the PUTs with If-None-Match that come at the same time the '
            f"store lets several succeed: {result}; two backends would overwrite each other's mails; allowed: a store "
            'that lets one succeed, or storage.conditional_put = "off" with one backend alone'
        )


async def _check(store: OpenStore, first: str, second: str) -> None:
    honoured = await _second_put_is_refused(store, first)
    if not honoured and store.settings.conditional_put == "on":
        raise ConfigError(
            f'storage.url = "{store.settings.url}": the store overwrites on PUT with If-None-Match; allowed: '
            'a store that refuses, or storage.conditional_put = "off" with one backend alone'
        )
    if honoured and not store.driver.copies_create_only:
        await store.put(second, b"2", kind="format")
        store.driver.copies_create_only = True
        try:
            await store.copy(first, second, kind="format")
            store.driver.copies_create_only = False
        except AlreadyExists:
            pass
        except Refused:
            store.driver.copies_create_only = False
        except BaseException:
            store.driver.copies_create_only = False
            raise


async def _second_put_is_refused(store: OpenStore, key: str) -> bool:
    await store.put(key, b"1", kind="format")
    try:
        await store.put(key, b"2", kind="format")
    except AlreadyExists:
        return True
    return False
