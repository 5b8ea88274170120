"""The HTTP servers of a backend. This module is imported when their first client
connects.

If there is a section [metrics], only its server has /metrics and the probes. The admin
API is on the admin socket. It is also in [http], if there is a key or a unix socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import __version__
from .admin import Admin
from .admin.http import routes
from .admin.run import guarded
from .parts import Parts
from .server import Lifecycle, Metrics
from .server.exposition import Exposition
from .server.http import HttpServer, application

if TYPE_CHECKING:
    from starlette.responses import Response

    from .auth import Forward
    from .proxy import Forwarder
    from .relay import Relay


@dataclass(slots=True, kw_only=True)
class Web:
    """What the servers show. forwarder: None if this backend serves all users. here:
    returns where front ends reach this backend."""

    parts: Parts
    admin: Admin
    metrics: Metrics
    lifecycle: Lifecycle
    forwarder: Forwarder | None
    here: Callable[[], tuple[str, Mapping[str, int]]]

    def servers(self) -> dict[str, HttpServer]:
        """Make the servers of [http], [metrics] and the admin socket."""
        config = self.parts.config
        relay = self._relay()
        own = routes(
            self.admin, key=self._api_key(), version=__version__, run=relay.run if relay is not None else guarded
        )
        api = [*own, *self._nginx(), *self._calls(relay)]
        draining = lambda: self.lifecycle.draining  # noqa: E731 - a name for a short line
        shown = Exposition(self.metrics).text
        out = {"admin": HttpServer(application(routes=api))}
        if config.http is not None and config.metrics is not None:
            out["http"] = HttpServer(application(routes=api))
        elif config.http is not None:
            out["http"] = HttpServer(application(metrics=shown, draining=draining, routes=api))
        if config.metrics is not None:
            out["metrics"] = HttpServer(application(metrics=shown, draining=draining))
        return out

    def _relay(self) -> Relay | None:
        """Return the admin API of the cluster. A worker has none: its supervisor asks
        all workers. Members are sources of `metacache pull`, workers as well."""
        joining, config = self.parts.joining, self.parts.config
        if self.forwarder is None or joining is None:
            return None
        from .proxy.pulls import Sources

        member = joining.membership.member
        self.admin.sources = Sources(self.forwarder, member.view)
        if config.cluster.address.startswith("unix:"):
            return None
        from .relay import Relay

        return Relay(self.admin, self.forwarder, member.view, member.owner, serves=True)

    def _calls(self, relay: Relay | None) -> list[Any]:
        """Return the routes where other members call the admin API and pull local
        copies."""
        if self.admin.sources is None or self.forwarder is None:
            return []
        from .admin import source
        from .proxy import calls

        async def pull(body: bytes, forward: Forward) -> Response:
            return await source.answer(self.admin, body, forward.member)

        pulls = calls.answering(self.forwarder, calls.PULL_PATH, pull)
        return [pulls] if relay is None else [calls.route(self.forwarder, relay.serve), pulls]

    def _nginx(self) -> list[Any]:
        """Return the routes that answer nginx."""
        if self.forwarder is None:
            return []
        from .proxy.nginx import NginxAuth

        return NginxAuth(self.forwarder, self._api_key, self.here).routes()

    def _api_key(self) -> str:
        http = self.parts.config.http
        return http.api_key.reveal() if http is not None else ""
