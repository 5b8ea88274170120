"""Two sites over the same bucket, with a directory each. The directories exchange their
writes late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from obox.cluster import Kind, group_key, home_of
from obox.errors import OboxError
from obox.store import MailStore, NewMail
from obox.types import StorageId

from .caches import Disk
from .cluster import GROUPS
from .loop import simulate
from .sites import SitesStory, play_sites
from .world import Crash, Node, World

SEEDS = 100
AT_ONCE = 10


@pytest.mark.parametrize("start", range(0, SEEDS, AT_ONCE))
def test_lives(start: int) -> None:
    for seed in range(start, start + AT_ONCE):
        play_sites(seed)


class TwoSites(SitesStory):
    """A story with two sites and without random events. The test makes all events."""

    async def run(self) -> Any:
        raise NotImplementedError

    def user_of(self, unit: str) -> StorageId:
        return StorageId(next(f"user{n}" for n in range(1000) if home_of(f"user{n}", GROUPS) == unit))

    async def write(self, node: Node, sid: StorageId, number: int) -> None:
        async def work(store: MailStore) -> None:
            user = await store.open_user(sid, sid)
            await user.append("INBOX", [NewMail(b"Subject: %d\r\n\r\nx\r\n" % number, ("\\Seen",))])
            assert len((await user.select("INBOX")).state.uids) > 0

        await node.run(work)

    async def keeps_writing(self, sid: StorageId, site: str, numbers: list[int]) -> None:
        """Deliver a mail and select the mailbox once a second, at the backend of the
        site that serves the user."""
        for number in range(10_000):
            for name, node in self.nodes.items():
                if self.sites[name] == site and node.up and node.env.owned.owns(sid):
                    try:
                        await self.write(node, sid, number)
                        numbers.append(number)
                    except (OboxError, Crash):
                        pass
                    break
            await asyncio.sleep(1.0)

    def held(self) -> dict[str, set[str]]:
        return {
            site: {
                unit for name, node in self.nodes.items() if self.sites[name] == site for unit in node.env.owned.units
            }
            for site in self.replicas
        }


def test_both_sides_of_a_cut_serve_and_no_group_changes_sides() -> None:
    """A backend dies while the link is cut. The other backend of its site takes over,
    and the other site does not."""

    async def main() -> None:
        story = TwoSites(3)
        story.begin(World(3))
        await story.make_cluster()
        await asyncio.sleep(15.0)
        before = story.held()
        assert sum(map(len, before.values())) == GROUPS
        assert all(before.values()), "each site has some"
        story.link.cut = True
        users = {site: story.user_of(min(units)) for site, units in before.items()}
        done: dict[str, list[int]] = {site: [] for site in users}
        clients = [asyncio.ensure_future(story.keeps_writing(sid, site, done[site])) for site, sid in users.items()]
        await asyncio.sleep(20.0)
        counts = {site: len(numbers) for site, numbers in done.items()}
        assert min(counts.values()) >= 10, "delivery and IMAP go on on both sides"
        victim = next(name for name in "ab" if story.nodes[name].env.owned.owns(users["north"]))
        story.nodes[victim].kill()
        await asyncio.sleep(60.0)
        for site, numbers in done.items():
            assert len(numbers) >= counts[site] + 10, f"{site} goes on"
        del story.nodes[victim]
        assert story.held() == before
        story.link.cut = False
        await asyncio.sleep(60.0)
        for client in clients:
            client.cancel()
        assert story.held() == before
        rows = [replica.rows() for replica in story.replicas.values()]
        kinds = (Kind.GROUPS, Kind.MERGES, Kind.ORDERS)
        of = [{place: row for place, row in found.items() if place[0] in kinds} for found in rows]
        assert of[0] == of[1], "both directories say the same"
        assert {key for kind, key in of[0] if kind is Kind.GROUPS} == set(map(group_key, range(GROUPS)))
        assert not [key for kind, key in of[0] if kind is Kind.MERGES]
        for node in list(story.nodes.values()):
            assert node.store is not None
            await story.stop_node(node)
        fresh = await story.world.node("z", Disk()).start()
        for site, sid in users.items():

            async def look(store: MailStore, sid: StorageId = sid) -> int:
                box = await (await store.open_user(sid, sid)).select("INBOX")
                return len(box.state.uids)

            assert await fresh.run(look) >= len(done[site]), site
        await fresh.stop()

    simulate(main)
