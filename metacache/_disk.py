"""The contents of the environment: reads from a snapshot, and a write transaction.

`write` and the recounts run in the writer's thread, all reads in the caller's; LMDB
lets both run at once.

Invariant: no transaction outlives the call that began it, and nothing returned points
into the map. `space` and `by_priority` are as of the last commit.
This module does not know staging or the event loop.
Diagnostics: `MetacacheFull` when a transaction would pass the limit or the map;
`MetacacheError` for what LMDB reports. Nothing of a failed transaction is kept.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lmdb

from metacache._env import Env, Txn, read_space
from metacache._recount import Counted, check, next_user, priorities
from metacache._transaction import Transaction
from metacache._types import BoxSpace, Change, Copy, MetacacheError, MetacacheFull, OverLimit, UserSpace
from metacache.layout import (
    BASE,
    CHUNK_BYTES,
    PAGE_BYTES,
    SPACE_KEY,
    BoxRecord,
    UserRecord,
    box_key,
    state_key,
    u32,
    u64,
    user_key,
)
from metacache.operations import BoxKey, Drop, DropFields, Mark, Op, PutState, size_of

_BLOB_PREFIX = 33  # user hash 16, box hash 16, kind 1
_DELTA_PREFIX = _BLOB_PREFIX + 4
NEIGHBOURS_MIN = 8  # for at least 8 field records a walk is tried before look-ups


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Raise errors of LMDB as our own."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise MetacacheFull(f"metacache: no room left in the map to {what}; clean, or raise max_space") from error
    except lmdb.Error as error:
        # LMDB raises system errors as its base class; only the text says which.
        if any(text in str(error) for text in _NO_SPACE):
            raise MetacacheFull(f"metacache: the disk is full, cannot {what}") from error
        raise MetacacheError(f"metacache: cannot {what}: {error}") from error


_NO_SPACE = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class Disk:
    """Typed access to an open environment. limit: most bytes to be accounted."""

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
        """Apply all operations in a transaction.

        touched: last accesses to record. begun: is called with the transaction's id
        before anything can become visible.
        Raises: MetacacheFull, MetacacheError; then nothing was applied.
        """
        with _translated("commit"):
            with self.env.lmdb.begin(write=True, buffers=True) as txn:
                begun(txn.id())
                need = sum(size_of(op) for op in ops if not isinstance(op, Drop | DropFields | Mark | PutState))
                if need and self.used(txn) + need > self._map_bytes_used_max:
                    raise OverLimit(f"metacache: {need} bytes at once, the map has no room for them; clean")
                work = Transaction(self.env, txn, now)
                for key, at in touched.items():
                    work.touch(key, at)
                # A transaction that shrinks the contents is committed whatever the
                # limit is. The map is larger, so there is room for it.
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
        """Return the bytes of the pages in use, as LMDB counts them."""
        env = self.env
        pages = 0
        for db in (env.users, env.boxes, env.blobs, env.fields, env.state):
            stat = txn.stat(db)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * PAGE_BYTES

    # ---- reading -----------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[Txn]:
        """Yield a read transaction. Raises: MetacacheError."""
        with _translated("read"), self.env.lmdb.begin() as txn:
            yield txn

    def load(self, txn: Txn, user: str, box: str) -> Copy | None:
        """Return the box's copy. Raises: MetacacheError if it is damaged."""
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

    def copy_bytes(self, txn: Txn, user: str, box: str) -> int:
        """Return about how many bytes `load` reads."""
        raw = txn.get(box_key(user, box), db=self.env.boxes)
        return 0 if raw is None else BoxRecord.decode(raw).data_bytes

    def peek(self, txn: Txn, user: str, box: str) -> Copy | None:
        """Return the box's copy without its bytes."""
        raw = txn.get(box_key(user, box), db=self.env.boxes)
        record = None if raw is None else BoxRecord.decode(raw)
        return None if record is None or not record.has_copy else Copy(record.stamp, None, [], record.change)

    def get_fields(
        self, txn: Txn, user: str, box: str, uids: Sequence[int], bytes_max: int = sys.maxsize
    ) -> list[bytes | None]:
        """Return the records of `uids` in their order, None where there is none.

        It ends with the record that makes them more than `bytes_max` together.
        """
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
            for at, first in enumerate(values):
                if first is None:
                    continue
                size = len(first)
                if size == CHUNK_BYTES:
                    whole = values[at] = first + _continued(cursor, keys[at])
                    size = len(whole)
                bytes_max -= size
                if bytes_max < 0:
                    return values[: at + 1]
        return values

    def iter_fields(self, txn: Txn, user: str, box: str, low: int, high: int) -> dict[int, bytes]:
        """Return the records with low <= uid <= high by uid, in ascending order."""
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

    def count(self) -> tuple[int, int]:
        """Return how many users and how many boxes there are."""
        with self.snapshot() as txn:
            users, boxes = (int(txn.stat(db)["entries"]) for db in (self.env.users, self.env.boxes))
        return users, boxes

    def get_state(self, txn: Txn, key: str) -> bytes | None:
        value: bytes | None = txn.get(state_key(key), db=self.env.state)
        return value

    def boxes(self, txn: Txn, user: str) -> list[BoxSpace]:
        """Return what each of the user's boxes takes."""
        return [
            BoxSpace(r.name, r.priority, r.space(user), r.accessed, r.change)
            for _, r in self._records(txn, user_key(user))
        ]

    def users(self, txn: Txn, after: bytes, count: int) -> list[tuple[bytes, UserSpace]]:
        """Return the next `count` users behind the key `after`, each with its key."""
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
        """Return the next users behind the key `after`, with their keys and boxes.

        At least a single user; no more users once there are `count` boxes.
        """
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
        """Recount everything. Returns a line for each account that is wrong."""
        with self.snapshot() as txn:
            return check(self.env, txn)

    def recount(self, after: bytes, entries_max: int) -> tuple[bytes | None, int, list[str]]:
        """Recount users behind the key `after` and correct what is wrong.

        Goes on for about `entries_max` entries. Runs in the writer's thread. Returns
        the key to go on from (None at the end), how many users were counted, and what
        was wrong.
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
        with _translated("correct the accounts"), self.env.lmdb.begin(write=True) as txn:
            counted = Counted(self.env, txn, key)
            counted.correct(self.env, txn)
            self.space, self.by_priority = read_space(self.env, txn), priorities(self.env, txn)
        return key, users + 1, wrong + counted.wrong

    def recount_total(self) -> list[str]:
        """Recount the sum over all users and correct it. Returns what was wrong."""
        with _translated("correct the accounts"), self.env.lmdb.begin(write=True) as txn:
            used = priorities(self.env, txn)
            total, accounted = sum(used.values()), read_space(self.env, txn)
            if total != accounted:
                txn.put(SPACE_KEY, u64.pack(total), db=self.env.state)
            self.space, self.by_priority = total, used
        return [f"{total} bytes in all, accounted {accounted}"] if total != accounted else []


def _neighbours(cursor: Any, keys: list[bytes], uids: Sequence[int]) -> list[tuple[bytes, bytes]] | None:
    """Return the entries of `keys` if they are neighbours in the tree, else None.

    The walk takes half the time of a look-up for each key.
    """
    if len(keys) < NEIGHBOURS_MIN or not 0 < uids[-1] - uids[0] < 2 * len(uids) or not cursor.set_range(keys[0]):
        return None
    pairs = list(islice(cursor.iternext(), len(keys)))
    return pairs if [key for key, _ in pairs] == keys else None


def _continued(cursor: Any, key: bytes) -> bytes:
    """Return the chunks behind the first chunk of a field record."""
    out = bytearray()
    if cursor.set_key(key):
        while cursor.next():
            found = bytes(cursor.key())
            if len(found) == len(key) or not found.startswith(key):
                break
            out += cursor.value()
    return bytes(out)
