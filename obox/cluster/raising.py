"""Newer versions of forms: what the directory allows is written into the bucket.

`cluster upgrade` writes into the directory which versions all members can read. Before
a backend writes such a version, it writes it into `_format` in the bucket. The bucket
decides which versions are written, even if the rows of the directory are lost or old.
The directory then gets the versions of the bucket again.

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
"""Backends in these states must be able to read what others write."""


class Raising:
    """The comparison of the directory's versions with those of the bucket."""

    def __init__(self, view: View, store: Store) -> None:
        self._view, self._store = view, store
        self._logged = ""

    async def look(self) -> None:
        """Compare, and write what is missing on either side. Each pass over the
        directory ends with this. Raises ConfigError, Unavailable."""
        settings, allowed = self._view.settings, self._store.forms()
        if settings is None or allowed is None:
            return
        if wanted := above(settings.forms, allowed):
            unable = self._unable(wanted)
            if unable:
                text = ", ".join(f"{name} cannot read {spelled(versions)}" for name, versions in unable.items())
                if text != self._logged:
                    log.warning("newer forms are not written yet, a backend cannot read them", backends=text)
                self._logged = text
                return
            await self._store.raise_forms(wanted)
        elif above(allowed, settings.forms):
            fresh = replace(settings, forms=highest(settings.forms, above(allowed, {})))
            await self._view.put(Kind.SETTINGS, SETTINGS_KEY, fresh)

    def _unable(self, wanted: dict[str, int]) -> dict[str, dict[str, int]]:
        """Return the backends that cannot read a wanted version, and which. There are
        some if a backend has joined since `cluster upgrade` checked all of them."""
        orders = self._view.orders
        found = {
            name: beyond(wanted, member.reads)
            for name, member in sorted(self._view.members.items())
            if member.role == "backend" and orders.get(name, Orders()).state in COUNTS
        }
        return {name: versions for name, versions in found.items() if versions}
