"""The units of a cluster as a member knows them: groups, and users who were pinned.

A user without a row of kind `pins` belongs to the unit of its group. With the first
such row the user becomes a unit of its own, for ever. If the pin is removed, the unit
follows the group of the user. The user never returns into the group: other backends may
have written to the user meanwhile, and the generation of the group does not show that.

Invariant: `take` makes a user a unit here and in the store in one turn of the loop.
Before that turn the row of the user does not appear.
"""

from __future__ import annotations

from collections.abc import Callable

from .assign import home_of
from .directory import Kind
from .records import Assigned, group_key, place_of, user_key
from .view import Changes, View


class Units:
    """See the module's text. split: gets a user's group and the new unit."""

    def __init__(self, view: View, split: Callable[[str, str], None]) -> None:
        self._view, self._split = view, split
        self._pinned: dict[str, str] = {}
        view.listen(self._changed)

    def _changed(self, changes: Changes) -> None:
        if changes.pins:
            self.take()

    def take(self) -> None:
        """Make users whose pins the view has seen units of their own."""
        settings, pins = self._view.settings, self._view.pins
        if settings is None:
            return
        for sid in pins.keys() - self._pinned.keys():
            unit = self._pinned[sid] = user_key(sid)
            self._split(home_of(sid, settings.groups), unit)

    def of(self, sid: str) -> str:
        """Return the unit of a user. The directory's settings must be known."""
        settings = self._view.settings
        assert settings is not None, "nobody asks before `ready`"
        return self._pinned.get(sid) or home_of(sid, settings.groups)

    def row(self, unit: str) -> Assigned | None:
        """Return the newest assignment of a unit."""
        kind, key = place_of(unit)
        return self._view.assigned(key, kind)

    def rows(self) -> dict[str, Assigned]:
        """Return the newest assignment of each unit."""
        pins = self._view.pins
        rows = {group_key(number): row for number, row in self._view.groups.items()}
        return rows | {unit: pins[sid] for sid, unit in self._pinned.items()}

    def number(self) -> int:
        """Return the highest number of an assignment that was seen."""
        rows = (*self._view.groups.values(), *self._view.pins.values())
        return max((row.number for row in rows), default=0)

    def behind(self) -> set[str]:
        """Return the units whose rows are behind (`View.behind`)."""
        behind = self._view.behind
        groups = {key for kind, key in behind if kind is Kind.GROUPS}
        return groups | {user_key(key) for kind, key in behind if kind is Kind.PINS}
