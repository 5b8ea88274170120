"""The metrics of this process and their names, as Prometheus text.

Names are API. Numbers that other rooms keep (requests to the bucket, the caches) are
read from callables at each scrape. The other numbers are counters of this module. The
registry belongs to the object, so that a test process can have two backends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

OPS = ("put", "get", "list", "delete", "head", "copy")
KINDS = ("mail", "index", "journal", "fts")
_SORTED = re.compile(rb'^(obox_objectstore_\w+)\{kind="([^"]*)"(,le="[^"]*")?,op="([^"]*)"\}', re.M)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


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


class _Objectstore(Collector):
    def __init__(self, snapshot: Snapshot, bounds_s: Sequence[float]) -> None:
        self._snapshot = snapshot
        self._bounds = [*(str(float(bound)) for bound in bounds_s), "+Inf"]

    def collect(self) -> Iterator[Metric]:
        labels = ["op", "kind"]
        requests = CounterMetricFamily("obox_objectstore_requests", "Requests sent to the bucket.", labels=labels)
        errors = CounterMetricFamily("obox_objectstore_errors", "Requests that failed.", labels=labels)
        size = CounterMetricFamily("obox_objectstore_bytes", "Bytes of payload sent or received.", labels=labels)
        times = HistogramMetricFamily("obox_objectstore_request_seconds", "Time of a request.", labels=labels)
        got = self._snapshot()
        for key in dict.fromkeys([*((op, kind) for op in OPS for kind in KINDS), *got]):
            one = got.get(key)
            requests.add_metric(key, one.requests if one else 0)
            if one is None:
                continue
            errors.add_metric(key, one.errors)
            size.add_metric(key, one.bytes)
            sums = [sum(one.buckets[: i + 1]) for i in range(len(one.buckets))]
            times.add_metric(key, list(zip(self._bounds, map(float, sums), strict=True)), one.seconds)
        yield from (requests, errors, size, times)


class _Source(Collector):
    def __init__(self, prefix: str, read: Callable[[], Mapping[str, float]], doc: str) -> None:
        self._prefix, self._read, self._doc = prefix, read, doc

    def collect(self) -> Iterator[Metric]:
        for name, value in self._read().items():
            full = f"{self._prefix}_{name}"
            if name.endswith("_total"):
                yield CounterMetricFamily(full.removesuffix("_total"), self._doc, value=value)
            else:
                yield GaugeMetricFamily(full, self._doc, value=value)


class Metrics:
    """The registry and the numbers that the protocols keep.

    sessions["imap"].inc() / .dec(), delivered("250", 0.1), logins.labels("failed"),
    loop_lag.observe(seconds) and so on. sessions, commands: by the name of the
    protocol.
    """

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        Gauge("obox_build_info", "The version that runs.", ["version"], registry=registry).labels(version).set(1)
        self.sessions = {
            name: Gauge(f"obox_{name}_sessions", f"Open {name.upper()} connections.", registry=registry)
            for name in ("imap", "pop3", "lmtp")
        }
        self.commands = {
            name: _counter(
                registry, f"obox_{name}_commands", f"{name.upper()} commands answered.", ["command", "result"]
            )
            for name in ("imap", "pop3")
        }
        self.imap_idling = Gauge("obox_imap_idling", "IMAP sessions in IDLE.", registry=registry)
        self.lmtp_deliveries = _counter(registry, "obox_lmtp_deliveries", "Recipients answered after DATA.", ["result"])
        self.logins = _counter(registry, "obox_logins", "Attempts to log in.", ["result"])
        self.forwards = _counter(
            registry, "obox_forwards", "Clients of other backends' users, here and there.", ["protocol", "result"]
        )
        self.splices = Gauge("obox_splices", "Clients that are served through this process.", registry=registry)
        self.spliced_bytes = _counter(
            registry, "obox_spliced_bytes", "Bytes of such clients that have left.", ["direction"]
        )
        self.loop_lag = Histogram(
            "obox_loop_lag_seconds",
            "Delay of timers of the event loop.",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=registry,
        )
        for result in ("ok", "temporary", "permanent"):
            self.lmtp_deliveries.labels(result)
        for result in ("ok", "failed", "unavailable"):
            self.logins.labels(result)

    def delivered(self, result: str, seconds: float) -> None:
        """Count an answer to a recipient, "250" and so on."""
        kind = {"2": "ok", "4": "temporary"}.get(result[:1], "permanent")
        self.lmtp_deliveries.labels(kind).inc()

    def objectstore(self, snapshot: Snapshot, bounds_s: Iterable[float]) -> None:
        """Show requests to the bucket. snapshot: returns numbers by (op, kind).
        bounds_s: bounds of their histogram.
        """
        self.registry.register(_Lazy(_Objectstore(snapshot, tuple(bounds_s))))

    def source(self, room: str, read: Callable[[], Mapping[str, float]], doc: str = "") -> None:
        """Show numbers of a room as obox_<room>_<name>. A name that ends in _total is a
        counter; others are gauges.
        """
        self.registry.register(_Lazy(_Source(f"obox_{room}", read, doc or f"Of {room}.")))

    def exposition(self) -> bytes:
        """Return all metrics as text (CONTENT_TYPE)."""
        # The library sorts labels. The manual has `op` first, and people search for
        # that.
        return _SORTED.sub(rb'\1{op="\4",kind="\2"\3}', generate_latest(self.registry))


class _Lazy(Collector):
    """A collector that is not read at registration, because its room may not have
    started."""

    def __init__(self, inner: Collector) -> None:
        self._inner = inner

    def collect(self) -> Iterable[Metric]:
        return self._inner.collect()

    def describe(self) -> Iterable[Metric]:
        return []


def _counter(registry: CollectorRegistry, name: str, doc: str, labels: Sequence[str]) -> Counter:
    return Counter(name, doc, labels, registry=registry)
