"""What every part of the store shares: the bucket with translated errors, the codec,
the caches, clocks and randomness.

Only this module translates storage errors to `obox.errors`. Transient errors become
`Unavailable`, and so do refusals, because a client cannot change a bucket's policy.
Missing objects become None or `NotFound`, and damaged objects `Corrupt`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Literal

import structlog

from fscache import Fscache
from metacache import Metacache, MetacacheError

from ..errors import StorageRefuses, Unavailable
from ..forms import Gate
from ..lanes import Lanes
from ..objectstore import Kind, Missing, ObjectInfo, ObjectStore, StoreError, put_once
from ..objectstore.codec import Codec, Decoded, ObjectKind, payload_bytes_of
from ..objectstore.keys import owner_of
from ..turn import Turn
from ..types import Oid, Owner
from .once import EveryMinute
from .owned import Owned
from .recent import Recent
from .stamp import Assignment, Stamp

log = structlog.get_logger()

GETS_AT_ONCE: Final = 16
"""Requests in flight for a single caller: enough to hide the bucket's latency, and few
enough to leave capacity for others."""

OPEN_S: Final = 10.0
"""How long a session waits for its user. Opening takes a few small requests, each of
which may take the bucket's deadline. The opening continues after that, so a client that
tries again waits less."""

ANSWER_S: Final = 15.0
"""How long a session waits for a change: until its mailbox is loaded, its mail has
landed, and lower UIDs are resolved. Work under way completes after that, but is not
acknowledged."""

TRY_LATER: Final = "the storage does not answer; try again later"


class answer_within:
    """Raise Unavailable if the block takes longer. Work that must not be cancelled runs
    as a shielded task. Each delivery enters it, so it is a class: a generator would
    cost six more calls."""

    __slots__ = ("_timeout",)

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise Unavailable(TRY_LATER) from None
        if isinstance(error, TimeoutError):  # raised in the block
            raise Unavailable(TRY_LATER) from None


INLINE_DECODED_BYTES: Final = 1 << 20
"""Octets of a payload that is decoded on the loop, which takes about a millisecond."""


def is_large(data: bytes) -> bool:
    """Return whether an object is decoded in a thread: 30 MB of a repeated letter are 3
    kB when encoded."""
    return max(len(data), payload_bytes_of(data)) > INLINE_DECODED_BYTES


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Settings of the store. Sizes are in bytes, times in seconds."""

    backend: str
    durability: Literal["local", "bucket"] = "local"
    journal_interval_s: float = 1.0
    delete_delay_s: float = 86400.0
    upload_interval_s: float = 300.0
    batch_linger_s: float = 0.0
    """How long a mail waits for others of its mailbox, to be written in one object."""
    max_rescan_mail_count: int = 10
    max_mail_size: int = 50 << 20
    mailbox_mails_max: int = 500_000
    """Mails of a mailbox: some work of a turn of the loop takes all of them."""
    mailboxes: tuple[tuple[str, str], ...] = (
        ("Drafts", "\\Drafts"),
        ("Sent", "\\Sent"),
        ("Trash", "\\Trash"),
        ("Junk", "\\Junk"),
        ("Archive", "\\Archive"),
    )
    idle_s: float = 60.0
    """A mailbox without sessions is unloaded from memory after this time."""
    forced_refresh_interval_s: float = 8 * 3600.0
    refresh_index_once_after: float = 0.0
    rescan_mails_once_after: float = 0.0
    flush_at: str = ""
    """Local time of day, HH:MM."""
    autofix_storage: bool = False
    """The default of reads: whether a lost mail is looked for again, and expunged if it
    is gone."""
    lost_mailbox_prefix: str = "recovered-lost-folder-"


