"""The environment's contents: operations into one write transaction, and the reads.

Invariant: a record, its bytes and their accounting change in the same transaction; `check` recounts them.
Refuses to know: staging, the event loop. `write` runs in the writer's thread, all reads in the caller's; LMDB lets both
run at once. No transaction outlives the call that began it and nothing returned points into the map.
Diagnostics: `MetacacheFull` when the transaction would pass the limit or the map; `MetacacheError` for what LMDB
reports. Nothing of a failed transaction is kept.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lmdb

from metacache._env import Db, Env, Txn
from metacache._layout import (
    CHUNK_BYTES,
    PAGE_BYTES,
    BoxRecord,
    UserRecord,
    box_key,
    cost,
    state_key,
    u32,
    u64,
    user_key,
)
from metacache._ops import Append, BoxKey, Drop, DropFields, Mark, Op, PutFields, PutState, Replace, size_of
from metacache._recount import BASE, SPACE_KEY, Counted, check, next_user, priorities, read_space
from metacache._types import BoxSpace, Change, Copy, MetacacheError, MetacacheFull, OverLimit, UserSpace

_DELTA = b"D"
_BLOB_PREFIX = 33  # user hash 16, box hash 16, kind 1
_DELTA_PREFIX = _BLOB_PREFIX + 4
NEIGHBOURS_MIN = 8  # field records from which on one walk is tried before a look-up for each


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except lmdb.MapFullError as error:
        raise MetacacheFull(f"metacache: no room left in the map to {what}; clean, or raise max_space") from error
    except lmdb.Error as error:
        # LMDB hands system errors on as its base class with the text alone.
        if any(text in str(error) for text in _NO_SPACE):
            raise MetacacheFull(f"metacache: the disk is full, cannot {what}") from error
        raise MetacacheError(f"metacache: cannot {what}: {error}") from error


_NO_SPACE = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class Disk:
    """Typed access to one open environment; `limit` is the most that may be accounted."""

    def __init__(self, env: Env, *, limit: int) -> None:
        self.env = env
        self.limit = limit
        self._map_bytes_used_max = env.lmdb.info()["map_size"] * 9 // 10
        with _translated("read its size"), env.lmdb.begin() as txn:
            self.space = read_space(env, txn)
            self.by_priority = priorities(env, txn)

    # ---- writing -----------------------------------------------------------------------------------------------

    def write(
        self, ops: Sequence[Op], touched: Mapping[BoxKey, float], now: float, begun: Callable[[int], None]
    ) -> None:
        """Apply all of it in one transaction; `begun` hears the transaction's id before anything can become visible.

        Raises: MetacacheFull, MetacacheError; then nothing was applied.
        """
        with _translated("commit"):
            with self.env.lmdb.begin(write=True, buffers=True) as txn:
                begun(txn.id())
                need = sum(size_of(op) for op in ops if not isinstance(op, Drop | DropFields | Mark | PutState))
                if need and self.used(txn) + need > self._map_bytes_used_max:
                    raise OverLimit(f"metacache: {need} bytes at once, the map has no room for them; clean")
                work = _Write(self.env, txn, now)
                for key, at in touched.items():
                    work.touch(key, at)
                # What shrinks may always be written, whatever the limit: the map is larger, so there is room for it.
                most = max(self.limit, work.space_before)
                for op in ops:
                    work.apply(op)
                work.finish()
                if work.space > most:
                    raise OverLimit(f"metacache: {work.space} bytes, at most {self.limit}; clean, or raise max_space")
                if work.space > work.space_before and self.used(txn) > self._map_bytes_used_max:
                    raise OverLimit("metacache: the map is nearly full; clean, or raise max_space")
            self.space, self.by_priority = work.space, work.by_priority(self.by_priority)

    def used(self, txn: Txn) -> int:
        """Bytes of the pages in use, as LMDB counts them."""
        env = self.env
        pages = 0
        for db in (env.users, env.boxes, env.blobs, env.fields, env.state):
            stat = txn.stat(db)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * PAGE_BYTES

    # ---- reading -----------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[Txn]:
        with _translated("read"), self.env.lmdb.begin() as txn:
            yield txn

    def load(self, txn: Txn, user: str, box: str) -> Copy | None:
        prefix = box_key(user, box)
        raw = txn.get(prefix, db=self.env.boxes)
        if raw is None:
            return None
        record = BoxRecord.decode(raw)
        if not record.has_copy:
            return None
        base: list[bytes] = []
        deltas: list[bytes] = []
        last = b""
        with txn.cursor(self.env.blobs) as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor.iternext():
                    if not key.startswith(prefix):
                        break
                    if key[32:33] == BASE:
                        base.append(value)
                    elif key[:_DELTA_PREFIX] == last:
                        deltas[-1] += value
                    else:
                        deltas.append(value)
                        last = key[:_DELTA_PREFIX]
        whole = base[0] if len(base) == 1 else b"".join(base)
        if len(whole) != record.base_len:
            raise MetacacheError(f"metacache: damaged copy of {box!r}: base has the wrong length; drop it")
        return Copy(record.stamp, whole if record.has_base else None, deltas, record.change)

    def peek(self, txn: Txn, user: str, box: str) -> Copy | None:
        """The box's copy without its bytes."""
        raw = txn.get(box_key(user, box), db=self.env.boxes)
        record = None if raw is None else BoxRecord.decode(raw)
        return None if record is None or not record.has_copy else Copy(record.stamp, None, [], record.change)

    def get_fields(self, txn: Txn, user: str, box: str, uids: Sequence[int]) -> list[bytes | None]:
        prefix = box_key(user, box)
        keys = [prefix + u32(uid) for uid in uids]
        with txn.cursor(self.env.fields) as cursor:
            pairs = _neighbours(cursor, keys, uids) or cursor.getmulti(keys)
            values: list[bytes | None]
            if len(pairs) == len(keys):
                values = [value for _, value in pairs]
            else:
                found = dict(pairs)
                values = [found.get(key) for key in keys]
            for at, value in enumerate(values):
                if value is not None and len(value) == CHUNK_BYTES:
                    values[at] = value + _continued(cursor, keys[at])
        return values

    def iter_fields(self, txn: Txn, user: str, box: str, low: int, high: int) -> dict[int, bytes]:
        prefix = box_key(user, box)
        last = prefix + u32(high)
        out: dict[int, bytes] = {}
        with txn.cursor(self.env.fields) as cursor:
            if cursor.set_range(prefix + u32(low)):
                for key, value in cursor.iternext():
                    if key[:36] > last:
                        break
                    uid = int.from_bytes(key[32:36], "big")
                    out[uid] = value if len(key) == 36 else out[uid] + value
        return out

    def get_state(self, txn: Txn, key: str) -> bytes | None:
        value: bytes | None = txn.get(state_key(key), db=self.env.state)
        return value

    def boxes(self, txn: Txn, user: str) -> list[BoxSpace]:
        return [
            BoxSpace(r.name, r.priority, r.space(user), r.accessed, r.change)
            for _, r in self._records(txn, user_key(user))
        ]

    def users(self, txn: Txn, after: bytes, count: int) -> list[tuple[bytes, UserSpace]]:
        """The next `count` users by key after `after`, each with its key."""
        out: list[tuple[bytes, UserSpace]] = []
        with txn.cursor(self.env.users) as cursor:
            if not cursor.set_range(after + b"\0"):
                return out
            for key, raw in cursor.iternext():
                user = UserRecord.decode(raw)
                accessed, change = 0.0, Change.NONE
                for _, record in self._records(txn, key):
                    accessed = max(accessed, record.accessed)
                    change = max(change, record.change)
                out.append((key, UserSpace(user.name, user.space, accessed, change)))
                if len(out) == count:
                    break
        return out

    def entries(self, txn: Txn, after: bytes, count: int) -> list[tuple[bytes, UserRecord, list[BoxSpace]]]:
        """The next users by key after `after`, each with what its boxes take, until there are `count` boxes."""
        out = []
        seen = 0
        with txn.cursor(self.env.users) as cursor:
            if cursor.set_range(after + b"\0"):
                for key, raw in cursor.iternext():
                    user = UserRecord.decode(raw)
                    boxes = [
                        BoxSpace(r.name, r.priority, r.space(user.name), r.accessed, r.change)
                        for _, r in self._records(txn, key)
                    ]
                    out.append((key, user, boxes))
                    seen += len(boxes)
                    if seen >= count:
                        break
        return out

    def _records(self, txn: Txn, prefix: bytes) -> Iterator[tuple[bytes, BoxRecord]]:
        with txn.cursor(self.env.boxes) as cursor:
            if not cursor.set_range(prefix):
                return
            for key, raw in cursor.iternext():
                if not key.startswith(prefix):
                    return
                yield key, BoxRecord.decode(raw)

    def check(self) -> list[str]:
        """Recount everything; one line for each thing that is not as accounted. Reads the whole environment."""
        with self.snapshot() as txn:
            return check(self.env, txn)

    def recount(self, after: bytes, entries_max: int) -> tuple[bytes | None, int, list[str]]:
        """Recount and mend the users after `after`, about so many entries; in the writer's thread.

        Returns where to go on (None at the end), how many users were counted, and what was wrong.
        """
        wrong: list[str] = []
        users = entries = 0
        with self.snapshot() as txn:
            key = next_user(self.env, txn, after)
            while key is not None and entries < entries_max:
                try:
                    counted = Counted(self.env, txn, key)
                except MetacacheError as error:
                    wrong.append(f"{key.hex()}: {error}")
                    entries += 1
                else:
                    if counted.wrong:
                        break
                    entries += counted.entries
                users += 1
                after, key = key, next_user(self.env, txn, key)
        if key is None:
            return None, users, wrong
        if entries >= entries_max:
            return after, users, wrong
        with _translated("mend"), self.env.lmdb.begin(write=True) as txn:
            counted = Counted(self.env, txn, key)
            counted.mend(self.env, txn)
            self.space, self.by_priority = read_space(self.env, txn), priorities(self.env, txn)
        return key, users + 1, wrong + counted.wrong

    def recount_total(self) -> list[str]:
        """The same for the sum over all users."""
        with _translated("mend"), self.env.lmdb.begin(write=True) as txn:
            used = priorities(self.env, txn)
            total, accounted = sum(used.values()), read_space(self.env, txn)
            if total != accounted:
                txn.put(SPACE_KEY, u64.pack(total), db=self.env.state)
            self.space, self.by_priority = total, used
        return [f"{total} bytes in all, accounted {accounted}"] if total != accounted else []


