"""The metrics of this process and their names. `obox.server.exposition` writes them as
Prometheus text.

Names are API. Numbers that other rooms keep (requests to the bucket, the caches) are
read from callables at each scrape. The other numbers are counted here, on the loop
alone. They belong to the object, so that a test process can have two backends.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol


class Requests(Protocol):
    """Numbers of an (op, kind). buckets[i]: requests that took at most bounds[i]
    seconds, not cumulated; the last item has all others.
    """

    requests: int
    errors: int
    bytes: int
    seconds: float
    buckets: list[int]


Snapshot = Callable[[], Mapping[tuple[str, str], Requests]]
Read = Callable[[], Mapping[str, float]]


class Number:
    """A number, and when it began."""

    __slots__ = ("began", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.began = time.time()

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Gauge(Number):
    """A number without labels that goes up and down."""

    __slots__ = ("doc", "name")

    def __init__(self, name: str, doc: str) -> None:
        super().__init__()
        self.name, self.doc = name, doc


class Counter:
    """A number for each combination of labels. name: without `_total`."""

    __slots__ = ("doc", "label_names", "name", "numbers")

    def __init__(self, name: str, doc: str, *label_names: str) -> None:
        self.name, self.doc, self.label_names = name, doc, label_names
        self.numbers: dict[tuple[str, ...], Number] = {}

    def labels(self, *labels: str) -> Number:
        """Return the number of these labels, which is shown from now on."""
        found = self.numbers.get(labels)
        if found is None:
            found = self.numbers[labels] = Number()
        return found


class Histogram:
    """How often a value was at most each of the bounds, not cumulated. The last item of
    `counts` has all others."""

    __slots__ = ("began", "bounds", "counts", "doc", "name", "sum")

    def __init__(self, name: str, doc: str, bounds: Sequence[float]) -> None:
        self.name, self.doc, self.bounds = name, doc, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.began = time.time()

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


LAG_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Bounds of the histogram of delays."""


class Metrics:
    """The numbers that the protocols keep, and where those of other rooms are read.

    sessions["imap"].inc(-1), logins.labels("failed").inc(), loop_lag.observe(seconds)
    and so on. sessions, commands: by the name of the protocol.
    """

    def __init__(self, version: str, logins: Iterable[str] = ()) -> None:
        """logins: the protocols in which clients log in."""
        self.version = version
        self.sessions = {
            name: Gauge(f"obox_{name}_sessions", f"Open {name.upper()} connections.") for name in (*logins, "lmtp")
        }
        self.commands = {
            name: Counter(f"obox_{name}_commands", f"{name.upper()} commands answered.", "command", "result")
            for name in logins
        }
        self.imap_idling = Gauge("obox_imap_idling", "IMAP sessions in IDLE.")
        self.lmtp_deliveries = Counter("obox_lmtp_deliveries", "Recipients answered after DATA.", "result")
        self.logins = Counter("obox_logins", "Attempts to log in.", "result")
        self.forwards = Counter(
            "obox_forwards", "Clients of other backends' users, here and there.", "protocol", "result"
        )
        self.splices = Gauge("obox_splices", "Clients that are served through this process.")
        self.spliced_bytes = Counter("obox_spliced_bytes", "Bytes of such clients that have left.", "direction")
        self.loop_lag = Histogram("obox_loop_lag_seconds", "Delay of timers of the event loop.", LAG_S)
        for result in ("ok", "temporary", "permanent"):
            self.lmtp_deliveries.labels(result)
        for result in ("ok", "failed", "unavailable"):
            self.logins.labels(result)
        self.requests: tuple[Snapshot, Sequence[float]] | None = None
        self.sources: list[tuple[str, Read, str]] = []

    @property
    def own(self) -> list[Gauge | Counter | Histogram]:
        """Return the numbers of this object, in the order in which they are shown."""
        alone = [one for one in vars(self).values() if isinstance(one, Gauge | Counter | Histogram)]
        return [*self.sessions.values(), *self.commands.values(), *alone]

    def delivered(self, result: str, seconds: float) -> None:
        """Count an answer to a recipient, "250" and so on."""
        kind = {"2": "ok", "4": "temporary"}.get(result[:1], "permanent")
        self.lmtp_deliveries.labels(kind).inc()

    def objectstore(self, snapshot: Snapshot, bounds_s: Sequence[float]) -> None:
        """Show requests to the bucket. snapshot: returns numbers by (op, kind).
        bounds_s: bounds of their histogram.
        """
        self.requests = snapshot, bounds_s

    def source(self, room: str, read: Read, doc: str = "") -> None:
        """Show numbers of a room as obox_<room>_<name>. A name that ends in _total is a
        counter; others are gauges.
        """
        self.sources.append((f"obox_{room}", read, doc or f"Of {room}."))
