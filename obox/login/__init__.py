"""What the protocols with a login have in common, between `obox.net` and the drivers.

context.py     what the sessions of a server share
needs.py       what the servers and sessions need from outside, as types
login.py       Login: checks a login, and decides where the user is served
link.py        logins that a member of the cluster has checked
session.py     Session: the login, SASL, counts of failures, the end
connection.py  Connection: the base of the drivers
server.py      Server: the base of the servers

CONTRIBUTING.md, "Add a protocol", lists what a protocol adds. This room knows no
commands and no mailboxes.
"""

from obox.login.connection import Connection
from obox.login.context import Context
from obox.login.login import Entered, Forged, NeedsTls, TooSoon
from obox.login.server import Server, starttls
from obox.login.session import Session, decoded

__all__ = [
    "Connection",
    "Context",
    "Entered",
    "Forged",
    "NeedsTls",
    "Server",
    "Session",
    "TooSoon",
    "decoded",
    "starttls",
]
