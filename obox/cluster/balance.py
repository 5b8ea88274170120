"""Which groups should move so that each backend has its share: a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .assign import rank


class Shift(NamedTuple):
    """A move that is proposed. why: for people."""

    unit: str
    source: str
    to: str
    why: str


def balance(owned: Mapping[str, Sequence[str]], weights: Mapping[str, float]) -> list[Shift]:
    """Moves after which no further move brings two backends closer to their shares.

    owned: units by backend, those that are on their way counted at their destination;
    weights: load factors of the backends that may have units. Backends without a weight
    keep what they have. A unit goes where its rendezvous order prefers, if it can.
    """
    takers = {name: weight for name, weight in weights.items() if weight > 0}
    if not takers:
        return []
    has = {name: sorted(owned.get(name, ())) for name in weights}
    total, whole = sum(map(len, has.values())), sum(takers.values())
    shares = {name: total * takers.get(name, 0.0) / whole for name in weights}
    shifts: list[Shift] = []
    while True:
        source = max(has, key=lambda name: (len(has[name]) - shares[name], name))
        to = min(takers, key=lambda name: (len(has[name]) - shares[name], name))
        if len(has[source]) - shares[source] - (len(has[to]) - shares[to]) <= 1:
            return shifts
        unit = min(has[source], key=lambda unit: (rank(unit, takers).index(to), unit))
        why = (
            f"{source} has {len(has[source])} groups, its share is {shares[source]:.1f}; "
            f"{to} has {len(has[to])}, its share is {shares[to]:.1f}"
        )
        shifts.append(Shift(unit, source, to, why))
        has[source].remove(unit)
        has[to].append(unit)
