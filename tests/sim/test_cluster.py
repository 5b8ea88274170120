"""Random lives of one user's mail in a cluster of three backends: 200 seeds. A failure
names its seed."""

from __future__ import annotations

from collections import Counter

import pytest

from .cluster import ClusterStory, play
from .loop import simulate

SEEDS = 200
AT_ONCE = 10


@pytest.mark.parametrize("start", range(0, SEEDS, AT_ONCE))
def test_lives(start: int) -> None:
    for seed in range(start, start + AT_ONCE):
        play(seed)


def test_clients_come_through_a_proxy() -> None:
    """They are served, are refused after a wait, and lose sessions when the user moves.
    The proxy restarts. Mails are taken, refused for now, and cut off."""
    stories = [ClusterStory(seed) for seed in (49, 148, 192, 193)]
    for story in stories:
        simulate(story.run)
    lives = [proxy for story in stories for proxy in story.proxies]
    assert len(lives) > len(stories)
    assert sum(proxy.served for proxy in lives) > 5 * len(stories)
    assert sum(proxy.refused for proxy in lives)
    assert sum(proxy.cut for proxy in lives)
    results = sum((story.senders.results for story in stories), Counter[str]())
    assert results["250"] > 50
    assert results["451"]
    assert results[""]
    assert sum(story.world.net.cuts for story in stories)


def test_same_seed_same_life() -> None:
    for seed in (7, 8):
        assert play(seed).trace == play(seed).trace


def test_an_old_assignment_that_comes_back_after_a_start_is_not_taken_for_a_release() -> None:
    """The directory was restored, so the row that this backend had before it died
    arrived only after its start. The backend must read the journal of its own last boot
    all the same."""
    play(918)


def test_a_release_that_was_not_answered_may_have_arrived() -> None:
    """The old owner did not serve on, while the new owner read only bundles."""
    play(2500174)


def test_an_owner_compares_what_a_frozen_backend_uploaded_before_it_knew() -> None:
    """The frozen backend uploaded an expunge after it had resumed, and before it gave
    the user up. A row of the directory has let the owner know."""
    play(2500052)
