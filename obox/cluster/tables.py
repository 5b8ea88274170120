"""All rows of a directory, decoded. `check` and the verbs of operators read them.

This module does not know which rows are wrong, or who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .assign import home_of
from .directory import Directory, Kind, Row
from .records import (
    RECORDS,
    SETTINGS_KEY,
    Assigned,
    Beat,
    BootRow,
    Member,
    Merge,
    Move,
    Orders,
    Settings,
    Site,
    State,
    group_key,
    group_number,
    user_key,
    user_of,
)


@dataclass(frozen=True)
class Tables:
    """The rows that decode, by key. bad: why the other rows do not decode, by kind and
    key; beats_at: when each beat was written, unix seconds by the member's clock.
    """

    settings: Settings | None = None
    sites: Mapping[str, Site] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    orders: Mapping[str, Orders] = field(default_factory=dict)
    beats: Mapping[str, Beat] = field(default_factory=dict)
    boots: Mapping[str, BootRow] = field(default_factory=dict)
    groups: Mapping[str, Assigned] = field(default_factory=dict)
    pins: Mapping[str, Assigned] = field(default_factory=dict)
    moves: Mapping[str, Move] = field(default_factory=dict)
    merges: Mapping[str, Merge] = field(default_factory=dict)
    bad: Mapping[tuple[Kind, str], str] = field(default_factory=dict)
    beats_at: Mapping[str, float] = field(default_factory=dict)

    def backends(self) -> dict[str, Orders]:
        """Return the backends that are registered or added, and not removed, in the
        order of their names."""
        names = {name for name, member in self.members.items() if member.role == "backend"}
        names |= {name for name in self.orders if name not in self.members}
        found = {name: self.orders.get(name, Orders()) for name in sorted(names)}
        return {name: orders for name, orders in found.items() if orders.state is not State.REMOVED}

    def proxies(self) -> list[str]:
        """Return the names of the proxies."""
        return sorted(name for name, member in self.members.items() if member.role == "proxy")

    def site_of(self, name: str) -> str:
        """Return the site of a member, "" if it has not registered."""
        return self.members[name].site if name in self.members else ""

    def groups_of(self, backend: str) -> list[str]:
        """Return the keys of the groups whose rows name a backend."""
        return sorted(key for key, row in self.groups.items() if row.backend == backend)

    def users_of(self, backend: str) -> list[str]:
        """Return the units of the single users whose rows name a backend."""
        return sorted(user_key(sid) for sid, row in self.pins.items() if row.backend == backend)

    def units_of(self, backend: str) -> list[str]:
        """Return the groups and the single users of a backend."""
        return self.groups_of(backend) + self.users_of(backend)

    def unit_of(self, sid: str) -> str:
        """Return the unit of a user: its group, or the user, if it was ever pinned. The
        directory's settings must be there."""
        return user_key(sid) if sid in self.pins else self.group_of(sid)

    def group_of(self, sid: str) -> str:
        """Return the key of a user's group. The directory's settings must be there."""
        assert self.settings is not None
        return home_of(sid, self.settings.groups)

    def row(self, unit: str) -> Assigned | None:
        """Return the assignment of a unit."""
        sid = user_of(unit)
        return self.groups.get(unit) if sid is None else self.pins.get(sid)

    def pending(self) -> dict[str, Move]:
        """Return the moves that are not done, by unit."""
        return {key: move for key, move in self.moves.items() if not move.done}

    def unassigned(self) -> list[str]:
        """Return the keys of the groups that have no row."""
        return [key for key in self.group_keys() if key not in self.groups]

    def group_keys(self) -> list[str]:
        """Return the keys of all groups that the directory has."""
        return [group_key(number) for number in range(self.settings.groups if self.settings is not None else 0)]

    def silent(self, name: str, *, now: float, dead_after_s: float) -> bool:
        """Return whether a member's beat is missing or old. Its clock may differ from
        ours."""
        return name not in self.beats_at or now - self.beats_at[name] > dead_after_s

    def weights(self) -> dict[str, float]:
        """Return the load factors of the backends that may get groups. A backend that
        is evacuated has 0.
        """
        return {
            name: 0.0 if orders.evacuate else float(orders.load_factor)
            for name, orders in self.backends().items()
            if orders.state is State.ONLINE and name in self.members
        }


async def read_tables(directory: Directory) -> Tables:
    """Read and decode all rows. Raises Unavailable."""
    bad: dict[tuple[Kind, str], str] = {}
    decoded: dict[Kind, dict[str, Any]] = {kind: {} for kind in Kind}
    beats: Mapping[str, Row] = {}
    for kind in Kind:
        rows = await directory.all(kind)
        if kind is Kind.BEATS:
            beats = rows
        for key, row in sorted(rows.items()):
            try:
                if kind is Kind.GROUPS and group_number(key) is None:
                    raise ValueError("the key is not a group")
                decoded[kind][key] = msgspec.msgpack.decode(row.value, type=RECORDS[kind])
            except ValueError as error:
                bad[kind, key] = str(error)
    return Tables(
        settings=decoded.pop(Kind.SETTINGS).get(SETTINGS_KEY),
        bad=bad,
        beats_at={name: beats[name].timestamp / 1_000_000 for name in decoded[Kind.BEATS]},
        **{kind.value: of for kind, of in decoded.items()},
    )
