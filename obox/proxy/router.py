"""The router of a proxy. Its answers come from the view of the directory.

It never answers Here. It does not read the directory for a user whose row is known.
`reread` reads the row of a single user.
"""

from __future__ import annotations

from obox.cluster import (
    Assigned,
    Directory,
    Here,
    Kind,
    There,
    View,
    group_key,
    group_of,
    newer,
)
from obox.errors import Unavailable
from obox.types import StorageId


class ViewRouter:
    """A `Router`."""

    def __init__(self, view: View, directory: Directory) -> None:
        self._view = view
        self._directory = directory

    async def route(self, sid: StorageId) -> Here | There:
        """See `obox.cluster.Router`."""
        assigned = self._view.assigned(*self._place(sid))
        if assigned is None:
            raise Unavailable("No backend serves this user yet")
        return self._there(assigned)

    def known(self, sid: StorageId) -> There | None:
        """See `obox.cluster.Router`."""
        try:
            assigned = self._view.assigned(*self._place(sid))
            return None if assigned is None else self._there(assigned)
        except Unavailable:
            return None

    async def reread(self, sid: StorageId, seen: Assigned) -> Here | There:
        """See `obox.cluster.Router`."""
        for kind, key in dict.fromkeys([(Kind.PINS, str(sid)), self._place(sid)[::-1]]):
            known = self._view.assigned(key, kind)
            if known is None or newer(known, seen):
                row = await self._directory.get(kind, key)
                if row is not None:
                    self._view.note(kind, key, row)
        return await self.route(sid)

    def owner(self, sid: StorageId) -> str | None:
        """Return the backend of a user, None if it is not known."""
        try:
            assigned = self._view.assigned(*self._place(sid))
        except Unavailable:
            return None
        return assigned.backend if assigned is not None else None

    def _place(self, sid: StorageId) -> tuple[str, Kind]:
        """Return the key and kind of the row that says who serves a user."""
        if self._view.assigned(sid, Kind.PINS) is not None:
            # This holds for a removed pin, too: its row follows the group's row.
            return sid, Kind.PINS
        settings = self._view.settings
        if settings is None:
            raise Unavailable("The cluster's directory has not answered yet")
        return group_key(group_of(sid, settings.groups)), Kind.GROUPS

    def _there(self, assigned: Assigned) -> There:
        member = self._view.members.get(assigned.backend)
        if member is None:
            raise Unavailable("The backend of this user is not known yet")
        return There(assigned.backend, member.address, member.ports, assigned)
