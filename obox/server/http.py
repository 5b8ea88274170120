"""HTTP: /metrics, the probes, and the place of the admin API.

uvicorn's protocol on our own listeners: its server would take the signals and knows no "/proxy" entries. `/healthz`
answers from the loop alone: nothing of bucket or caches, a restart would not help those. `/readyz` is "not draining".
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from obox.config import Listen
from obox.server.metrics import CONTENT_TYPE
from obox.server.proxy import Via

KEEP_ALIVE_S = 30  # longer than the usual 15 s between scrapes, so that a scraper keeps its connection
HEADER_BYTES_MAX = 16 * 1024
CONCURRENT_MAX = 256  # connections and requests; more get 503


def application(
    *,
    metrics: Callable[[], bytes] | None = None,
    draining: Callable[[], bool] | None = None,
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """Make one ASGI application.

    metrics: text for /metrics. draining: turns the probes on, and /readyz to 503 when true. Without them the paths are
    404: with [metrics] there, [http] has none of the three. routes: the admin API; `request.state.local` says whether
    the request came over a unix socket from root or from the user that this process runs as.
    """

    async def show_metrics(request: Request) -> Response:
        assert metrics is not None
        return Response(metrics(), media_type=CONTENT_TYPE)

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


class _Protocol(H11Protocol):
    """uvicorn's, that knows who is at the other end of a unix socket."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state: dict[str, Any] = {"local": self.app_state["unix"] and _trusted(transport)}
        super().connection_made(transport)


def _trusted(transport: asyncio.BaseTransport) -> bool:
    """Is the peer root or our own user? SO_PEERCRED, unix(7): pid, uid, gid."""
    sock = transport.get_extra_info("socket")
    with socket.socket(fileno=os.dup(sock.fileno())) as own:  # the loop's is no whole socket
        peer = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", peer)
    return uid in (0, os.geteuid())


class HttpServer:
    """Protocols for `Listeners` that serve one application."""

    def __init__(self, app: ASGIApp) -> None:
        self._config = uvicorn.Config(
            app,
            loop="none",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
            limit_concurrency=CONCURRENT_MAX,
        )
        self._config.load()
        self._state = ServerState()

    def factory(self, entry: Listen, via: Via | None) -> asyncio.Protocol:
        return _Protocol(self._config, self._state, {"unix": entry.path is not None})

    async def close(self) -> None:
        """Finish the requests at hand, close idle connections. Call it after the listeners have stopped."""
        while self._state.connections:
            for connection in list(self._state.connections):
                connection.shutdown()
            await asyncio.sleep(0.05)
