"""The scan after an unclean end: opens each mailbox of this backend's users, so that a
LIST finds mails whose line died with a machine.

Such a mail was acknowledged, because its object is in the bucket. Without the scan it
would get its event only when somebody opens the mailbox.

Invariant: the local state remembers that a scan is not over, so a restart begins it
again. The scan takes at most a day, and opens at most one user a second unless there
are more users than seconds. This module does not know what an open finds.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from ..errors import NotFound, OboxError, Unavailable
from ..escaping import element
from ..store.backend.store import MailStore
from ..types import Guid, StorageId

log = structlog.get_logger()

PARTS: Final = 256
"""Users are in the bucket below two hex digits."""

PART_S: Final = 0.9 * 86400 / PARTS
"""Time for the users below two hex digits, so that all take less than a day."""

USER_S: Final = 1.0
"""Longest pause between two users."""

AGAIN_S: Final = 5.0
"""Pause while the bucket does not answer."""

_KEY: Final = "events-scan"


class Scan:
    """See the module's text."""

    def __init__(self, store: MailStore) -> None:
        self._store, self._env = store, store.env
        self._wanted = asyncio.Event()
        self.users = 0
        """How many users were opened since the start."""

    def begin(self) -> None:
        """Begin a scan if the last owner crashed, or an earlier scan was not over."""
        if self._store.unclean or self._env.metacache.get_state(_KEY):
            self.want()

    def want(self) -> None:
        """Begin a scan of all users of this backend, because an owner of some of them
        has crashed."""
        self._env.metacache.put_state(_KEY, b"1")
        self._wanted.set()

    async def run(self) -> None:
        """Make a scan whenever one is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            for number in range(PARTS):
                await self._part(f"{number:02x}/")
            if not self._wanted.is_set():
                self._env.metacache.put_state(_KEY, b"")
                log.info("users were looked through after an unclean end", users=self.users)

    async def _part(self, prefix: str) -> None:
        names = await self._names(prefix)
        for name in names:
            try:
                sid = StorageId(element(name))
            except ValueError:
                continue  # a foreign object
            if self._env.owned.owns(sid):
                await self._user(sid)
                await self._env.sleep(min(USER_S, PART_S / len(names)))

    async def _names(self, prefix: str) -> list[str]:
        while True:
            try:
                return await self._env.names(prefix, kind="mail")
            except Unavailable:
                await self._env.sleep(AGAIN_S)

    async def _user(self, sid: StorageId) -> None:
        self.users += 1
        while True:
            try:
                user = await self._store.load_user(self._store.name_of(sid), sid)
                for guid, entry in list(user.root.entries.items()):
                    if not entry.deleted:
                        await user.box(Guid(guid))
                return
            except Unavailable:
                await self._env.sleep(AGAIN_S)
            except NotFound:
                return
            except OboxError as exc:
                log.warning("user cannot be looked through", user=sid, error=str(exc))
                return
