"""What a process has beside its protocols where several backends serve the users, or
where Postfix asks: the forwarder, its numbers, and the answers to Postfix."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from . import net, rooms
from .auth import Authenticator
from .cluster import Router
from .proxy import Forwarder
from .proxy.lmtp import Users
from .proxy.socketmap import Lookups, SocketmapServer
from .server import Metrics
from .serving import LOGINS, Serving


class LinkCounters:
    """Numbers of forwards and splices as metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Alerts see the first event only if a 0 was shown before it.
        for listener in (*LOGINS, "lmtp", "admin"):
            for result in ("ok", "unavailable", "referred", "refused", "accepted", "forged"):
                metrics.forwards.labels(listener, result)

    def forward(self, listener: str, result: str) -> None:
        self._metrics.forwards.labels(listener, result).inc()

    def splices(self, change: int) -> None:
        self._metrics.splices.inc(change)

    def spliced(self, from_client: int, to_client: int) -> None:
        self._metrics.spliced_bytes.labels("from_client").inc(from_client)
        self._metrics.spliced_bytes.labels("to_client").inc(to_client)


def forwarder_of(
    serving: Serving,
    router: Router,
    authenticator: Authenticator,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Forwarder:
    """Return what passes clients on to the backends of their users.

    sleep: pauses between two attempts. Raises ConfigError.
    """
    config, certificates = serving.used, serving.certificates
    return Forwarder(
        router,
        rooms.link_secrets(config),
        authenticator,
        member=config.cluster.backend,
        certificate=lambda: certificates.digest if certificates else b"",
        counters=LinkCounters(serving.metrics),
        sleep=sleep,
    )


def serve_socketmap(
    serving: Serving,
    users: Callable[[], Users],
    router: Router | None,
    here: Callable[[], tuple[str, Mapping[str, int]]],
) -> None:
    """Make the server that answers Postfix, and bind its addresses. users, router,
    here: see `Lookups`. Raises ListenError."""
    section = serving.used.socketmap
    assert section is not None

    def delimiters() -> str:
        lmtp = serving.used.lmtp
        return lmtp.recipient_delimiter if lmtp is not None else "+"

    trusts = serving.lmtp.trusts if serving.lmtp is not None else net.is_loopback
    serving.socketmap = SocketmapServer(Lookups(users, router, here, delimiters=delimiters), trusts)
    serving.bind("socketmap", section.listen, serving.socketmap)
