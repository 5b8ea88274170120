"""Metacache: staged writes, one writer, group commit.

Writes are synchronous and only stage; a writer task puts all that is staged into one LMDB transaction in its own
thread. While that runs, further writes and further callers of `commit` gather for the next one. Reads are synchronous
and see what is staged. Whoever needs durability awaits `commit`; the rest reaches the disk within `flush_delay_s`.

Invariant: `commit` returns only when all that was staged before the call is in a synced commit. A read sees every write
that was staged before it. Accounted bytes stay within `max_space` + `max_grace`.
Refuses to know: the bucket, users' rights, what is cleaned and when (`metacache._cleaner`).
Diagnostics: full (limit, map or disk): `MetacacheFull` to the waiters, the writes stay staged and are tried again at
the next commit, drop, or second; logged once a minute. Other LMDB failures likewise as `MetacacheError`. Damage at
open: see `metacache._env`. What could not be written until `close` is logged with its size and lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import structlog

from metacache._disk import Disk
from metacache._env import open_env
from metacache._layout import CHUNK_BYTES, STAMP_BYTES_MAX, UID_MAX, encode_name, state_key
from metacache._ops import (
    OP_BYTES,
    Append,
    BoxKey,
    BoxOp,
    Drop,
    DropFields,
    Layer,
    Mark,
    Op,
    PutFields,
    PutState,
    Replace,
    drops_first,
    fold_copy,
    fold_fields,
    fold_range,
)
from metacache._types import (
    BoxSpace,
    Change,
    Copy,
    MetacacheError,
    MetacacheFull,
    OverLimit,
    Rescanned,
    Status,
    UserSpace,
)
from metacache._weights import PRIORITIES

log = structlog.get_logger()

FLUSH_DELAY_S = 0.1  # how long a write nobody waits for stays in memory: a tenth of the journal's interval
RETRY_DELAY_S = 1.0  # after a failed commit, when nobody asks
LOG_INTERVAL_S = 60.0
STAGED_BYTES_MAX = 64 << 20  # while commits fail, memory must not grow instead of the disk
FIELDS_OP_BYTES = 1 << 20  # put_fields is staged in pieces, so that layers keep near their bound
TOUCHED_PER_COMMIT = 1000
USERS_PER_READ = 64  # users() frees its snapshot after so many
BOXES_PER_READ = 1000  # entries() likewise: a few milliseconds
RECOUNT_ENTRIES = 5000  # a rescan lets commits through after about so many entries: some 20 ms


class Metacache:
    """One LMDB environment of local copies, by (user, box).

    path: a directory, of this process alone. clock: seconds since the epoch; last accesses are kept in it.
    max_space, max_grace: bytes; the map is a quarter larger than their sum, so that there is room to delete.
    sync: False trusts the page cache: a killed process loses nothing, a machine that goes down empties the cache.
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
        """Called when the copies pass `max_space`, or a commit does not fit: it is time to clean."""
        self._path = Path(path)
        self._disk = Disk(open_env(self._path, map_bytes=limit + limit // 4, sync=sync), limit=limit)
        self._clock = clock
        self._flush_delay_s = flush_delay_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metacache")
        self._layers: deque[Layer] = deque()  # oldest first; the writer works on the first
        self._touched: dict[BoxKey, float] = {}
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._failing = False
        self._logged_at = -LOG_INTERVAL_S
        self._closed = False

    # ---- staging -----------------------------------------------------------------------------------------------

    def append(self, user: str, box: str, delta: bytes, change: Change, *, priority: int = 3) -> None:
        """Stage a delta behind the box's others. A higher pending change stays; `priority` is for a new copy only."""
        _check_names(user, box)
        _check_priority(priority)
        self._stage(Append(user, box, bytes(delta), change, priority), len(delta))

    def replace(self, user: str, box: str, base: bytes, stamp: bytes, *, change: Change, priority: int) -> None:
        """Stage a new base; the deltas go, the fields stay."""
        _check_names(user, box)
        _check_priority(priority)
        _check_stamp(stamp)
        self._stage(Replace(user, box, bytes(base), bytes(stamp), change, priority), len(base))

    def mark(self, user: str, box: str, change: Change, stamp: bytes | None = None) -> None:
        """Set the pending change, lower as well, and the stamp if one is given; nothing if there is no copy."""
        _check_names(user, box)
        if stamp is not None:
            _check_stamp(stamp)
        self._stage(Mark(user, box, change, stamp), 0)

    def drop(self, user: str, box: str) -> None:
        """Forget the box's copy and its fields."""
        _check_names(user, box)
        self._touched.pop((user, box), None)
        self._stage(Drop(user, box), 0)

    def drop_user(self, user: str) -> None:
        _check_names(user)
        self._stage(Drop(user, None), 0)

    def drop_all(self) -> None:
        """Forget all copies and fields of all users; the state records stay."""
        self._touched.clear()
        self._stage(Drop(None, None), 0)

    def put_fields(self, user: str, box: str, items: Iterable[tuple[int, bytes]]) -> None:
        """Stage records by uid; one that is there is replaced. A box may have fields and no copy."""
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
            self._admit(total)  # all of it or nothing
            for piece in pieces:
                self._stage(PutFields(user, box, piece), 0)

    def drop_fields(self, user: str, box: str, uids: Iterable[int]) -> None:
        _check_names(user, box)
        gone = frozenset(uids)
        if gone:
            self._stage(DropFields(user, box, gone), 0)

    def put_state(self, key: str, value: bytes) -> None:
        """Stage a small backend-wide record; not accounted, at most one chunk."""
        state_key(key)
        if len(value) > CHUNK_BYTES:
            raise ValueError(f"state of {len(value)} bytes, at most {CHUNK_BYTES}")
        self._stage(PutState(key, bytes(value)), 0)

    def _admit(self, nbytes: int) -> None:
        if self._closed:
            raise MetacacheError("metacache: closed")
        if nbytes > self._disk.limit:
            raise MetacacheFull(f"metacache: {nbytes} bytes at once, at most {self._disk.limit} in all")
        if self._failing and nbytes and self.staged() + nbytes > STAGED_BYTES_MAX:
            raise MetacacheFull("metacache: commits fail and too much waits in memory; clean, or look at the log")

    def _stage(self, op: Op, nbytes: int) -> None:
        self._admit(nbytes)
        if not self._layers or self._layers[-1].sealed:
            self._layers.append(Layer())
        self._layers[-1].add(op)
        if isinstance(op, Drop):
            self._kick()  # room may be what the others wait for
        else:
            self._arm(RETRY_DELAY_S if self._failing else self._flush_delay_s)

    # ---- reading -----------------------------------------------------------------------------------------------

    def load(self, user: str, box: str) -> Copy | None:
        """The box's copy, staged writes included; counts as an access."""
        with self._disk.snapshot() as txn:
            copy = self._disk.load(txn, user, box)
            ops = self._pending(txn, user, box)
        copy = fold_copy(copy, ops)
        if copy is not None:
            self._touched[user, box] = self._clock()
        return copy

    def peek(self, user: str, box: str) -> Copy | None:
        """Stamp and pending change of the box's copy, staged writes included, no bytes; counts as no access."""
        with self._disk.snapshot() as txn:
            copy = self._disk.peek(txn, user, box)
            ops = self._pending(txn, user, box)
        return fold_copy(copy, ops)

    def get_fields(self, user: str, box: str, uids: Sequence[int]) -> list[bytes | None]:
        """The records of `uids` in their order, None where there is none. Ascending uids are fastest."""
        with self._disk.snapshot() as txn:
            values = self._disk.get_fields(txn, user, box, uids)
            ops = self._pending(txn, user, box)
        return fold_fields(values, uids, ops) if ops else values

    def iter_fields(self, user: str, box: str, low: int, high: int) -> list[tuple[int, bytes]]:
        """The records with low <= uid <= high, by uid."""
        with self._disk.snapshot() as txn:
            found = self._disk.iter_fields(txn, user, box, max(low, 0), min(high, UID_MAX))
            ops = self._pending(txn, user, box)
        if not ops:
            return list(found.items())
        return sorted(fold_range(found, low, high, ops).items())

    def get_state(self, key: str) -> bytes | None:
        for layer in reversed(self._layers):  # a committed layer that is still listed has what the disk has
            if (value := layer.state.get(key)) is not None:
                return value
        with self._disk.snapshot() as txn:
            return self._disk.get_state(txn, key)

    def boxes(self, user: str) -> list[str]:
        """The user's boxes that have a copy or fields, sorted; staged writes included."""
        with self._disk.snapshot() as txn:
            names = {space.box for space in self._disk.boxes(txn, user)}
            layers = self._unseen(txn)
        for layer in layers:
            names = layer.fold_boxes(user, names)
        return sorted(names)

    def box_spaces(self, user: str) -> list[BoxSpace]:
        """What each of the user's boxes takes, as of the last commit."""
        with self._disk.snapshot() as txn:
            spaces = self._disk.boxes(txn, user)
        return [
            space._replace(accessed=max(space.accessed, self._touched.get((user, space.box), 0.0)))
            for space in sorted(spaces)
        ]

    def users(self) -> Iterator[UserSpace]:
        """What each user takes, as of the last commit; read in pieces, so the caller may take its time."""
        after = b""
        while True:
            with self._disk.snapshot() as txn:
                found = self._disk.users(txn, after, USERS_PER_READ)
            for _, user in found:
                yield user
            if len(found) < USERS_PER_READ:
                return
            after = found[-1][0]

    def entries(self) -> Iterator[list[tuple[str, dict[int, int], list[BoxSpace]]]]:
        """Batches of users: name, bytes by priority, boxes; as of the last commit, last accesses as of now.

        For the loop: each batch is a read of its own, the caller may await between two.
        """
        after = b""
        touched = self._touched
        while True:
            with self._disk.snapshot() as txn:
                found = self._disk.entries(txn, after, BOXES_PER_READ)
            if not found:
                return
            yield [
                (
                    user.name,
                    user.space,
                    [box._replace(accessed=max(box.accessed, touched.get((user.name, box.box), 0.0))) for box in boxes],
                )
                for _, user, boxes in found
            ]
            after = found[-1][0]

    def by_priority(self) -> dict[int, int]:
        """Bytes of all users by priority, as of the last commit."""
        return dict(self._disk.by_priority)

    def space(self) -> int:
        """Accounted bytes as of the last commit."""
        return self._disk.space

    def staged(self) -> int:
        """Bytes that wait for a commit."""
        return sum(layer.nbytes for layer in self._layers)

    def full(self) -> bool:
        """Whether it is time to clean: the limit is reached with what is staged, or commits do not fit."""
        return self._failing or self.space() + self.staged() >= self._disk.limit

    def over(self) -> bool:
        """Whether the copies take more than `max_space`, or commits do not fit."""
        return self._failing or self.space() > self.max_space

    def status(self) -> Status:
        disk = self._disk
        with disk.snapshot() as txn:
            users, boxes = (int(txn.stat(db)["entries"]) for db in (disk.env.users, disk.env.boxes))
        try:
            file_bytes = (self._path / "data.mdb").stat().st_blocks * 512
        except OSError:
            file_bytes = 0
        used = disk.by_priority
        return Status(
            self.space(), self.staged(), self.max_space, disk.limit, tuple(used.get(p, 0) for p in range(PRIORITIES)),
            users, boxes, file_bytes, self.over(), self.full(), self._failing,
        )  # fmt: skip

    async def rescan(self) -> Rescanned:
        """Recount everything while it is in use, say what was not as accounted, and mend it. Raises: MetacacheError."""
        loop = asyncio.get_running_loop()
        before, users = self.space(), 0
        wrong: list[str] = []
        after: bytes | None = b""
        while after is not None:
            if self._closed:
                raise MetacacheError("metacache: closed")
            after, counted, lines = await loop.run_in_executor(self._thread, self._disk.recount, after, RECOUNT_ENTRIES)
            users += counted
            wrong += lines
        wrong += await loop.run_in_executor(self._thread, self._disk.recount_total)
        for line in wrong:
            log.warning("metacache rescan: mended", path=str(self._path), found=line)
        return Rescanned(users, before, self.space(), wrong)

    def check(self) -> list[str]:
        """Recount the committed bytes; a line for each difference. For tests and for the operator: reads everything."""
        return self._disk.check()

    def _unseen(self, txn: lmdb.Transaction) -> list[Layer]:
        """The layers that a snapshot does not show. Ask after the snapshot began: the id is set before the commit."""
        seen = txn.id()
        return [layer for layer in self._layers if layer.txn_id is None or seen < layer.txn_id]

    def _pending(self, txn: lmdb.Transaction, user: str, box: str) -> list[BoxOp]:
        if not self._layers:
            return []
        return [op for layer in self._unseen(txn) for op in layer.ops_of(user, box)]

    # ---- committing --------------------------------------------------------------------------------------------

    async def commit(self) -> None:
        """Return when everything staged before the call is in a synced commit; one commit serves all who wait.

        Raises: MetacacheFull, MetacacheError; the writes then stay staged and visible.
        """
        if self._closed:
            raise MetacacheError("metacache: closed")
        if not self._layers:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._layers[-1].waiters.append(done)
        self._kick()
        await done

    async def close(self) -> None:
        """Write what is staged, sync and close."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._writer is not None:
            await self._writer
        if self._layers or self._touched:
            if not self._layers:
                self._layers.append(Layer())
            await self._write_all()
        if self._layers:
            log.error("metacache closed with writes that do not fit, they are lost", bytes=self.staged())
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disk.env.close)
        self._thread.shutdown()

    def _arm(self, delay_s: float) -> None:
        """See to it that the writer runs in a while, if there is a loop; without one the next commit writes."""
        if self._timer is not None or self._writer is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.call_later(delay_s, self._kick)

    def _kick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writer is not None or not self._layers:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._writer = loop.create_task(self._write_all())

    async def _write_all(self) -> None:
        """Write layer after layer until there is none, or until one does not fit."""
        try:
            while self._layers:
                layer = self._layers[0]
                layer.sealed = True
                try:
                    await self._write(layer)
                except MetacacheFull as error:
                    if all(isinstance(op, Drop) for op in layer.ops) or not (self._make_room() or self._split(error)):
                        self._fail(error)
                        return
                except MetacacheError as error:
                    self._fail(error)
                    return
        finally:
            self._writer = None
            if self._layers and not self._closed:
                self._arm(RETRY_DELAY_S)

    async def _write(self, layer: Layer) -> None:
        """Write the first layer and take it off the queue. A cancellation waits: the outcome must be known."""
        touched = dict(list(self._touched.items())[:TOUCHED_PER_COMMIT])

        def begun(txn_id: int) -> None:
            layer.txn_id = txn_id

        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._thread, self._disk.write, layer.ops, touched, self._clock(), begun)
        cancelled: asyncio.CancelledError | None = None
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError as error:
                cancelled = error
        if (failure := job.exception()) is not None:
            layer.txn_id = None  # the next transaction has the same id
            raise failure
        self._layers.popleft()
        self._failing = False
        _resolve(layer.waiters)
        if self._disk.space > self.max_space and self.on_pressure is not None:
            self.on_pressure()
        for key, at in touched.items():
            if self._touched.get(key) == at:
                del self._touched[key]
        if cancelled is not None:
            raise cancelled

    def _make_room(self) -> bool:
        """Write the staged drops before everything else; whether there were any, so that another try is worth it."""
        drops, rest = drops_first(op for layer in self._layers for op in layer.ops)
        if not drops:
            return False
        layers = deque([Layer()])
        for op in drops:
            layers[0].add(op)
        layers[0].sealed = True
        for op in rest:
            if layers[-1].sealed:
                layers.append(Layer())
            layers[-1].add(op)
        layers[-1].waiters = [waiter for layer in self._layers for waiter in layer.waiters]
        self._layers = layers
        return True

    def _split(self, error: MetacacheFull) -> bool:
        """Halve the first layer: what fits is written, so that the cleaner can drop it. False of a single write, and
        of a map that is full: it must keep room to delete."""
        whole = self._layers[0]
        half = len(whole.ops) // 2
        if not half or not isinstance(error, OverLimit):
            return False
        first, second = Layer(), Layer()
        for at, op in enumerate(whole.ops):
            (first if at < half else second).add(op)
        first.sealed = second.sealed = True
        second.waiters = whole.waiters
        self._layers[0] = second
        self._layers.appendleft(first)
        return True

    def _fail(self, error: MetacacheError) -> None:
        self._failing = True
        if isinstance(error, MetacacheFull) and self.on_pressure is not None:
            self.on_pressure()
        for layer in self._layers:
            waiters, layer.waiters = layer.waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(type(error)(str(error)))
        if (now := self._clock()) - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            tell = log.warning if isinstance(error, MetacacheFull) else log.error
            tell("metacache cannot commit", path=str(self._path), error=str(error), staged_bytes=self.staged())


def _resolve(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


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
