"""The process around the protocols: addresses, TLS, signals, log, metrics, HTTP.

Knows no IMAP, no LMTP and no mail: it is handed callables. `obox.backend` wires it.
"""

from obox.server.http import HttpServer, application
from obox.server.lifecycle import Lifecycle, LoopLag, Reloaded, raise_open_files_limit
from obox.server.listeners import Factory, ListenError, Listeners, inherited_sockets
from obox.server.log import once_a_minute, set_level, set_up_logging
from obox.server.metrics import Metrics
from obox.server.notify import Notifier
from obox.server.proxy import ProxyError, Via
from obox.server.tls import Certificates, TlsError
from obox.server.watch import FileWatch

__all__ = [
    "Certificates",
    "Factory",
    "FileWatch",
    "HttpServer",
    "Lifecycle",
    "ListenError",
    "Listeners",
    "LoopLag",
    "Metrics",
    "Notifier",
    "ProxyError",
    "Reloaded",
    "TlsError",
    "Via",
    "application",
    "inherited_sockets",
    "once_a_minute",
    "raise_open_files_limit",
    "set_level",
    "set_up_logging",
]
