"""What a backend does next about its groups: a pure function of what it knows.

`plan` is called once a second. It returns which groups to acquire and which to give up,
in the order of docs/cluster.md. Backends that know the same rows agree on who acquires
each group. If their rows differ, the bucket decides, and the next plan follows the
newer assignment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .assign import home_of, newer, rank
from .records import Assigned, Member, Move, Orders, State, user_of

MOVED_AT_ONCE = 8
"""At most eight groups are released together. A user waits for the flushes of all."""

USERS_MOVED_AT_ONCE = 64
"""At most 64 single users are released together. A group has more users."""


@dataclass(frozen=True)
class Picture:
    """What a backend knows.

    me: its name. units: the keys of all groups. rows: the newest assignment that was
    ever seen of each unit, also of each pinned user. held: what the store serves.
    orders, members: rows by backend. dead: the dead boot of each dead backend. moves:
    by unit. fenced: (backend, boot) that this backend has fenced. ending: backends
    that are stopping or have stopped in order, by their last beat. back: backends whose
    beat has changed often enough since they started.
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
        """Return the highest number of an assignment that was ever seen."""
        return max((row.number for row in (*self.rows.values(), *self.held.values())), default=0)

    def weights(self) -> dict[str, float]:
        """Return the load factors of the backends that may get groups."""
        found = {}
        for name, member in self.members.items():
            orders = self.orders.get(name, Orders())
            away = name in self.dead or name in self.ending
            if member.role == "backend" and orders.state is State.ONLINE and not away:
                found[name] = 0.0 if orders.evacuate else float(orders.load_factor)
        return found

    def weights_at(self, backend: str, *, elsewhere: bool) -> dict[str, float]:
        """Return the load factors of the backends that may get the units of a backend:
        those of its site. elsewhere: if the site has none, those of other sites."""
        weights, member = self.weights(), self.members.get(backend)
        if member is None:
            return weights
        near = {name: weight for name, weight in weights.items() if self.members[name].site == member.site}
        others = any(weight > 0 for name, weight in near.items() if name != backend)
        return near if others or not elsewhere else weights

    def heirs(self) -> dict[str, float]:
        """Return the load factors of the backends that may get what this backend gives
        up. Its own is 0. A stop leaves groups at their site. An evacuation moves them
        to another site if theirs has no other backend."""
        evacuated = self.orders.get(self.me, Orders()).evacuate
        return {**self.weights_at(self.me, elsewhere=evacuated), self.me: 0.0}

    def group(self, unit: str) -> str | None:
        """Return the group of the user who is a unit; None for a group."""
        sid = user_of(unit)
        return None if sid is None else home_of(sid, len(self.units))


class Release(NamedTuple):
    """Give units up in order. to: the next backend. home: see `Assigned`."""

    to: str
    units: tuple[str, ...]
    home: str = ""


@dataclass(frozen=True)
class Plan:
    """What to do now.

    lose: units that another backend has; gain: units whose rows name this backend;
    claim: units without an owner, to be written and gained, with their homes; fence:
    dead boots, as (backend, boot), whose units are in `claim`, or that have no units;
    pin: users of this backend's groups who are to become units of their own; arrived:
    units whose moves name this backend, and that it has; release: at most one batch;
    dying: units of `claim`, with the boots that had them.
    """

    lose: frozenset[str]
    gain: Mapping[str, Assigned]
    claim: Mapping[str, str]
    fence: frozenset[tuple[str, str]]
    release: Release | None
    pin: frozenset[str] = frozenset()
    arrived: frozenset[str] = frozenset()
    dying: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def raced(self, kept: Collection[str]) -> set[tuple[str, str]]:
        """Return the boots that this backend does not fence, because other backends
        were faster and have claimed all their units. kept: units that it has claimed
        itself."""
        return set(self.dying.values()) - {boot for unit, boot in self.dying.items() if unit in kept}


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
    claim, dying, fence = _claims(now)
    moves = {unit: move for unit, move in now.moves.items() if not move.done}
    return Plan(
        lose=frozenset(lose),
        gain=gain,
        claim=claim,
        fence=frozenset({*fence, *dying.values()}),
        dying=dying,
        release=_release(now, lose),
        pin=frozenset(_pins(now, moves, lose)),
        arrived=frozenset(unit for unit, move in moves.items() if move.to == now.me and unit in now.held.keys() - lose),
    )


