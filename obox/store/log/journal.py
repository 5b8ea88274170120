"""The journal: the changes of all users of this backend in an interval, in a single
object.

Theory of operation. `add` stages a delta. A task writes what is staged, an object at a
time, each under the next `seq`, create-only. If it is unknown whether an object has
landed, the same bytes are written again until it is known; the create-only PUT makes
that safe. A refused PUT means that another backend has fenced this boot. Then `fenced`
is called, and the owner starts a new boot. Changes that were staged or in flight are
written to the first object of the new boot.

    add -> staged -> in flight -> in the bucket
                        |
                        +-- refused: fenced -> new boot, staged again

Lease. Nothing is acknowledged unless a journal PUT that began in the last LEASE_S
seconds has succeeded. The clock also runs while the machine is suspended, so a machine
that was suspended first learns whether it has been replaced. In a cluster a pause of a
second voids the lease, and nothing is answered before it is renewed (`awake`).

Coverage. For each box (a user's root or mailbox) the journal remembers the first `seq`
with a change that no bundle covers. The lowest of all is the watermark. Every object
has it, and a reader needs nothing below it.

Invariant: `sync()` returns only when everything added before the call is in the bucket
under a boot that is not fenced.

This module does not know what a delta contains.

Diagnostics: errors of the bucket are logged once a minute, and the PUT is repeated for
ever; `late` says for how long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from ...errors import Unavailable
from ...objectstore import CorruptObject, ObjectStore, StoreError, put_once
from ...objectstore.codec import Codec, ObjectKind
from ...objectstore.keys import journal_key, owner_of
from ...types import Oid
from ..once import EveryMinute
from .awake import Awake

LEASE_S: Final = 30.0
"""An acknowledgement needs a journal PUT that began within this time. A takeover need
not wait longer."""

RENEW_S: Final = 15.0
"""A lease older than this is renewed, in parallel with the mail's own PUT."""

DELETED: Final = "deleted"
"""Used in place of a box: the user was deleted, so earlier changes in any journal are
void."""

LATE_S: Final = 10.0
"""If the journal is later than this, changes are refused, which bounds what a crash may
lose."""

INLINE_BYTES: Final = 64 * 1024
"""Deltas of at most this size are compressed on the loop. Larger deltas come from a
change of many mails, and go to a thread."""

log = structlog.get_logger()


class Line(msgspec.Struct, array_like=True):
    """The changes of a user in an object: (box, delta) in order."""

    sid: str
    changes: list[tuple[str, bytes]]


class JournalObject(msgspec.Struct, omit_defaults=True):
    """A journal object. closed: it is a fence, or an orderly end. clean: everything of
    this boot is in bundles.

    modseq_floor: an upper bound of every MODSEQ that a crashed owner may have shown to
    a client. adopted: users of whom bundles have all changes of this boot; only in
    records after a fence. assigned: the highest number of an assignment that the writer
    has seen (docs/cluster.md). groups: names of the groups that hear of the lines;
    again: the changes that were staged again, as positions in the line of a user
    (docs/events.md).
    """

    backend: str
    boot: str
    seq: int
    watermark: int
    lines: list[Line] = []
    closed: bool = False
    clean: bool = False
    modseq_floor: int = msgspec.field(default=0, name="ahead")
    adopted: list[str] = []
    assigned: int = 0
    groups: Sequence[str] = ()
    again: dict[str, list[int]] = {}

    @property
    def key(self) -> str:
        return journal_key(self.backend, self.boot, self.seq)

    def encode(self, codec: Codec, oid: Oid) -> bytes:
        return codec.encode(ObjectKind.JOURNAL, owner_of(self.key), oid, b"", msgspec.msgpack.encode(self))

    @classmethod
    def decode(cls, codec: Codec, data: bytes, key: str, *, lenient: bool = False) -> JournalObject:
        """Decode the object under a key. lenient: see `Codec.decode`.

        Raises CorruptObject (also if it belongs to another key), MsgspecError,
        NewerFormat, ValueError.
        """
        found = msgspec.msgpack.decode(codec.decode(data, owner_of(key), lenient=lenient).payload, type=cls)
        if found.key != key:  # an object of version 1 has no other binding
            raise CorruptObject(f"the journal object of {found.key}")
        return found


