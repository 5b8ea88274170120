"""The administrator's verbs for store, caches and server, and the HTTP API for them.

`TABLE` has all verbs, `run` runs a verb, and `http.routes` is the API. `obox.wiring`
passes in an `Admin`.
"""

from . import (
    caches,
    cluster,
    clusterbackends,
    clustergroups,
    clustersites,
    mailboxes,
    mails,
    pull,
    removal,
    repair,
    sessions,
    storage,
    upgrade,
    users,
)
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
    "cluster",
    "clusterbackends",
    "clustergroups",
    "clustersites",
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
