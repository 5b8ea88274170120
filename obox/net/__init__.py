"""Connections: what all protocols have in common, apart from their commands.

connection.py  Connection: admission, a task while there is work, the end
stream.py      Stream, its base: flow control, the timer, STARTTLS
dialogue.py    Dialogue: a conversation with another server, line by line
httplines.py   what a client reads of our own HTTP server
splice.py      Splice: a client's connection that goes on at another server
server.py      Server: makes, lists and ends the connections of a protocol
hub.py         Hub: what the connections of a server share; the drain
registry.py    Registry: the open connections, and the limits of their number
listeners.py   Listeners: bind addresses and accept clients
pending.py     Pending: bounds the connections that have sent nothing valid yet
proxy.py       parses the PROXY header
tls.py         loads and replaces certificates

`dialogue` and `splice` are imported by themselves, where users are forwarded.

A protocol is a driver: a subclass of Connection. It hands the client's bytes to a
parser, and the parser's events to the code that answers them. See
docs/flow.md, "A connection".
"""

from obox.net.connection import Connection, Why, client_tls, speak_for, spoken_for
from obox.net.hub import Hub, Spawn, uncounted
from obox.net.listeners import Factory, ListenError, Listeners, inherited_sockets
from obox.net.pending import Entry, Pending
from obox.net.proxy import ProxyError, Via
from obox.net.registry import Member, NoRoom, Registry, Who, is_loopback
from obox.net.server import Server
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
    "Server",
    "Spawn",
    "Stream",
    "TlsError",
    "Upgrade",
    "Via",
    "Who",
    "Why",
    "client_tls",
    "inherited_sockets",
    "is_loopback",
    "speak_for",
    "spoken_for",
    "starttls",
    "uncounted",
]
