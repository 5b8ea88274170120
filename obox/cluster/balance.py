"""Which groups should move so that each backend has its share: a pure function.

The share of a backend follows from its load factor. If machines are busy and differ
much, groups move from the busiest machine to the idlest. The CPU changes a share by at
most SHIFT_MAX, because the operator has set the load factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def balance(
    owned: Mapping[str, Sequence[str]], weights: Mapping[str, float], loads: Mapping[str, Load] | None = None
) -> list[Shift]:
    """Return moves after which no further move brings two backends closer to their
    shares.

    owned: units by backend, where a unit that is moving counts at its destination;
    weights: load factors of the backends that may have units; loads: the loads of their
    machines, as far as they are known. Backends without a weight keep what they have.
    The units that move to a backend are those that prefer it by rendezvous order.
    """
    loads = loads or {}
    takers = {name: weight for name, weight in weights.items() if weight > 0 and not _is_full(loads.get(name))}
    if not takers:
        return []
    has = {name: sorted(owned.get(name, ())) for name in weights}
    wanted = shares({name: len(units) for name, units in has.items()}, weights, loads)
    shifts: list[Shift] = []
    while True:
        source = max(has, key=lambda name: (len(has[name]) - wanted[name], name))
        to = min(takers, key=lambda name: (len(has[name]) - wanted[name], name))
        if len(has[source]) - wanted[source] - (len(has[to]) - wanted[to]) <= 1:
            return shifts
        unit = min(has[source], key=lambda unit: (rank(unit, takers).index(to), unit))
        why = "; ".join(_state(name, len(has[name]), wanted[name], loads.get(name)) for name in (source, to))
        shifts.append(Shift(unit, source, to, why))
        has[source].remove(unit)
        has[to].append(unit)


def shares(counts: Mapping[str, int], weights: Mapping[str, float], loads: Mapping[str, Load]) -> dict[str, float]:
    """Return how many units each backend should have. counts: how many it has."""
    total, whole = sum(counts.values()), sum(weights.values())
    by_factor = {name: total * weight / whole for name, weight in weights.items()}
    takers = [name for name, weight in weights.items() if weight > 0]
    cpus = {name: loads[name].cpu for name in takers if name in loads}
    if len(cpus) < len(takers) or not total or max(cpus.values()) < BUSY:
        return by_factor
    if max(cpus.values()) - min(cpus.values()) < APART:
        # A difference that an earlier balance has made because of the CPU stays.
        near = all(abs(counts[name] - by_factor[name]) <= by_factor[name] * SHIFT_MAX + 1 for name in takers)
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


def _state(name: str, count: int, share: float, load: Load | None) -> str:
    """Describe a backend for the reason of a move."""
    machine = "" if load is None else f" with {load.cpu:.0%} CPU and {load.memory:.0%} memory in use"
    return f"{name} has {count} groups{machine}, its share is {share:.1f}"
