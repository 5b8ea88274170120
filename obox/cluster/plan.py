"""What a backend does next about its groups: a pure function of what it knows.

`plan` is called once a second. It returns which groups to acquire, and which to give
up, in the order of docs/cluster.md. Two backends that know the same plan the same. If
they differ, the bucket decides, and the next plan follows the newer assignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .assign import home_of, newer, rank
from .records import Assigned, Member, Move, Orders, State, user_of

MOVED_AT_ONCE = 8
"""Groups that are released together: a user waits no longer than for so many
flushes."""

USERS_MOVED_AT_ONCE = 64
"""Single users that are released together. A group has more users."""


@dataclass(frozen=True)
class Picture:
    """What a backend knows.

    me: its name. units: of all groups, by key. rows: the newest assignment that was
    ever seen of each unit, also of each pinned user. held: what the store serves.
    orders, members: rows by backend. dead: by backend, the boot that is dead. moves: by
    unit. fenced: (backend, boot) that this backend has fenced.
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

    @property
    def highest(self) -> int:
        """The highest number of an assignment that was ever seen."""
        return max((row.number for row in (*self.rows.values(), *self.held.values())), default=0)

    def weights(self) -> dict[str, float]:
        """Load factors of the backends that may get groups."""
        found = {}
        for name, member in self.members.items():
            orders = self.orders.get(name, Orders())
            if member.role == "backend" and orders.state is State.ONLINE and name not in self.dead:
                found[name] = 0.0 if orders.evacuate else float(orders.load_factor)
        return found

    def weights_at(self, backend: str, *, elsewhere: bool) -> dict[str, float]:
        """Load factors of the backends that may get what a backend has: those of its
        site. elsewhere: if the site has none, those of other sites."""
        weights, member = self.weights(), self.members.get(backend)
        if member is None:
            return weights
        near = {name: weight for name, weight in weights.items() if self.members[name].site == member.site}
        others = any(weight > 0 for name, weight in near.items() if name != backend)
        return near if others or not elsewhere else weights

    def home(self, unit: str) -> str | None:
        """The group of the user who is a unit; None for a group."""
        sid = user_of(unit)
        return None if sid is None else home_of(sid, len(self.units))


class Release(NamedTuple):
    """Give units up in order. to: the next backend."""

    to: str
    units: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What to do now.

    lose: units that another backend has; gain: units whose rows name us; claim: units
    without an owner, to be written and gained; fence: (backend, boot) that were seen
    dying, whose units are in `claim` or who have none; pin: users of groups of ours who
    are to become units of their own; arrived: units that are where their moves want
    them; release: at most one batch.
    """

    lose: frozenset[str]
    gain: Mapping[str, Assigned]
    claim: frozenset[str]
    fence: frozenset[tuple[str, str]]
    release: Release | None
    pin: frozenset[str] = frozenset()
    arrived: frozenset[str] = frozenset()


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
    claim, fence = _claims(now)
    moves = {unit: move for unit, move in now.moves.items() if not move.done}
    return Plan(
        lose=frozenset(lose),
        gain=gain,
        claim=frozenset(claim),
        fence=frozenset(fence),
        release=_release(now, lose),
        pin=frozenset(_pins(now, moves, lose)),
        arrived=frozenset(unit for unit, move in moves.items() if move.to == now.me and unit in now.held.keys() - lose),
    )


def _claims(now: Picture) -> tuple[set[str], set[tuple[str, str]]]:
    """Units that nobody serves and that are for us; the boots whose owners they had."""
    claim: set[str] = set()
    fence: set[tuple[str, str]] = set()
    owners = {row.backend for row in now.rows.values()}
    for unit in now.units | now.rows.keys():
        row = now.rows.get(unit)
        if _is_vacant(now, row) and _heir(now, unit) == now.me:
            claim.add(unit)
            if row is not None and row.backend in now.dead:
                fence.add((row.backend, now.dead[row.backend]))
    for backend, boot in now.dead.items():
        if backend in owners or (backend, boot) in now.fenced:
            continue  # a fence holds for good, and reading all journals is not cheap
        if next(iter(rank(f"boot:{backend}", now.weights_at(backend, elsewhere=False))), None) == now.me:
            fence.add((backend, boot))
    return claim, fence


def _is_vacant(now: Picture, row: Assigned | None) -> bool:
    return row is None or row.backend in now.dead or _is_gone(now, row.backend)


def _heir(now: Picture, unit: str) -> str | None:
    """Who acquires a unit that is vacant. A backend that is seen dying has heirs at its
    own site alone, because no other site takes part in the judgement."""
    row = now.rows.get(unit)
    if row is not None and row.removed and (home := now.home(unit)) is not None:
        leader = now.rows.get(home)
        if leader is not None and not _is_vacant(now, leader):
            return leader.backend
        unit, row = home, leader
    weights = now.weights() if row is None else now.weights_at(row.backend, elsewhere=row.backend not in now.dead)
    return next(iter(rank(unit, weights)), None)


def _pins(now: Picture, moves: Mapping[str, Move], lost: set[str]) -> Iterator[str]:
    """Users who are to move alone and have no row yet: the owner of the group makes
    it."""
    for unit in moves:
        home = now.home(unit)
        if home is not None and unit not in now.rows and home in now.held and home not in lost:
            yield unit


def _is_gone(now: Picture, backend: str) -> bool:
    """Whether an operator said that the backend is not to be used any more."""
    orders = now.orders.get(backend)
    return orders is not None and orders.state in (State.OFFLINE, State.REMOVED)


def _release(now: Picture, lost: set[str]) -> Release | None:
    """The next batch of units that leave for one backend: groups, or single users."""
    weights = now.weights()
    heirs = {**now.weights_at(now.me, elsewhere=True), now.me: 0.0}
    leaving: dict[str, str] = {}
    for unit in sorted(now.held.keys() - lost):
        if (to := _destination(now, unit, weights, heirs)) is not None:
            leaving[unit] = to
    if not leaving:
        return None
    first, to = next(iter(leaving.items()))
    alone = user_of(first) is not None
    batch = [unit for unit, heir in leaving.items() if heir == to and (user_of(unit) is not None) is alone]
    return Release(to, tuple(batch[: USERS_MOVED_AT_ONCE if alone else MOVED_AT_ONCE]))


def _destination(now: Picture, unit: str, weights: Mapping[str, float], heirs: Mapping[str, float]) -> str | None:
    """Where a unit of ours goes, None if it stays."""
    move, row = now.moves.get(unit), now.rows.get(unit)
    if move is not None and not move.done and move.to != now.me and move.to in weights:
        return move.to
    if row is not None and row.removed and (home := now.home(unit)) is not None:
        leader = now.rows.get(home)
        if leader is not None and leader.backend == now.me:
            return None  # it follows when the group has left
        if leader is not None and not _is_vacant(now, leader):
            return leader.backend
    if now.orders.get(now.me, Orders()).evacuate:
        return next(iter(rank(unit, heirs)), None)
    return None
