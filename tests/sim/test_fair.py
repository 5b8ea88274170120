"""Two backends that both deliver to one mailbox: neither starves, and the UIDs that are burnt for it stay few."""

from __future__ import annotations

import asyncio

import pytest

from obox.errors import OboxError
from obox.store import MailStore, NewMail

from .caches import Disk
from .loop import simulate
from .player import SID, USER
from .world import Node, World

RUN_S = 3.0
"""Of virtual time: some hundred mails."""


async def deliver(store: MailStore) -> None:
    user = await store.open_user(USER, SID)
    await user.append("INBOX", [NewMail(b"Subject: x\r\n\r\nx\r\n", ())])


@pytest.mark.parametrize("latency_s", [(0.002, 0.004), (0.001, 0.03)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_get_a_quarter_through(seed: int, latency_s: tuple[float, float]) -> None:
    """One had 8 mails through and the other 8,450: whoever lost a UID read while the other wrote on."""

    async def main() -> None:
        world = World(seed)
        world.latency_s = latency_s
        nodes = [await world.node(name, Disk()).start() for name in ("a", "x")]
        done = {node.name: 0 for node in nodes}
        refused = 0
        begin = world.clock() + 1.0  # the first of them is fenced by the second, and has to find its feet
        end = begin + RUN_S

        async def send(node: Node) -> None:
            nonlocal refused
            while world.clock() < end:
                try:
                    await node.run(deliver)
                    done[node.name] += world.clock() >= begin
                except OboxError:
                    refused += 1

        await asyncio.gather(*(send(node) for node in nodes))
        assert min(done.values()) >= sum(done.values()) / 4, done
        assert refused == 0
        keys = world.keys("/m/")
        burnt = sum(not world.memory._objects[key][0] for key in keys)
        assert len(keys) - burnt >= sum(done.values())
        assert burnt <= len(keys) / 2

    simulate(main)
