"""Calls of the admin API between members, over [http].

Theory of operation. Both ends prove that they know a secret of the cluster, with the
messages of the trusted link (`obox.auth.link`) as headers of two requests on one
connection:

    POST PATH, Authorization: X-OBOX-LINK message 1
        401, WWW-Authenticate: X-OBOX-LINK message 2
    POST PATH, Authorization: X-OBOX-LINK message 3, and the body
        200, lines of JSON

Message 3 covers the nonces of both ends, the certificate, and a digest of method, path
and body. An exchange belongs to its connection and serves a single call. So a message
that somebody records and sends again is refused.

Diagnostics: a call whose proof is wrong gets 403. It is logged with the peer's address,
and counts as a failed login of that address. The sender raises OSError if a member does
not answer, and LinkRefused if the member cannot prove itself. This module does not know
what a call does.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import structlog

from obox.auth import LINK, Forward, LinkOwner, LinkRefused, LinkSender, SaslError
from obox.cluster import There
from obox.errors import OboxError
from obox.net import is_loopback
from obox.net.dialogue import watch
from obox.net.httplines import LINE_BYTES_MAX, head, lines, pieces
from obox.unixsocket import short_name

from .dial import CONNECT_S, Place, context, place_of
from .forward import Forwarder

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

log = structlog.get_logger("obox.proxy")

PATH: Final = "/cluster/v1/call"
PULL_PATH: Final = "/cluster/v1/metacache"
"""Where the destination of `metacache pull` asks its source."""
LISTENER: Final = "admin"
"""The forward of a call names this listener, which is no listener of mail."""
CALL_BYTES_MAX: Final = 8 << 20
"""The size of a call's body. Names and assignments of some 50,000 users fit into it."""
PROVE_S: Final = 5.0
"""A member must prove itself within this time after the connection."""
SILENT_S: Final = 300.0
"""The longest time between two lines of an answer. Long verbs report their progress."""
STREAM_BYTES: Final = 256 * 1024
"""What is read ahead of the stream of a pull."""


class Peer(Protocol):
    """The connection of a request, as `obox.server.http` describes it."""

    remote: str
    local: bool
    tls: bool
    behind: bool
    exchange: Any


def digest(method: str, path: str, body: bytes) -> bytes:
    """Return the digest of a request that a proof covers. Each part is preceded by its
    length."""
    parts = (method.encode(), path.encode(), hashlib.sha256(body).digest())
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


# -- the sender's end ------------------------------------------------------------------------------------------------


class Signer(Protocol):
    """The member that calls; a `Forwarder` is one."""

    @property
    def member(self) -> str: ...

    def sender(self, forward: Forward, binding: bytes) -> LinkSender:
        """Return our side of the link. Raises LinkRefused if we have no secret."""


class Answer(NamedTuple):
    status: int
    body: AsyncIterator[bytes]
    """In lines, or in pieces. Raises OSError."""


async def call(signer: Signer, there: There, body: bytes) -> AsyncIterator[bytes]:
    """Call a member, and yield the lines of its answer. Raises OSError, LinkRefused."""
    async with _asked(signer, there, PATH, body, lines, LINE_BYTES_MAX) as answer:
        if answer.status != 200:
            raise ConnectionRefusedError(f"it refuses the call: HTTP {answer.status}; its log says why")
        async for line in answer.body:
            yield line


@asynccontextmanager
async def pull(signer: Signer, there: There, question: bytes) -> AsyncIterator[Answer]:
    """Ask the source of a pull, whose answer comes in pieces. Raises OSError,
    LinkRefused."""
    async with _asked(signer, there, PULL_PATH, question, pieces, STREAM_BYTES) as answer:
        yield answer


@asynccontextmanager
async def _asked(
    signer: Signer,
    there: There,
    path: str,
    body: bytes,
    reading: Callable[[asyncio.StreamReader, dict[str, str]], AsyncIterator[bytes]],
    buffered: int,
) -> AsyncIterator[Answer]:
    reader, writer = await _connect(place_of(there, "http"), buffered)
    try:
        async with asyncio.timeout(PROVE_S):
            await _prove(signer, there, path, body, reader, writer)
        async with asyncio.timeout(SILENT_S):
            await writer.drain()
            status, headers = await head(reader)
        yield Answer(status, _patiently(reading(reader, headers)))
    finally:
        writer.transport.abort()


