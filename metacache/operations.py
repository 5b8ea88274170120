"""Staged writes: the operations, and the layers in which they wait for the disk.

A layer is what a write transaction will hold. Callers stage into the newest layer; the
writer takes the oldest. A read starts from the disk and folds in every layer that its
snapshot does not show.

Invariant: the operations of the layers, folded onto the disk's state, oldest first,
give the state that the disk will have. Within a (user, box) operations never change
places.
This module does not know LMDB or how large the cache may grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from metacache._types import Change, Copy

# A layer is sealed at the first of these. 8 MiB are 2,000 dirty pages: a commit of some
# 20 ms, which delays nobody for long.
LAYER_BYTES = 8 << 20
LAYER_OPS = 8192
OP_BYTES = 100  # about what an operation takes in memory beside its payload

BoxKey = tuple[str, str]


@dataclass(slots=True, frozen=True)
class Append:
    user: str
    box: str
    delta: bytes
    change: Change
    priority: int


@dataclass(slots=True, frozen=True)
class Replace:
    user: str
    box: str
    base: tuple[bytes | memoryview, ...]
    stamp: bytes
    change: Change
    priority: int

    @property
    def base_bytes(self) -> int:
        return sum(map(len, self.base))

    def whole(self) -> bytes:
        """Return the base. It is put together here; nobody else waits meanwhile if a
        thread does it, for it lets the interpreter go between two parts."""
        if len(self.base) == 1:
            return bytes(self.base[0])
        out = BytesIO()
        for part in self.base:
            out.write(part)
        return out.getvalue()


@dataclass(slots=True, frozen=True)
class Mark:
    user: str
    box: str
    change: Change
    stamp: bytes | None


@dataclass(slots=True, frozen=True)
class Drop:
    """box None: all boxes of the user. user None as well: everything."""

    user: str | None
    box: str | None


@dataclass(slots=True, frozen=True)
class PutFields:
    user: str
    box: str
    items: dict[int, bytes]


@dataclass(slots=True, frozen=True)
class DropFields:
    user: str
    box: str
    uids: frozenset[int]


@dataclass(slots=True, frozen=True)
class PutState:
    key: str
    value: bytes


BoxOp = Append | Replace | Mark | Drop | PutFields | DropFields
Op = BoxOp | PutState

DROP_ALL = Drop(None, None)


def size_of(op: Op) -> int:
    """Return about what an operation takes in memory, to bound the layers."""
    match op:
        case Append(delta=delta):
            return OP_BYTES + len(delta)
        case Replace(stamp=stamp):
            return OP_BYTES + op.base_bytes + len(stamp)
        case PutFields(items=items):
            return OP_BYTES + sum(map(len, items.values())) + len(items) * OP_BYTES
        case DropFields(uids=uids):
            return OP_BYTES + len(uids) * 32
        case PutState(value=value):
            return OP_BYTES + len(value)
        case _:
            return OP_BYTES


@dataclass(slots=True)
class Layer:
    """Operations of a write transaction, with an index by box for the reads.

    txn_id: set by the writer's thread when its transaction has begun. A snapshot with
    this id or a later id shows the layer.
    """

    ops: list[Op] = field(default_factory=list)
    nbytes: int = 0
    by_box: dict[BoxKey, list[BoxOp]] = field(default_factory=dict)
    wiped_users: set[str] = field(default_factory=set)
    wiped_all: bool = False
    state: dict[str, bytes] = field(default_factory=dict)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    sealed: bool = False
    txn_id: int | None = None

    def add(self, op: Op) -> None:
        self.ops.append(op)
        self.nbytes += size_of(op)
        match op:
            case PutState(key=key, value=value):
                self.state[key] = value
            case Drop(user=None):
                for ops in self.by_box.values():
                    ops.append(op)
                self.wiped_all = True
            case Drop(user=str(user), box=None):
                for (owner, _), ops in self.by_box.items():
                    if owner == user:
                        ops.append(op)
                self.wiped_users.add(user)
            case _:
                assert op.user is not None
                assert op.box is not None
                self._list((op.user, op.box)).append(op)
        if self.nbytes >= LAYER_BYTES or len(self.ops) >= LAYER_OPS:
            self.sealed = True

    def _list(self, key: BoxKey) -> list[BoxOp]:
        found = self.by_box.get(key)
        if found is None:
            found = self.by_box[key] = [DROP_ALL] if self.wiped_all or key[0] in self.wiped_users else []
        return found

    def ops_of(self, user: str, box: str) -> Sequence[BoxOp]:
        """Return what this layer does to a box, in order.

        Includes drops of the user and of everything.
        """
        found = self.by_box.get((user, box))
        if found is None:
            return (DROP_ALL,) if self.wiped_all or user in self.wiped_users else ()
        return found

    def fold_boxes(self, user: str, names: set[str]) -> set[str]:
        """Return the user's boxes after this layer, given those before it."""
        out = set() if self.wiped_all or user in self.wiped_users else set(names)
        for (owner, box), ops in self.by_box.items():
            if owner != user:
                continue
            exists = box in names
            for op in ops:
                if isinstance(op, Drop):
                    exists = False
                elif isinstance(op, Append | Replace) or (isinstance(op, PutFields) and op.items):
                    exists = True
            (out.add if exists else out.discard)(box)
        return out


