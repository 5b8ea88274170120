"""Jobs that are tried again until they succeed, independently of each other.

Theory of operation. A job has a name: its kind, a user and a mailbox. A job that fails
waits before the next attempt, longer each time. Other jobs do not wait for it:

    idle --start--> running --done--> idle
                       |
                       +--failed--> waiting --its time has come, start--> running
                                       |
                                       +--nobody starts it any more--> idle

Failures because the bucket does not answer are logged once a minute for all jobs. Every
other failure is logged with the job's name. `failing` has the waiting jobs, for metrics
and operators.

Invariant: a job runs at most once at a time, at most `at_once` jobs run, and no failure
leaves here. This module does not know what a job does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

import structlog

from ..errors import NotFound, OboxError, Unavailable
from .once import EveryMinute

log = structlog.get_logger()

FIRST_DELAY_S: Final = 5.0
"""Delay after the first failure. It doubles with each further failure."""

UNAVAILABLE_DELAY_S_MAX: Final = 20.0
"""Longest delay while the bucket does not answer, so that jobs continue soon after it
answers."""

DELAY_S_MAX: Final = 600.0
"""Longest delay of a job that fails for another reason. It is so long that a damaged
mailbox costs nothing."""

STALE_S: Final = 60.0
"""How long after its time a waiting job is kept, if nobody starts it. A job that is
still needed is started within seconds."""

Kind = Literal["flush", "carry", "load", "totals", "unload", "sweep", "clear", "adopt", "unflushed", "journal"]


class Job(NamedTuple):
    """user: a storage id. mailbox: a GUID, `root`, or "" for all of the user's
    mailboxes."""

    kind: Kind
    user: str = ""
    mailbox: str = ""


@dataclass(slots=True)
class Failure:
    """Why a job waits. next_at: seconds of the jobs' clock."""

    attempts: int
    error: str
    next_at: float


class Jobs:
    """See the module's text."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        at_once: int,
    ) -> None:
        """clock: seconds. spawn: runs a task that outlives the caller."""
        self._clock = clock
        self._spawn = spawn
        self._gate = asyncio.Semaphore(at_once)
        self._running: set[Job] = set()
        self._forgotten: set[Job] = set()
        """Jobs that run, and whose failure does not matter any more."""
        self._outage = EveryMinute(clock)
        self.failing: dict[Job, Failure] = {}
        self.failures: Counter[Kind] = Counter()

    def ready(self, job: Job) -> bool:
        """Return whether the job neither runs nor waits."""
        failure = self.failing.get(job)
        return job not in self._running and (failure is None or self._clock() >= failure.next_at)

    def waits(self, job: Job) -> bool:
        """Return whether the job has failed and does not run."""
        return job in self.failing and job not in self._running

    @property
    def idle(self) -> bool:
        """Return whether no job runs. Only tests ask this."""
        return not self._running

    def start(self, job: Job, work: Callable[[], Awaitable[object]]) -> None:
        """Run a job in a task of its own, unless it runs or waits."""
        if self.ready(job):
            self._running.add(job)
            self._spawn(self._run(job, work))

    async def attempt(self, job: Job, work: Callable[[], Awaitable[object]]) -> bool:
        """Run a job in the present task. Returns True if it succeeded, and False if it
        failed, runs or waits."""
        if not self.ready(job):
            return False
        self._running.add(job)
        await self._run(job, work)
        return job not in self.failing

    def check(self, job: Job, work: Callable[[], object]) -> bool:
        """Run a job that awaits nothing, unless it runs or waits. Returns whether it
        was run."""
        if not self.ready(job):
            return False
        try:
            work()
        except Exception as exc:
            self._failed(job, exc)
        else:
            self.failing.pop(job, None)
        return True

    def forget(self, user: str) -> None:
        """Drop waiting jobs of a user that has been deleted or belongs to another
        backend, and ignore the failures of jobs that run."""
        for job in [job for job in self.failing if job.user == user]:
            del self.failing[job]
        self._forgotten |= {job for job in self._running if job.user == user}

    def drop_stale(self) -> None:
        """Drop waiting jobs that nobody starts any more. Another flush has uploaded the
        mailbox meanwhile, or the mailbox or its user is gone."""
        limit = self._clock() - STALE_S
        for job in [job for job, failure in self.failing.items() if failure.next_at < limit]:
            if job not in self._running:
                del self.failing[job]

    def users(self) -> set[str]:
        """Return the users of jobs that run or wait."""
        return {job.user for job in (*self.failing, *self._running) if job.user}

    def figures(self) -> Mapping[str, float]:
        """Return numbers for metrics, by kind."""
        failing = Counter(job.kind for job in self.failing)
        return {
            **{f"upkeep_{kind}_failing": failing[kind] for kind in get_args(Kind)},
            **{f"upkeep_{kind}_failures_total": self.failures[kind] for kind in get_args(Kind)},
        }

    async def _run(self, job: Job, work: Callable[[], Awaitable[object]]) -> None:
        try:
            async with self._gate:
                await work()
        except NotFound as exc:  # the user or mailbox was deleted while the job waited
            self.failing.pop(job, None)
            log.debug(
                "upkeep job dropped, its user or mailbox does not exist",
                job=job.kind,
                user=job.user,
                mailbox=job.mailbox,
                error=str(exc),
            )
        except Exception as exc:
            self._failed(job, exc)
        else:
            self.failing.pop(job, None)
        finally:
            self._running.discard(job)
            self._forgotten.discard(job)

    def _failed(self, job: Job, exc: Exception) -> None:
        if job in self._forgotten:
            log.debug("upkeep job dropped, its user is gone", job=job.kind, user=job.user, mailbox=job.mailbox)
            return
        failure = self.failing.get(job)
        attempts = 1 if failure is None else failure.attempts + 1
        longest = UNAVAILABLE_DELAY_S_MAX if isinstance(exc, Unavailable) else DELAY_S_MAX
        delay = min(FIRST_DELAY_S * 2 ** min(attempts - 1, 16), longest)
        self.failing[job] = Failure(attempts, str(exc) or repr(exc), self._clock() + delay)
        self.failures[job.kind] += 1
        if isinstance(exc, Unavailable) and not self._outage.due():
            return
        more = {"more": self._outage.skipped()} if isinstance(exc, Unavailable) else {}
        log.error(
            "upkeep failed, it tries again",
            job=job.kind,
            user=job.user,
            mailbox=job.mailbox,
            error=str(exc) if isinstance(exc, OboxError) else repr(exc),
            attempts=attempts,
            next_try_s=delay,
            exc_info=None if isinstance(exc, OboxError) else exc,
            **more,
        )
