"""Warnings when a user's mail grows beyond a share of the quota.

The listener asks for the present sums, and adds nothing up itself. So an event that
comes twice, or late, does no harm. A warning comes for the mails with which a user
passes a share, and once in each life of the backend for a user who stays above it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .event import Event
from .listener import Context, Usage
from .webhook import Poster

USERS_MAX: Final = 10_000
"""Users whose share is remembered. The user who was checked longest ago is
forgotten."""

COMMAND_S: Final = 20.0
"""Time for the command of a warning, less than for a call of a listener."""


class Failed(Exception):
    """The command of a warning failed."""


class QuotaWarnings:
    """The listener of the group `quota`."""

    def __init__(self, context: Context, shares: Sequence[int], *, command: Path | None, poster: Poster | None) -> None:
        """shares: percents, ascending. command, poster: None without."""
        self._context, self._shares = context, shares
        self._command, self._poster = command, poster
        self._known: OrderedDict[str, int] = OrderedDict()

    async def handle(self, event: Event) -> None:
        """Compare a user's sums with the shares, and warn. Raises Failed, and as
        `Poster.post`."""
        if event.kind not in ("QuotaUsageUpdated", "Rescan"):
            return
        usage = await self._context.usage(event.user)
        if usage is None:
            self._known.pop(event.user, None)
            return
        share = self._passed(percent_of(usage))
        before = self._known.get(event.user)
        if before is None:  # it is not known what was said before this backend began
            smaller = usage._replace(storage_bytes=max(0, usage.storage_bytes - event.size))
            before = self._passed(percent_of(smaller))
        if share > before:
            await self._warn(event, usage, share)
        self._known[event.user] = share
        self._known.move_to_end(event.user)
        if len(self._known) > USERS_MAX:
            self._known.popitem(last=False)

    def _passed(self, percent: int) -> int:
        """Return the largest share that is passed; 0 if there is none."""
        return max((share for share in self._shares if percent >= share), default=0)

    async def _warn(self, event: Event, usage: Usage, share: int) -> None:
        if self._poster is not None:
            body = {"kind": "QuotaWarning", "user": event.user, "share": share, **usage._asdict()}
            await self._poster.post({"id": f"{event.user}/QuotaWarning/{share}/{event.stamp}", **body})
        if self._command is not None:
            await self._run(event.user, share, usage)

    async def _run(self, user: str, share: int, usage: Usage) -> None:
        limit = usage.storage_bytes_max or 0
        process = await asyncio.create_subprocess_exec(
            str(self._command),
            user,
            str(share),
            str(usage.storage_bytes),
            str(limit),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(COMMAND_S):
                code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code:
            raise Failed(f"{self._command} ends with {code}")


def percent_of(usage: Usage) -> int:
    """Return the share of the quota that is used: of octets or of mails, whatever is
    more. 0 without a quota."""
    pairs = ((usage.storage_bytes, usage.storage_bytes_max), (usage.messages, usage.messages_max))
    return max((100 * used // limit for used, limit in pairs if limit), default=0)
