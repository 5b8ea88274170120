"""The two local caches as plain tables, and what a crash leaves of them.

`Disk` has what was committed; a `SimMetacache` is what a process sees of it. A kill or
a power cut loses what was staged and not committed. With group commit that is always a
suffix of the writes. Writes are joined by the real code (`metacache.operations`), so
that a local copy means the same here as there.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from metacache import BoxSpace, Change, Copy, MetacacheError, UserSpace
from metacache.operations import (
    Append,
    BoxKey,
    Drop,
    DropFields,
    Mark,
    Op,
    PutFields,
    PutState,
    Replace,
    fold_copy,
)
from obox.cluster import Kept

COMMIT_S = 0.001
FLUSH_DELAY_S = 0.1


@dataclass
class Tables:
    copies: dict[BoxKey, Copy] = field(default_factory=dict)
    fields: dict[BoxKey, dict[int, bytes]] = field(default_factory=dict)
    state: dict[str, bytes] = field(default_factory=dict)

    def apply(self, op: Op) -> None:
        match op:
            case PutState(key=key, value=value):
                self.state[key] = value
            case Drop(user=user, box=box):
                for place in [*self.copies, *self.fields]:
                    if user in (None, place[0]) and box in (None, place[1]):
                        self.copies.pop(place, None)
                        self.fields.pop(place, None)
            case PutFields(user=user, box=box, items=items):
                self.fields.setdefault((user, box), {}).update(items)
            case DropFields(user=user, box=box, uids=uids):
                for uid in uids:
                    self.fields.get((user, box), {}).pop(uid, None)
            case _:
                place = (op.user or "", op.box or "")
                folded = fold_copy(self.copies.get(place), [op])
                if folded is None:
                    self.copies.pop(place, None)
                else:
                    self.copies[place] = folded


@dataclass
class Disk:
    """The local state of a backend. It survives the process."""

    tables: Tables = field(default_factory=Tables)
    files: dict[str, bytes] = field(default_factory=dict)

    def snapshot(self) -> Disk:
        return copy.deepcopy(self)


class SimLarge:
    """See `metacache.Metacache.large`."""

    def __init__(self, load: Callable[[str, str], Copy | None]) -> None:
        self._load = load

    async def load(self, user: str, box: str) -> Copy | None:
        return self._load(user, box)


class SimMetacache:
    """See `metacache.Metacache`."""

    def __init__(self, disk: Disk, before_commit: Callable[[], Awaitable[None]]) -> None:
        self._disk = disk
        self._view = copy.deepcopy(disk.tables)
        self._staged: list[Op] = []
        self._before_commit = before_commit
        self._timer: asyncio.TimerHandle | None = None
        self.failing = False
        self.dead = False
        self.large = SimLarge(self.load)

    def _stage(self, op: Op) -> None:
        if self.dead:
            raise MetacacheError("metacache: closed")
        self._view.apply(op)
        self._staged.append(op)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_DELAY_S, self._write)

    def _write(self) -> None:
        self._timer = None
        if self.dead or self.failing:
            return
        staged, self._staged = self._staged, []
        for op in staged:
            self._disk.tables.apply(op)

    async def commit(self) -> None:
        if self.dead:
            raise MetacacheError("metacache: closed")
        if not self._staged:
            return
        await self._before_commit()
        await asyncio.sleep(COMMIT_S)
        if self.failing:
            raise MetacacheError("disk full (made)")
        self._write()

    def kill(self) -> None:
        self.dead = True

    def append(self, user: str, box: str, delta: bytes, change: Change, *, priority: int = 3) -> None:
        self._stage(Append(user, box, delta, change, priority))

    def replace(
        self,
        user: str,
        box: str,
        base: bytes | Sequence[bytes | memoryview],
        stamp: bytes,
        *,
        change: Change,
        priority: int,
    ) -> None:
        parts = (base,) if isinstance(base, bytes) else tuple(base)
        self._stage(Replace(user, box, parts, stamp, change, priority))

    def mark(self, user: str, box: str, change: Change, stamp: bytes | None = None) -> None:
        self._stage(Mark(user, box, change, stamp))

    def drop(self, user: str, box: str) -> None:
        self._stage(Drop(user, box))

    def drop_user(self, user: str) -> None:
        self._stage(Drop(user, None))

    def drop_all(self) -> None:
        self._stage(Drop(None, None))

    def put_fields(self, user: str, box: str, items: Iterable[tuple[int, bytes]]) -> None:
        found = dict(items)
        if found:
            self._stage(PutFields(user, box, found))

    def drop_fields(self, user: str, box: str, uids: Iterable[int]) -> None:
        self._stage(DropFields(user, box, frozenset(uids)))

    def put_state(self, key: str, value: bytes) -> None:
        self._stage(PutState(key, value))

    def load(self, user: str, box: str) -> Copy | None:
        found = self._view.copies.get((user, box))
        return None if found is None else found._replace(deltas=list(found.deltas))

    def peek(self, user: str, box: str) -> Copy | None:
        found = self._view.copies.get((user, box))
        return None if found is None else found._replace(base=None, deltas=[])

    def get_fields(self, user: str, box: str, uids: Sequence[int]) -> list[bytes | None]:
        table = self._view.fields.get((user, box), {})
        return [table.get(uid) for uid in uids]

    def iter_fields(self, user: str, box: str, low: int, high: int) -> list[tuple[int, bytes]]:
        table = self._view.fields.get((user, box), {})
        return sorted((uid, value) for uid, value in table.items() if low <= uid <= high)

    def get_state(self, key: str) -> bytes | None:
        return self._view.state.get(key)

    def boxes(self, user: str) -> list[str]:
        return sorted({box for owner, box in (*self._view.copies, *self._view.fields) if owner == user})

    def box_spaces(self, user: str) -> list[BoxSpace]:
        copies = self._disk.tables.copies
        return sorted(BoxSpace(box, 2, 0, 0.0, c.change) for (owner, box), c in copies.items() if owner == user)

    def users(self) -> Iterator[UserSpace]:
        for user in sorted({owner for owner, _ in self._disk.tables.copies}):
            change = max(c.change for (owner, _), c in self._disk.tables.copies.items() if owner == user)
            yield UserSpace(user, {}, 0.0, change)

    def full(self) -> bool:
        return False

    def staged(self) -> int:
        return len(self._staged)

    def space(self) -> int:
        return 0

    async def close(self) -> None:
        self._write()
        self.dead = True


class SimFscache:
    """See `fscache.Fscache`."""

    def __init__(self, disk: Disk) -> None:
        self._files = disk.files

    async def get(self, key: str, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        if key not in self._files:
            self._files[key] = await fetch()
        return self._files[key]

    async def get_many(
        self,
        keys: Sequence[str],
        fetch: Callable[[str], Awaitable[bytes]],
        *,
        parallel: int = 16,
        absent: tuple[type[Exception], ...] = (),
    ) -> list[bytes | None]:
        out: list[bytes | None] = []
        for key in keys:
            try:
                out.append(await self.get(key, partial(fetch, key)))
            except absent:
                out.append(None)
        return out

    async def put(self, key: str, data: bytes) -> None:
        self._files[key] = data

    async def read(self, key: str, start: int, end: int) -> bytes | None:
        found = self._files.get(key)
        return None if found is None else found[start:end]

    async def read_range(self, key: str, start: int, end: int, fetch: Callable[[int, int], Awaitable[bytes]]) -> bytes:
        found = self._files.get(key)
        return await fetch(start, end) if found is None else found[start:end]

    async def drop(self, key: str) -> None:
        self._files.pop(key, None)


class SimKeeper:
    """What a member keeps on the simulated disk."""

    def __init__(self, metacache: SimMetacache) -> None:
        self._metacache = metacache

    def load(self) -> Kept | None:
        data = self._metacache.get_state("cluster")
        return msgspec.msgpack.decode(data, type=Kept) if data else None

    async def save(self, kept: Kept) -> None:
        self._metacache.put_state("cluster", msgspec.msgpack.encode(kept))
