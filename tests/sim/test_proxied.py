"""A login through a proxy while the backend of its user dies, is suspended, or stops
answering and returns, under the virtual clock: how long it waits, and where it ends."""

from __future__ import annotations

import asyncio

import pytest

from obox.auth import Authenticator, PasswdFile, Referred
from obox.cluster import Assigned, MemoryDirectory, There, View
from obox.proxy import Forwarder, ViewRouter
from obox.types import StorageId

from .cluster import DEAD_AFTER_S, ClusterStory
from .loop import simulate
from .player import SID
from .world import Node

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
        view = View(way, clock=self.world.clock, now=self.world.now, sleep=asyncio.sleep)
        router = ViewRouter(view, way)
        users = PasswdFile("/nowhere", "")  # type: ignore[arg-type]
        forwarder = Forwarder(router, [b"x" * 32], Authenticator(users), member="p")
        view.listen(forwarder.changed)
        polls = asyncio.ensure_future(view.run())
        await asyncio.sleep(30.0)  # all groups have an owner
        victim = self.nodes["a"]
        began = self.world.clock()
        if self.kind == "suspended":
            victim.freeze()
        else:
            victim.kill()
            self.player.lost(victim)
        clients = [asyncio.ensure_future(self._login(forwarder, sid, began)) for sid in USERS]
        if self.kind == "restarted":
            await asyncio.sleep(4.0)
            await self._start("a", victim.disk.snapshot())
        served = await asyncio.gather(*clients)
        if self.kind == "restarted":
            assert "a" in served
        else:
            assert "a" not in served
        assert forwarder.waiting.count == 0
        assert not forwarder.moves
        polls.cancel()
        if self.kind == "suspended":
            victim.thaw()

    async def _login(self, forwarder: Forwarder, sid: StorageId, began: float) -> str:
        """The backend that a client of a user gets, as it is logged in there."""

        async def at(there: There) -> str:
            node: Node = self.nodes[there.backend]
            if node.host.frozen:
                await asyncio.sleep(3600.0)  # it has taken the connection
            if not node.up:
                raise ConnectionRefusedError
            member = self.members[there.backend]
            route = await node.host.spawn(member.route(sid))
            if isinstance(route, There):
                found: Assigned = route.assigned
                raise Referred(found.backend, found.number, found.token)
            return there.backend

        served = await forwarder.at_owner(sid, "imap", at)
        assert served is not None
        self.waited.append(self.world.clock() - began)
        return served


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
