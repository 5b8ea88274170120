"""The order of eviction: scans replace scans, a delivered mail stays until its reader
comes, and what is read again stays."""

from __future__ import annotations

from bench.fscache_order import log, lru, queues
from fscache.order import CORRELATED_S, FRESH, KEPT, ONCE, Entry, Index


def entry() -> Entry:
    return Entry(4096, 0.0, False)


def test_a_scan_goes_before_what_was_read_twice_and_what_was_just_delivered() -> None:
    index = Index()
    for n in range(50):
        index.add(f"hot{n}", entry(), ONCE, 0.0)
        index.hit(f"hot{n}", CORRELATED_S + 1)
    for n in range(20):
        index.add(f"new{n}", entry(), FRESH, 100.0)
    for n in range(1000):
        index.add(f"scan{n}", entry(), ONCE, 101.0)
        if len(index) > 100:
            index.evict(())
    assert all(f"hot{n}" in index for n in range(50))
    assert all(f"new{n}" in index for n in range(20))
    assert "scan0" not in index
    assert sum(index.nbytes) == sum(one.space for one in index.values()) == 100 * 4096


def test_parts_of_one_mail_count_once_and_a_ghost_is_kept() -> None:
    index = Index()
    index.add("a", entry(), FRESH, 0.0)
    for now in (500.0, 501.0, 502.0):
        assert index.hit("a", now) is not None
    assert index.get("a").queue == ONCE
    index.hit("a", 501.0 + CORRELATED_S)
    assert index.get("a").queue == KEPT
    index.add("b", entry(), ONCE, 0.0)
    index.pop("a")
    assert index.evict(("b",)) is None
    assert index.evict(()) is not None
    index.add("b", entry(), ONCE, 1.0)
    assert index.get("b").queue == KEPT
    assert index.hit("absent", 1.0) is None


def test_on_a_made_log_scans_cost_less_than_with_lru() -> None:
    """docs/decisions has the figures. The test shows only that the order is better than
    LRU."""
    events = list(log(1, scans=True))
    old, reads = lru(iter(events), 1000)
    new, _ = queues(iter(events), 1000)
    assert (new - old) / reads > 0.10
