"""`python -m bench.priorities`: requests for indexes with the weights of the metacache
and with LRU.

This is a simulation without a server. It generates an access log of deliveries and
sessions over a day and the size of each copy, and applies the cleaner's rule (start
above max_space, lowest weight first, down to CLEAN_TO of it; changed copies are
uploaded before). It counts GETs of bundles for missing copies, and PUTs: those that
were due anyway and those that the cleaner made early. Deterministic: the same seed
gives the same figures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from metacache import CLEAN_TO, SizeWeights, Weights

KIB, MIB = 1 << 10, 1 << 20
DAY_S, HOUR_S = 86400.0, 3600.0
USERS = 1500
FOLDERS = 8  # beside INBOX and Junk
UPLOAD_S = 300.0  # upload_interval
RESCAN_MAILS = 10  # max_rescan_mail_count
CLOSE_S = 2.0
ROOT, INBOX, JUNK = 0, 1, 2
DOVECOT = Weights(
    ((10, DAY_S), (10, DAY_S), (50, HOUR_S), (100, 0)),
    SizeWeights(2 * MIB, 30, 1 << 30, 120),
)


class Access(NamedTuple):
    at: float
    user: int
    box: int  # ROOT, INBOX, JUNK, then folders
    what: str  # "read", "mail" (an unimportant change), "flags" (an important one)


def priority_of(box: int) -> int:
    return 0 if box == ROOT else 2 if box in (INBOX, JUNK) else 3


def sizes(seed: int) -> list[list[int]]:
    """Bytes of each user's copies: most are small, and a few have tens of thousands of
    mails.
    """
    chance = random.Random(seed)

    def size(median: int) -> int:
        return int(min(median * chance.lognormvariate(0, 1.3), 60 * MIB)) + 4 * KIB

    return [
        [6 * KIB, size(700 * KIB), size(60 * KIB), *(size(200 * KIB) for _ in range(FOLDERS))] for _ in range(USERS)
    ]


def log(seed: int) -> list[Access]:
    """Make the log of a day. Each user has a rhythm: mails arrive all day, clients poll
    INBOX, a person reads other mailboxes from time to time, and a client that comes
    back after a long time reads all of them."""
    chance = random.Random(seed)
    out: list[Access] = []
    for user in range(USERS):
        busy = chance.lognormvariate(0, 1.0)
        for at in _times(chance, 20 * busy):  # deliveries
            box = chance.choices((INBOX, JUNK, JUNK + 1 + chance.randrange(FOLDERS)), (70, 20, 10))[0]
            out += [Access(at, user, ROOT, "read"), Access(at, user, box, "mail")]
        for at in _times(chance, 12 * busy):  # a client polls
            out += [Access(at, user, ROOT, "read"), Access(at, user, INBOX, "read")]
            if chance.random() < 0.4:
                out.append(Access(at + 5, user, INBOX, "flags"))
        for at in _times(chance, 2 * busy):  # somebody reads
            out.append(Access(at, user, ROOT, "read"))
            for turn in range(chance.randint(1, 4)):
                box = JUNK + 1 + int(FOLDERS * chance.random() ** 2)
                out.append(Access(at + 20 * turn, user, box, chance.choice(("read", "read", "flags"))))
        for at in _times(chance, 0.7):  # a client reads everything
            out += [Access(at + box, user, box, "read") for box in range(JUNK + 1 + FOLDERS)]
    return sorted(out)


def _times(chance: random.Random, mean: float) -> Iterator[float]:
    at = chance.expovariate(mean / DAY_S)
    while at < DAY_S:
        yield at
        at += chance.expovariate(mean / DAY_S)


@dataclass(slots=True)
class _Copy:
    user: int
    box: int
    size: int
    accessed: float
    mails: int = 0
    due: float = float("inf")


class Result(NamedTuple):
    gets: int
    puts: int
    early: int  # PUTs that the cleaner made early
    root_misses: int
    inbox_misses: int
    cleaned: int


class Simulation:
    def __init__(self, all_sizes: list[list[int]], max_space: int, weights: Weights) -> None:
        self._sizes = all_sizes
        self._max_space = max_space
        self._weights = weights
        self._copies: dict[tuple[int, int], _Copy] = {}
        self._space = 0
        self._groups: dict[tuple[int, int], int] = {}
        self._used = [0, 0, 0, 0]
        self._due: dict[tuple[int, int], _Copy] = {}
        self.gets = self.puts = self.early = self.root_misses = self.inbox_misses = self.cleaned = 0

    def run(self, accesses: list[Access]) -> Result:
        upload = 0.0
        for access in accesses:
            if access.at >= upload:
                self._upload(access.at)
                upload = access.at + 10
            self._access(access)
            if self._space > self._max_space:
                self._clean(access.at)
        return Result(self.gets, self.puts, self.early, self.root_misses, self.inbox_misses, self.cleaned)

    def _access(self, access: Access) -> None:
        key = (access.user, access.box)
        copy = self._copies.get(key)
        if copy is None:
            self.gets += 1 if access.box == ROOT else 2  # a base; a base and its diff
            self.root_misses += access.box == ROOT
            self.inbox_misses += access.box == INBOX
            copy = self._copies[key] = _Copy(*key, self._sizes[access.user][access.box], access.at)
            self._count(copy, copy.size)
        copy.accessed = access.at
        if access.what == "mail":
            copy.mails += 1
        if access.what == "flags" or copy.mails > RESCAN_MAILS:
            copy.due = min(copy.due, access.at + UPLOAD_S)
            self._due[key] = copy

    def _count(self, copy: _Copy, nbytes: int) -> None:
        priority = priority_of(copy.box)
        self._space += nbytes
        self._used[priority] += nbytes
        group = (copy.user, priority)
        self._groups[group] = self._groups.get(group, 0) + nbytes

    def _upload(self, now: float) -> None:
        for key, copy in list(self._due.items()):
            if copy.due <= now:
                self._flushed(copy)
                del self._due[key]

    def _flushed(self, copy: _Copy) -> None:
        self.puts += 1
        copy.mails, copy.due = 0, float("inf")

    def _clean(self, now: float) -> None:
        boosts = self._weights.priority_boosts(dict(enumerate(self._used)), self._max_space)

        def weight(copy: _Copy) -> float:
            priority = priority_of(copy.box)
            return self._weights.weigh(copy.accessed, priority, self._groups[copy.user, priority], boosts)

        for copy in sorted(self._copies.values(), key=weight):
            if self._space <= self._max_space * CLEAN_TO:
                break
            if copy.accessed > now - CLOSE_S:
                continue
            if copy.mails or copy.due < float("inf"):
                self._flushed(copy)
                self.early += 1
                self._due.pop((copy.user, copy.box), None)
            del self._copies[copy.user, copy.box]
            self._count(copy, -copy.size)
            self.cleaned += 1


def compare(share: float, *, seed: int = 1) -> tuple[Result, Result]:
    """Compare plain LRU with Dovecot's weights. share: max_space as a part of the size
    of all indexes."""
    all_sizes = sizes(seed)
    max_space = int(sum(map(sum, all_sizes)) * share)
    accesses = log(seed)
    plain = Simulation(all_sizes, max_space, Weights()).run(accesses)
    return plain, Simulation(all_sizes, max_space, DOVECOT).run(accesses)


def main() -> None:
    print("| max_space | GETs LRU | GETs weights | PUTs LRU | PUTs weights | roots fetched | INBOXes fetched |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for share in (0.05, 0.1, 0.2, 0.4):
        old, new = compare(share)
        print(
            f"| {share:.0%} of the indexes | {old.gets:,} | {new.gets:,} ({new.gets / old.gets - 1:+.0%}) "
            f"| {old.puts:,} | {new.puts:,} ({new.puts / old.puts - 1:+.0%}) "
            f"| {old.root_misses:,} / {new.root_misses:,} | {old.inbox_misses:,} / {new.inbox_misses:,} |"
        )


if __name__ == "__main__":
    main()
