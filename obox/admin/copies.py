"""What the source of a `metacache pull` answers: a user's local copies as a stream, and
whether they are dropped. `source` says how it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from itertools import accumulate
from typing import Final

import structlog
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from ..errors import InUse, Invalid, Unavailable
from ..escaping import escape, unescape
from ..turn import Turn
from ..types import StorageId
from . import exits
from .parts import Admin

log = structlog.get_logger("obox.admin")

MEDIA_TYPE: Final = "application/vnd.obox.pull"
NAMED_BYTES: Final = 48 << 10
"""The users of one answer take at most this. The destination reads 64 KiB."""
SILENCE_S: Final = 120.0
"""A pull ends if its destination reads nothing for this time. The user cannot be
deleted while a pull runs."""


async def identity(admin: Admin) -> Response:
    """Return who answers, and of which bucket. Raises Unavailable."""
    store = admin.store
    if not store.started:
        raise Unavailable("the source is starting or stopping")
    journal = store.journal
    return JSONResponse({"bucket": store.bucket_id().hex(), "backend": journal.backend, "boot": journal.boot})


def _checked(sid: str) -> StorageId:
    """Raises Invalid."""
    try:
        if escape(unescape(sid)) == sid:
            return StorageId(sid)
    except ValueError:
        pass
    raise Invalid(f"{sid!r} is not a storage id")


async def send(admin: Admin, sid: str, *, latest_only: bool, clean: bool) -> Response:
    """Return the stream of a user. Raises Outdated, NotFound, InUse, Unavailable."""
    from ..store.operate.pull import Outgoing

    owner, store = _checked(sid), admin.store
    with ExitStack() as stack:
        stack.enter_context(store.pulling(owner))
        outgoing = Outgoing(store, owner)
        await outgoing.prepare(admin.name_of(owner), everything=clean)
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


async def left_behind(admin: Admin, after: str) -> Response:
    """Some users behind `after` of whom copies are here although another backend serves
    them, by storage id. Raises Unavailable."""
    store, turn = admin.store, Turn()
    await store.env.commit_staged()
    found = []
    for space in store.env.metacache.users():
        if turn.over():
            await turn.end()
        if space.user > after and not store.env.owned.owns(space.user):
            found.append(space.user)
    found.sort()
    ends = accumulate(len(sid) + 3 for sid in found)
    return JSONResponse({"users": [sid for sid, end in zip(found, ends, strict=True) if end <= NAMED_BYTES]})


async def drop(admin: Admin, sid: str) -> Response:
    """Drop a user's copies. Raises Unavailable, InUse."""
    from ..store.backend import upload

    owner, store = _checked(sid), admin.store
    try:
        await upload.unload(store, owner, upload=True)
    except InUse:
        pass  # the row says what was kept
    from .caches import cleaned  # loaded with the verbs

    return JSONResponse(await cleaned(admin, owner))
