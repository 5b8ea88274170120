"""The weights of boxes, compared with the values that Dovecot publishes."""

from __future__ import annotations

import pytest

from bench import priorities
from metacache import SizeWeights, Weights

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DAY, HOUR = 86400.0, 3600.0
SIZES = SizeWeights(2 * MIB, 30, GIB, 120)
WEIGHTS = Weights(((10, DAY), (10, DAY), (50, HOUR), (100, 0)), SIZES)


@pytest.mark.parametrize(
    ("nbytes", "seconds"),
    [
        (0, 30), (500 * KIB, 23), (MIB, 15), (1536 * KIB, 8), (2 * MIB, 0), (10 * MIB, 1), (50 * MIB, 6),
        (100 * MIB, 12), (258 * MIB, 30), (500 * MIB, 60), (GIB, 120), (5 * GIB, 120),
    ],
)  # fmt: skip
def test_the_published_sizes(nbytes: int, seconds: int) -> None:
    """The ages are whole seconds. +60 at 500 MB is half of the way to 1 GB; with units
    of 1024 the formula gives 58.5."""
    assert SIZES.boost(nbytes) == pytest.approx(seconds, abs=1.6 if nbytes == 500 * MIB else 0.6)


def test_a_boost_counts_while_the_priority_is_within_its_share() -> None:
    space = 1000 * MIB
    assert WEIGHTS.priority_boosts({}, space) == (DAY, DAY, HOUR, 0)
    assert WEIGHTS.priority_boosts({0: 100 * MIB, 1: 100 * MIB + 1, 2: 500 * MIB, 3: space}, space) == (DAY, 0, HOUR, 0)
    boosts = WEIGHTS.priority_boosts({}, space)
    assert WEIGHTS.weigh(1000.0, 0, 2 * MIB, boosts) == 1000.0 + DAY
    assert WEIGHTS.weigh(1000.0, 2, 0, boosts) == 1000.0 + HOUR + 30
    assert WEIGHTS.weigh(1000.0, 3, 2 * MIB, boosts) == 1000.0
    assert WEIGHTS.weigh(1000.0, 9, 2 * MIB, boosts) == 1000.0


def test_both_empty_is_lru() -> None:
    plain = Weights()
    assert plain.weigh(7.0, 0, 0, plain.priority_boosts({0: 5}, 100)) == 7.0


def test_odd_limits_do_not_divide_by_zero() -> None:
    assert SizeWeights(0, 30, 0, 120).boost(0) == 0
    assert SizeWeights(0, 30, 0, 120).boost(5) == 120
    assert SizeWeights(0, 30, 100, 50).boost(50) == 25


def test_on_one_log_weights_cost_fewer_requests_than_lru(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/benchmarks.md has the figures. The test uses a tenth of the users."""
    monkeypatch.setattr(priorities, "USERS", 150)
    plain, weighed = priorities.compare(0.1)
    assert weighed.gets < 0.9 * plain.gets
    assert weighed.puts <= plain.puts * 1.01
    assert priorities.compare(0.1) == (plain, weighed)
