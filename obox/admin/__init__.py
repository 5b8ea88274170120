"""The administrator's verbs for store, caches and server, and the HTTP API for them.

`TABLE` has all verbs, `run` runs a verb, and `http.routes` is the API. `obox.wiring`
passes in an `Admin`. Asking for `TABLE` loads the verbs; a start of a backend does not
(`loading`).
"""

from typing import TYPE_CHECKING

from .params import Nothing, Params, Selection
from .parts import Admin, OwnHttp, Server, Session
from .table import Event, Failure, Needs, Progress, Row, Verb

if TYPE_CHECKING:
    from .table import TABLE


def __getattr__(name: str) -> object:
    if name == "TABLE":
        from .loading import verbs  # `loading` says why

        return verbs()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "TABLE",
    "Admin",
    "Event",
    "Failure",
    "Needs",
    "Nothing",
    "OwnHttp",
    "Params",
    "Progress",
    "Row",
    "Selection",
    "Server",
    "Session",
    "Verb",
]
