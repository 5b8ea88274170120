"""The source's side of `metacache pull`: what another backend asks of this one, behind
the same key as the verbs.

    GET    /doveadm/v1/metacache          {"bucket": hex, "backend": name, "boot": name}
    POST   /doveadm/v1/metacache/<sid>    the user's local copies, a stream (docs/format.md, "Pull")
               ?latestOnly=true           refused when the bucket has bundles that the copies here do not know
               &clean=true                everything is uploaded before
    DELETE /doveadm/v1/metacache/<sid>    drop the copies that nobody uses and that hold nothing the bucket lacks:
                                          {"copies": n, "bytes": n, "kept": n, "why": text}

What fails before the first byte is 409 with {"exitCode": n, "message": text}; later the
stream says it itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from ..errors import InUse, Invalid, OboxError, Unavailable
from ..escaping import escape, unescape
from ..types import StorageId
from . import exits
from .caches import cleaned
from .parts import Admin

log = structlog.get_logger("obox.admin")

MEDIA_TYPE: Final = "application/vnd.obox.pull"
SILENCE_S: Final = 120.0
"""After which a pull ends whose destination reads nothing. The user cannot be deleted
while a pull runs."""


def routes(admin: Admin, path: str, refusal: Callable[[Request], Response | None]) -> Sequence[BaseRoute]:
    """refusal: the answer to who may not ask."""

    async def identity(request: Request) -> Response:
        return refusal(request) or await _answer(request, lambda: _identity(admin))

    async def send(request: Request) -> Response:
        return refusal(request) or await _answer(request, lambda: _send(admin, request))

    async def drop(request: Request) -> Response:
        return refusal(request) or await _answer(request, lambda: _drop(admin, request))

    return [
        Route(f"{path}/metacache", identity, methods=["GET"]),
        Route(f"{path}/metacache/{{sid}}", send, methods=["POST"]),
        Route(f"{path}/metacache/{{sid}}", drop, methods=["DELETE"]),
    ]


async def _answer(request: Request, work: Callable[[], Any]) -> Response:
    try:
        answer: Response = await work()
    except OboxError as error:
        code = exits.of(error)
        log.info("asked by another backend", what=request.method, exit_code=code, error=str(error))
        return JSONResponse({"exitCode": code, "message": str(error)}, 409)
    return answer


async def _identity(admin: Admin) -> Response:
    store = admin.store
    if not store.started:
        raise Unavailable("the source is starting or stopping")
    journal = store.journal
    return JSONResponse({"bucket": store.bucket_id().hex(), "backend": journal.backend, "boot": journal.boot})


def _sid(request: Request) -> StorageId:
    """Raises Invalid."""
    sid = request.path_params["sid"]
    try:
        if escape(unescape(sid)) == sid:
            return StorageId(sid)
    except ValueError:
        pass
    raise Invalid(f"{sid!r} is no storage id")


async def _send(admin: Admin, request: Request) -> Response:
    """Raises Outdated, NotFound, InUse, Unavailable."""
    from ..store.pull import Outgoing

    sid, store = _sid(request), admin.store
    latest_only, everything = (request.query_params.get(name) == "true" for name in ("latestOnly", "clean"))
    with ExitStack() as stack:
        stack.enter_context(store.travelling(sid))
        outgoing = Outgoing(store, sid)
        await outgoing.prepare(admin.name_of(sid), everything=everything)
        if latest_only and outgoing.outdated:
            raise exits.Outdated(f"the bucket has newer bundles than the source, of {len(outgoing.outdated)} mailboxes")
        travelling = stack.pop_all()

    return _Stream(outgoing.stream(), travelling)


class _Stream(StreamingResponse):
    """A response at whose end the user counts as no longer on the way, however it ends.

    A connection that takes no data for SILENCE_S is given up.
    """

    def __init__(self, body: AsyncIterator[bytes], travelling: ExitStack) -> None:
        super().__init__(body, media_type=MEDIA_TYPE)
        self._travelling = travelling

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def within(message: Message) -> None:
            async with asyncio.timeout(SILENCE_S):
                await send(message)

        with self._travelling:
            try:
                await super().__call__(scope, receive, within)
            except TimeoutError:
                log.info("a pull was given up: its destination reads nothing", seconds=SILENCE_S)


async def _drop(admin: Admin, request: Request) -> Response:
    """Raises Unavailable, InUse."""
    from ..store import operate

    sid, store = _sid(request), admin.store
    try:
        await operate.let_go(store, sid, upload=True)
    except InUse:
        pass  # the row says what stays
    return JSONResponse(await cleaned(admin, sid))