def _neighbours(cursor: Any, keys: list[bytes], uids: Sequence[int]) -> list[tuple[bytes, bytes]] | None:
    """The entries of `keys` if they follow each other in the tree, None if not: half the time of a look-up for each."""
    if len(keys) < NEIGHBOURS_MIN or not 0 < uids[-1] - uids[0] < 2 * len(uids) or not cursor.set_range(keys[0]):
        return None
    pairs = list(islice(cursor.iternext(), len(keys)))
    return pairs if [key for key, _ in pairs] == keys else None


def _continued(cursor: Any, key: bytes) -> bytes:
    """The chunks after the first one of a field record."""
    out = bytearray()
    if cursor.set_key(key):
        while cursor.next():
            found = bytes(cursor.key())
            if len(found) == len(key) or not found.startswith(key):
                break
            out += cursor.value()
    return bytes(out)


def _chunks(blob: bytes) -> Iterator[bytes | memoryview]:
    """At least one chunk, so that an empty blob has an entry."""
    if len(blob) <= CHUNK_BYTES:
        yield blob
        return
    view = memoryview(blob)
    for at in range(0, len(blob), CHUNK_BYTES):
        yield view[at : at + CHUNK_BYTES]


class _Write:
    """One write transaction: box and user records are read once, changed in memory and stored by `finish`."""

    def __init__(self, env: Env, txn: Txn, now: float) -> None:
        self._env = env
        self._txn = txn
        self._now = now
        self._boxes: dict[bytes, BoxRecord | None] = {}
        self._charged: dict[bytes, tuple[int, int]] = {}  # (priority, bytes) that the user's record has for a box
        self._users: dict[bytes, UserRecord] = {}
        self._stored: set[bytes] = set()  # boxes with an entry in the database
        self._changed: set[bytes] = set()
        self.space = self.space_before = read_space(env, txn)
        self._wiped = False
        self._gained: dict[int, int] = {}  # by priority

    def apply(self, op: Op) -> None:
        match op:
            case Append():
                self._append(op)
            case Replace():
                self._replace(op)
            case Mark():
                record = self._box(op.user, op.box)
                if record is not None and record.has_copy:
                    self._changed.add(box_key(op.user, op.box))
                    record.change = op.change
                    if op.stamp is not None:
                        record.stamp = op.stamp
            case PutFields():
                self._put_fields(op)
            case DropFields():
                self._drop_fields(op)
            case PutState():
                self._txn.put(state_key(op.key), op.value, db=self._env.state)
            case Drop(user=None):
                self._drop_all()
            case Drop(user=str(user), box=None):
                self._drop_user(user)
            case Drop(user=str(user), box=str(box)):
                self._drop(user, box)

    def touch(self, key: BoxKey, at: float) -> None:
        record = self._box(*key)
        if record is not None and record.accessed < at:
            self._changed.add(box_key(*key))
            record.accessed = at

    def finish(self) -> None:
        """Store the changed records and charge the difference to the users."""
        txn, env = self._txn, self._env
        for key in self._changed:
            record = self._boxes[key]
            user = self._users[key[:16]]
            old_priority, old_space = self._charged.get(key, (0, 0))
            user.space[old_priority] = user.space.get(old_priority, 0) - old_space
            self.space -= old_space
            self._gain(old_priority, -old_space)
            if record is None:
                if key in self._stored:
                    txn.delete(key, db=env.boxes)
                continue
            space = record.space(user.name)
            user.space[record.priority] = user.space.get(record.priority, 0) + space
            self.space += space
            self._gain(record.priority, space)
            txn.put(key, record.encode(), db=env.boxes)
        for key in {key[:16] for key in self._changed}:
            user = self._users[key]
            if any(user.space.values()):
                txn.put(key, user.encode(), db=env.users)
            else:
                txn.delete(key, db=env.users)
        txn.put(SPACE_KEY, u64.pack(self.space), db=env.state)

    def _gain(self, priority: int, nbytes: int) -> None:
        self._gained[priority] = self._gained.get(priority, 0) + nbytes

    def by_priority(self, before: Mapping[int, int]) -> dict[int, int]:
        """Bytes of all users by priority, given those before this transaction."""
        out = {} if self._wiped else dict(before)
        for priority, nbytes in self._gained.items():
            out[priority] = out.get(priority, 0) + nbytes
        return {priority: nbytes for priority, nbytes in out.items() if nbytes}

    # ---- records -----------------------------------------------------------------------------------------------

    def _user(self, user: str) -> None:
        key = user_key(user)
        if key not in self._users:
            raw = self._txn.get(key, db=self._env.users)
            self._users[key] = UserRecord(user, {}) if raw is None else UserRecord.decode(bytes(raw))

    def _box(self, user: str, box: str) -> BoxRecord | None:
        key = box_key(user, box)
        if key not in self._boxes:
            self._user(user)
            raw = self._txn.get(key, db=self._env.boxes)
            self._know(key, None if raw is None else BoxRecord.decode(bytes(raw)))
        return self._boxes[key]

    def _know(self, key: bytes, record: BoxRecord | None) -> None:
        self._boxes[key] = record
        if record is not None:
            self._stored.add(key)
            self._charged[key] = (record.priority, record.space(self._users[key[:16]].name))

    def _make(self, user: str, box: str) -> tuple[bytes, BoxRecord]:
        key = box_key(user, box)
        record = self._box(user, box)
        if record is None:
            record = self._boxes[key] = BoxRecord(box)
        record.accessed = max(record.accessed, self._now)
        self._changed.add(key)
        return key, record

    # ---- operations --------------------------------------------------------------------------------------------

    def _append(self, op: Append) -> None:
        key, record = self._make(op.user, op.box)
        if not record.has_copy:
            record.has_copy = True
            record.priority = op.priority
        record.change = max(record.change, op.change)
        self._put_blob(record, key + _DELTA + u32(record.next_delta), op.delta)
        record.next_delta += 1

    def _replace(self, op: Replace) -> None:
        key, record = self._make(op.user, op.box)
        record.data_bytes -= self._wipe(self._env.blobs, key)
        record.has_copy = record.has_base = True
        record.priority, record.change, record.stamp = op.priority, op.change, op.stamp
        record.base_len, record.next_delta = len(op.base), 0
        self._put_blob(record, key + BASE, op.base)

    def _put_blob(self, record: BoxRecord, prefix: bytes, blob: bytes) -> None:
        for number, chunk in enumerate(_chunks(blob)):
            key = prefix + u32(number)
            self._txn.put(key, chunk, db=self._env.blobs)
            record.data_bytes += cost(len(key), len(chunk))

    def _put_fields(self, op: PutFields) -> None:
        if not op.items:
            return
        prefix, record = self._make(op.user, op.box)
        for uid, value in op.items.items():
            key = prefix + u32(uid)
            record.data_bytes -= self._wipe_field(key)
            if len(value) < CHUNK_BYTES:
                self._txn.put(key, value, db=self._env.fields)
                record.data_bytes += cost(36, len(value))
                continue
            for number, chunk in enumerate(_chunks(value)):
                at = key + u32(number) if number else key
                self._txn.put(at, chunk, db=self._env.fields)
                record.data_bytes += cost(len(at), len(chunk))

    def _drop_fields(self, op: DropFields) -> None:
        record = self._box(op.user, op.box)
        if record is None:
            return
        prefix = box_key(op.user, op.box)
        self._changed.add(prefix)
        for uid in op.uids:
            record.data_bytes -= self._wipe_field(prefix + u32(uid))

    def _wipe_field(self, key: bytes) -> int:
        """Delete one field record if it is there; the bytes that it was charged."""
        old = self._txn.get(key, db=self._env.fields)
        if old is None:
            return 0
        if len(old) == CHUNK_BYTES:
            return self._wipe(self._env.fields, key)
        freed = cost(len(key), len(old))
        self._txn.delete(key, db=self._env.fields)
        return freed

    def _wipe(self, db: Db, prefix: bytes) -> int:
        """Delete all entries below a prefix; the bytes that they were charged."""
        freed = 0
        with self._txn.cursor(db) as cursor:
            found = cursor.set_range(prefix)
            while found:
                key, value = cursor.item()
                if bytes(key[: len(prefix)]) != prefix:
                    break
                freed += cost(len(key), len(value))
                found = cursor.delete() and len(cursor.key()) > 0
        return freed

    def _drop(self, user: str, box: str) -> None:
        if self._box(user, box) is None:
            return
        key = box_key(user, box)
        self._wipe(self._env.blobs, key)
        self._wipe(self._env.fields, key)
        self._boxes[key] = None
        self._changed.add(key)

    def _drop_user(self, user: str) -> None:
        self._user(user)
        prefix = user_key(user)
        self._wipe(self._env.blobs, prefix)
        self._wipe(self._env.fields, prefix)
        with self._txn.cursor(self._env.boxes) as cursor:
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key()[:16]) == prefix:
                key = bytes(cursor.key())
                if key not in self._boxes:
                    self._know(key, BoxRecord.decode(bytes(cursor.value())))
                found = cursor.next()
        for key in self._boxes:
            if key.startswith(prefix):
                self._boxes[key] = None
                self._changed.add(key)

    def _drop_all(self) -> None:
        for db in (self._env.users, self._env.boxes, self._env.blobs, self._env.fields):
            self._txn.drop(db, delete=False)
        self._boxes.clear()
        self._charged.clear()
        self._users.clear()
        self._stored.clear()
        self._changed.clear()
        self._wiped = True
        self.space = 0