class Follower(Protocol):
    """What hears of the journal (`obox.events`).

    groups: names of its groups, which each object of the journal has.
    """

    @property
    def groups(self) -> Sequence[str]: ...

    def landed(self, written: JournalObject) -> None:
        """Take an object that is in the bucket, in the order of the objects. It must
        not wait."""

    def gained(self, units: Collection[str], *, orderly: bool) -> None:
        """Note that this backend serves users of these units from now on. orderly:
        whether another backend that lives has released them."""

    def released(self) -> None:
        """Note that another backend gets users, and waits for the cursors."""

    async def let_go(self, boot: str, below: int, since: float) -> bool:
        """Return whether the objects of a boot of this process may be deleted.

        since: the time by the journal's clock since which nothing else needs them.
        """


class Journal:
    """The writer of a backend's journal; see the module's text."""

    def __init__(
        self,
        store: ObjectStore,
        codec: Codec,
        backend: str,
        boot: str,
        *,
        interval_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        new_oid: Callable[[], Oid],
        before_put: Callable[[str, int], Awaitable[None]],
        fenced: Callable[[], Awaitable[str]],
    ) -> None:
        """clock: seconds of a clock that runs during suspend. before_put(boot, seq):
        records them locally. fenced(): returns the name of a new boot, once it is known
        which users this backend still has."""
        self._store = store
        self._codec = codec
        self.backend = backend
        self.boot = boot
        self.interval_s = interval_s
        self._clock = clock
        self._sleep = sleep
        self._new_oid = new_oid
        self._before_put = before_put
        self._fenced = fenced
        self._staged: dict[str, list[tuple[str, bytes]]] = {}
        self._staged_at: float | None = None
        self.modseq_floor = 0
        self.assigned = 0
        """Both are written into every object; see `JournalObject`."""
        self._seq = 0
        self._lease_at = -LEASE_S
        self.awake = Awake(clock)
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._writes = 0
        self._busy = False
        self._stopping = False
        self._first: dict[tuple[str, str], tuple[int, float]] = {}
        """The `seq` of the first change that no bundle covers, and when it was staged,
        by (user, box)."""
        self._carried: dict[tuple[str, str], float] = {}
        """When the oldest change that was carried forward was staged, by (user,
        box)."""
        self._deletions: dict[str, int] = {}
        """The `seq` that records a user's deletion, while earlier boots may still be
        read."""
        self.covered: list[tuple[str, int, float]] = []
        """(boot, `seq` below which all is covered, time by `clock`): what may be
        deleted after the delay."""
        self._trouble = EveryMinute(clock)
        self._again: dict[str, list[int]] = {}
        """See `JournalObject.again`, of what is staged."""
        self.follower: Follower | None = None
        self.unloaded: set[tuple[str, str]] = set()
        """(user, box) of boxes that were unloaded from memory although no bundle covers
        their changes, because this journal has all of them."""

    # -- writers ---------------------------------------------------------------------------------------------------

    def add(self, sid: str, box: str, delta: bytes, *, again: bool = False) -> None:
        """Stage a change. It is in the bucket within the interval while the bucket
        answers. again: whether the journal of this backend had it before."""
        changes = self._staged.setdefault(sid, [])
        if again:
            self._again.setdefault(sid, []).append(len(changes))
        changes.append((box, delta))
        if (sid, box) not in self._first:
            self._first[sid, box] = self._seq, self._clock()
        if self._staged_at is None:
            self._staged_at = self._clock()
            self._wake.set()

    def carry(self, sid: str, box: str, delta: bytes) -> None:
        """Stage again all changes of a box that no bundle covers, so that a reader does
        not need its older lines."""
        _, since = self._first.pop((sid, box), (0, self._clock()))
        self._carried.setdefault((sid, box), since)
        self.add(sid, box, delta, again=True)

    def carried(self, sid: str, box: str) -> float:
        """Return the age in seconds of the oldest change of a box that no bundle
        covers, if it was ever carried forward; otherwise 0."""
        since = self._carried.get((sid, box))
        return 0.0 if since is None else self._clock() - since

    def overdue(self, age_s: float) -> list[tuple[str, str]]:
        """Return boxes with a change that no bundle has covered for this time."""
        limit = self._clock() - age_s
        return [key for key, (_, since) in self._first.items() if since < limit]

    def uncovered(self) -> list[tuple[str, str]]:
        """Return (user, box) of each box that has changes which no bundle covers."""
        return list(self._first)

    async def sync(self) -> None:
        """Return when everything added before is in the bucket. Raises Unavailable
        after LATE_S."""
        if self._staged or self._busy:
            await self._wait(self._writes + bool(self._staged) + self._busy)

    async def lease(self) -> None:
        """Return when an acknowledgement is allowed. Raises Unavailable."""
        since = self.awake.proof_since()
        while self._lease_at < since or self._clock() - self._lease_at > RENEW_S:
            await self._wait(self._writes + 1)

    def sure(self) -> bool:
        """Return whether `confirm` would return at once."""
        return self._lease_at >= self.awake.proof_since()

    async def confirm(self) -> None:
        """Return when what memory says is current, after a pause of this process. Then
        this boot is not fenced, or a new boot has begun. Raises Unavailable."""
        since = self.awake.proof_since()
        while self._lease_at < since:
            await self._wait(self._writes + 1)

    async def announce(self) -> None:
        """Return when an object that was begun after the call is in the bucket. Raises
        Unavailable."""
        await self._wait(self._writes + 1 + self._busy)

    def record_deletion(self, sid: str) -> None:
        """Stage the deletion of a user, so that a replay does not give its changes to a
        later user with the same storage id. Readers find the deletion as long as they
        may find older changes (`forget_deletions`)."""
        self.forget(sid)
        self._staged[sid] = [(DELETED, b"")]
        self._deletions[sid] = self._seq
        if self._staged_at is None:
            self._staged_at = self._clock()
            self._wake.set()

    def forget_deletions(self) -> None:
        """Call this once all earlier boots are clean. No replay can then reach a
        deleted user's data, so deletion records no longer hold the watermark."""
        self._deletions.clear()

    def forget(self, sid: str) -> None:
        """Drop all changes of a user that are staged or not yet covered, because the
        user is being deleted."""
        self._staged.pop(sid, None)
        self._again.pop(sid, None)
        if not self._staged:
            self._staged_at = None
        self.unloaded -= {key for key in self.unloaded if key[0] == sid}
        for table in (self._first, self._carried):
            for key in [key for key in table if key[0] == sid]:
                del table[key]

    def stale(self) -> bool:
        """Return whether `lease` would make a request to renew the lease."""
        return not self.sure() or self._clock() - self._lease_at > RENEW_S

    def expired(self) -> bool:
        """Return whether another backend may have taken over, so that nothing may be
        acknowledged."""
        return not self.sure() or self._clock() - self._lease_at > LEASE_S

    def check(self) -> None:
        """Raises Unavailable while the journal is later than LATE_S."""
        if self.late() > LATE_S:
            raise Unavailable("the storage does not answer; try again later")

    def late(self) -> float:
        """Return how many seconds the oldest change has waited."""
        return 0.0 if self._staged_at is None else self._clock() - self._staged_at

    async def _wait(self, write: int) -> None:
        """Wait until `write` writes have been made."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, future))
        self._urgent.set()
        self._wake.set()
        try:
            async with asyncio.timeout(LATE_S):
                await future
        except TimeoutError:
            raise Unavailable("the storage does not answer; try again later") from None

    # -- coverage --------------------------------------------------------------------------------------------------

    def position(self) -> tuple[str, int]:
        """Return the boot and the `seq` of a change that is added now; for
        `flushed`."""
        return self.boot, self._seq

    def flushed(self, sid: str, box: str, position: tuple[str, int], *, more: bool) -> None:
        """Note that a bundle covers what was added of a box before `position`. more:
        whether changes have come since."""
        key = (sid, box)
        self._carried.pop(key, None)
        if not more:
            self._first.pop(key, None)
            self.unloaded.discard(key)
        elif key in self._first and position[0] == self.boot:
            # Otherwise it was staged at a fence and is in the new boot.
            self._first[key] = max(self._first[key][0], position[1]), self._clock()

    def watermark(self) -> int:
        """Return the first `seq` that a reader needs."""
        return min(
            min((seq for seq, _ in self._first.values()), default=self._seq),
            min(self._deletions.values(), default=self._seq),
        )

    # -- the writing task ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until `stop`, and then write what is left. The store owns this task."""
        while True:
            await self._wake.wait()
            if self._stopping and not self._staged and not self._waiting:
                return
            if not self._urgent.is_set() and self._staged_at is not None:
                rest = self.interval_s - (self._clock() - self._staged_at)
                if rest > 0:
                    await self._nap(rest)
            await self._write_staged()

    def stop(self) -> None:
        """Let `run` write what is staged and return."""
        self._stopping = True
        self._urgent.set()
        self._wake.set()

    async def _nap(self, seconds: float) -> None:
        """Sleep, but no longer than until a caller waits."""
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        urgent = asyncio.ensure_future(self._urgent.wait())
        try:
            await asyncio.wait((sleeping, urgent), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            urgent.cancel()

    async def _write_staged(self) -> None:
        self._wake.clear()
        self._urgent.clear()
        if not self._staged and not self._waiting:
            if self._stopping:
                self._wake.set()
            return
        staged, self._staged = self._staged, {}
        again, self._again = self._again, {}
        began_waiting = self._staged_at
        self._busy = True
        try:
            await self._write(staged, again)
        except BaseException:
            for sid, positions in self._again.items():
                before = len(staged.get(sid, ()))
                again.setdefault(sid, []).extend(before + at for at in positions)
            self._again = again
            self._staged = self._merge(staged, self._staged)
            self._staged_at = began_waiting
            raise
        finally:
            self._busy = False
        self._writes += 1
        self._staged_at = self._clock() if self._staged else None
        left = []
        for write, future in self._waiting:
            if write > self._writes:
                left.append((write, future))
            elif not future.done():
                future.set_result(None)
        self._waiting = left
        if self._staged or left or self._stopping:
            self._wake.set()
        if left or self._stopping:
            self._urgent.set()

    async def _write(
        self,
        staged: dict[str, list[tuple[str, bytes]]],
        again: dict[str, list[int]],
        *,
        closed: bool = False,
        clean: bool = False,
    ) -> None:
        """PUT an object with the same bytes until it is known to be in the bucket, also
        in a new boot after a fence."""
        journal, data, oid = await self._encode(staged, again, closed, clean)
        while True:
            begun = self._clock()
            try:
                await self._before_put(self.boot, journal.seq)
                ours = await put_once(self._store, journal.key, data, oid, kind="journal")
            except StoreError as exc:
                if self._trouble.due():
                    more = self._trouble.skipped()
                    log.warning("journal late", late_s=round(self.late(), 1), error=str(exc), skipped=more)
                await self._sleep(min(1.0, self.interval_s))
                continue
            if ours:
                self._lease_at = begun
                if self.follower is not None:
                    self.follower.landed(journal)
                return
            # Nothing is acknowledged until the new boot's first object has landed.
            self._lease_at = float("-inf")
            self.boot = await self._fenced()
            self._seq = 0
            self._first = {key: (0, since) for key, (_, since) in self._first.items()}
            # The backend that fenced us has read the others.
            self._deletions = dict.fromkeys(self._deletions.keys() & staged.keys(), 0)
            journal, data, oid = await self._encode(staged, again, closed, clean)

    async def _encode(
        self, staged: dict[str, list[tuple[str, bytes]]], again: dict[str, list[int]], closed: bool, clean: bool
    ) -> tuple[JournalObject, bytes, Oid]:
        seq = self._seq
        self._seq += 1
        oid = self._new_oid()
        lines = [Line(sid, changes) for sid, changes in staged.items()]
        watermark = min(self.watermark(), seq)
        journal = JournalObject(
            self.backend,
            self.boot,
            seq,
            watermark,
            lines,
            closed,
            clean,
            self.modseq_floor,
            assigned=self.assigned,
            groups=() if self.follower is None else self.follower.groups,
            again=again,
        )
        if watermark and (not self.covered or self.covered[-1][:2] != (self.boot, watermark)):
            self.covered.append((self.boot, watermark, self._clock()))
        if sum(len(delta) for changes in staged.values() for _, delta in changes) > INLINE_BYTES:
            return journal, await asyncio.to_thread(journal.encode, self._codec, oid), oid
        return journal, journal.encode(self._codec, oid), oid

    @staticmethod
    def _merge(
        first: dict[str, list[tuple[str, bytes]]], then: dict[str, list[tuple[str, bytes]]]
    ) -> dict[str, list[tuple[str, bytes]]]:
        for sid, changes in then.items():
            first.setdefault(sid, []).extend(changes)
        return first

    async def close(self) -> None:
        """Write the end of this boot, after `run` has ended. It is clean if bundles
        cover all."""
        staged, self._staged = self._staged, {}
        clean = not self._first and not staged and not self._deletions
        await self._write(staged, self._again, closed=True, clean=clean)
        self._staged_at = None
