"""Metacache: the local copies of index bundles, and the fields of mails.

Writes are synchronous and only stage an operation; `metacache._writer` commits what is
staged. Reads are synchronous and see what is staged. A caller that needs durability
awaits `commit`; everything else reaches the disk within `flush_delay_s`.

Invariant: `commit` returns only when all that was staged before the call is in a synced
commit. A read sees every write that was staged before it. Accounted bytes stay within
`max_space` + `max_grace`.
This module does not know the bucket, users' rights, or what is cleaned and when
(`metacache._cleaner`).
Diagnostics: see `metacache._writer` for commits that fail, and `metacache._env` for an
environment that is damaged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import structlog

from metacache._accounts import Accounts
from metacache._disk import Disk
from metacache._env import open_env
from metacache._large import Large
from metacache._types import BoxSpace, Change, Copy, MetacacheError, Rescanned, Status, UserSpace
from metacache._weights import PRIORITIES
from metacache._writer import Writer
from metacache.layout import CHUNK_BYTES, STAMP_BYTES_MAX, UID_MAX, encode_name, state_key
from metacache.operations import (
    OP_BYTES,
    Append,
    Drop,
    DropFields,
    Mark,
    PutFields,
    PutState,
    Replace,
    fold_copy,
    fold_fields,
    fold_range,
)

log = structlog.get_logger()

FLUSH_DELAY_S = 0.1  # a tenth of the journal's interval
FIELDS_OP_BYTES = 1 << 20  # put_fields is staged in pieces, so that layers stay small
RECOUNT_ENTRIES = 5000  # a rescan lets commits through after some 20 ms


class Metacache:
    """An LMDB environment of local copies, by (user, box).

    path: a directory, of this process alone. clock: seconds since the epoch, for the
    last accesses. max_space, max_grace: bytes; the map is a quarter larger than their
    sum, so that there is room to delete. sync: False trusts the page cache: a process
    that is killed loses nothing, but the cache is empty after the machine went down.
    flush_delay_s: how long a write that nobody waits for stays in memory.
    Raises: MetacacheBusy, MetacacheError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_space: int,
        max_grace: int,
        clock: Callable[[], float],
        sync: bool = True,
        flush_delay_s: float = FLUSH_DELAY_S,
    ) -> None:
        limit = max_space + max_grace
        self.max_space = max_space
        self.on_pressure: Callable[[], None] | None = None
        """The cache calls this when it is time to clean: it is above `max_space`, or a
        commit is full."""
        self._path = Path(path)
        self._disk = Disk(open_env(self._path, map_bytes=limit + limit // 4, sync=sync), limit=limit)
        self._clock = clock
        self._writer = Writer(
            self._disk,
            str(self._path),
            clock=clock,
            flush_delay_s=flush_delay_s,
            written=self._written,
            full=self._press,
        )
        self.accounts = Accounts(self._disk, self._writer.touched)
        self.large = Large(self._disk, self._writer, self.load)

    # ---- staging -----------------------------------------------------------------------------------------------

    def append(self, user: str, box: str, delta: bytes, change: Change, *, priority: int = 3) -> None:
        """Stage a delta behind the box's others.

        change: a higher pending change stays. priority: of a new copy only.
        """
        _check_names(user, box)
        _check_priority(priority)
        self._writer.stage(Append(user, box, bytes(delta), change, priority), len(delta))

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
        """Stage a new base. The deltas go, the fields stay.

        base: the base, or its parts, which the writer's thread puts together. They must
        stay as they are until then.
        """
        _check_names(user, box)
        _check_priority(priority)
        _check_stamp(stamp)
        op = Replace(user, box, (base,) if isinstance(base, bytes) else tuple(base), bytes(stamp), change, priority)
        self._writer.stage(op, op.base_bytes)

    def mark(self, user: str, box: str, change: Change, stamp: bytes | None = None) -> None:
        """Set the pending change, be it lower or higher, and the stamp if it is given.

        Without a copy nothing happens.
        """
        _check_names(user, box)
        if stamp is not None:
            _check_stamp(stamp)
        self._writer.stage(Mark(user, box, change, stamp), 0)

    def drop(self, user: str, box: str) -> None:
        """Forget the box's copy and its fields."""
        _check_names(user, box)
        self._writer.touched.pop((user, box), None)
        self._writer.stage(Drop(user, box), 0)

    def drop_user(self, user: str) -> None:
        """Forget all of the user's copies and fields."""
        _check_names(user)
        self._writer.stage(Drop(user, None), 0)

    def drop_all(self) -> None:
        """Forget all copies and fields of all users. The state records stay."""
        self._writer.touched.clear()
        self._writer.stage(Drop(None, None), 0)

    def put_fields(self, user: str, box: str, items: Iterable[tuple[int, bytes]]) -> None:
        """Stage records by uid. They replace earlier records; a copy is not needed."""
        _check_names(user, box)
        pieces: list[dict[int, bytes]] = [{}]
        total = nbytes = 0
        for uid, value in items:
            _check_uid(uid)
            if nbytes >= FIELDS_OP_BYTES:
                pieces.append({})
                nbytes = 0
            pieces[-1][uid] = bytes(value)
            nbytes += len(value) + OP_BYTES
            total += len(value)
        if pieces[0]:
            self._writer.admit(total)  # the commit has all of it or nothing
            for piece in pieces:
                self._writer.stage(PutFields(user, box, piece), 0)

    def drop_fields(self, user: str, box: str, uids: Iterable[int]) -> None:
        """Forget the records of `uids`."""
        _check_names(user, box)
        gone = frozenset(uids)
        if gone:
            self._writer.stage(DropFields(user, box, gone), 0)

    def put_state(self, key: str, value: bytes) -> None:
        """Stage a record of the backend itself: not accounted, at most CHUNK_BYTES."""
        state_key(key)
        if len(value) > CHUNK_BYTES:
            raise ValueError(f"state of {len(value)} bytes, at most {CHUNK_BYTES}")
        self._writer.stage(PutState(key, bytes(value)), 0)

    # ---- reading -----------------------------------------------------------------------------------------------

    def load(self, user: str, box: str) -> Copy | None:
        """Return the box's copy, staged writes included. Counts as an access."""
        with self._disk.snapshot() as txn:
            copy = self._disk.load(txn, user, box)
            ops = self._writer.pending(txn, user, box)
        copy = fold_copy(copy, ops)
        if copy is not None:
            self._writer.touch(user, box)
        return copy

    def peek(self, user: str, box: str) -> Copy | None:
        """Return stamp and pending change of the box's copy, without its bytes.

        Includes staged writes. Does not count as an access.
        """
        with self._disk.snapshot() as txn:
            copy = self._disk.peek(txn, user, box)
            ops = self._writer.pending(txn, user, box)
        return fold_copy(copy, ops, whole=False)

    def get_fields(
        self, user: str, box: str, uids: Sequence[int], *, bytes_max: int = sys.maxsize
    ) -> list[bytes | None]:
        """Return the records of `uids` in their order, None where there is none.

        Ascending uids are fastest. bytes_max: the records end with the record that
        exceeds this together with the records before it.
        """
        with self._disk.snapshot() as txn:
            values = self._disk.get_fields(txn, user, box, uids, bytes_max)
            ops = self._writer.pending(txn, user, box)
        if not ops:
            return values
        values = fold_fields(values, uids[: len(values)], ops)
        for at, value in enumerate(values):
            bytes_max -= 0 if value is None else len(value)
            if bytes_max < 0:
                return values[: at + 1]
        return values

    def iter_fields(self, user: str, box: str, low: int, high: int) -> list[tuple[int, bytes]]:
        """Return the records with low <= uid <= high, by uid."""
        with self._disk.snapshot() as txn:
            found = self._disk.iter_fields(txn, user, box, max(low, 0), min(high, UID_MAX))
            ops = self._writer.pending(txn, user, box)
        if not ops:
            return list(found.items())
        return sorted(fold_range(found, low, high, ops).items())

    def get_state(self, key: str) -> bytes | None:
        """Return a record of the backend itself, staged writes included."""
        if (staged := self._writer.state(key)) is not None:
            return staged
        with self._disk.snapshot() as txn:
            return self._disk.get_state(txn, key)

    def boxes(self, user: str) -> list[str]:
        """Return the user's boxes that have a copy or fields, sorted.

        Includes staged writes.
        """
        with self._disk.snapshot() as txn:
            names = {space.box for space in self._disk.boxes(txn, user)}
            layers = self._writer.unseen(txn)
        for layer in layers:
            names = layer.fold_boxes(user, names)
        return sorted(names)

    # ---- what the copies take ----------------------------------------------------------------------------------

    def box_spaces(self, user: str) -> list[BoxSpace]:
        """Return what each of the user's boxes takes, as of the last commit."""
        return self.accounts.boxes(user)

    def users(self) -> Iterator[UserSpace]:
        """Yield what each user takes, as of the last commit. Callers may be slow."""
        return self.accounts.users()

    def space(self) -> int:
        """Return the accounted bytes as of the last commit."""
        return self._disk.space

    def staged(self) -> int:
        """Return the bytes that wait for a commit."""
        return self._writer.staged()

    def full(self) -> bool:
        """Return whether there is no room for another user, so that it is time to
        clean.

        The limit is reached with what is staged, or commits do not fit.
        """
        return self._writer.failing or self.space() + self.staged() >= self._disk.limit

    def over(self) -> bool:
        """Return whether the copies take more than `max_space`, or commits do not
        fit."""
        return self._writer.failing or self.space() > self.max_space

    def status(self) -> Status:
        """Return the whole cache for the operator."""
        users, boxes = self._disk.count()
        try:
            file_bytes = (self._path / "data.mdb").stat().st_blocks * 512
        except OSError:
            file_bytes = 0
        used = self._disk.by_priority
        return Status(
            space=self.space(),
            staged=self.staged(),
            max_space=self.max_space,
            limit=self._disk.limit,
            by_priority=tuple(used.get(priority, 0) for priority in range(PRIORITIES)),
            users=users,
            boxes=boxes,
            file_bytes=file_bytes,
            over=self.over(),
            full=self.full(),
            failing=self._writer.failing,
        )

    async def rescan(self) -> Rescanned:
        """Recount everything while the cache is in use, and correct what was wrong.

        Raises: MetacacheError.
        """
        before, users = self.space(), 0
        wrong: list[str] = []
        after: bytes | None = b""
        while after is not None:
            if self._writer.closed:
                raise MetacacheError("metacache: closed")
            work = partial(self._disk.recount, after, RECOUNT_ENTRIES)
            after, counted, lines = await self._writer.run(work)
            users += counted
            wrong += lines
        wrong += await self._writer.run(self._disk.recount_total)
        for line in wrong:
            log.warning("metacache account was wrong and is corrected", path=str(self._path), account=line)
        return Rescanned(users, before, self.space(), wrong)

    # ---- committing --------------------------------------------------------------------------------------------

    async def commit(self) -> None:
        """Return when everything staged before the call is in a synced commit.

        A commit serves all who wait.
        Raises: MetacacheFull, MetacacheError; the writes then stay staged and visible.
        """
        await self._writer.commit()

    async def close(self) -> None:
        """Write what is staged, sync and close."""
        await self._writer.close()

    def _written(self) -> None:
        if self._disk.space > self.max_space:
            self._press()

    def _press(self) -> None:
        if self.on_pressure is not None:
            self.on_pressure()


def _check_names(*names: str) -> None:
    for name in names:
        encode_name(name)


def _check_priority(priority: int) -> None:
    if not 0 <= priority <= 255:
        raise ValueError(f"priority {priority}, allowed 0 to 255")


def _check_stamp(stamp: bytes) -> None:
    if len(stamp) > STAMP_BYTES_MAX:
        raise ValueError(f"stamp of {len(stamp)} bytes, at most {STAMP_BYTES_MAX}")


def _check_uid(uid: int) -> None:
    if not 0 < uid <= UID_MAX:
        raise ValueError(f"uid {uid}, allowed 1 to {UID_MAX}")


def changed(cache: Metacache, user: str) -> bool:
    """Return whether any of the user's copies has changes that the bucket lacks.

    Includes staged writes.
    """
    with cache._disk.snapshot() as txn:
        changes = {space.box: space.change for space in cache._disk.boxes(txn, user)}
        staged = {box for layer in cache._writer.unseen(txn) for owner, box in layer.by_box if owner == user}
    for box in staged:
        copy = cache.peek(user, box)
        changes[box] = Change.NONE if copy is None else copy.change
    return any(change is not Change.NONE for change in changes.values())