def _claims(now: Picture) -> tuple[dict[str, str], dict[str, tuple[str, str]], set[tuple[str, str]]]:
    """Return the vacant units that this backend claims, with their homes; the dead
    boots that had these units; and the dead boots of backends without units."""
    claim: dict[str, str] = {}
    dying: dict[str, tuple[str, str]] = {}
    fence: set[tuple[str, str]] = set()
    owners = {row.backend for row in now.rows.values()}
    for unit in now.units | now.rows.keys():
        row = now.rows.get(unit)
        if _is_vacant(now, row) and _heir(now, unit) == now.me:
            claim[unit] = "" if row is None else _home(now, row)
            if row is not None and row.backend in now.dead:
                dying[unit] = row.backend, now.dead[row.backend]
    for backend, boot in now.dead.items():
        if not boot or backend in owners or (backend, boot) in now.fenced:
            continue  # a fence holds for good, and reading all journals is not cheap
        if next(iter(rank(f"boot:{backend}", now.weights_at(backend, elsewhere=False))), None) == now.me:
            fence.add((backend, boot))
    return claim, dying, fence


def _is_vacant(now: Picture, row: Assigned | None) -> bool:
    return row is None or row.backend in now.dead or _is_gone(now, row.backend)


def _heir(now: Picture, unit: str) -> str | None:
    """Return the backend that acquires a vacant unit. A dead backend has heirs at its
    own site alone, because no other site takes part in the judgement."""
    row = now.rows.get(unit)
    if row is not None and row.removed and (group := now.group(unit)) is not None:
        leader = now.rows.get(group)
        if leader is not None and not _is_vacant(now, leader):
            return leader.backend
        unit, row = group, leader
    weights = now.weights() if row is None else now.weights_at(row.backend, elsewhere=row.backend not in now.dead)
    return next(iter(rank(unit, weights)), None)


def _pins(now: Picture, moves: Mapping[str, Move], lost: set[str]) -> Iterator[str]:
    """Yield the users who are to move alone and have no row yet. The owner of the group
    makes the row."""
    for unit in moves:
        group = now.group(unit)
        if group is not None and unit not in now.rows and group in now.held and group not in lost:
            yield unit


def _home(now: Picture, row: Assigned) -> str:
    """Return the home of a unit whose owner ended. A backend that stopped in order, and
    found no backend for its groups, gets them again. A backend that crashed does
    not."""
    if row.backend in now.ending:
        return row.home or row.backend
    return row.home if row.home != row.backend else ""


def _is_gone(now: Picture, backend: str) -> bool:
    """Return whether an operator said that the backend is not to be used any more."""
    orders = now.orders.get(backend)
    return orders is not None and orders.state in (State.OFFLINE, State.REMOVED)


def _release(now: Picture, lost: set[str]) -> Release | None:
    """Return the next batch of units that leave for one backend with one home: groups,
    or single users."""
    weights, heirs = now.weights(), now.heirs()
    leaving: dict[str, tuple[str, str, bool]] = {}
    for unit in sorted(now.held.keys() - lost):
        if (found := _destination(now, unit, weights, heirs)) is not None:
            leaving[unit] = *found, user_of(unit) is not None
    if not leaving:
        return None
    first = to, home, alone = next(iter(leaving.values()))
    batch = [unit for unit, where in leaving.items() if where == first]
    return Release(to, tuple(batch[: USERS_MOVED_AT_ONCE if alone else MOVED_AT_ONCE]), home)


def _destination(
    now: Picture, unit: str, weights: Mapping[str, float], heirs: Mapping[str, float]
) -> tuple[str, str] | None:
    """Return where a unit of this backend goes, and its home there; None if it
    stays."""
    move, row = now.moves.get(unit), now.rows.get(unit)
    home = "" if row is None else row.home
    if move is not None and not move.done and move.to != now.me and move.to in weights:
        return move.to, ""
    group = now.group(unit) if row is not None and row.removed else None
    leader = None if group is None else now.rows.get(group)
    if leader is not None and leader.backend != now.me and _may_be_followed(now, leader):
        return leader.backend, ""
    evacuated, ending = now.orders.get(now.me, Orders()).evacuate, now.me in now.ending
    if evacuated or ending:
        # A user who follows a group goes where the group goes.
        heir = next(iter(rank(group or unit, heirs)), None)
        if heir is None:
            return None
        if evacuated:
            return heir, home if home != now.me else ""
        return heir, "" if group is not None else home or now.me
    if home != now.me and weights.get(home, 0.0) > 0 and home in now.back:
        return home, ""
    return None


def _may_be_followed(now: Picture, leader: Assigned) -> bool:
    """Return whether the owner of a group keeps it. Users whose pin was removed may
    then follow the group."""
    leaves = leader.backend in now.ending or now.orders.get(leader.backend, Orders()).evacuate
    return not leaves and not _is_vacant(now, leader)
