"""The admin API of a supervisor: it passes a verb on to one worker, or to all.

Theory of operation. A verb for users goes to the workers that have them, each with its
own users. A verb for the whole server goes to all workers, and the rows of all are the
answer; rows that name no user get the column `worker`. A verb for the bucket goes to
one worker. What concerns the process or the configuration alone is done here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from obox.admin import TABLE, Admin, Event, Failure, Needs, Progress, Selection, Verb, exits
from obox.admin.http import LINES, PATH
from obox.admin.masks import masked
from obox.admin.run import Outcome, guarded, prepare
from obox.cluster import Router, There
from obox.errors import ConfigError, OboxError, Unavailable

from . import ask
from .pool import Pool
from .worker import Worker

HERE: Final = frozenset({"reload"})
ONE: Final = frozenset({"storageCheck", "storageFinishUpgrade", "metacacheUnpack"})
"""Of the bucket, or of a file: every worker would say the same."""
NOT_YET: Final = frozenset({"oboxUserRename"})
"""Two users, who may have two workers."""


@dataclass
class _Call:
    """A verb for one worker. users: names, if the verb is for users."""

    worker: Worker
    params: Mapping[str, Any]
    users: Sequence[str] = ()
    code: int = exits.UNAVAILABLE
    message: str = ""


class Relay:
    """See the module's text; `run` is what `obox.admin.http.routes` takes."""

    def __init__(self, pool: Pool, router: Router, stop_logins: Callable[[], None]) -> None:
        self._pool = pool
        self._router = router
        self._stop_logins = stop_logins

    async def run(self, admin: Admin, name: str, raw: object, outcome: Outcome) -> AsyncIterator[Event]:
        """Run the verb as `guarded` does."""
        verb = TABLE.get(name)
        if verb is None or verb.needs is Needs.CONFIG or name in HERE or _of_directory(verb):
            async for event in guarded(admin, name, raw, outcome):
                yield event
            return
        try:
            _, params = prepare(name, raw)
            work = self._stop(admin, params) if name == "stop" else self._pass_on(admin, verb, params, outcome)
            async for event in work:
                yield event
        except (OboxError, ConfigError) as error:
            outcome.code, outcome.message = exits.of(error), str(error)

    async def _pass_on(self, admin: Admin, verb: Verb, params: Any, outcome: Outcome) -> AsyncIterator[Event]:
        if verb.name in NOT_YET:
            raise Unavailable(
                f"{verb.words}: this command does not work with several workers yet; allowed: [server] workers = 1"
            )
        calls = await self._calls(admin, verb, params)
        if verb.name == "logErrors":
            async for event in guarded(admin, verb.name, msgspec.to_builtins(params), Outcome()):
                yield {"worker": "", **event} if isinstance(event, dict) else event
        many = verb.per_user and (sum(len(call.users) for call in calls) > 1 or params.all_users)
        partial = False
        async for call, event in _all(calls, verb.name):
            partial = partial or isinstance(event, Failure)
            if isinstance(event, Progress):
                if len(calls) == 1:
                    yield event
            elif isinstance(event, Failure) or "username" in event:
                yield event
            elif verb.per_user:
                yield {"username": call.users[0], **event} if many else event
            else:
                yield {"worker": call.worker.name, **event} if len(calls) > 1 else event
        for call in calls:
            if call.code not in (0, exits.PARTIAL) and many and len(call.users) == 1 and len(calls) > 1:
                partial = True
                yield Failure(call.users[0], call.code, call.message)
        outcome.code, outcome.message = _judged(calls, partial)

    async def _calls(self, admin: Admin, verb: Verb, params: Any) -> list[_Call]:
        """Whom to ask what. Raises NoUser, Invalid, Unavailable."""
        given = msgspec.to_builtins(params)
        workers = list(self._pool.workers.values())
        if verb.name in ONE:
            ready = [worker for worker in workers if worker.ready.is_set()]
            if not ready:
                raise Unavailable("no worker runs; try again")
            return [_Call(ready[0], given)]
        if not verb.per_user:
            return [_Call(worker, given) for worker in workers]
        assert isinstance(params, Selection)
        accounts = await admin.select(params)
        users: dict[str, list[str]] = {}
        for account in accounts:
            route = await self._router.route(account.storage_id)
            assert isinstance(route, There)
            users.setdefault(route.backend, []).append(account.name)
        if gone := set(users) - set(self._pool.workers):
            raise Unavailable(f"the worker {min(gone)} has ended, and its users are being taken over; try again")
        rest = {key: value for key, value in given.items() if key not in ("user", "users", "allUsers")}
        single = len(accounts) == 1 and not params.all_users and not masked(params.user or "")
        return [
            _Call(self._pool.workers[name], {**rest, **({"user": of[0]} if single else {"users": of})}, of)
            for name, of in sorted(users.items())
        ]

    async def _stop(self, admin: Admin, params: Any) -> AsyncIterator[Event]:
        """Stop all workers side by side, then this process; the rows are sums."""
        calls = [_Call(worker, msgspec.to_builtins(params)) for worker in self._pool.workers.values()]
        if not params.dry_run:
            self._pool.let_end()
            self._stop_logins()
        steps: dict[str, list[Mapping[str, Any]]] = {}
        seen: dict[tuple[str, str], int] = {}
        async for call, event in _all(calls, "stop"):
            if isinstance(event, dict):
                # A step may come twice: the second is added to the second of others.
                at = seen[call.worker.name, event["step"]] = seen.get((call.worker.name, event["step"]), 0) + 1
                steps.setdefault(f"{event['step']} {at}", []).append(event)
        for rows in steps.values():
            seconds = max(row["seconds"] for row in rows)
            yield {"step": rows[0]["step"], "count": sum(row["count"] for row in rows), "seconds": seconds}
        if not params.dry_run:
            admin.backend.stop()


