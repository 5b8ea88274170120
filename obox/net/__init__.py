"""Connections: what every protocol does with a client before it looks at a byte.

stream.py      Stream: flow control, timer, TLS      listeners.py  addresses: bind, accept
connection.py  Connection: admission, task, end      pending.py    who has shown nothing yet
registry.py    who is there, and how many may be     proxy.py      the PROXY header
hub.py         what a server's connections share     tls.py        certificates

A protocol is a driver: a subclass of Connection that hands bytes to a parser, and the
parser's events to whatever answers them. docs/flow.md, "A connection".
"""

from obox.net.connection import Connection, Why
from obox.net.hub import Hub, Spawn
from obox.net.listeners import Factory, ListenError, Listeners, inherited_sockets
from obox.net.pending import Entry, Pending
from obox.net.proxy import ProxyError, Via
from obox.net.registry import Member, NoRoom, Registry, Who, is_loopback
from obox.net.stream import CLOSE_TIMEOUT_S, YIELD_S, Flow, Stream, Upgrade
from obox.net.tls import Certificates, TlsError, starttls

__all__ = [
    "CLOSE_TIMEOUT_S",
    "YIELD_S",
    "Certificates",
    "Connection",
    "Entry",
    "Factory",
    "Flow",
    "Hub",
    "ListenError",
    "Listeners",
    "Member",
    "NoRoom",
    "Pending",
    "ProxyError",
    "Registry",
    "Spawn",
    "Stream",
    "TlsError",
    "Upgrade",
    "Via",
    "Who",
    "Why",
    "inherited_sockets",
    "is_loopback",
    "starttls",
]
