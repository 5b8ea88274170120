"""Random lives of a user's mail, with 200 seeds. A failure names its seed and says how
to run it again."""

from __future__ import annotations

import pytest

from .story import play

SEEDS = 200
AT_ONCE = 20


@pytest.mark.parametrize("start", range(0, SEEDS, AT_ONCE))
def test_lives(start: int) -> None:
    for seed in range(start, start + AT_ONCE):
        play(seed)


def test_same_seed_same_life() -> None:
    for seed in (5, 11, 29):
        assert play(seed).trace == play(seed).trace