def _of_directory(verb: Verb) -> bool:
    """Whether the supervisor, which has the directory open, answers as any worker
    would."""
    return verb.needs is Needs.DIRECTORY and not verb.per_user


async def _all(calls: Sequence[_Call], name: str) -> AsyncIterator[tuple[_Call, Event]]:
    """Ask all side by side; their events as they come."""
    events: asyncio.Queue[tuple[_Call, Event] | None] = asyncio.Queue(maxsize=100)

    async def one(call: _Call) -> None:
        try:
            async for event in _one(call, name):
                await events.put((call, event))
        except OSError as error:
            call.code, call.message = exits.UNAVAILABLE, f"worker {call.worker.name}: {error}"
        await events.put(None)

    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    try:
        left = len(tasks)
        while left:
            found = await events.get()
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()


async def _one(call: _Call, name: str) -> AsyncIterator[Event]:
    """Ask a worker. Raises OSError."""
    body = msgspec.json.encode([[name, call.params, "supervisor"]])
    ended = False
    async for line in ask.request(call.worker.home / "admin.sock", f"POST {PATH}", body, LINES):
        event = msgspec.json.decode(line)
        if "row" in event:
            yield event["row"]
        elif "progress" in event:
            yield Progress(**event["progress"])
        elif "failure" in event:
            yield Failure(event["failure"]["user"], event["failure"]["exitCode"], event["failure"]["message"])
        elif "end" in event:
            ended, call.code, call.message = True, event["end"]["exitCode"], event["end"]["message"]
    if not ended:
        raise ConnectionError("the answer was cut short")


def _judged(calls: Sequence[_Call], partial: bool) -> tuple[int, str]:
    """The exit code and message of all answers together."""
    codes = {call.code for call in calls}
    if len(codes) > 1:
        codes.discard(exits.NO_HOST)  # one worker had nobody to kick, and another had
    worst = next((call for call in calls if call.code in codes and call.code), None)
    if worst is None:
        return (exits.PARTIAL if partial else 0), ""
    if len(codes) == 1:
        return worst.code, worst.message
    return exits.PARTIAL, worst.message
