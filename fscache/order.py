"""The index of the files, and the order in which they are evicted.

There are three queues, so that a user who reads a whole mailbox evicts only what others
have read in the same way.

    fresh   put by a caller who had the object (a mail that was just delivered),
            not read yet                                                          25 %
    once    fetched, or fresh and then read                                       25 %
    kept    read again more than CORRELATED_S after its first read, or fetched
            again soon after its eviction; after a restart: everything            50 %

The percentage is the queue's share of the space. A queue may use what the others leave
free. Evicted is the oldest entry of the queue that exceeds its share most. Reads within
CORRELATED_S of the first read are a client that reads a mail in parts; they count as a
single read. A ghost is the name of an entry that was evicted lately from `once` or
`fresh`; there are as many ghosts as entries.
docs/decisions/0005-three-queues-in-fscache.md has the figures.

Invariant: `nbytes` of each queue is the sum of its entries. Pure: no files, no own
clock.
This module does not know keys or what is being read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass

FRESH, ONCE, KEPT = 0, 1, 2
SHARES = (0.25, 0.25, 0.5)
CORRELATED_S = 60.0
GHOSTS_MIN = 1000


@dataclass(slots=True)
class Entry:
    """A file as the index knows it."""

    space: int  # bytes in whole blocks
    touched: float  # mtime of the file
    verified: bool  # this process has seen the right checksum
    queue: int = ONCE
    since: float = 0.0  # when it came, or was read first


class Index:
    """The entries by name."""

    def __init__(self) -> None:
        self._queues: tuple[OrderedDict[str, Entry], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self._kept = self._queues[KEPT]
        self.nbytes = [0, 0, 0]
        self._where: dict[str, Entry] = {}
        self._ghosts: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def get(self, name: str) -> Entry | None:
        return self._where.get(name)

    def items(self) -> Iterator[tuple[str, Entry]]:
        return iter(self._where.items())

    def values(self) -> Iterator[Entry]:
        return iter(self._where.values())

    def add(self, name: str, entry: Entry, queue: int, now: float) -> None:
        """Add an entry at the end of a queue; of `kept`, if it is a ghost."""
        self.pop(name)
        if queue == ONCE and name in self._ghosts:
            queue = KEPT
        self._ghosts.pop(name, None)
        entry.queue, entry.since = queue, now
        self.restore(name, entry)

    def restore(self, name: str, entry: Entry) -> None:
        """Put an entry at the end of the queue that it names."""
        self._where[name] = entry
        self._queues[entry.queue][name] = entry
        self.nbytes[entry.queue] += entry.space

    def hit(self, name: str, now: float) -> Entry | None:
        """Note a read, and return the entry."""
        entry = self._where.get(name)
        if entry is None:
            return None
        if entry.queue == KEPT:
            self._kept.move_to_end(name)
        elif entry.queue == FRESH:
            self._move(name, entry, ONCE)
            entry.since = now
        elif now - entry.since > CORRELATED_S:
            self._move(name, entry, KEPT)
        return entry

    def _move(self, name: str, entry: Entry, queue: int) -> None:
        del self._queues[entry.queue][name]
        self.nbytes[entry.queue] -= entry.space
        entry.queue = queue
        self._queues[queue][name] = entry
        self.nbytes[queue] += entry.space

    def pop(self, name: str) -> Entry | None:
        entry = self._where.pop(name, None)
        if entry is not None:
            del self._queues[entry.queue][name]
            self.nbytes[entry.queue] -= entry.space
        return entry

    def resize(self, name: str, space: int) -> None:
        if (entry := self._where.get(name)) is not None:
            self.nbytes[entry.queue] += space - entry.space
            entry.space = space

    def evict(self, keep: Container[str]) -> tuple[str, Entry] | None:
        """Take out the first entry to go that is not in `keep`, if there is any."""
        for queue in sorted(range(3), key=lambda queue: -self.nbytes[queue] / SHARES[queue]):
            for name, entry in self._queues[queue].items():
                if name not in keep:
                    self.pop(name)
                    if queue != KEPT:
                        self._remember(name)
                    return name, entry
        return None

    def _remember(self, name: str) -> None:
        self._ghosts[name] = None
        while len(self._ghosts) > max(GHOSTS_MIN, len(self._where)):
            self._ghosts.popitem(last=False)

    def oldest(self) -> float:
        """Return about when the longest unread entry was last read; 0.0 if empty."""
        return min((next(iter(queue.values())).touched for queue in self._queues if queue), default=0.0)
