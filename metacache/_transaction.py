"""A write transaction: operations on the records and the bytes of the environment.

The records of boxes and users are read once, changed in memory and stored by `finish`.
The bytes of blobs and fields are written at once.

Invariant: a record, its bytes and their accounting change in the same transaction.
This module does not know limits, staging, or what a commit is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from metacache._env import Db, Env, Txn, read_space
from metacache.layout import (
    BASE,
    CHUNK_BYTES,
    DELTA,
    SPACE_KEY,
    BoxRecord,
    UserRecord,
    box_key,
    cost,
    state_key,
    u32,
    u64,
    user_key,
)
from metacache.operations import Append, BoxKey, Drop, DropFields, Mark, Op, PutFields, PutState, Replace


class Transaction:
    """Applies operations within `txn`. now: last access of the boxes written to."""

    def __init__(self, env: Env, txn: Txn, now: float) -> None:
        self._env = env
        self._txn = txn
        self._now = now
        self._boxes: dict[bytes, BoxRecord | None] = {}
        # (priority, bytes) that the user's record has for a box
        self._charged: dict[bytes, tuple[int, int]] = {}
        self._users: dict[bytes, UserRecord] = {}
        self._stored: set[bytes] = set()  # boxes with an entry in the database
        self._changed: set[bytes] = set()
        self.space = self.space_before = read_space(env, txn)
        self._wiped = False
        self._gained: dict[int, int] = {}  # bytes by priority

    def apply(self, op: Op) -> None:
        """Do an operation. Its records are stored by `finish`."""
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
        """Record the last access of a box, if there is such a box."""
        record = self._box(*key)
        if record is not None and record.accessed < at:
            self._changed.add(box_key(*key))
            record.accessed = at

    def finish(self) -> None:
        """Store the changed records, and charge the difference to the users."""
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
        """Return the bytes by priority, given those before the transaction."""
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
        self._put_blob(record, key + DELTA + u32(record.next_delta), op.delta)
        record.next_delta += 1

    def _replace(self, op: Replace) -> None:
        key, record = self._make(op.user, op.box)
        record.data_bytes -= self._wipe(self._env.blobs, key)
        record.has_copy = record.has_base = True
        record.priority, record.change, record.stamp = op.priority, op.change, op.stamp
        record.base_len, record.next_delta = op.base_bytes, 0
        self._put_blob(record, key + BASE, op.whole())

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
        """Delete a field record, if any; return the bytes that it was charged."""
        old = self._txn.get(key, db=self._env.fields)
        if old is None:
            return 0
        if len(old) == CHUNK_BYTES:
            return self._wipe(self._env.fields, key)
        freed = cost(len(key), len(old))
        self._txn.delete(key, db=self._env.fields)
        return freed

    def _wipe(self, db: Db, prefix: bytes) -> int:
        """Delete all entries below a prefix; return the bytes they were charged."""
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


def _chunks(blob: bytes) -> Iterator[bytes | memoryview]:
    """Cut a blob. There is always a first chunk, so that an empty blob has an entry."""
    if len(blob) <= CHUNK_BYTES:
        yield blob
        return
    view = memoryview(blob)
    for at in range(0, len(blob), CHUNK_BYTES):
        yield view[at : at + CHUNK_BYTES]
