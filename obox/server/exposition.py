"""The metrics of this process as Prometheus text.

This module loads the library of Prometheus, which a start does without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from obox.server.metrics import Counter, Gauge, Histogram, Metrics, Snapshot

OPS = ("put", "get", "list", "delete", "head", "copy")
KINDS = ("mail", "index", "journal", "fts", "events")
_SORTED = re.compile(rb'^(obox_objectstore_\w+)\{kind="([^"]*)"(,le="[^"]*")?,op="([^"]*)"\}', re.M)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """`text` returns all metrics (CONTENT_TYPE)."""

    def __init__(self, metrics: Metrics) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(_Own(metrics))

    def text(self) -> bytes:
        # The library sorts labels. The manual has `op` first, and people search for
        # that.
        return _SORTED.sub(rb'\1{op="\4",kind="\2"\3}', generate_latest(self._registry))


class _Own(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """The rooms may not have started, so nothing is read at the registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        version = GaugeMetricFamily("obox_build_info", "The version that runs.", labels=["version"])
        version.add_metric([metrics.version], 1)
        yield version
        for one in metrics.own:
            yield _shown(one)
        if metrics.requests is not None:
            yield from _of_requests(*metrics.requests)
        for prefix, read, doc in metrics.sources:
            for name, value in read().items():
                full = f"{prefix}_{name}"
                if name.endswith("_total"):
                    yield CounterMetricFamily(full.removesuffix("_total"), doc, value=value)
                else:
                    yield GaugeMetricFamily(full, doc, value=value)


def _shown(one: Gauge | Counter | Histogram) -> Metric:
    if isinstance(one, Gauge):
        return GaugeMetricFamily(one.name, one.doc, value=one.value)
    if isinstance(one, Counter):
        counter = CounterMetricFamily(one.name, one.doc, labels=one.label_names)
        for labels, number in one.numbers.items():
            counter.add_metric(labels, number.value, created=number.began)
        return counter
    times = HistogramMetricFamily(one.name, one.doc, labels=[])
    times.add_metric([], _buckets(one.bounds, one.counts), one.sum)
    times.add_sample(f"{one.name}_created", {}, one.began)
    return times


def _of_requests(snapshot: Snapshot, bounds_s: Sequence[float]) -> Iterator[Metric]:
    labels = ["op", "kind"]
    requests = CounterMetricFamily("obox_objectstore_requests", "Requests sent to the bucket.", labels=labels)
    errors = CounterMetricFamily("obox_objectstore_errors", "Requests that failed.", labels=labels)
    size = CounterMetricFamily("obox_objectstore_bytes", "Bytes of payload sent or received.", labels=labels)
    times = HistogramMetricFamily("obox_objectstore_request_seconds", "Time of a request.", labels=labels)
    got = snapshot()
    for key in dict.fromkeys([*((op, kind) for op in OPS for kind in KINDS), *got]):
        one = got.get(key)
        requests.add_metric(key, one.requests if one else 0)
        if one is None:
            continue
        errors.add_metric(key, one.errors)
        size.add_metric(key, one.bytes)
        times.add_metric(key, _buckets(bounds_s, one.buckets), one.seconds)
    yield from (requests, errors, size, times)


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the cumulated counts, by the text of their bound."""
    texts = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(texts, map(float, accumulate(counts)), strict=True))
