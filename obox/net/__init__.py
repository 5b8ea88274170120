"""Connections: what every protocol does with a client before it looks at a byte.

connection.py  Connection: admission, a task while there is work, the end
stream.py      Stream, its base: flow control, the timer, STARTTLS
dialogue.py    Dialogue: a conversation with another server, line by line
splice.py      Splice: a client's connection that goes on at another server
hub.py         Hub: what the connections of a server share; the drain
registry.py    Registry: who is there, and how many may be
listeners.py   Listeners: addresses are bound, clients accepted
pending.py     Pending: clients that have shown nothing yet
proxy.py       the PROXY header
tls.py         certificates

`dialogue` and `splice` are imported by themselves, where users are forwarded.

A protocol is a driver: a subclass of Connection that hands bytes to a parser, and the
parser's events to what answers them. docs/flow.md, "A connection".
"""

from obox.net.connection import Connection, Why, speak_for
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
    "speak_for",
    "starttls",
]
