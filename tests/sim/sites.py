"""A random life of a user's mail in a cluster of two sites."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from obox.cluster import Kind, MemoryDirectory, Orders, State, make_settings

from .cluster import GROUPS, ClusterStory
from .loop import simulate
from .world import Node, World


class SitesStory(ClusterStory):
    """Two sites with a directory each, which exchange their writes late, and sometimes
    not at all.

    An operator may set a site offline that does not answer. Then both sites serve the
    user, and do not know of each other.
    """

    flag = "--sites"
    sites: ClassVar[dict[str, str]] = {"a": "north", "b": "north", "c": "south", "d": "south"}

    async def make_cluster(self) -> None:
        north, south = self.replicas.values()
        self.link = north.join(south, 1.5)
        # The settings are in both directories before members start. Two directories
        # with different numbers of groups would not be a cluster.
        way = MemoryDirectory(north, sleep=asyncio.sleep)
        chance = random.Random(self.seed)
        await make_settings(way, GROUPS, now=self.world.now, sleep=asyncio.sleep, random_bytes=chance.randbytes)
        await asyncio.sleep(2.0)
        await super().make_cluster()

    def put(self, kind: Kind, key: str, record: Any) -> None:
        """Write a row at one of the sites, as an operator does."""
        self.replica = self.rng.choice([*self.replicas.values()])
        super().put(kind, key, record)

    def _more_accidents(self) -> list[Callable[[Node], Awaitable[None]]]:
        return [*super()._more_accidents(), self._link_is_cut, self._link_is_cut, self._site_is_given_up]

    async def _link_is_cut(self, node: Node) -> None:
        self.link.cut = True
        await asyncio.sleep(self.rng.choice([3, 15, 40]))
        if self.rng.random() < 0.7:
            self.link.cut = False

    async def _site_is_given_up(self, node: Node) -> None:
        """Let an operator at the other site set a site offline. The site itself learns
        it when the link is back."""
        self._split()
        lost = self.sites[node.name]
        (self.replica,) = (replica for site, replica in self.replicas.items() if site != lost)
        names = [name for name, site in self.sites.items() if site == lost]
        for name in names:
            super().put(Kind.ORDERS, name, Orders(State.OFFLINE))
        for _ in range(self.rng.choice([1, 3])):
            await asyncio.sleep(self.rng.choice([1, 8]))
            await self._commands()
        if self.rng.random() < 0.7:
            self.link.cut = False
            await asyncio.sleep(self.rng.choice([0, 3, 10]))
        for name in names:
            super().put(Kind.ORDERS, name, Orders())
        self._split()

    async def _healed(self) -> None:
        self.link.cut = False
        await asyncio.sleep(5.0)
        for name in self.sites:
            super().put(Kind.ORDERS, name, Orders())


def play_sites(seed: int, *, steps: int = 30) -> World:
    return simulate(lambda: SitesStory(seed, steps=steps).run())


__all__ = ["SitesStory", "play_sites"]
