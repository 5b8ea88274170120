"""What the journals in the bucket say about boots and their users, for operators.

This module reads the objects that a takeover would read, and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Final

import structlog

from ...errors import Corrupt
from ..log.fence import Boot, Ended, boots_of, list_journals, look, written

if TYPE_CHECKING:
    from ..env import Env

log = structlog.get_logger()

BOOTS_AT_ONCE: Final = 4
"""Boots that are read in parallel; each reads several objects in parallel."""


@dataclass(frozen=True)
class BootState:
    """A boot that is not clean. over: whether it has ended, or was fenced. users: the
    times at which it wrote for each user whose changes bundles may not have (see
    `written`). assigned: the highest number of an assignment that it has seen."""

    backend: str
    boot: str
    over: bool
    users: Mapping[str, Mapping[int, tuple[float, float]]]
    assigned: int


async def boot_states(env: Env) -> list[BootState]:
    """Return the boots in the bucket that are not clean. Raises Unavailable."""
    gate = asyncio.Semaphore(BOOTS_AT_ONCE)

    async def state(boot: Boot) -> BootState | None:
        async with gate:
            try:
                ended: Ended = await look(env, boot)
            except Corrupt as exc:
                log.error("journal cannot be read", backend=boot.backend, boot=boot.name, error=str(exc))
                return None
            if ended.clean:
                return None
            users = await written(env, ended)
            return BootState(boot.backend, boot.name, not ended.alive, users, ended.assigned)

    found = await asyncio.gather(*map(state, boots_of(await list_journals(env))))
    return [one for one in found if one is not None]


def writers_at_once(states: Sequence[BootState]) -> dict[tuple[str, str], Collection[str]]:
    """Return the users for whom two backends wrote at the same time, by the names of
    the backends: a backend wrote for the user after another backend had done so under
    an assignment that the first did not know. If a backend has got the user from the
    other, it knows the other's assignments."""
    found: dict[tuple[str, str], set[str]] = {}
    for one, other in permutations(states, 2):
        if one.backend == other.backend:
            continue
        for sid in one.users.keys() & other.users.keys():
            if _unaware(one.users[sid], other.users[sid]):
                pair = min(one.backend, other.backend), max(one.backend, other.backend)
                found.setdefault(pair, set()).add(sid)
    return {pair: sorted(users) for pair, users in sorted(found.items())}


def _unaware(ours: Mapping[int, tuple[float, float]], others: Mapping[int, tuple[float, float]]) -> bool:
    """Return whether `ours` has a later write than `others`, under a lower
    assignment."""
    return any(
        number < known and last > begin for number, (_, last) in ours.items() for known, (begin, _) in others.items()
    )
