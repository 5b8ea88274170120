"""Newer versions of what backends write for each other: the directory's word becomes
the bucket's.

`cluster upgrade` writes into the directory what all members read. Each backend then
makes `_format` in the bucket say so, before it writes such a version. The bucket is the
arbiter: what it allows is written, whatever a directory says that is lost or old, and
the directory learns it again.

This module does not know what a version means (`obox.forms`).
"""

from __future__ import annotations

import structlog
from msgspec.structs import replace

from obox.forms import above, beyond, highest, spelled

from .directory import Kind
from .records import SETTINGS_KEY, Orders, State
from .view import View
from .world import Store

log = structlog.get_logger()

COUNTS = (State.ONLINE, State.STANDBY)
"""States of backends that must be able to read what others write."""


class Raising:
    """Looks in each pass over the directory."""

    def __init__(self, view: View, store: Store) -> None:
        self._view, self._store = view, store
        self._told = ""

    async def look(self) -> None:
        """Raises ConfigError, Unavailable."""
        settings, allowed = self._view.settings, self._store.forms()
        if settings is None or allowed is None:
            return
        if wanted := above(settings.forms, allowed):
            unable = self._unable(wanted)
            if unable:
                text = ", ".join(f"{name} cannot read {spelled(versions)}" for name, versions in unable.items())
                if text != self._told:
                    log.warning("newer forms are not written yet, a backend cannot read them", backends=text)
                self._told = text
                return
            await self._store.raise_forms(wanted)
        elif above(allowed, settings.forms):
            fresh = replace(settings, forms=highest(settings.forms, above(allowed, {})))
            await self._view.put(Kind.SETTINGS, SETTINGS_KEY, fresh)

    def _unable(self, wanted: dict[str, int]) -> dict[str, dict[str, int]]:
        """Backends that came after `cluster upgrade` had looked, in the same moment."""
        orders = self._view.orders
        found = {
            name: beyond(wanted, member.reads)
            for name, member in sorted(self._view.members.items())
            if member.role == "backend" and orders.get(name, Orders()).state in COUNTS
        }
        return {name: versions for name, versions in found.items() if versions}
