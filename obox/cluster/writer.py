"""Writes assignments into the directory, and reads them back.

Invariant: the rows of units that are released are in the view after `write`, whether
the directory has answered or not. Their units may have reached the other backend, so
this backend does not serve them any more. Diagnostics: each batch is logged with how
many of its rows the directory shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from obox.errors import Unavailable

from .records import Assigned, place_of
from .units import Units
from .view import View
from .world import World

log = structlog.get_logger()

READ_BACK_S: Final = 0.05
"""The time between the write of a row and the pass that reads it. Writes that backends
make at the same time differ by less than that."""

WRITES_AT_ONCE: Final = 256
"""At most 256 rows are written at the same time. A directory refuses some thousands,
and a dead backend may have had more pinned users."""


class Writer:
    """See the module's text. highest: returns the highest number of an assignment that
    was seen."""

    def __init__(self, view: View, units: Units, highest: Callable[[], int], world: World) -> None:
        self._view, self._units, self._highest, self._world = view, units, highest, world

    async def write(self, to: str, units: Mapping[str, str], *, released: bool) -> dict[str, Assigned]:
        """Assign units to a backend. units: with their homes. Returns the rows that the
        directory still shows a little later.

        Raises Unavailable; then some rows may have been written.
        """
        number, token = self._highest() + 1, int.from_bytes(self._world.random_bytes(8), "big")
        rows = {
            unit: Assigned(to, number, token, released=released, removed=self._follows(unit, to), home=home)
            for unit, home in units.items()
        }
        gate, failures = asyncio.Semaphore(WRITES_AT_ONCE), list[Unavailable]()

        async def put(unit: str, row: Assigned) -> None:
            async with gate:
                if not failures:
                    try:
                        await self._view.put(*place_of(unit), row, insist=released)
                    except Unavailable as exc:
                        failures.append(exc)

        await asyncio.gather(*(put(unit, row) for unit, row in rows.items()))
        if failures:
            raise failures[0]
        await self._world.sleep(READ_BACK_S)
        if not await self._view.poll():
            raise Unavailable("the directory does not answer")
        lost = self._units.behind()
        kept = {unit: row for unit, row in rows.items() if self._units.row(unit) == row and unit not in lost}
        log.info("groups assigned", to=to, groups=len(kept), wanted=len(units), assignment=number)
        return kept

    def _follows(self, unit: str, to: str) -> bool:
        """Return whether the pin of a user stays removed, unless a move asks for it."""
        row, move = self._units.row(unit), self._view.moves.get(unit)
        asked = move is not None and not move.done and move.to == to
        return row is not None and row.removed and not asked
