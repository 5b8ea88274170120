"""The rows that say for operators when the boots of a backend began and ended.

The rows are information only: the bucket decides whether a boot is over. This module
does not know how a boot is fenced or replayed.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog
from msgspec.structs import replace

from obox.errors import Unavailable

from .records import BootRow
from .view import View
from .world import Counts, World

log = structlog.get_logger()


class Boots:
    """The rows of this backend's boots, and of other boots whose end is clean."""

    def __init__(self, view: View, me: str, world: World, counts: Counts, *, began: float) -> None:
        """began: unix seconds when this process began."""
        self._view, self._me, self._world, self._counts = view, me, world, counts
        self._boot = ""
        """The present boot, once the directory has a row of it."""
        self._began = began

    async def begin(self, boot: str) -> None:
        """Write a row of a boot, unless it has one. If this process had a boot before,
        that boot was fenced, and its row gets its end. Raises Unavailable."""
        if boot == self._boot:
            return
        now, before = self._world.now(), self._boot
        began = now if before else self._began
        await self._put(boot, BootRow(began))
        if before:
            await self._put(before, BootRow(self._began, ended=now))
            self._counts.fenced += 1
        self._boot, self._began = boot, began

    async def end(self, *, clean: bool) -> None:
        """Write that the boot has ended in order. clean: bundles have everything."""
        if self._boot:
            try:
                await self._put(self._boot, BootRow(self._began, ended=self._world.now(), clean=clean))
            except Unavailable as exc:
                log.info("end of this boot is not in the directory", error=str(exc))

    async def close(self, unclean: Collection[tuple[str, str]]) -> None:
        """Write `clean` into the rows of boots that are over and whose changes bundles
        have. unclean: the other boots, as (backend, boot). Raises Unavailable."""
        beats = self._view.beats
        for key, boot in await self._view.boots():
            backend, _, name = key.rpartition("/")
            present = name == self._boot or (backend in beats and beats[backend].boot == name)
            if not boot.clean and not present and (backend, name) not in unclean:
                await self._view.put_boot(key, replace(boot, clean=True))

    async def _put(self, boot: str, row: BootRow) -> None:
        await self._view.put_boot(f"{self._me}/{boot}", row)