def fold_copy(copy: Copy | None, ops: Iterable[BoxOp], *, whole: bool = True) -> Copy | None:
    """Return a box's copy after `ops`. It may extend `copy.deltas` in place.

    whole: whether the caller needs the base.
    """
    for op in ops:
        match op:
            case Append(delta=delta, change=change):
                if copy is None:
                    copy = Copy(b"", None, [delta], change)
                else:
                    copy.deltas.append(delta)
                    copy = copy._replace(change=max(copy.change, change))
            case Replace(stamp=stamp, change=change):
                copy = Copy(stamp, op.whole() if whole else None, [], change)
            case Mark(change=change, stamp=stamp):
                if copy is not None:
                    copy = copy._replace(change=change, stamp=copy.stamp if stamp is None else stamp)
            case Drop():
                copy = None
            case _:
                pass
    return copy


def fold_fields(values: list[bytes | None], uids: Sequence[int], ops: Iterable[BoxOp]) -> list[bytes | None]:
    """Return the records of `uids` after `ops`."""
    for op in ops:
        match op:
            case Drop():
                values = [None] * len(uids)
            case PutFields(items=items):
                get = items.get
                values = [old if (new := get(uid)) is None else new for uid, old in zip(uids, values, strict=True)]
            case DropFields(uids=gone):
                values = [None if uid in gone else old for uid, old in zip(uids, values, strict=True)]
            case _:
                pass
    return values


def fold_range(found: dict[int, bytes], low: int, high: int, ops: Iterable[BoxOp]) -> dict[int, bytes]:
    """Return the records with low <= uid <= high after `ops`, unordered."""
    for op in ops:
        match op:
            case Drop():
                found = {}
            case PutFields(items=items):
                found.update((uid, value) for uid, value in items.items() if low <= uid <= high)
            case DropFields(uids=gone):
                for uid in gone:
                    found.pop(uid, None)
            case _:
                pass
    return found


def drops_first(ops: Iterable[Op]) -> tuple[list[Op], list[Op]]:
    """Split a queue that does not fit into (drops, the rest).

    Writes that a later drop undoes are left out. After that no write precedes a drop of
    the same box, so the drops may go first and make room. The result differs from the
    queue only in the order between boxes, which means nothing once all is committed.
    """
    drops: list[Op] = []
    rest: list[Op] = []
    dropped_all = False
    dropped_users: set[str] = set()
    dropped_boxes: set[BoxKey] = set()
    for op in reversed(list(ops)):
        if isinstance(op, PutState):
            rest.append(op)
            continue
        user, box = op.user, op.box
        if dropped_all or user in dropped_users or (user, box) in dropped_boxes:
            continue
        if not isinstance(op, Drop):
            rest.append(op)
            continue
        drops.append(op)
        if op.user is None:
            dropped_all = True
        elif op.box is None:
            dropped_users.add(op.user)
        else:
            dropped_boxes.add((op.user, op.box))
    return drops[::-1], rest[::-1]
