"""What the cache holds, and how many bytes that takes.

The cache holds files, objects that wait to be written, and files that wait to be
removed.

Changes of the disk are made in rounds. `plan` chooses what the next round does,
`record` accounts for what the disk made of it. Between the two anything may be put or
dropped.

Invariant: `nbytes` is the sum of the index, of `removals`, and of what a round is
evicting at the moment. A plan never lets it pass `max_size`: each write comes after the
evictions that make room for it, and a file that is being read is not evicted. Where
files cannot be removed, nothing is written.
This module does not know the event loop, threads, or the format of a file. It is pure:
it has no clock of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fscache.disk import Done, Found, Got, Listed, Step, Want, disk_bytes, file_bytes
from fscache.order import KEPT, ONCE, Entry, Index

TOUCH_INTERVAL_S = 600.0  # between two renewals of a file's mtime by hits
PENDING_BYTES_MAX = 32 << 20  # of objects that wait; others are not stored
BATCH_FILES = 64  # files written in a round
BATCH_BYTES = 8 << 20  # bytes written in a round
BATCH_REMOVE = 1000  # files removed in a round
OBJECT_SHARE = 4  # a larger object than a quarter would evict too much


@dataclass(slots=True)
class Pending:
    """An object that waits to be written. space: bytes of its file, in whole blocks."""

    key: str
    data: bytes
    space: int
    queue: int


@dataclass(slots=True)
class Planned:
    """A step of a round, and what it means for the accounts."""

    step: Step
    removed: dict[str, int] = field(default_factory=dict)  # taken out of `removals`
    evicted: list[tuple[str, Entry]] = field(default_factory=list)
    name: str = ""  # name of the pending object
    pending: Pending | None = None


class Differences(NamedTuple):
    """What a recount has changed: bytes, and numbers of files."""

    bytes: int
    added: int
    removed: int
    changed: int


def index_of(files: Iterable[Listed]) -> Index:
    """Build the index of the files that an earlier process has left, oldest first."""
    index = Index()
    for mtime, name, length in files:
        index.add(name, Entry(disk_bytes(length), mtime, False), KEPT, mtime)
    return index


class Contents:
    """The accounts of a cache of at most `max_size` bytes."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.index = Index()
        self.nbytes = 0
        self.pending: OrderedDict[str, Pending] = OrderedDict()
        self.pending_bytes = 0
        self.scanning = True  # the files of an earlier process are not known yet
        self.closed = False  # nothing more is stored
        self.evictions = 0
        self.skipped = 0
        self._removals: dict[str, int] = {}  # files to be removed, and their bytes
        self._in_round: set[str] = set()  # names that the current round changes
        self._superseded: set[str] = set()  # of these, put or dropped meanwhile

    # ---- reading -----------------------------------------------------------------------------------------------

    def waiting(self, key: str, name: str) -> bytes | None:
        """Return an object that is not written yet, and note that it was read."""
        pending = self.pending.get(name)
        if pending is None or pending.key != key:
            return None
        pending.queue = ONCE
        return pending.data

    def may_exist(self, name: str) -> bool:
        """Return whether the disk has to be asked for the file."""
        return name in self.index or (self.scanning and name not in self._removals)

    def want(self, key: str, name: str, now: float, start: int = 0, end: int | None = None) -> Want:
        """Note a read, and say what the disk is to read."""
        entry = self.index.hit(name, now)
        if entry is None:
            return Want(key, name, start, end, False, now)
        touch, mtime = None, entry.touched
        if now - entry.touched >= TOUCH_INTERVAL_S:
            touch = entry.touched = now
        return Want(key, name, start, end, entry.verified and end is not None, touch, entry.space, mtime)

    def note(self, want: Want, entry: Entry | None, got: Got, now: float) -> bytes | None:
        """Account for what a read found; return the data.

        entry: what the index had when the read began.
        """
        if got.data is None:
            # Another entry by now means another file, which must stay counted.
            if got.gone and entry is not None and self.index.get(want.name) is entry:
                self.index.pop(want.name)
                self.nbytes -= 0 if self.scanning else entry.space
            return None
        if entry is not None:
            entry.verified = True
        elif self.scanning and want.name not in self._removals and want.name not in self.pending:
            self.index.add(want.name, Entry(disk_bytes(got.length), want.touch or now, True), KEPT, now)
        return got.data

    # ---- changing ----------------------------------------------------------------------------------------------

    def store(self, key: str, name: str, data: bytes, queue: int) -> None:
        """Queue an object for writing, instead of what the key had."""
        self.forget(name)
        space = disk_bytes(file_bytes(key, len(data)))
        too_many = self.pending_bytes and self.pending_bytes + len(data) > PENDING_BYTES_MAX
        if self.closed or space * OBJECT_SHARE > self.max_size or too_many:
            self.skipped += 1
        else:
            self.pending[name] = Pending(key, bytes(data), space, queue)
            self.pending_bytes += len(data)

    def forget(self, name: str) -> None:
        """Make the key a miss from now on. A later round removes its file, if any."""
        self._unqueue(name)
        if name in self._in_round:
            self._superseded.add(name)
        if (entry := self.index.pop(name)) is not None:
            self._removals[name] = entry.space
        elif self.scanning:
            self._removals.setdefault(name, 0)  # the scan knows its bytes

    def forget_older(self, before: float) -> int:
        """Forget what was not read since `before`; return how many files that are."""
        old = [name for name, entry in self.index.items() if entry.touched < before]
        for name in old:
            self.forget(name)
        return len(old)

    def _unqueue(self, name: str) -> None:
        if (pending := self.pending.pop(name, None)) is not None:
            self.pending_bytes -= len(pending.data)

    def resize(self, max_size: int) -> None:
        """Set another limit. What waits and is too large for it is not written."""
        self.max_size = max_size
        for name, pending in list(self.pending.items()):
            if pending.space * OBJECT_SHARE > max_size:
                self._unqueue(name)
                self.skipped += 1

    def removing(self, name: str) -> bool:
        """Return whether this round or a later round changes the file."""
        return name in self._removals or name in self._in_round

    # ---- rounds ------------------------------------------------------------------------------------------------

    def over(self) -> bool:
        """Return whether a file has to be evicted, even without a new file."""
        return bool(self._removals) or self.nbytes > self.max_size

    def due(self) -> bool:
        """Return whether a round has something to do."""
        return bool(self.pending) or self.over()

    def batch(self) -> bool:
        """Return whether enough waits to fill a round."""
        return len(self.pending) >= BATCH_FILES or self.pending_bytes >= BATCH_BYTES

    def plan(self, now: float, reading: Container[str]) -> list[Planned]:
        """Plan a round: removals, evictions, then each write with its own evictions.

        reading: files that are being read, so that they must stay for now.
        """
        planned = self.nbytes
        plan: list[Planned] = []

        def evict(need: int, count: int) -> list[tuple[str, Entry]]:
            nonlocal planned
            gone: list[tuple[str, Entry]] = []
            while planned + need > self.max_size and len(gone) < count:
                if (victim := self.index.evict(reading)) is None:
                    break
                planned -= victim[1].space
                gone.append(victim)
                self._in_round.add(victim[0])
            return gone

        removed = {name: space for name, space in self._removals.items() if name not in reading}
        removed = dict(list(removed.items())[:BATCH_REMOVE])
        for name in removed:
            del self._removals[name]
        self._in_round.update(removed)
        planned -= sum(removed.values())
        # A step for each: a file that cannot be removed does not keep the others.
        plan.extend(Planned(Step([name]), removed={name: space}) for name, space in removed.items())
        if evicted := evict(0, BATCH_REMOVE):
            plan.append(Planned(Step([name for name, _ in evicted]), evicted=evicted))
        size = count = 0
        for name, pending in self.pending.items():
            if name in self._removals or count >= BATCH_FILES or size >= BATCH_BYTES:
                break
            evicted = evict(pending.space, len(self.index))
            remove = [victim for victim, _ in evicted]
            if planned + pending.space > self.max_size:  # no file can be evicted
                plan.append(Planned(Step(remove), {}, evicted, name, pending))
                continue
            planned += pending.space
            size += len(pending.data)
            count += 1
            self._in_round.add(name)
            plan.append(Planned(Step(remove, name, pending.key, pending.data, now), {}, evicted, name, pending))
        return plan

    def record(self, plan: Sequence[Planned], results: Sequence[Done]) -> bool:
        """Account for a round. Returns whether another round can do any more."""
        progress = False
        for item, done in zip(plan, results, strict=True):
            progress |= self._record_removals(item, set(done.kept) if done.kept else ())
            if item.pending is None:
                continue
            progress = True
            name = item.name
            current = self.pending.get(name) is item.pending
            if current:
                self._unqueue(name)
            if not done.written:
                self.skipped += 1
                continue
            self.nbytes += item.pending.space
            if current:
                entry = Entry(item.pending.space, item.step.mtime, False)
                self.index.add(name, entry, item.pending.queue, item.step.mtime)
            else:  # it was put again or dropped while it was written
                self._removals[name] = item.pending.space
        return progress

    def _record_removals(self, item: Planned, kept: Collection[str]) -> bool:
        """Account for the files that are gone, and take back those that are `kept`."""
        progress = False
        for name, space in item.removed.items():
            if name in kept:
                self._removals.setdefault(name, space)
            else:
                self.nbytes -= space
                progress = True
        for name, entry in item.evicted:
            if name not in kept:
                self.nbytes -= entry.space
                self.evictions += 1
                progress = True
            elif name in self._superseded:
                self._removals[name] = entry.space
            else:
                self.index.restore(name, entry)  # another is the next to go
        return progress

    def end_round(self) -> None:
        """Note that no round is under way any more."""
        self._in_round.clear()
        self._superseded.clear()

    # ---- what the directory says -------------------------------------------------------------------------------

    def merge(self, index: Index, now: float) -> None:
        """Take over the index of the first scan. Reads may have used files already."""
        for name in self.index:
            if (entry := index.hit(name, now)) is not None:
                entry.verified = True
        self.nbytes = sum(index.nbytes)
        for name in list(self._removals):
            found = index.pop(name)
            self._removals[name] = 0 if found is None else found.space
        self.index = index
        self.scanning = False

    def apply(self, found: Found, known: Mapping[str, Entry], now: float) -> Differences:
        """Make the accounts agree with a recount.

        known: the entries that the recount was compared with. An entry that has changed
        since stays, and so do files in `removals`, which are still counted.
        """
        difference = added = removed = changed = 0
        for name in found.gone:
            if self.index.get(name) is known[name]:
                self.index.pop(name)
                difference -= known[name].space
                removed += 1
        for name, length in found.changed:
            if self.index.get(name) is known[name]:
                difference += disk_bytes(length) - known[name].space
                self.index.resize(name, disk_bytes(length))
                known[name].verified = False
                changed += 1
        for mtime, name, length in found.added:
            if name not in self.index and name not in self._removals:
                self.index.add(name, Entry(disk_bytes(length), mtime, False), KEPT, now)
                difference += disk_bytes(length)
                added += 1
        self.nbytes += difference
        return Differences(difference, added, removed, changed)

    def check(self) -> list[str]:
        """Return a line for each account that is wrong. Call it between rounds."""
        wrong: list[str] = []
        spaces = [0, 0, 0]
        for entry in self.index.values():
            spaces[entry.queue] += entry.space
        if spaces != self.index.nbytes:
            wrong.append(f"{spaces} bytes by queue, accounted {self.index.nbytes}")
        total = sum(spaces) + sum(self._removals.values())
        if not self.scanning and total != self.nbytes:
            wrong.append(f"{total} bytes of files, accounted {self.nbytes}")
        waiting = sum(len(pending.data) for pending in self.pending.values())
        if waiting != self.pending_bytes:
            wrong.append(f"{waiting} bytes waiting, accounted {self.pending_bytes}")
        if both := self.pending.keys() & set(self.index):
            wrong.append(f"waiting and in the index: {sorted(both)}")
        return wrong