async def _patiently(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the parts, each within SILENT_S. Raises TimeoutError."""
    while True:
        async with asyncio.timeout(SILENT_S):
            part = await anext(parts, None)
        if part is None:
            return
        yield part


async def _connect(place: Place, buffered: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(CONNECT_S):
        if place.path is not None:
            with short_name(place.path) as name:
                return await asyncio.open_unix_connection(name, limit=buffered)
        tls = context() if place.tls else None
        # No name is sent, so that the member shows its first certificate.
        name_sent = "" if tls else None
        reader, writer = await asyncio.open_connection(
            place.host, place.port, ssl=tls, limit=buffered, server_hostname=name_sent
        )
    watch(writer.transport)
    return reader, writer


def _binding(writer: asyncio.StreamWriter) -> bytes:
    """See `dial.binding`. Raises ConnectionRefusedError."""
    tls = writer.get_extra_info("ssl_object")
    if tls is not None:
        return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").digest()
    peer = writer.get_extra_info("peername")
    if isinstance(peer, tuple) and not is_loopback(str(peer[0])):
        raise ConnectionRefusedError("it is another machine, and its [http] has no TLS")
    return b""


async def _prove(
    signer: Signer,
    there: There,
    path: str,
    body: bytes,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Exchange the proofs and send the body. Raises OSError, LinkRefused."""
    assigned = there.assigned
    forward = Forward(
        user="",
        storage_id="",
        remote="",
        listener=LISTENER,
        member=signer.member,
        backend=assigned.backend,
        digest=digest("POST", path, body),
    )
    sender = signer.sender(forward, _binding(writer))
    writer.write(_request(path, sender.first(), b""))
    status, headers = await head(reader)
    async for _ in lines(reader, headers):
        pass
    scheme, _, challenge = headers.get("www-authenticate", "").partition(" ")
    if status == 404:
        raise ConnectionRefusedError("it takes no calls: it has no cluster.secret_file, or is an older version")
    if status != 401 or scheme != LINK:
        raise ConnectionRefusedError(f"it refuses the link: HTTP {status}; its log says why")
    writer.write(_request(path, sender.answer(challenge.encode()), body))


def _request(path: str, message: bytes, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: member\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Authorization: {LINK} ".encode() + message + b"\r\n\r\n" + body


# -- the other end ---------------------------------------------------------------------------------------------------

Serve = Callable[[bytes, Forward], AsyncIterator[bytes]]
"""A function that runs a call. It gets the body, and what the proof says about the
sender. It yields the lines of the answer."""


def route(forwarder: Forwarder, serve: Serve) -> Route:
    """Return the route of [http] that takes calls."""
    from starlette.responses import StreamingResponse

    async def run(body: bytes, forward: Forward) -> Response:
        return StreamingResponse(serve(body, forward), media_type="application/x-ndjson")

    return answering(forwarder, PATH, run)


def answering(forwarder: Forwarder, path: str, answer: Callable[[bytes, Forward], Awaitable[Response]]) -> Route:
    """Return a route of [http] for members alone. answer: gets the body, and what the
    proof says of the sender."""
    from starlette.routing import Route

    async def take(request: Request) -> Response:
        found = await _checked(forwarder, request)
        return await answer(*found) if isinstance(found, tuple) else found

    return Route(path, take, methods=["POST"])


async def _checked(forwarder: Forwarder, request: Request) -> tuple[bytes, Forward] | Response:
    """Return the body and the forward of a call, or the response that refuses it."""
    from starlette.responses import Response

    peer: Peer = request.state.peer
    scheme, _, message = request.headers.get("authorization", "").partition(" ")
    if not forwarder.secrets or scheme != LINK:
        return Response(status_code=404)
    if peer.behind:
        return Response("the trusted link does not go through a proxy\n", 403)
    owner: LinkOwner | None = peer.exchange
    peer.exchange = None
    try:
        if owner is None:
            begun = await forwarder.exchange(remote=peer.remote, local=peer.local, tls=peer.tls)
            challenge = begun.start(LINK, message.encode())
            peer.exchange = begun
            header = f"{LINK} {base64.b64encode(challenge.data).decode()}"
            return Response(status_code=401, headers={"WWW-Authenticate": header})
        forward = owner.step(message.encode())
        if not isinstance(forward, Forward) or forward.listener != LISTENER:
            raise LinkRefused("a forward of something else")
        body = await _body(request)
        if digest(request.method, request.url.path, body) != forward.digest:
            raise LinkRefused("the request is not the one that was signed")
        if forward.backend != forwarder.member:
            raise LinkRefused(f"the call is for {forward.backend}")
    except (LinkRefused, SaslError) as error:
        forwarder.forged(str(error), remote=peer.remote, listener=LISTENER)
        return Response(status_code=403)
    except OboxError as error:
        return Response(f"{error}\n", 403)
    forwarder.counters.forward(LISTENER, "accepted")
    return body, forward


async def _body(request: Request) -> bytes:
    """Read the body. Raises LinkRefused: it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > CALL_BYTES_MAX:
            raise LinkRefused(f"a call of more than {CALL_BYTES_MAX} bytes")
    return bytes(body)
