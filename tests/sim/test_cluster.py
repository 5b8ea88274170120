"""Random lives of one user's mail in a cluster of three backends: 200 seeds. A failure
names its seed."""

from __future__ import annotations

import pytest

from .cluster import play

SEEDS = 200
AT_ONCE = 10


@pytest.mark.parametrize("start", range(0, SEEDS, AT_ONCE))
def test_lives(start: int) -> None:
    for seed in range(start, start + AT_ONCE):
        play(seed)


def test_same_seed_same_life() -> None:
    assert play(7).trace == play(7).trace


def test_an_old_assignment_that_comes_back_after_a_start_is_not_taken_for_a_release() -> None:
    """The directory was restored, so the row that this backend had before it died
    arrived only after its start. The backend must read the journal of its own last boot
    all the same."""
    play(918)
