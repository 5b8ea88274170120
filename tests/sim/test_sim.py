"""Random lives of a user's mail, with 200 seeds. A failure names its seed and says how
to run it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .story import play

SEEDS = 200
AT_ONCE = 20


@pytest.mark.parametrize("start", range(0, SEEDS, AT_ONCE))
def test_lives(start: int) -> None:
    for seed in range(start, start + AT_ONCE):
        play(seed)


def test_an_answer_comes_as_its_time_is_over() -> None:
    """In this life a second attempt has an answer in the turn in which the first is
    ended."""
    play(2300103)


def test_a_mailbox_is_deleted_by_a_backend_that_was_frozen_when_the_command_came() -> None:
    """Another backend has delivered to it meanwhile."""
    play(4003127)


def test_a_mailbox_is_compared_while_mails_of_a_group_are_lost() -> None:
    """Another backend had written a bundle; `force-resync` waited for ever."""
    play(20491)


def test_a_range_is_void_when_another_range_covers_its_first_uid() -> None:
    """The rest of the range was taken for ours, and its UIDs were used twice."""
    play(5302331)


def test_same_seed_same_life() -> None:
    for seed in (5, 11, 29):
        assert play(seed).trace == play(seed).trace


@pytest.mark.parametrize("option", [[], ["--cluster"], ["--sites"]])
def test_a_seed_can_be_played_by_hand(option: list[str]) -> None:
    """`python -m tests.sim` starts outside of pytest, whose settings add folders to the
    path of modules."""
    command = [sys.executable, "-m", "tests.sim", "--seeds", "1", "--steps", "2", *option]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout
