"""Which groups should move so that each backend has its share: a pure function.

The share of a backend follows from its load factor, and users are shared out. A group
counts for its users and for one more, because new users hash into all groups alike. If
machines are busy and differ much, groups move from the busiest machine to the idlest.
The CPU changes a share by at most SHIFT_MAX, because the operator has set the load
factors. Of groups that do as well, the one whose users have the fewest sessions moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

from .assign import rank

BUSY: Final = 0.5
"""Only load factors count while the CPU of the busiest machine is below this
fraction."""

APART: Final = 0.2
"""Machines whose CPU differs by less are equally busy."""

SHIFT_MAX: Final = 0.25
"""The CPU changes a share by at most this fraction of it."""

MEMORY_MAX: Final = 0.95
"""A machine that uses more of its memory, as a fraction, gets no groups."""


class Shift(NamedTuple):
    """A move that is proposed. why: the reason, as a text for people."""

    unit: str
    source: str
    to: str
    why: str


class Load(NamedTuple):
    """The load of a backend's machine, as fractions of 1."""

    cpu: float
    memory: float


class People(NamedTuple):
    """How many users there are: in each group, and pinned at each backend."""

    groups: Mapping[str, int]
    pinned: Mapping[str, int]


class _Site:
    """Who has what, while moves are found. people: None: every group counts as one.
    sessions: None: they are not known."""

    def __init__(
        self,
        owned: Mapping[str, Sequence[str]],
        weights: Mapping[str, float],
        loads: Mapping[str, Load],
        people: People | None,
        sessions: Mapping[str, int] | None,
    ) -> None:
        self._sessions = sessions
        self.has = {name: sorted(owned.get(name, ())) for name in weights}
        self._people, self._loads = people, loads
        self.count = {name: float(sum(map(self.size, units)) + self._pinned(name)) for name, units in self.has.items()}
        sizes = [self.size(unit) for units in self.has.values() for unit in units]
        self._grain = sum(sizes) / len(sizes) if sizes else 1.0
        self._wanted = shares(self.count, weights, loads, grain=self._grain)

    def size(self, unit: str) -> int:
        return 1 if self._people is None else 1 + self._people.groups.get(unit, 0)

    def sessions(self, unit: str) -> int | None:
        return None if self._sessions is None else self._sessions.get(unit, 0)

    def _pinned(self, name: str) -> int:
        return 0 if self._people is None else self._people.pinned.get(name, 0)

    def surplus(self, name: str) -> float:
        """Return what a backend has above its share."""
        return self.count[name] - self._wanted[name]

    def best(self, source: str, to: str, ranked: Callable[[str], Sequence[str]]) -> str | None:
        """Return the group whose move brings two backends closest to their shares;
        None: no move brings them closer. ranked: the rendezvous order of a group. Of
        groups that do as well, sessions decide, and then this order."""
        apart = self.surplus(source) - self.surplus(to)
        if apart <= self._grain:
            # Sessions would end for less than a group of average size.
            return None
        fit = [unit for unit in self.has[source] if self.size(unit) < apart]
        # More than half of the difference is more than what is needed.
        return min(
            fit,
            key=lambda unit: (
                max(0.0, self.size(unit) - apart / 2),
                self.sessions(unit) or 0,
                ranked(unit).index(to),
                unit,
            ),
            default=None,
        )

    def move(self, unit: str, source: str, to: str) -> None:
        self.has[source].remove(unit)
        self.has[to].append(unit)
        self.count[source] -= self.size(unit)
        self.count[to] += self.size(unit)

    def state(self, name: str) -> str:
        """Describe a backend for the reason of a move."""
        load, count, people = self._loads.get(name), len(self.has[name]), self._people
        machine = "" if load is None else f" with {load.cpu:.0%} CPU and {load.memory:.0%} memory in use"
        if people is None:
            return f"{name} has {count} groups{machine}, its share is {self._wanted[name]:.1f}"
        users = sum(people.groups.get(unit, 0) for unit in self.has[name]) + self._pinned(name)
        whole = sum(self.count.values())
        have, wanted = self.count[name] / whole, self._wanted[name] / whole
        has = f"{users} {'user' if users == 1 else 'users'} in {count} groups{machine}"
        return f"{name} has {has}, {have:.1%} of all, its share is {wanted:.1%}"


def balance(
    owned: Mapping[str, Sequence[str]],
    weights: Mapping[str, float],
    loads: Mapping[str, Load] | None = None,
    people: People | None = None,
    sessions: Mapping[str, int] | None = None,
) -> list[Shift]:
    """Return moves after which no two backends are further apart than a group of
    average size, or no group fits.

    owned: units by backend, where a unit that is moving counts at its destination;
    weights: load factors of the backends that may have units; loads: the loads of their
    machines, as far as they are known; people: None if users are not known; sessions:
    of the users of each unit, None if they are not known. Backends without a weight
    keep what they have. The units that move to a backend are those with few sessions,
    and of these the units that prefer it by rendezvous order, if they fit.
    """
    loads = loads or {}
    takers = {name: weight for name, weight in weights.items() if weight > 0 and not _is_full(loads.get(name))}
    site, ranked = _Site(owned, weights, loads, people, sessions), cache(lambda unit: rank(unit, takers))
    shifts: dict[str, Shift] = {}
    while (found := _next(site, takers, ranked)) is not None:
        unit, source, to = found
        earlier = shifts.pop(unit, None)
        begin = source if earlier is None else earlier.source
        if begin != to:
            reasons = [site.state(begin), site.state(to)]
            if (ending := site.sessions(unit)) is not None:
                reasons.append(f"{ending} {'session' if ending == 1 else 'sessions'} of the group's users end")
            shifts[unit] = Shift(unit, begin, to, "; ".join(reasons))
        site.move(unit, source, to)
    return list(shifts.values())


def _next(
    site: _Site, takers: Mapping[str, float], ranked: Callable[[str], Sequence[str]]
) -> tuple[str, str, str] | None:
    """Return the next move: from the backend that is furthest above its share, if it
    has a group that fits, to the backend that is furthest below. Each move makes the
    sum of the squares of all differences smaller, so that the moves come to an end."""
    for source in sorted(site.has, key=lambda name: (site.surplus(name), name), reverse=True):
        for to in sorted(takers, key=lambda name: (site.surplus(name), name)):
            if site.surplus(source) <= site.surplus(to):
                break
            unit = site.best(source, to, ranked)
            if unit is not None:
                return unit, source, to
    return None


def shares(
    counts: Mapping[str, float], weights: Mapping[str, float], loads: Mapping[str, Load], *, grain: float = 1.0
) -> dict[str, float]:
    """Return how much each backend should have. counts: how much it has; grain: what a
    group counts on average."""
    total, whole = sum(counts.values()), sum(weights.values())
    if not whole:
        return dict(counts)
    by_factor = {name: total * weight / whole for name, weight in weights.items()}
    takers = [name for name, weight in weights.items() if weight > 0]
    cpus = {name: loads[name].cpu for name in takers if name in loads}
    if len(cpus) < len(takers) or not total or max(cpus.values()) < BUSY:
        return by_factor
    if max(cpus.values()) - min(cpus.values()) < APART:
        # An earlier balance may have made a difference because of the CPU. It stays.
        near = all(abs(counts[name] - by_factor[name]) <= by_factor[name] * SHIFT_MAX + grain for name in takers)
        return by_factor | {name: float(counts[name]) for name in takers} if near else by_factor
    mean = sum(cpus.values()) / len(cpus)
    wanted = {}
    for name in takers:
        # A backend that is new is idle because it has few groups.
        count = counts[name] if cpus[name] > mean else max(counts[name], by_factor[name])
        # Shares go half of the way, since CPU follows groups late and not exactly.
        wanted[name] = count * (1 + mean / max(cpus[name], 0.01)) / 2
    bounded = {
        name: min(max(wanted[name], by_factor[name] * (1 - SHIFT_MAX)), by_factor[name] * (1 + SHIFT_MAX))
        for name in takers
    }
    scale = sum(by_factor[name] for name in takers) / sum(bounded.values())
    return by_factor | {name: count * scale for name, count in bounded.items()}


def _is_full(load: Load | None) -> bool:
    return load is not None and load.memory > MEMORY_MAX
