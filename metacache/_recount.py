"""The recount: it compares the accounts with the contents and corrects what differs.

Bytes are accounted in the transaction that changes them, so a recount should never find
a difference. It is there to prove that, and for an environment that an older or a
faulty version has written.

Invariant: a user is counted within a single transaction, and corrected within a single
transaction. Others may write between two users. This module does not know the event
loop or limits. It runs in the writer's thread or on a snapshot.
"""

from __future__ import annotations

from metacache._env import Env, Txn, read_space
from metacache._types import MetacacheError
from metacache.layout import BASE, SPACE_KEY, BoxRecord, UserRecord, cost, u64

_USER_BYTES = 16
_BOX_BYTES = 32


def next_user(env: Env, txn: Txn, after: bytes) -> bytes | None:
    """Return the first user hash above `after` of which any database has an entry."""
    start = (int.from_bytes(after.ljust(_USER_BYTES, b"\0"), "big") + (1 if after else 0)).to_bytes(17, "big")
    if start[0]:
        return None
    found = []
    for db in (env.users, env.boxes, env.blobs, env.fields):
        with txn.cursor(db) as cursor:
            if cursor.set_range(start[1:]):
                found.append(bytes(cursor.key()[:_USER_BYTES]))
    return min(found, default=None)


class Counted:
    """A user as counted: what should be recorded, and a line for each difference."""

    def __init__(self, env: Env, txn: Txn, key: bytes) -> None:
        self.key = key
        self.entries = 0  # entries read, for the caller's budget
        self.wrong: list[str] = []
        self.orphans: set[bytes] = set()  # boxes that must go, without owner
        self.changed: dict[bytes, BoxRecord] = {}
        self.space: dict[int, int] = {}
        self._sizes: dict[bytes, int] = {}
        self._bases: dict[bytes, int] = {}
        raw = txn.get(key, db=env.users)
        self.user = None if raw is None else UserRecord.decode(bytes(raw))
        self.accounted = dict(self.user.space) if self.user is not None else {}
        for db in (env.blobs, env.fields):
            self._count(txn, db, blobs=db is env.blobs)
        self._compare(env, txn)

    def _count(self, txn: Txn, db: object, *, blobs: bool) -> None:
        with txn.cursor(db) as cursor:
            found = cursor.set_range(self.key)
            while found:
                key, value = cursor.item()
                if bytes(key[:_USER_BYTES]) != self.key:
                    break
                self.entries += 1
                box = bytes(key[:_BOX_BYTES])
                self._sizes[box] = self._sizes.get(box, 0) + cost(len(key), len(value))
                if blobs and bytes(key[32:33]) == BASE:
                    self._bases[box] = self._bases.get(box, 0) + len(value)
                found = cursor.next()

    def _compare(self, env: Env, txn: Txn) -> None:
        name = self.user.name if self.user is not None else self.key.hex()
        with txn.cursor(env.boxes) as cursor:
            found = cursor.set_range(self.key)
            while found and bytes(cursor.key()[:_USER_BYTES]) == self.key:
                key = bytes(cursor.key())
                self.entries += 1
                record = BoxRecord.decode(bytes(cursor.value()))
                found = cursor.next()
                size, base = self._sizes.pop(key, 0), self._bases.get(key, 0)
                if self.user is None:
                    self.wrong.append(f"box {record.name!r}: its user has no record")
                    self.orphans.add(key)
                    continue
                if base != record.base_len:
                    self.wrong.append(f"{name!r} {record.name!r}: base of {base} bytes, recorded {record.base_len}")
                    self.orphans.add(key)  # no copy is better than a wrong copy
                    continue
                if size != record.data_bytes:
                    self.wrong.append(f"{name!r} {record.name!r}: {size} bytes, accounted {record.data_bytes}")
                    record.data_bytes = size
                    self.changed[key] = record
                self.space[record.priority] = self.space.get(record.priority, 0) + record.space(name)
        for box in self._sizes:
            self.wrong.append(f"blobs or fields of no box: {box.hex()}")
            self.orphans.add(box)
        if self.space != self.accounted:
            self.wrong.append(f"{name!r}: {self.space} by priority, accounted {self.accounted}")

    def correct(self, env: Env, txn: Txn) -> None:
        """Record what was counted, in the write transaction that has counted."""
        for box in self.orphans:
            for db in (env.boxes, env.blobs, env.fields):
                with txn.cursor(db) as cursor:
                    found = cursor.set_range(box)
                    while found and bytes(cursor.key()[:_BOX_BYTES]) == box:
                        found = cursor.delete() and len(cursor.key()) > 0
        for box, record in self.changed.items():
            txn.put(box, record.encode(), db=env.boxes)
        if self.user is not None:
            self.user.space = dict(self.space)
            if self.space:
                txn.put(self.key, self.user.encode(), db=env.users)
            else:
                txn.delete(self.key, db=env.users)
        before, after = sum(self.accounted.values()), sum(self.space.values())
        total = max(0, read_space(env, txn) + after - before)
        txn.put(SPACE_KEY, u64.pack(total), db=env.state)


def priorities(env: Env, txn: Txn) -> dict[int, int]:
    """Return the bytes of all users by priority, from the users' records."""
    out: dict[int, int] = {}
    with txn.cursor(env.users) as cursor:
        for _, raw in cursor:
            for priority, nbytes in UserRecord.decode(bytes(raw)).space.items():
                out[priority] = out.get(priority, 0) + nbytes
    return out


def check(env: Env, txn: Txn) -> list[str]:
    """Return a line for each account in the environment that is wrong."""
    wrong: list[str] = []
    key = next_user(env, txn, b"")
    while key is not None:
        try:
            wrong += Counted(env, txn, key).wrong
        except MetacacheError as error:
            wrong.append(str(error))
        key = next_user(env, txn, key)
    total = sum(priorities(env, txn).values())
    if total != read_space(env, txn):
        wrong.append(f"{total} bytes in all, accounted {read_space(env, txn)}")
    return wrong
