"""What a backend does next about its groups: a pure function of what it knows.

`plan` is called once a second. It returns which groups to acquire, and which to give
up, in the order of docs/cluster.md. Two backends that know the same plan the same. If
they differ, the bucket decides, and the next plan follows the newer assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .assign import newer, rank
from .records import Assigned, Member, Move, Orders, State

MOVED_AT_ONCE = 8
"""Groups that are released together: a user waits no longer than for so many
flushes."""


@dataclass(frozen=True)
class Picture:
    """What a backend knows.

    me: its name. units: of all groups, by key. rows: the newest assignment that was
    ever seen of each unit. held: what the store serves. orders, members: rows by
    backend. dead: by backend, the boot that is dead. moves: by unit. fenced: (backend,
    boot) that this backend has fenced. ending: backends that are stopping or have
    stopped in order, by their last beat. back: backends that were seen to beat lately.
    """

    me: str
    units: frozenset[str]
    rows: Mapping[str, Assigned]
    held: Mapping[str, Assigned]
    orders: Mapping[str, Orders]
    members: Mapping[str, Member]
    dead: Mapping[str, str] = field(default_factory=dict)
    moves: Mapping[str, Move] = field(default_factory=dict)
    fenced: frozenset[tuple[str, str]] = frozenset()
    ending: frozenset[str] = frozenset()
    back: frozenset[str] = frozenset()

    @property
    def highest(self) -> int:
        """The highest number of an assignment that was ever seen."""
        return max((row.number for row in (*self.rows.values(), *self.held.values())), default=0)

    def weights(self) -> dict[str, float]:
        """Load factors of the backends that may get groups."""
        found = {}
        for name, member in self.members.items():
            orders = self.orders.get(name, Orders())
            away = name in self.dead or name in self.ending
            if member.role == "backend" and orders.state is State.ONLINE and not away:
                found[name] = 0.0 if orders.evacuate else float(orders.load_factor)
        return found


class Release(NamedTuple):
    """Give units up in order. to: the next backend. home: see `Assigned`."""

    to: str
    units: tuple[str, ...]
    home: str = ""


@dataclass(frozen=True)
class Plan:
    """What to do now.

    lose: units that another backend has;
    gain: units whose rows name us; claim: units without an owner, to be written and
    gained, with their homes; fence: (backend, boot) that were seen dying, whose units
    are in `claim` or who have none; release: at most one batch.
    """

    lose: frozenset[str]
    gain: Mapping[str, Assigned]
    claim: Mapping[str, str]
    fence: frozenset[tuple[str, str]]
    release: Release | None


def plan(now: Picture) -> Plan:
    """See the module's text."""
    lose: set[str] = set()
    gain: dict[str, Assigned] = {}
    for unit, ours in now.held.items():
        row = now.rows.get(unit)
        if row is not None and newer(ours, row):
            if row.backend == now.me:
                # An earlier process of this backend, or a restored directory, has it.
                gain[unit] = row
            else:
                lose.add(unit)
    for unit, row in now.rows.items():
        if row.backend == now.me and unit not in now.held:
            gain[unit] = row
    weights = now.weights()
    claim, fence = _claims(now, weights)
    return Plan(
        lose=frozenset(lose),
        gain=gain,
        claim=claim,
        fence=frozenset(fence),
        release=_release(now, weights, lose),
    )


def _claims(now: Picture, weights: Mapping[str, float]) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Units that nobody serves and that are for us, with their homes; the boots whose
    owners they had."""
    claim: dict[str, str] = {}
    fence: set[tuple[str, str]] = set()
    owners = {row.backend for row in now.rows.values()}
    for unit in now.units | now.rows.keys():
        row = now.rows.get(unit)
        vacant = row is None or row.removed or row.backend in now.dead or _is_gone(now, row.backend)
        if vacant and next(iter(rank(unit, weights)), None) == now.me:
            claim[unit] = "" if row is None else _home(now, row)
            if row is not None and row.backend in now.dead:
                fence.add((row.backend, now.dead[row.backend]))
    for backend, boot in now.dead.items():
        if not boot or backend in owners or (backend, boot) in now.fenced:
            continue  # a fence holds for good, and reading all journals is not cheap
        if next(iter(rank(f"boot:{backend}", weights)), None) == now.me:
            fence.add((backend, boot))
    return claim, fence


def _home(now: Picture, row: Assigned) -> str:
    """The home of a unit whose owner ended. A backend that stopped in order, and found
    nobody for its groups, gets them again; a backend that crashed does not."""
    if row.backend in now.ending:
        return row.home or row.backend
    return row.home if row.home != row.backend else ""


def _is_gone(now: Picture, backend: str) -> bool:
    """Whether an operator said that the backend is not to be used any more."""
    orders = now.orders.get(backend)
    return orders is not None and orders.state in (State.OFFLINE, State.REMOVED)


def _release(now: Picture, weights: Mapping[str, float], lost: set[str]) -> Release | None:
    """The next batch of units that leave for one backend with one home."""
    leaving: dict[str, tuple[str, str]] = {}
    ours = now.orders.get(now.me, Orders())
    others = {**weights, now.me: 0.0}
    for unit in sorted(now.held.keys() - lost):
        move, row = now.moves.get(unit), now.rows.get(unit)
        home = "" if row is None else row.home
        if move is not None and not move.done and move.to != now.me and move.to in weights:
            leaving[unit] = move.to, ""
        elif ours.evacuate and (heirs := rank(unit, others)):
            leaving[unit] = heirs[0], home if home != now.me else ""
        elif now.me in now.ending and (heirs := rank(unit, others)):
            leaving[unit] = heirs[0], home or now.me
        elif others.get(home, 0.0) > 0 and home in now.back:
            leaving[unit] = home, ""
    if not leaving:
        return None
    first = to, home = next(iter(leaving.values()))
    return Release(to, tuple(unit for unit, where in leaving.items() if where == first)[:MOVED_AT_ONCE], home)
