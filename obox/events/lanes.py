"""The events that wait for a group, by user.

Each user has a lane, in which events wait in order. A lane has two parts: the rest of
boots that are over, and what this backend has written itself. While a user is barred,
because the rest is not known yet, only what this backend wrote before it gained the
user is taken.

Invariant: at most one event of a user is handled at a time, and a user's events are
taken in the order in which they happened. This module knows no bucket and no loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from .event import Event


class Item(NamedTuple):
    """An event in a lane. number: of the object of this process that has its line; -1
    for the rest of another boot. ticket: whose work it is part of."""

    number: int
    event: Event
    ticket: Ticket


class Ticket(Protocol):
    """Counts what is left of a piece of work."""

    def done(self, item: Item) -> None:
        """Note that an event was handled, or became a dead letter, or was dropped."""


class Bars:
    """Which users are barred. They are barred by unit, from a number of an object
    on."""

    def __init__(self, unit_of: Callable[[str], str]) -> None:
        self._unit_of = unit_of
        self.everybody = True
        """Whether all users are barred, because this process has just started or was
        fenced."""
        self.units: dict[str, int] = {}

    def since(self, sid: str) -> int | None:
        """Return the number of the first object whose events wait; None if no event
        waits."""
        if self.everybody:
            return 0
        return self.units.get(self._unit_of(sid)) if self.units else None


class _Lane:
    __slots__ = ("own", "rest", "taken")

    def __init__(self) -> None:
        self.own: deque[Item] = deque()
        self.rest: deque[Item] = deque()
        self.taken: Item | None = None


class Lanes:
    """See the module's text."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._lanes: dict[str, _Lane] = {}
        self.own = 0
        self.rest = 0
        """How many events wait in the two parts of all lanes."""

    def add(self, item: Item) -> None:
        """Add an event behind the others of its user."""
        lane = self._lanes.setdefault(item.event.user, _Lane())
        if item.number < 0:
            lane.rest.append(item)
            self.rest += 1
        else:
            lane.own.append(item)
            self.own += 1

    def take(self, sid: str) -> Item | None:
        """Return the next event of a user, who has none in work from now on; None if
        there is none that may be taken. Call `end` when it was handled."""
        lane = self._lanes.get(sid)
        if lane is None or lane.taken is not None:
            return None
        since = self._bars.since(sid)
        if since is not None and lane.own and lane.own[0].number < since:
            lane.taken = lane.own[0]
        elif lane.rest:
            lane.taken = lane.rest[0]
        elif since is None:
            lane.taken = lane.own[0]
        return lane.taken

    def end(self, item: Item) -> None:
        """Remove an event that was taken."""
        lane = self._lanes.get(item.event.user)
        if lane is None or lane.taken is not item:
            return
        lane.taken = None
        for part in (lane.own, lane.rest):
            if part and part[0] is item:
                self._remove(part)
                item.ticket.done(item)
                break
        if not lane.own and not lane.rest:
            del self._lanes[item.event.user]

    def holds(self, item: Item) -> bool:
        """Return whether an event that was taken is still wanted."""
        lane = self._lanes.get(item.event.user)
        return lane is not None and any(part and part[0] is item for part in (lane.own, lane.rest))

    def drop(self, sid: str) -> list[Item]:
        """Drop all events of a user, because the user was deleted. Returns them."""
        lane = self._lanes.get(sid)
        if lane is None:
            return []
        dropped = []
        for part in (lane.own, lane.rest):
            while part:
                dropped.append(part[0])
                self._remove(part)
        if lane.taken is None:
            del self._lanes[sid]
        for item in dropped:
            item.ticket.done(item)
        return dropped

    def drop_rest(self, sid: str) -> None:
        """Drop the rest of a user, because a line of it says that the user was
        deleted."""
        lane = self._lanes.get(sid)
        while lane is not None and lane.rest:
            item = lane.rest[0]
            self._remove(lane.rest)
            item.ticket.done(item)

    def drop_below(self, number: int) -> set[str]:
        """Drop the events of this process's objects below a number. Returns their
        users."""
        users = set()
        for sid, lane in list(self._lanes.items()):
            while lane.own and lane.own[0].number < number:
                item = lane.own[0]
                self._remove(lane.own)
                item.ticket.done(item)
                users.add(sid)
            if not lane.own and not lane.rest and lane.taken is None:
                del self._lanes[sid]
        return users

    def clear(self) -> None:
        """Forget all events without noting that they are done, because a takeover reads
        them again."""
        self._lanes.clear()
        self.own = self.rest = 0

    def users(self) -> Iterable[str]:
        """Return the users that have events."""
        return list(self._lanes)

    def _remove(self, part: deque[Item]) -> None:
        item = part.popleft()
        if item.number < 0:
            self.rest -= 1
        else:
            self.own -= 1
