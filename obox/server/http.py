"""HTTP: /metrics, the probes, and the server of the admin API.

This room runs uvicorn's protocol on our own listeners. uvicorn's own server would
handle the signals, and it does not support "/proxy" entries. `/healthz` only shows that
the loop runs. It checks neither bucket nor caches, because a restart would not repair
those. `/readyz` answers 200 while the process is not draining.

Theory of operation. A connection is silent (`obox.net.pending`) until the header of a
request is complete, and again after the response; the header must arrive within
HEADER_S. A silent connection does not count as a request, and is closed first when a
new connection needs its place. The number of requests under way is limited. The probes
and /metrics have a limit of their own, so that requests of the API cannot keep them
from being answered. A probe counts while its answer is made. A client that reads the
answer slowly counts as silent, so that it holds nothing that others need.

    silent --header--> busy --response complete--> silent (kept for KEEP_ALIVE_S)
    silent --HEADER_S--> closed
    busy --BODY_S without a byte of the body, WRITE_S without reading--> cut

Diagnostics: a client that leaves in the middle of a request or a response is not an
error.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from obox.config import Listen
from obox.net import Entry, Pending, Via, is_loopback
from obox.server.exposition import CONTENT_TYPE

KEEP_ALIVE_S: Final = 30
"""Time without a request until the connection is closed. It is longer than the usual 15
s between scrapes, so that a scraper keeps its connection."""
HEADER_S: Final = 10.0
"""Time limit of a request's header, from the connection or the header's first byte
on."""
BODY_S: Final = 30.0
"""Time without a byte of an announced body."""
WRITE_S: Final = 120.0
"""How long a client may read nothing. It is as long as a pull waits."""
CLOSE_S: Final = 10.0
"""Time limit for sending the last bytes; then the connection is cut."""
HEADER_BYTES_MAX: Final = 16 * 1024
READ_BYTES: Final = 4 * 1024
"""Bytes that are read from a connection in a turn. They may hold 700 chunks of a body,
which take 5 ms."""
SILENT_MAX: Final = 256
"""The connections of a server without a request under way. If there are more, the
oldest is closed."""
SILENT_ADDRESS_MAX: Final = 64
"""Such connections of a single client address."""
REQUESTS_MAX: Final = 256
"""Requests under way. Further requests get 503."""
PROBES_MAX: Final = 16
"""Requests of /healthz, /readyz and /metrics under way. They have this limit of their
own."""
METRICS_SHARE: Final = 0.1
"""The share of the loop's time for making the text of /metrics. A text takes some 5 ms.
A client that asks more often gets the last text again."""
METRICS_BURST_S: Final = 0.1
"""CPU time that may be used at once, for some 20 texts, before the share applies."""
PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})


def application(
    *,
    metrics: Callable[[], bytes] | None = None,
    draining: Callable[[], bool] | None = None,
    routes: Sequence[BaseRoute] = (),
    clock: Callable[[], float] = time.monotonic,
    cpu_clock: Callable[[], float] = time.thread_time,
) -> Starlette:
    """Make one ASGI application.

    metrics: returns the text for /metrics. draining: serves the probes; /readyz answers
    503 while it returns true. Without these parameters the paths are 404: if there is a
    section [metrics], [http] has none of the three. routes: the admin API;
    `request.state.local` says whether the request came over a unix socket from root or
    from the user that this process runs as, and `request.state.peer` is the Peer.
    clock, cpu_clock: seconds, and the CPU seconds of this thread, for METRICS_SHARE.
    """

    text, credit_s, counted_at = b"", METRICS_BURST_S, clock()

    async def show_metrics(request: Request) -> Response:
        nonlocal text, credit_s, counted_at
        assert metrics is not None
        now = clock()
        credit_s = min(METRICS_BURST_S, credit_s + (now - counted_at) * METRICS_SHARE)
        counted_at = now
        if credit_s > 0:
            begin = cpu_clock()
            text = metrics()
            credit_s -= cpu_clock() - begin
        return Response(text, media_type=CONTENT_TYPE)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        assert draining is not None
        return PlainTextResponse("draining\n", 503) if draining() else PlainTextResponse("ready\n")

    own: list[BaseRoute] = []
    if metrics is not None:
        own.append(Route("/metrics", show_metrics))
    if draining is not None:
        own += [Route("/healthz", healthz), Route("/readyz", readyz)]
    return Starlette(routes=[*own, *routes])


@dataclass
class Peer:
    """The other end of a connection, for all its requests.

    remote: its address, "" on a unix socket; local: on this machine; tls: the
    connection is encrypted up to here; behind: a proxy is in front. exchange: what a
    route keeps from one request for the next.
    """

    remote: str
    local: bool
    tls: bool
    behind: bool
    exchange: Any = None


class HttpProtocol(H11Protocol, asyncio.BufferedProtocol):
    """uvicorn's protocol, with a time limit for each step of the client, and with small
    reads.

    It also knows which user a unix socket's peer is.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        *,
        unix: bool,
        remote: str | None,
        behind: bool,
        silent: Pending,
    ) -> None:
        super().__init__(config, state, {})
        self._behind = behind
        self._unix = unix
        self._remote = remote
        self._silent = silent
        self._place: Entry | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._read_into = bytearray(READ_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # the server has TCP and Unix sockets only
        super().connection_made(transport)
        if self._remote is None:
            self._remote = self.client[0] if self.client and not self._unix else ""
        tls = transport.get_extra_info("ssl_object") is not None
        peer = Peer(self._remote, self._unix or is_loopback(self._remote), tls, self._behind)
        self.app_state = {"local": self._unix and of_own_user(transport), "peer": peer}
        self._quiet()
        self._within(HEADER_S)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._read_into

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(memoryview(self._read_into)[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._busy:
            self._within(BODY_S if self.cycle.more_body else None)
        elif self._timer is None:  # these are the first bytes of another request
            self._within(HEADER_S)
        self._ends()

    def handle_events(self) -> None:
        """Handle what was received. uvicorn also calls it for pipelined requests."""
        super().handle_events()
        if self._busy and self._place is not None:
            if self.cycle.scope["path"] not in PROBES:
                self._silent.leave(self._place)
                self._place = None
            self._within(BODY_S if self.cycle.more_body else None)

    def on_response_complete(self) -> None:
        self._within(None)
        self._quiet()
        super().on_response_complete()
        if self._busy:  # a pipelined request has begun
            return
        if self.conn.trailing_data[0]:
            self._within(HEADER_S)
        self._ends()

    def connection_lost(self, exc: Exception | None) -> None:
        self._within(None)
        self.resume_writing()
        if self._place is not None:
            self._silent.leave(self._place)
            self._place = None
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self.flow is not None:
            super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Send 400, or end the connection if a response has already begun."""
        if (error := sys.exc_info()[1]) is not None:
            # h11 raises it in a frame that refers to it. That cycle would hold this
            # connection until the garbage collector runs.
            error.__traceback__ = None
        if self._busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            # There is no text, because the request may be a HEAD.
            headers = [("Content-Length", "0"), ("Connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _quiet(self) -> None:
        if self._place is None:
            self._place = self._silent.enter(self._remote or "", self.transport.abort)

    def _within(self, seconds: float | None) -> None:
        """Set the time limit of the client's next step. None: the client has nothing to
        do."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._busy or self.transport.is_closing():
            self.transport.abort()
        else:
            self.transport.close()
            self._within(CLOSE_S)

    def _ends(self) -> None:
        """Limit how long a closing connection waits for its client to read."""
        if self.transport.is_closing():
            self._within(CLOSE_S)


class _Places:
    """ASGI: limits requests under way, and probes apart. A client that leaves is no
    error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._free = {True: PROBES_MAX, False: REQUESTS_MAX}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        probe = scope["path"] in PROBES
        if not self._free[probe]:
            full = PlainTextResponse("too many requests are under way\n", 503, {"Connection": "close"})
            await full(scope, receive, send)
            return
        self._free[probe] -= 1
        held = True

        def leave() -> None:
            nonlocal held
            self._free[probe] += held
            held = False

        async def answer(message: Message) -> None:
            leave()  # the rest depends on the client
            await send(message)

        try:
            await self._app(scope, receive, answer if probe else send)
        except ClientDisconnect:
            pass
        finally:
            leave()


def of_own_user(transport: asyncio.BaseTransport) -> bool:
    """Return whether the peer is root or our own user. SO_PEERCRED, unix(7): pid, uid,
    gid."""
    sock = transport.get_extra_info("socket")
    # The loop's socket object lacks methods that are needed here.
    with socket.socket(fileno=os.dup(sock.fileno())) as own:
        peer = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", peer)
    return uid in (0, os.geteuid())


class HttpServer:
    """Protocols for `Listeners` that serve one application."""

    def __init__(self, app: ASGIApp) -> None:
        self._config = uvicorn.Config(
            _Places(app),
            loop="none",
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        )
        self._config.load()
        self.shared = ServerState()
        self._silent = Pending(SILENT_MAX, SILENT_ADDRESS_MAX)

    def factory(self, entry: Listen, via: Via | None) -> asyncio.Protocol:
        remote = via.client[0] if via is not None and via.client is not None else None
        return HttpProtocol(
            self._config,
            self.shared,
            unix=entry.path is not None,
            remote=remote,
            behind=via is not None,
            silent=self._silent,
        )

    async def close(self) -> None:
        """Finish the requests under way and close idle connections.

        Call it after the listeners have stopped.
        """
        while self.shared.connections:
            for connection in list(self.shared.connections):
                connection.shutdown()
            await asyncio.sleep(0.05)
