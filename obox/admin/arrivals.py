"""Fetches local copies from members that are evacuated, for users who are served here
now. So their mailboxes open without reading bundles, and the evacuated disk gets empty.

While a backend is evacuated and runs, it is asked of whom it has copies although it
does not serve them. The copies of those who are served here are pulled, one user after
the other, and are dropped there. Nothing depends on it: what is missing is read from
the bucket, and a pull that fails is left to the operator (`metacache pull`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from ..errors import OboxError, Unavailable
from ..types import StorageId
from . import pull

if TYPE_CHECKING:
    from ..cluster import There, View
    from .parts import Admin
    from .peers import Sources

log = structlog.get_logger("obox.admin")

EVERY_S: Final = 2.0
"""The pause between two looks at the backends that are evacuated."""
EVERY_S_MAX: Final = 600.0
"""A backend without copies for this backend, or without an answer, is asked less and
less often, at last after this time."""


@dataclass
class _Evacuated:
    """What is known of a backend that is evacuated. failed: users whose copies could
    not be pulled although all answered; they are not tried again."""

    pause_s: float = EVERY_S
    due: float = 0.0
    failed: set[StorageId] = field(default_factory=set)


class Arrivals:
    """Use `run` as a task. me: the name of this backend."""

    def __init__(self, admin: Admin, sources: Sources, view: View, me: str) -> None:
        self._admin, self._sources, self._view, self._me = admin, sources, view, me
        self._known: dict[str, _Evacuated] = {}

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:
                log.error("local copies cannot be fetched, it tries again", error=repr(error), exc_info=error)
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Ask each backend that is evacuated and due."""
        loop = asyncio.get_running_loop()
        names = evacuated(self._view, self._me)
        self._known = {name: self._known.get(name, _Evacuated()) for name in names}
        for name, known in self._known.items():
            if loop.time() < known.due:
                continue
            came = await self._fetch(name, known)
            known.pause_s = EVERY_S if came else min(known.pause_s * 2, EVERY_S_MAX)
            known.due = loop.time() + known.pause_s

    async def _fetch(self, name: str, known: _Evacuated) -> int:
        """Pull the copies of users who are served here. Returns how many users."""
        there = self._sources.find(name, "", None)
        if there is None:
            return 0  # it has no [http] that may be asked
        count, after = 0, ""
        try:
            while (page := await pull.left_behind(self._sources, there, after)) and page[-1] > after:
                after = page[-1]
                for sid in page:
                    if self._admin.store.env.owned.owns(sid) and sid not in known.failed:
                        count += await self._bring(there, sid, known)
        except OboxError as error:
            log.debug("local copies are fetched later", member=name, error=str(error))
        if count:
            log.info("local copies came from an evacuated backend", member=name, users=count)
        return count

    async def _bring(self, there: There, sid: StorageId, known: _Evacuated) -> bool:
        """Returns whether the copies of a user came. Raises Unavailable: the user is
        tried again."""
        try:
            await pull.bring(self._sources, there, self._admin.store, sid)
        except Unavailable:
            raise
        except OboxError as error:
            known.failed.add(sid)
            log.info("local copies of a user stay", user=sid, member=there.backend, error=str(error))
            return False
        return True


def evacuated(view: View, me: str) -> list[str]:
    """Return the other backends that are evacuated and live, as far as it is known."""
    beats = view.beats
    return [
        name
        for name, orders in view.orders.items()
        if orders.evacuate and name != me and name in beats and not beats[name].ending
    ]
