"""The source's side of `metacache pull`: requests of other backends to this backend.
They need the same key as the verbs.

    GET /doveadm/v1/metacache
        returns {"bucket": hex, "backend": name, "boot": name}
    POST /doveadm/v1/metacache/<sid>?latestOnly=true&clean=true
        returns the user's local copies as a stream (docs/format.md, "Pull")
        latestOnly: refuse if the bucket has bundles that are newer than the copies here
        clean: upload everything before
    DELETE /doveadm/v1/metacache/<sid>
        drops copies that are not in use and hold nothing that the bucket lacks;
        returns {"copies": n, "bytes": n, "kept": n, "why": text}

A failure before the first byte is answered with 409 and {"exitCode": n, "message":
text}. A later failure is reported in the stream.
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
from .parts import Admin

log = structlog.get_logger("obox.admin")

MEDIA_TYPE: Final = "application/vnd.obox.pull"
SILENCE_S: Final = 120.0
"""A pull ends if its destination reads nothing for this time. The user cannot be
deleted while a pull runs."""


def routes(admin: Admin, path: str, refusal: Callable[[Request], Response | None]) -> Sequence[BaseRoute]:
    """refusal: returns the response to a request without permission, or None."""

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
        log.info("command of another backend refused", command=request.method, exit_code=code, error=exits.said(error))
        return JSONResponse({"exitCode": code, "message": exits.said(error)}, 409)
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
    raise Invalid(f"{sid!r} is not a storage id")


async def _send(admin: Admin, request: Request) -> Response:
    """Raises Outdated, NotFound, InUse, Unavailable."""
    from ..store.operate.pull import Outgoing

    sid, store = _sid(request), admin.store
    latest_only, everything = (request.query_params.get(name) == "true" for name in ("latestOnly", "clean"))
    with ExitStack() as stack:
        stack.enter_context(store.pulling(sid))
        outgoing = Outgoing(store, sid)
        await outgoing.prepare(admin.name_of(sid), everything=everything)
        if latest_only and outgoing.outdated:
            raise exits.Outdated(f"the bucket has newer bundles than the source, of {len(outgoing.outdated)} mailboxes")
        pulling = stack.pop_all()

    return _Stream(outgoing.stream(), pulling)


class _Stream(StreamingResponse):
    """A response that unmarks the user as being pulled when it ends, however it ends.

    A connection that reads nothing for SILENCE_S is closed.
    """

    def __init__(self, body: AsyncIterator[bytes], pulling: ExitStack) -> None:
        super().__init__(body, media_type=MEDIA_TYPE)
        self._pulling = pulling

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def within(message: Message) -> None:
            async with asyncio.timeout(SILENCE_S):
                await send(message)

        with self._pulling:
            try:
                await super().__call__(scope, receive, within)
            except TimeoutError:
                log.info("pull ended, the destination reads nothing", silent_s=SILENCE_S)


async def _drop(admin: Admin, request: Request) -> Response:
    """Raises Unavailable, InUse."""
    from ..store.backend import upload

    sid, store = _sid(request), admin.store
    try:
        await upload.unload(store, sid, upload=True)
    except InUse:
        pass  # the row says what was kept
    from .caches import cleaned  # with the verbs, not at the start

    return JSONResponse(await cleaned(admin, sid))
