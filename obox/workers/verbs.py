"""The admin API of a supervisor: it passes a verb on to one worker, or to all.

Theory of operation. A verb for users goes to the workers that serve them. Each worker
gets its own users. A verb for the whole server goes to all workers. The answer has the
rows of all of them, and rows that name no user get the column `worker`. A verb for the
bucket goes to one worker. The supervisor itself runs a verb that concerns only the
process or the configuration. The destination of a `metacache pull` gets the copies of
the worker that serves the user, as this worker sends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import structlog
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from obox.admin import Admin, Event, Failure, Selection, Verb, exits
from obox.admin.http import LINES, PATH
from obox.admin.loading import loaded
from obox.admin.run import Outcome, guarded, prepare
from obox.admin.source import Question
from obox.admin.spread import (
    NAMED,
    Call,
    Goes,
    among_workers,
    decoded,
    events_of,
    for_users,
    is_single,
    joined,
    judged,
)
from obox.cluster import Router, There
from obox.errors import ConfigError, OboxError, Unavailable
from obox.types import StorageId

from . import ask
from .pool import Pool

log = structlog.get_logger()


class Relay:
    """See the module's text; `run` and `answer` are what `obox.admin.http.routes`
    takes."""

    def __init__(self, pool: Pool, router: Router, stop_logins: Callable[[], None]) -> None:
        self._pool = pool
        self._router = router
        self._stop_logins = stop_logins

    async def run(
        self, admin: Admin, name: str, raw: object, outcome: Outcome, *, backend: str = ""
    ) -> AsyncIterator[Event]:
        """Run the verb as `guarded` does."""
        verb = (await loaded()).get(name)
        if verb is None or backend or among_workers(verb) is Goes.HERE:
            async for event in guarded(admin, name, raw, outcome, backend=backend):
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
        calls = await self._calls(admin, verb, params)
        if verb.name == "logErrors":
            async for event in guarded(admin, verb.name, msgspec.to_builtins(params), Outcome()):
                yield {"worker": "", **event} if isinstance(event, dict) else event
        many = verb.per_user and (sum(len(call.users) for call in calls) > 1 or params.all_users)
        partial = False
        async for event in joined(calls, self._asker(verb.name), verb, many=many, column="worker"):
            partial = partial or isinstance(event, Failure)
            yield event
        outcome.code, outcome.message = judged(calls, partial=partial)
        if verb.name in NAMED:  # the worker has changed the file of users
            admin.users.expect_change()
            admin.forget_names()

    def _asker(self, name: str) -> Callable[[Call], AsyncIterator[Event]]:
        async def one(call: Call) -> AsyncIterator[Event]:
            """Raises OSError."""
            body = msgspec.json.encode([[name, call.params, "supervisor"]])
            home = self._pool.workers[call.to].home
            async for event in decoded(ask.request(home / "admin.sock", f"POST {PATH}", body, LINES), call):
                yield event

        return one

    async def _calls(self, admin: Admin, verb: Verb, params: Any) -> list[Call]:
        """Return a call for each worker that is asked. Raises NoUser, Invalid,
        Unavailable."""
        given = msgspec.to_builtins(params)
        workers = self._pool.workers
        if among_workers(verb) is Goes.ONE:
            ready = [name for name, worker in workers.items() if worker.ready.is_set()]
            if not ready:
                raise Unavailable("no worker runs; try again")
            return [Call(ready[0], given)]
        if verb.name in NAMED:
            accounts = await admin.select(Selection(users=[params.user]))
        elif not verb.per_user:
            return [Call(name, given) for name in workers]
        else:
            assert isinstance(params, Selection)
            accounts = await admin.select(params)
        users: dict[str, list[str]] = {}
        for account in accounts:
            route = await self._router.route(account.storage_id)
            assert isinstance(route, There)
            users.setdefault(route.backend, []).append(account.name)
        if gone := set(users) - set(workers):
            raise Unavailable(f"the worker {min(gone)} has ended, and its users are being taken over; try again")
        if verb.name in NAMED:
            return [Call(name, given) for name in users]
        single = is_single(params, len(accounts))
        return [Call(name, for_users(params, of, single=single), of) for name, of in sorted(users.items())]

    async def _stop(self, admin: Admin, params: Any) -> AsyncIterator[Event]:
        """Stop all workers at the same time, and then this process. The rows are
        sums."""
        calls = [Call(name, msgspec.to_builtins(params)) for name in self._pool.workers]
        if not params.dry_run:
            self._pool.let_end()
            self._stop_logins()
        steps: dict[str, list[Mapping[str, Any]]] = {}
        seen: dict[tuple[str, str], int] = {}
        async for call, event in events_of(calls, self._asker("stop")):
            if isinstance(event, dict):
                # A step may come twice. The second is added to the second of other
                # workers.
                at = seen[call.to, event["step"]] = seen.get((call.to, event["step"]), 0) + 1
                steps.setdefault(f"{event['step']} {at}", []).append(event)
        for rows in steps.values():
            seconds = max(row["seconds"] for row in rows)
            yield {"step": rows[0]["step"], "count": sum(row["count"] for row in rows), "seconds": seconds}
        if not params.dry_run:
            admin.backend.stop()

    # -- the source's side of a pull -------------------------------------------------------------------------------

    async def answer(self, question: Question) -> Response:
        """Answer the destination of a `metacache pull`. Raises Unavailable."""
        if question.what == "identity":
            return await self._identity()
        route = await self._router.route(StorageId(question.storage_id))
        assert isinstance(route, There)
        stack = AsyncExitStack()
        try:
            found = await self._ask(stack, route.backend, question)
        except BaseException:
            await stack.aclose()
            raise
        return _Passed(found, stack, route.backend)

    async def _identity(self) -> Response:
        """Name the bucket, and the boots of all workers that run."""
        names = [name for name, worker in self._pool.workers.items() if worker.ready.is_set()]
        if not names:
            raise Unavailable("no worker runs; try again")

        async def one(name: str) -> tuple[int, bytes]:
            async with AsyncExitStack() as stack:
                found = await self._ask(stack, name, Question("identity"))
                try:
                    return found.status, b"".join([piece async for piece in found.body])
                except OSError as error:
                    raise _silent(name) from error

        answers = await asyncio.gather(*map(one, names))
        for status, body in answers:
            if status != 200:
                return Response(body, status, media_type="application/json")
        rows = [msgspec.json.decode(body, type=dict[str, str]) for _, body in answers]
        return JSONResponse({**rows[0], "boots": [row["boot"] for row in rows]})

    async def _ask(self, stack: AsyncExitStack, name: str, question: Question) -> ask.Answer:
        """Ask a worker. Raises Unavailable."""
        worker = self._pool.workers.get(name)
        method, path = question.request()
        try:
            if worker is None:
                raise ConnectionRefusedError
            asking = ask.answer(worker.home / "admin.sock", f"{method} {PATH}/metacache{path}")
            return await stack.enter_async_context(asking)
        except OSError as error:
            raise _silent(name) from error


class _Passed(StreamingResponse):
    """What a worker answers. Its connection ends with the response."""

    def __init__(self, found: ask.Answer, stack: AsyncExitStack, worker: str) -> None:
        super().__init__(_pieces(found, worker), found.status, media_type=found.media_type)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


async def _pieces(found: ask.Answer, worker: str) -> AsyncIterator[bytes]:
    """The stream says at its end that it is complete, so a worker that ends in between
    needs no other sign."""
    try:
        async for piece in found.body:
            yield piece
    except OSError as error:
        log.warning("worker does not answer", worker=worker, error=str(error))


def _silent(worker: str) -> Unavailable:
    return Unavailable(f"the worker {worker} does not answer; try again")
