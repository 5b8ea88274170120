"""Random lives whose backends have groups of events. Each group hears of everything
that has changed at least once, through crashes, takeovers, fences, lost answers and
merges. A failure names its seed."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from obox.events import rest
from obox.events.lanes import Bars

from .hearing import play, play_cluster
from .model import Broken

SEEDS = 200
CLUSTER_SEEDS = 60
AT_ONCE = 10


@pytest.mark.parametrize("start", range(0, SEEDS, AT_ONCE))
def test_lives(start: int) -> None:
    for seed in range(start, start + AT_ONCE):
        play(seed)


@pytest.mark.parametrize("start", range(0, CLUSTER_SEEDS, AT_ONCE))
def test_lives_in_a_cluster(start: int) -> None:
    for seed in range(start, start + AT_ONCE):
        play_cluster(seed)


def test_the_lives_have_poisoned_events() -> None:
    """They become dead letters of their group. What follows them is heard."""
    ears = play(8)
    assert ears.failed > 20
    assert ears.world.keys("_events/picky/dead/")
    assert len(ears.heard["picky"]) > 50


def test_a_backend_that_leaves_the_rest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(self: rest.Rest, units: object) -> None:
        pass

    monkeypatch.setattr(rest.Rest, "look", look)
    with pytest.raises(Broken, match="has not heard"):
        _play_all(range(8))


def test_a_backend_that_does_not_keep_the_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bars, "since", lambda self, sid: None)
    with pytest.raises(Broken, match="before its mail"):
        _play_all(range(20))


def _play_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        play(seed)


def test_two_owners_after_each_other() -> None:
    """A backend died, and wrote for the user when it was back, although another backend
    had taken the user over. That has no order with what the owner writes."""
    play_cluster(40)
