"""The writer: staged operations, and the transactions that commit them.

Operations are staged into layers. The writer, a task, commits the oldest layer in a
thread of its own. While that runs, further operations and further callers of `commit`
gather for the next transaction. What nobody waits for is committed within
`flush_delay_s`.

Invariant: `commit` returns only when all that was staged before the call is in a
committed transaction. Within a box, operations never change places.
This module does not know what an operation means, except that a drop makes room.
Diagnostics: full (limit, map or disk): `MetacacheFull` goes to the waiters. The
operations stay staged and are tried again at the next commit, at the next drop, or
after RETRY_DELAY_S; this is logged once a minute. Other failures of LMDB are handled in
the same way, as `MetacacheError`. What `close` cannot write is lost, and logged with
its size.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from metacache._disk import Disk
from metacache._env import Txn
from metacache._types import MetacacheError, MetacacheFull, OverLimit
from metacache.operations import BoxKey, BoxOp, Drop, Layer, Op, drops_first

log = structlog.get_logger()

RETRY_DELAY_S = 1.0  # after a failed commit, when nobody asks
LOG_INTERVAL_S = 60.0
STAGED_BYTES_MAX = 64 << 20  # while commits fail, memory must not grow
TOUCHED_PER_COMMIT = 1000

T = TypeVar("T")


class Writer:
    """Commits to `disk`.

    path: for the log. clock: seconds since the epoch. written: is called after each
    commit. full: is called when a commit does not fit.
    """

    def __init__(
        self,
        disk: Disk,
        path: str,
        *,
        clock: Callable[[], float],
        flush_delay_s: float,
        written: Callable[[], None],
        full: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._path = path
        self._clock = clock
        self._flush_delay_s = flush_delay_s
        self._written = written
        self._full = full
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metacache")
        self._layers: deque[Layer] = deque()  # oldest first; the first is written
        self.touched: dict[BoxKey, float] = {}  # last accesses, not committed
        self.written_txn_id = 0  # number of the last layer that left the queue
        self.failing = False  # the last commit failed
        self.closed = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._logged_at = -LOG_INTERVAL_S

    # ---- staging -----------------------------------------------------------------------------------------------

    def admit(self, nbytes: int) -> None:
        """Refuse too many bytes. Raises: MetacacheFull, MetacacheError."""
        if self.closed:
            raise MetacacheError("metacache: closed")
        if nbytes > self._disk.limit:
            raise MetacacheFull(f"metacache: {nbytes} bytes at once, at most {self._disk.limit} in all")
        if self.failing and nbytes and self.staged() + nbytes > STAGED_BYTES_MAX:
            raise MetacacheFull("metacache: commits fail and too much waits in memory; clean, or look at the log")

    def stage(self, op: Op, nbytes: int) -> None:
        """Add an operation with a payload of `nbytes`. Raises: as `admit`."""
        self.admit(nbytes)
        if not self._layers or self._layers[-1].sealed:
            self._layers.append(Layer())
        self._layers[-1].add(op)
        if isinstance(op, Drop):
            self.wake()  # the others may be waiting for room
        else:
            self._arm(RETRY_DELAY_S if self.failing else self._flush_delay_s)

    def staged(self) -> int:
        """Return the bytes that wait for a commit."""
        return sum(layer.nbytes for layer in self._layers)

    # ---- what reads fold in ------------------------------------------------------------------------------------

    def unseen(self, txn: Txn) -> list[Layer]:
        """Return the layers that a snapshot does not show, oldest first.

        Ask after the snapshot began: a layer gets its transaction's id before the
        commit.
        """
        return self._above(txn.id())

    def _above(self, seen: int) -> list[Layer]:
        return [layer for layer in self._layers if layer.txn_id is None or seen < layer.txn_id]

    def pending(self, txn: Txn, user: str, box: str) -> list[BoxOp]:
        """Return the operations on a box that a snapshot does not show, in order."""
        return self.pending_above(txn.id(), user, box) if self._layers else []

    def pending_above(self, seen: int, user: str, box: str) -> list[BoxOp]:
        """Return the same for a snapshot with the transaction id `seen`. It must not be
        older than the layers that have left the queue (`written_txn_id`)."""
        return [op for layer in self._above(seen) for op in layer.ops_of(user, box)]

    def touch(self, user: str, box: str) -> None:
        """Note an access. The next transaction records it."""
        self.touched[user, box] = self._clock()

    def state(self, key: str) -> bytes | None:
        """Return a staged state record. A committed layer has what the disk has."""
        for layer in reversed(self._layers):
            if (value := layer.state.get(key)) is not None:
                return value
        return None

    # ---- committing --------------------------------------------------------------------------------------------

    async def commit(self) -> None:
        """Return when all that was staged before the call is committed.

        Raises: MetacacheFull, MetacacheError; the operations then stay staged.
        """
        if self.closed:
            raise MetacacheError("metacache: closed")
        if not self._layers:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._layers[-1].waiters.append(done)
        self.wake()
        await done

    async def run(self, work: Callable[[], T]) -> T:
        """Run something in the writer's thread: between two transactions."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Write what is staged, and close the environment."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await self._task
        if self._layers or self.touched:
            if not self._layers:
                self._layers.append(Layer())
            await self._write_all()
        if self._layers:
            log.error("metacache closed, changes that did not fit are lost", bytes=self.staged())
        await self.run(self._disk.env.close)
        self._thread.shutdown()

    def _arm(self, delay_s: float) -> None:
        """Start the task after a delay. Without a loop the next commit writes."""
        if self._timer is not None or self._task is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.call_later(delay_s, self.wake)

    def wake(self) -> None:
        """Start the task now, if something is staged."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None or not self._layers:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._task = loop.create_task(self._write_all())

    async def _write_all(self) -> None:
        """Write the layers, the oldest first, until a layer does not fit."""
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
            self._task = None
            if self._layers and not self.closed:
                self._arm(RETRY_DELAY_S)

    async def _write(self, layer: Layer) -> None:
        """Write the first layer and take it off the queue.

        A cancellation waits until the transaction has ended: its outcome must be known.
        """
        touched = dict(list(self.touched.items())[:TOUCHED_PER_COMMIT])

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
        self.written_txn_id = layer.txn_id or 0
        self.failing = False
        _resolve(layer.waiters)
        self._written()
        for key, at in touched.items():
            if self.touched.get(key) == at:
                del self.touched[key]
        if cancelled is not None:
            raise cancelled

    def _make_room(self) -> bool:
        """Put the staged drops first. False if there are none."""
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
        """Halve the first layer: the half that fits is written, and can then be
        cleaned.

        False for a single operation, and for a map that is full: it must keep the room
        that a deletion needs.
        """
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
        """Report an error to the waiters and the log. The operations stay staged."""
        self.failing = True
        if isinstance(error, MetacacheFull):
            self._full()
        for layer in self._layers:
            waiters, layer.waiters = layer.waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(type(error)(str(error)))
        if (now := self._clock()) - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            write = log.warning if isinstance(error, MetacacheFull) else log.error
            write("metacache cannot commit", path=self._path, error=str(error), staged_bytes=self.staged())


def _resolve(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
