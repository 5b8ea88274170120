"""Puts a new configuration into use in a process that serves: a backend or a proxy.

Everything that may fail is done first, by functions that block on files. What they
return applies the change, and fails never.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .changes import Changes
from .config import Config, Tls, by_client
from .errors import ConfigError
from .net import Certificates, TlsError
from .server import set_level
from .serving import LOGINS, Serving

if TYPE_CHECKING:
    from .lmtp import Deliverer, Settings

Use = Callable[[], None]


def prepare_certificates(serving: Serving, read: Tls, used: Tls) -> Use:
    """Read certificates. They are always checked. To turn TLS on or off needs a
    restart.

    read: what the file says. used: what is in use from now on. Raises ConfigError.
    """
    try:
        loaded = Certificates.prepare(read.cert, read.key) if read.cert else None
    except TlsError as error:
        raise ConfigError(str(error)) from error

    def use() -> None:
        if serving.certificates is not None and loaded is not None:
            serving.certificates.use(loaded)
            serving.certificate_watch.follow([*used.cert, *used.key])

    return use


def prepare_protocols(serving: Serving, config: Config, deliverer: Callable[[Settings], Deliverer]) -> Use:
    """Translate a configuration for the servers. deliverer: see `serve_lmtp`."""
    uses: list[tuple[Callable[..., None], Any, Any]] = []
    for name, server in serving.logins.items():
        settings = LOGINS[name].settings
        uses.append((server.use, settings(config), by_client(config, settings)))
    if serving.lmtp is not None:
        of_lmtp = serving.lmtp_settings(config)
        uses.append((serving.lmtp.use, deliverer(of_lmtp), of_lmtp))

    def use() -> None:
        for take, *values in uses:
            take(*values)

    return use


def use_process(serving: Serving, changed: Changes) -> None:
    """Use a configuration for the process and its addresses."""
    server = changed.config.server
    serving.lifecycle.drain_timeout_s = server.shutdown_timeout
    serving.listeners.proxy_networks = server.haproxy_trusted_networks
    serving.listeners.proxy_timeout_s = server.haproxy_timeout
    # Otherwise the level stays as the process or a test has set it.
    if "log.level" in changed.applied:
        set_level(changed.config.log.level)
