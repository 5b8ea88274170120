"""The words of the cache: what callers get back, and what its rooms hand each other.

Invariant: plain values, no behaviour. Refuses to know: the loop's order of things.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from fscache._files import Step
from fscache._order import Entry


class Stats(NamedTuple):
    """Counts since the start; `bytes` and `files` are what is there now."""

    hits: int
    misses: int
    bytes: int
    files: int
    evictions: int
    errors: int
    skipped: int  # objects not stored: too large, or too many waiting
    oldest: float = 0.0  # when the longest unread one was last read, about
    pending: int = 0  # bytes waiting to be written
    max_size: int = 0


@dataclass(slots=True)
class Flight:
    task: asyncio.Task[bytes]
    waiters: int = 0
    store: bool = True  # false once the key was put or dropped meanwhile


@dataclass(slots=True)
class Pending:
    key: str
    data: bytes
    space: int
    queue: int


@dataclass(slots=True)
class Planned:
    """One step with what it means for the accounts."""

    step: Step
    doomed: dict[str, int] = field(default_factory=dict)
    evicted: list[tuple[str, Entry]] = field(default_factory=list)
    pending: Pending | None = None
    refused: str = ""  # the name of a pending object that has no room
