"""`python -m bench.fscache_order`: the share of reads that a cache of mails serves, by
order of eviction.

It generates an access log of a day. Mails are delivered, most are read soon by one or
two clients, and some are read again and again. From time to time a client copies a
whole mailbox (the scan). The same log runs with plain LRU and with the order of the
cache.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator

from fscache.order import FRESH, ONCE, Entry, Index

MAIL_BYTES = 8192
USERS = 2000
# Mails that each mailbox has before the day begins.
OLD_MAILS = 500
SCAN_EVERY = 400  # events
EVENTS = 40_000


def log(seed: int, *, scans: bool) -> Iterator[tuple[float, str, str]]:
    """Return the log: (time, "put", "read" or "scan", name)."""
    chance = random.Random(seed)
    mails = [[f"{user}/{n}" for n in range(OLD_MAILS)] for user in range(USERS)]
    later: dict[int, list[str]] = {}
    for step in range(EVENTS):
        now = step * 2.0
        for name in later.pop(step, ()):
            yield now, "read", name
        # Some users are much busier than others.
        user = min(int(chance.expovariate(1 / 150)), USERS - 1)
        if chance.random() < 0.5:
            name = f"{user}/{len(mails[user])}"
            mails[user].append(name)
            yield now, "put", name
            for _ in range(chance.choice((1, 1, 2))):
                later.setdefault(step + int(chance.expovariate(1 / 600)) + 1, []).append(name)
        else:  # an important mail is read again and again, most often a recent mail
            back = min(int(chance.expovariate(1 / 4)), len(mails[user]) - 1)
            yield now, "read", mails[user][-1 - back]
        if scans and step % SCAN_EVERY == SCAN_EVERY - 1:
            for name in list(mails[chance.randrange(USERS)]):
                yield now, "scan", name


def lru(events: Iterator[tuple[float, str, str]], places: int) -> tuple[int, int]:
    """Return (hits, reads), without the reads of scans."""
    there: OrderedDict[str, None] = OrderedDict()
    hits = reads = 0
    for _, what, name in events:
        if what == "read":
            reads += 1
            hits += name in there
        there[name] = None
        there.move_to_end(name)
        if len(there) > places:
            there.popitem(last=False)
    return hits, reads


def queues(events: Iterator[tuple[float, str, str]], places: int) -> tuple[int, int]:
    """Return the same with the index of the cache."""
    index = Index()
    hits = reads = 0
    for now, what, name in events:
        if what == "read":
            reads += 1
        if what != "put" and index.hit(name, now) is not None:
            hits += what == "read"
            continue
        index.add(name, Entry(MAIL_BYTES, now, True), FRESH if what == "put" else ONCE, now)
        if len(index) > places:
            index.evict(())
    return hits, reads


def main() -> None:
    print(f"{'cache':>8} {'scans':>6} {'LRU':>7} {'queues':>7}")
    for places in (1000, 2500, 6000):
        for scans in (False, True):
            old, reads = lru(log(1, scans=scans), places)
            new, _ = queues(log(1, scans=scans), places)
            print(f"{places:>8} {'yes' if scans else 'no':>6} {old / reads:>7.1%} {new / reads:>7.1%}")


if __name__ == "__main__":
    main()