@dataclass(slots=True)
class Env:
    """Shared by all users of a store. now: unix seconds. clock: seconds of a clock that
    also runs during suspend. random_bytes: source of randomness."""

    bucket: ObjectStore
    codec: Codec
    metacache: Metacache
    fscache: Fscache
    settings: StoreSettings
    now: Callable[[], float]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    random_bytes: Callable[[int], bytes]
    writer: str = ""
    forms: Gate = field(default_factory=Gate)
    """Which versions may be written: a writer of a newer version asks."""
    owned: Owned = field(default_factory=Owned)
    lanes: Lanes = field(default_factory=Lanes)
    """Whose turn it is among the long tasks of a user."""
    local_failures: int = 0
    recent: Recent = field(default_factory=Recent)
    before_load: Callable[[str], Awaitable[None]] | None = None
    """Called with a mailbox's GUID before it is loaded, so that news of it are heard
    from then on (`obox.events.news`)."""
    until_heard: Callable[[], Awaitable[None]] | None = None
    """Returns when listeners for which acknowledgements wait have heard of what was
    staged before. None: none does."""
    trouble: EveryMinute = field(init=False)
    undecided: EveryMinute = field(init=False)

    def __post_init__(self) -> None:
        self.trouble = EveryMinute(self.clock)
        self.undecided = EveryMinute(self.clock)

    def keep(self, sid: str, box: str, write: Callable[[Metacache], None]) -> None:
        """Stage a write of a box's local copy. If it fails, the copy is dropped,
        because no copy is better than a wrong copy."""
        try:
            write(self.metacache)
        except MetacacheError as exc:
            self.local_failures += 1
            log.warning("local copy cannot be written and is dropped", storage_id=sid, box=box, error=str(exc))
            self.metacache.drop(sid, box)

    async def commit_staged(self) -> bool:
        """Commit what is staged. Returns False if a part cannot be written now; it
        stays in memory."""
        try:
            await self.metacache.commit()
        except MetacacheError as exc:
            if self.trouble.due():
                log.warning("local state cannot be written, changes wait for the bucket", error=str(exc))
            return False
        return True

    def turn(self, sid: str) -> Turn:
        """Return the turns of long work for a user. Tasks of the same user wait for
        each other, so that many of them take no more of the loop than one."""
        return Turn(self.clock, partial(self.lanes.turn, sid))

    @property
    def delete_delay_s(self) -> float:
        return self.settings.delete_delay_s

    def assignment(self, sid: str) -> Assignment:
        """Return the assignment under which this backend has a user; see `owned`."""
        settings, now = self.settings, self.now()
        once = settings.refresh_index_once_after
        forced = settings.forced_refresh_interval_s
        since = max(once if once <= now else 0.0, now - forced if forced > 0 else 0.0)
        return Assignment(self.owned.generation_of(sid), since)

    def is_stale(self, sid: str, stamp: Stamp) -> bool:
        """Return whether another backend may have written a box since it was compared.
        That happens if this backend hears of the other while it loads the box."""
        return self.owned.owns(sid) and not self.assignment(sid).covers(stamp)

    def must_rescan(self, listed: float) -> bool:
        """Return whether a mailbox whose mails were LISTed at `listed` (unix seconds)
        must be LISTed again."""
        return listed < self.settings.rescan_mails_once_after <= self.now()

    def now_ms(self) -> int:
        return int(self.now() * 1000)

    def new_oid(self) -> Oid:
        return Oid(self.random_bytes(16))

    async def listing(
        self, prefix: str, *, kind: Kind, after: str = "", limit: int | None = None, exact: bool = False
    ) -> list[ObjectInfo]:
        """See ObjectStore.list."""
        try:
            return await self.bucket.list(prefix, kind=kind, after=after, limit=limit, exact=exact)
        except StoreError as exc:
            raise self.unavailable("list", prefix, exc) from exc

    async def names(self, prefix: str, *, kind: Kind) -> list[str]:
        """See ObjectStore.list_names."""
        try:
            return await self.bucket.list_names(prefix, kind=kind)
        except StoreError as exc:
            raise self.unavailable("list", prefix, exc) from exc

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes | None:
        """Return the object's bytes, or None if it does not exist."""
        try:
            return await self.bucket.get(key, kind=kind, start=start, end=end)
        except Missing:
            return None
        except StoreError as exc:
            raise self.unavailable("get", key, exc) from exc

    async def get_all(self, keys: Sequence[str], *, kind: Kind, end: int | None = None) -> list[bytes | None]:
        """GET objects, GETS_AT_ONCE of them in parallel. The results are in order."""
        if len(keys) == 1:
            return [await self.get(keys[0], kind=kind, end=end)]
        found: list[bytes | None] = [None] * len(keys)
        left = iter(enumerate(keys))

        async def work() -> None:
            turn = Turn(self.clock)
            try:
                for at, key in left:
                    found[at] = await self.get(key, kind=kind, end=end)
                    if turn.over():
                        await turn.end()
            except BaseException:
                for _ in left:  # nobody waits for the others any more
                    pass
                raise

        await asyncio.gather(*(work() for _ in range(min(GETS_AT_ONCE, len(keys)))))
        return found

    async def put_new(self, key: str, kind: ObjectKind, meta: bytes, payload: bytes) -> bool:
        """Encode and PUT an object under a key that only we use (a bundle). Returns
        False if it exists already.

        Raises Unavailable; then the object may exist, now or later, and the key must
        not be used again.
        """
        oid, owner = self.new_oid(), owner_of(key)
        if len(payload) > 64 * 1024:
            data = await asyncio.to_thread(self.codec.encode, kind, owner, oid, meta, payload)
        else:
            data = self.codec.encode(kind, owner, oid, meta, payload)
        try:
            return await put_once(self.bucket, key, data, oid, kind="index")
        except StoreError as exc:
            raise self.unavailable("put", key, exc) from exc

    async def decode(self, data: bytes, owner: Owner) -> Decoded:
        """Decode a whole object, in a thread if it is large. Raises as
        `Codec.decode`."""
        if is_large(data):
            return await asyncio.to_thread(self.codec.decode, data, owner)
        return self.codec.decode(data, owner)

    async def delete(self, keys: Sequence[str], *, kind: Kind) -> None:
        try:
            if keys:
                await self.bucket.delete(keys, kind=kind)
        except StoreError as exc:
            raise self.unavailable("delete", keys[0], exc) from exc

    def unavailable(self, op: str, key: str, exc: StoreError) -> Unavailable:
        if exc.permanent:
            log.error("bucket refuses a request", op=op, key=key, error=str(exc))
            return StorageRefuses(TRY_LATER, f"the storage refuses: {exc}")
        return Unavailable(TRY_LATER)
