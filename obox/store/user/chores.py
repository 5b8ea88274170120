"""A user's chores: deletions of objects whose delay is over, and loads of mailboxes
that nobody waits for.

Upkeep runs each chore as a job until it is done (`backend.upkeep`). This module knows
which chores there are, and not when they run.

Invariant: a chore is forgotten only when it is done, or when its mailbox or user is
gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal, Protocol

from ...errors import NotFound
from ...types import Guid
from ..box.index import Index, Owner
from ..jobs import Job, Jobs
from .flush import sweep

Work = Callable[[], Awaitable[object]]


class Worker(Owner, Protocol):
    """What the chores need of their user. working: the number of running tasks."""

    working: int

    @property
    def jobs(self) -> Jobs:
        """Return the jobs of upkeep."""

    async def box(self, guid: Guid) -> Index:
        """Load a mailbox. Raises NotFound, Unavailable, Corrupt."""


class Chores:
    """The chores of a user in memory that are not done.

    due: what each job has to do. swept_at: when it was last noted which mailboxes have
    objects whose delay is over.
    """

    def __init__(self, user: Worker) -> None:
        self.due: dict[Job, Work] = {}
        self.swept_at = user.env.clock()
        self._user = user

    def begin(self, kind: Literal["load"], guid: str, work: Work) -> None:
        """Note a chore of a mailbox, and start it now."""
        self.note(kind, guid, work)
        job = Job(kind, self._user.storage_id, guid)
        self._user.jobs.start(job, self.due[job])

    def note(self, kind: Literal["load", "sweep", "clear"], guid: str, work: Work) -> None:
        """Note a chore of a mailbox."""
        job = Job(kind, self._user.storage_id, guid)
        self.due[job] = partial(self._do, job, work)

    def sweep(self) -> None:
        """Note a chore for each mailbox with objects whose delay is over."""
        user = self._user
        before = (user.env.now() - user.env.delete_delay_s) * 1000
        self.swept_at = user.env.clock()
        for guid, totals in user.root.totals.items():
            if 0 < totals.garbage < before and guid in user.root.entries:
                self.note("sweep", guid, partial(self._sweep, Guid(guid)))

    async def _sweep(self, guid: Guid) -> None:
        await sweep(await self._user.box(guid))

    async def _do(self, job: Job, work: Work) -> None:
        user = self._user
        user.working += 1
        try:
            user.require_there()
            await work()
        except NotFound:
            self.due.pop(job, None)
            raise
        else:
            self.due.pop(job, None)
        finally:
            user.working -= 1
