"""A login through a proxy while the backend of its user dies, is suspended, or stops
answering and returns, under the virtual clock: how long it waits, and where it ends."""

from __future__ import annotations

import asyncio

import pytest

from obox.cluster import MemoryDirectory
from obox.types import StorageId

from .cluster import DEAD_AFTER_S, ClusterStory
from .loop import simulate
from .player import SID
from .proxies import Proxy

POLLS_S = 5.0
"""A judgement, a greeting, a takeover and two passes over the directory."""
USERS = tuple(StorageId(f"user{number}") for number in range(12))
"""Users of all groups."""


class Proxied(ClusterStory):
    """A cluster with a proxy, and one scene in place of a random life."""

    def __init__(self, seed: int, kind: str) -> None:
        super().__init__(seed, steps=0)
        self.kind = kind
        self.waited: list[float] = []

    async def _finish(self) -> None:
        way = MemoryDirectory(self.replica, sleep=asyncio.sleep)
        proxy = Proxy(self.world, way, self.nodes, self.members)
        await asyncio.sleep(30.0)  # all groups have an owner
        victim = self.nodes["a"]
        began = self.world.clock()
        if self.kind == "suspended":
            victim.freeze()
        else:
            victim.kill()
            self.player.lost(victim)
        clients = [asyncio.ensure_future(self._login(proxy, sid, began)) for sid in USERS]
        if self.kind == "restarted":
            await asyncio.sleep(4.0)
            await self._start("a", victim.disk.snapshot())
        served = await asyncio.gather(*clients)
        if self.kind == "restarted":
            assert "a" in served
        else:
            assert "a" not in served
        assert proxy.at_rest()
        proxy.kill()
        if self.kind == "suspended":
            victim.thaw()

    async def _login(self, proxy: Proxy, sid: StorageId, began: float) -> str:
        """Return the backend that a client of a user gets, as it is logged in there."""
        session = await proxy.login(sid)
        proxy.leave(session)
        self.waited.append(self.world.clock() - began)
        return str(session.name)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("kind", "within_s"),
    [("killed", DEAD_AFTER_S + POLLS_S), ("suspended", DEAD_AFTER_S + POLLS_S), ("restarted", 4.0 + POLLS_S)],
)
def test_a_login_waits_no_longer_than_a_takeover(kind: str, within_s: float, seed: int) -> None:
    story = Proxied(seed, kind)
    simulate(story.run)
    assert len(story.waited) == len(USERS)
    assert max(story.waited) < within_s
    assert max(story.waited) > 1.7, "some had to wait for longer than the first attempts"
    assert SID not in USERS
