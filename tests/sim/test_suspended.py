"""A backend was suspended while another backend took over. Sessions were open at it all
the time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from obox.errors import OboxError
from obox.store import NewMail

from .cluster import DEAD_AFTER_S, ClusterStory
from .loop import simulate
from .model import mail_of
from .player import SID, USER
from .world import Node, World

Scene = Callable[["Suspended"], Awaitable[None]]


class Suspended(ClusterStory):
    """A story with a single scene instead of random events."""

    def __init__(self, seed: int, scene: Scene) -> None:
        super().__init__(seed, steps=0)
        self._scene = scene

    def _weather(self) -> None:
        """All requests of this story are answered."""

    async def _look(self) -> None:
        pass

    def _kicker(self, node: Node) -> Any:
        async def kick(users: object) -> None:
            """Sessions and deliveries are not ended: they end by themselves after their
            command."""

        return kick

    async def _commands(self) -> None:
        pass

    async def _finish(self) -> None:
        await self._scene(self)
        for node in self.nodes.values():
            node.kill()

    async def other_than(self, first: Node) -> Node:
        """Return the backend that serves the user, leaving out a backend that is
        frozen."""
        for _ in range(1000):
            for node in self.owners():
                if node is not first:
                    return node
            await asyncio.sleep(0.05)
        raise AssertionError("nobody has taken over")

    async def session(self, node: Node) -> tuple[Any, Any]:
        user = await node.run(lambda store: store.open_user(USER, SID))
        return user, await node.run(lambda store: user.select("INBOX"))


async def deliver(node: Node, number: int) -> int:
    async def append(store: Any) -> Any:
        return await (await store.open_user(USER, SID)).append("INBOX", [NewMail(mail_of(b"mail %d" % number))])

    return int((await node.run(append)).uids[0])


async def shown(node: Node, user: Any, box: Any) -> set[int] | None:
    """Return what an open session sees, or None if it is refused."""

    async def look(store: Any) -> set[int]:
        await user.current()
        return set(box.state.uids.tolist())

    try:
        return await node.run(look)
    except OboxError:
        return None


async def an_open_session(story: Suspended) -> None:
    first = await story._until_served()
    user, box = await story.session(first)
    await deliver(first, 1)
    assert len(await shown(first, user, box) or ()) == 1
    first.freeze()
    second = await story.other_than(first)
    uid = await deliver(second, 2)
    first.thaw()
    for _ in range(200):
        found = await shown(first, user, box)
        assert found is None or uid in found, "an old state was shown after a suspension"
        await asyncio.sleep(story.rng.choice([0, 0.003, 0.05]))
    assert found is None, "another backend has the user"


async def a_fence_that_comes_late(story: Suspended) -> None:
    """The backend resumes when another backend has found it dead, and has not fenced it
    yet."""
    first = await story._until_served()
    user, box = await story.session(first)
    first.freeze()
    for _ in range(10_000):
        if any(first.name in member.watch.dead for member in story.members.values()):
            break
        await asyncio.sleep(0.002)
    await asyncio.sleep(story.rng.choice([0, 0.01, 0.03, 0.06]))
    first.thaw()
    known: set[int] = set()
    for number in range(100):
        for node in story.owners():
            if node is not first:
                try:
                    known.add(await deliver(node, number))
                except OboxError:
                    pass
        before = set(known)
        found = await shown(first, user, box)
        assert found is None or before <= found, "an old state was shown after a suspension"
        await asyncio.sleep(0.02)


async def a_delivery_on_its_way(story: Suspended) -> None:
    """A PUT of the suspended backend takes effect after another backend has taken over.
    Then the first backend resumes."""
    first = await story._until_served()
    user, _ = await story.session(first)
    usual, story.world.latency_s = story.world.latency_s, (2 * DEAD_AFTER_S + 3, 2 * DEAD_AFTER_S + 4)
    work = asyncio.ensure_future(first.run(lambda store: user.append("INBOX", [NewMail(mail_of(b"mail 1"))])))
    await asyncio.sleep(0.05)
    story.world.latency_s = usual
    first.freeze()
    second = await story.other_than(first)
    seen_by, box = await story.session(second)
    await asyncio.sleep(2.0)
    first.thaw()
    try:
        done = await work
    except OboxError:
        return
    uids = await shown(second, seen_by, box)
    assert uids is not None
    assert set(np.array(done.uids).tolist()) <= uids, "a mail was acknowledged that nobody is shown"


@pytest.mark.parametrize("scene", [an_open_session, a_fence_that_comes_late, a_delivery_on_its_way])
def test_nothing_old_is_answered_after_a_suspension(scene: Scene) -> None:
    for seed in range(12):
        story = Suspended(seed, scene)

        async def run(story: Suspended = story) -> World:
            return await story.run()

        simulate(run)
