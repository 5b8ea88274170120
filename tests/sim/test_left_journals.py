"""A backend dies and never returns. Its journal is deleted when it is no longer needed,
whatever happens to the backend that deletes it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from obox.cluster import rank

from .loop import simulate
from .test_suspended import Suspended, deliver, shown
from .world import When, World

DELAY_S = 60.0
SWEEP_S = 30.0
SEEDS = (1, 2)


class Left(Suspended):
    """A story with a dead backend. crash: the step of a deletion at which the deleting
    backend dies."""

    def __init__(self, seed: int, crash: tuple[int, When] | None = None) -> None:
        super().__init__(seed, scene=Left.scene)
        self.crash = crash
        self.deletions: list[int] = []

    async def scene(self: Any) -> None:
        world = self.world
        first = await self._until_served()
        user, _ = await self.session(first)
        for number in range(3):
            await deliver(first, number)
            await asyncio.sleep(1.5)
        await first.run(lambda store: user.create("Late"))
        first.kill()
        prefix = f"_journal/{first.name}/"
        assert len(world.keys(prefix)) > 1
        watched = world.crash

        def crash(number: int, what: str, when: When) -> bool:
            if what.startswith(f"delete {prefix}") and number not in self.deletions:
                self.deletions.append(number)
            return bool(watched(number, what, when))

        world.crash = crash
        cleaner = rank(f"journal:{first.name}", {name: 100.0 for name in self.nodes if name != first.name})[0]
        if self.crash is not None:
            world.at = (*self.crash, self.nodes[cleaner].kill)
        for _ in range(40):
            await asyncio.sleep(20)
            if len(world.keys(prefix)) <= 1:
                break
        assert len(world.keys(prefix)) == 1, world.keys(prefix)
        owner = await self._until_served()
        assert (self.nodes[cleaner].ended) is (self.crash is not None), "the crash was to come"
        seen, inbox = await self.session(owner)
        assert await shown(owner, seen, inbox) == {1, 2, 3}
        assert "Late" in {info.name for info in seen.mailboxes()}
        assert all(len(world.keys(f"_journal/{name}/")) for name in self.nodes), "the newest of each stays"


def play(seed: int, crash: tuple[int, When] | None = None) -> Left:
    story = Left(seed, crash)

    async def run() -> World:
        return await story.run()

    simulate(run)
    return story


@pytest.mark.parametrize("seed", SEEDS)
def test_the_journal_of_a_backend_that_never_returns_is_deleted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obox.cluster.member.SWEEP_S", SWEEP_S)
    monkeypatch.setattr(f"{World.__module__}.DELETE_DELAY_S", DELAY_S)
    deletions = play(seed).deletions
    assert deletions
    for number in deletions:
        for when in ("before", "after"):
            play(seed, (number, when))
