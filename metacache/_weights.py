"""The weight of a copy: the lower it is, the sooner the copy is cleaned.

    weight = last access + boost of its priority + boost of its size

The boost of a priority counts only while all copies of that priority together take at
most their share of `max_space`. A priority that grows too large competes by its last
accesses alone. The size is that of the user's copies of the same priority. Very small
copies cost next to nothing to keep, and very large copies are expensive to load again.

Invariant: pure arithmetic. Without both settings the weight is the last access (LRU).
This module does not know where the bytes lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PRIORITIES = 4  # 0 user root, 1 full text, 2 INBOX and \Junk, 3 other


class SizeWeights(NamedTuple):
    """Seconds added by size.

    `low_s` at 0 bytes, falling to 0 at `low_bytes`, then rising to `high_s` at
    `high_bytes` and above.
    """

    low_bytes: int
    low_s: float
    high_bytes: int
    high_s: float

    def boost(self, nbytes: int) -> float:
        """Return the seconds that are added for copies of `nbytes`."""
        if nbytes <= self.low_bytes:
            return (self.low_bytes - nbytes) * self.low_s / self.low_bytes if self.low_bytes else 0.0
        if self.high_bytes <= self.low_bytes:
            return self.high_s
        return (min(nbytes, self.high_bytes) - self.low_bytes) * self.high_s / (self.high_bytes - self.low_bytes)


class Weights(NamedTuple):
    """What the weights add to the last access.

    priorities: (percent of max_space, seconds) for each priority, empty for no boosts.
    sizes: None for no boosts.
    """

    priorities: tuple[tuple[float, float], ...] = ()
    sizes: SizeWeights | None = None

    def priority_boosts(self, used: Mapping[int, int], max_space: int) -> tuple[float, ...]:
        """Return the seconds of each priority. used: bytes of all users by priority."""
        return tuple(
            seconds if used.get(priority, 0) * 100 <= percent * max_space else 0.0
            for priority, (percent, seconds) in enumerate(self.priorities)
        )

    def weigh(self, accessed: float, priority: int, group_bytes: int, boosts: tuple[float, ...]) -> float:
        """Return the weight of a copy.

        group_bytes: what the user's copies of this priority take. boosts: the result of
        `priority_boosts`.
        """
        boost = boosts[priority] if priority < len(boosts) else 0.0
        return accessed + boost + (self.sizes.boost(group_bytes) if self.sizes is not None else 0.0)
