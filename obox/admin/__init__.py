"""The administrator's verbs over store, caches and server, and the HTTP API that serves
them.

The table of all verbs is `TABLE`; `run` runs one; `http.routes` is the API. The wiring
hands in an `Admin`.
"""

from . import caches, mailboxes, mails, pull, removal, repair, sessions, storage, upgrade, users
from .params import Nothing, Params, Selection
from .parts import Admin, Server, Session
from .table import TABLE, Event, Failure, Needs, Progress, Row, Verb

__all__ = [
    "TABLE",
    "Admin",
    "Event",
    "Failure",
    "Needs",
    "Nothing",
    "Params",
    "Progress",
    "Row",
    "Selection",
    "Server",
    "Session",
    "Verb",
    "caches",
    "mailboxes",
    "mails",
    "pull",
    "removal",
    "repair",
    "sessions",
    "storage",
    "upgrade",
    "users",
]
