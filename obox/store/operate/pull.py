"""The transfer of a user's local copies from a backend to another (docs/format.md,
"Pull").

`Outgoing` is the source's part, `Incoming` the destination's. This module does not know
what carries the bytes.

Invariant: no data is only in the stream. The source drops nothing while it sends. The
destination joins what it receives with its own copy, which keeps the mark of what the
bucket lacks. A pulled copy has no generation of this backend, so its next open compares
it with the bucket.

This module knows no HTTP and no names of users.

Diagnostics: a stream that does not decode, is of another bucket or ends early raises an
error and ends this user's pull. Mailboxes that were complete before stay pulled.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Collection, Iterator
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import structlog
from msgspec.structs import replace

from metacache import BoxSpace, Change, Copy, MetacacheError

from ...errors import Corrupt, InUse, Invalid, NotFound, OboxError, Temporary, Unavailable
from ...mailbox import Delta, RootDelta, UidArray, takeover_delta
from ...objectstore import Codec, CorruptObject, NewerFormat, ObjectKind, UnknownKey
from ...objectstore.keys import ROOT, bundles_prefix, pull_owner
from ...types import Guid, StorageId
from ..backend import upload
from ..box.bundles import by_box
from ..box.index import state_of
from ..box.root import list_of
from ..env import TRY_LATER
from ..stamp import Stamp
from ..user.unload import leave
from . import users as operate

if TYPE_CHECKING:
    from ..backend.store import MailStore

log = structlog.get_logger()

MAJOR: Final = 1

FIELDS_MAILS: Final = 2000
"""Mails in an object of ready fields, which has about 1 MiB."""

SLICE_BYTES: Final = 256 * 1024
"""The size of the pieces that are sent. If the destination is slow, a piece is in
memory beside the object itself."""

OBJECT_BYTES_MAX: Final = 1 << 30
"""Largest object, as for a bundle. A larger length is refused."""

COVERED_MAX: Final = 200
"""Names of covered bundles that a joined stamp keeps. A bundle whose name is dropped is
read again."""

_LENGTH: Final = struct.Struct("<I")


class Head(msgspec.Struct):
    """The meta of the first object."""

    major: int
    bucket: bytes
    sid: str
    backend: str
    boot: str
    boxes: int
    minor: int = 0


class BoxMeta(msgspec.Struct):
    """The meta of a mailbox's copy."""

    box: str
    stamp: bytes = b""
    change: int = 0
    priority: int = 3


class End(msgspec.Struct, omit_defaults=True):
    """The meta of the last object."""

    objects: int = 0
    failure: str = ""


class Object(msgspec.Struct):
    """A decoded object of the stream."""

    kind: int
    meta: bytes
    payload: bytes


# -- the source --------------------------------------------------------------------------------------------------------


class Outgoing:
    """What this backend has of a user. Use it while `store.pulling` keeps the user
    from being deleted."""

    def __init__(self, store: MailStore, sid: StorageId) -> None:
        self._store = store
        self._sid = sid
        self._spaces: list[BoxSpace] = []
        self.outdated: list[str] = []
        """Boxes of which the bucket has bundles that the copy here does not have."""

    async def prepare(self, name: str, *, everything: bool) -> None:
        """Upload what the bucket lacks, and find the copies. everything: also upload
        unimportant changes, and unload the user.

        Raises NotFound (the bucket has no such user), Unavailable.
        """
        store, sid, env = self._store, self._sid, self._store.env
        if not store.started:
            raise Unavailable(TRY_LATER)
        await env.commit_staged()
        spaces = env.metacache.box_spaces(sid)
        if not spaces:
            return
        if sid in store.users or everything or any(space.change is Change.IMPORTANT for space in spaces):
            user = await store.load_user(name, sid)
            await upload.flush(user, important_only=not everything)
            leave(user)
            if everything:
                try:
                    await upload.unload(store, sid, upload=True)
                except InUse:
                    pass  # the copy is sent as it is, and stays here
            await env.commit_staged()
            spaces = env.metacache.box_spaces(sid)
        listed = by_box(await env.listing(bundles_prefix(sid), kind="index"))
        if ROOT not in listed:
            raise NotFound("the bucket has no such user")
        for space in sorted(spaces, key=lambda space: (space.box != ROOT, space.priority, space.box)):
            known = self._known(space.box)
            if known is not None:
                self._spaces.append(space)
                if not known.knows(listed.get(space.box, [])):
                    self.outdated.append(space.box)

    def _known(self, box: str) -> Stamp | None:
        """Return the stamp of a copy, or None if there is no complete copy."""
        copy = self._store.env.metacache.peek(self._sid, box)
        return None if copy is None else Stamp.decode(copy.stamp)

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the stream in pieces. A failure ends it with an object that reports the
        failure."""
        env, count, owner = self._store.env, 0, pull_owner(self._sid)
        try:
            async for kind, meta, payload in self.objects():
                if not self._store.started:
                    raise Unavailable("the source is stopping")
                what = kind, owner, env.new_oid(), msgspec.msgpack.encode(meta), payload
                data = await asyncio.to_thread(env.codec.encode, *what)
                yield _LENGTH.pack(len(data))
                for at in range(0, len(data), SLICE_BYTES):
                    yield data[at : at + SLICE_BYTES]
                count += 1
            end = End(count)
        except (OboxError, MetacacheError) as error:
            end = End(count, str(error))
        data = env.codec.encode(ObjectKind.PULL, owner, env.new_oid(), msgspec.msgpack.encode(end), b"")
        yield _LENGTH.pack(len(data)) + data

    async def objects(self) -> AsyncIterator[tuple[ObjectKind, msgspec.Struct, bytes]]:
        store, sid, metacache = self._store, self._sid, self._store.env.metacache
        journal = store.journal
        head = Head(MAJOR, store.bucket_id(), sid, journal.backend, journal.boot, len(self._spaces))
        yield ObjectKind.PULL, head, b""
        for space in self._spaces:
            copy = metacache.load(sid, space.box)
            if copy is None or Stamp.decode(copy.stamp) is None:
                continue  # the cleaner dropped it meanwhile
            try:
                payload, uids = await asyncio.to_thread(_whole, space.box, copy)
            except ValueError as error:
                log.warning("damaged local copy not sent", user=sid, box=space.box, error=str(error))
                continue
            yield ObjectKind.BASE, BoxMeta(space.box, copy.stamp, copy.change, space.priority), payload
            for at in range(0, len(uids), FIELDS_MAILS):
                some = uids[at : at + FIELDS_MAILS].tolist()
                records = metacache.get_fields(sid, space.box, some)
                pairs = [(uid, record) for uid, record in zip(some, records, strict=True) if record is not None]
                if pairs:
                    yield ObjectKind.CACHE, BoxMeta(space.box), msgspec.msgpack.encode(pairs)


def _whole(box: str, copy: Copy) -> tuple[bytes, UidArray]:
    """Return a copy as a single delta, and its live UIDs. Raises ValueError."""
    parts = copy.parts()
    if box == ROOT:
        return list_of(parts).extract().encode(), np.empty(0, dtype=np.uint32)
    state = state_of(Guid(box), parts)
    return parts[0] if len(parts) == 1 else state.extract().encode(), state.uids


# -- the stream --------------------------------------------------------------------------------------------------------


class Splitter:
    """Splits bytes into objects. It knows no source and no clock."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._length: int | None = None
        """Of the object that comes next; None until its length has come."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the objects that `data` completes. Raises Corrupt."""
        self._buffer += data
        while len(self._buffer) >= (need := _LENGTH.size if self._length is None else self._length):
            piece = bytes(memoryview(self._buffer)[:need])
            del self._buffer[:need]
            if self._length is None:
                self._length = _LENGTH.unpack(piece)[0]
                if not 0 < self._length <= OBJECT_BYTES_MAX:
                    raise Corrupt("the source does not send a pull")
            else:
                self._length = None
                yield piece


def opened(codec: Codec, data: bytes, sid: StorageId) -> Object:
    """Decode an object, and check that a mailbox's copy can be read. Raises Corrupt,
    Invalid (a newer format)."""
    try:
        decoded = codec.decode(data, pull_owner(sid), lenient=True)
        if decoded.kind == ObjectKind.BASE:
            box = msgspec.msgpack.decode(decoded.meta, type=BoxMeta).box
            (RootDelta if box == ROOT else Delta).decode(decoded.payload)
            if box != ROOT and len(bytes.fromhex(box)) != 16:
                raise ValueError(f"no GUID of a mailbox: {box!r}")
        return Object(decoded.kind, decoded.meta, decoded.payload)
    except UnknownKey as error:
        raise Corrupt(f"the source seals with another key: {error}") from error
    except NewerFormat as error:
        raise Invalid(f"the source is newer: {error}") from error
    except (CorruptObject, msgspec.MsgspecError, ValueError) as error:
        raise Corrupt(f"what the source sends does not decode: {error}") from error


# -- the destination ---------------------------------------------------------------------------------------------------


class Incoming:
    """Receives a user's copies. Use it while `store.pulling` keeps the user from
    being deleted.

    sid: the user. mailboxes: mailboxes whose copy was accepted. kept: mailboxes whose
    copy here stayed. seen: boxes that were received of `boxes`, with `root`. bytes:
    size of the stream.
    """

    def __init__(self, store: MailStore, sid: StorageId) -> None:
        self._store = store
        self.sid = self._sid = sid
        self._splitter = Splitter()
        self._head: Head | None = None
        self.objects = 0
        self._ended = False
        self.mailboxes = 0
        self.kept = 0
        self.seen = 0
        self.bytes = 0

    @property
    def boxes(self) -> int:
        return 0 if self._head is None else self._head.boxes

    async def begin(self) -> None:
        """Flush and unload an idle user. Raises Unavailable."""
        if not self._store.started:
            raise Unavailable(TRY_LATER)
        try:
            await upload.unload(self._store, self._sid, upload=True)
        except InUse:
            # A mailbox that a session has open stays, and is compared with the bucket
            # at the end.
            pass

    async def feed(self, data: bytes) -> None:
        """Process received bytes. A box that is complete is in a synced commit on
        return.

        Raises Corrupt, Invalid (the stream is not for us), Temporary (no space).
        """
        self.bytes += len(data)
        for raw in self._splitter.feed(data):
            one = await asyncio.to_thread(opened, self._store.env.codec, raw, self._sid)
            try:
                self._take(one)
                await self._store.env.metacache.commit()
            except msgspec.MsgspecError as error:
                raise Corrupt(f"what the source sends does not decode: {error}") from error
            except MetacacheError as error:
                raise Temporary(str(error)) from error

    async def end(self) -> None:
        """End the stream, and compare open mailboxes with the bucket. Raises Temporary
        (it is incomplete), Unavailable."""
        if not self._ended:
            raise Temporary("the stream was cut short; run the pull again")
        user = self._store.users.get(self._sid)
        if user is not None and self.seen:
            await operate.refresh(user)

    def _take(self, one: Object) -> None:
        """Process an object in a single turn of the loop, so that no mailbox is opened
        between the check of its copy and its change."""
        if self._ended:
            raise Corrupt("the source sends more after its end")
        if self._store.env.metacache.full():
            raise Temporary("no room for more local copies here")
        if self._head is None:
            if one.kind != ObjectKind.PULL:
                raise Corrupt("the source does not send a pull")
            self._head = self._accepted(msgspec.msgpack.decode(one.meta, type=Head))
        elif one.kind == ObjectKind.PULL:
            end = msgspec.msgpack.decode(one.meta, type=End)
            if end.failure:
                raise Temporary(f"the source has stopped: {end.failure}")
            if end.objects != self.objects:
                raise Corrupt(f"of {end.objects} objects {self.objects} have come")
            self._ended = True
        elif one.kind == ObjectKind.BASE:
            self._base(msgspec.msgpack.decode(one.meta, type=BoxMeta), one.payload)
        elif one.kind == ObjectKind.CACHE:
            box = msgspec.msgpack.decode(one.meta, type=BoxMeta).box
            self._fields(box, msgspec.msgpack.decode(one.payload, type=list[tuple[int, bytes]]))
        self.objects += 1

    def _accepted(self, head: Head) -> Head:
        """Raises Invalid."""
        if head.major != MAJOR:
            raise Invalid(f"the source sends format {head.major}; allowed: {MAJOR}")
        if head.bucket != self._store.bucket_id():
            raise Invalid("the source has another bucket, or another prefix of it")
        if head.boot == self._store.journal.boot:
            raise Invalid("the source is this backend itself")
        if head.sid != self._sid:
            raise Corrupt(f"the source sends another user: {head.sid}")
        return head

    def _fields(self, box: str, pairs: list[tuple[int, bytes]]) -> None:
        """Store ready fields. They never change, so they can also be added to a copy
        that was kept."""
        try:
            self._store.env.metacache.put_fields(self._sid, box, pairs)
        except ValueError as error:
            raise Corrupt(f"ready fields from the source: {error}") from error

    def _base(self, meta: BoxMeta, payload: bytes) -> None:
        known = Stamp.decode(meta.stamp)
        if known is None or not 0 <= meta.change <= Change.IMPORTANT or not 0 <= meta.priority <= 3:
            raise Corrupt(f"the copy of {meta.box} from the source has fields that cannot be")
        theirs = replace(known.uncompared(), checked=0.0, listed=0.0)
        taken = not self._is_open(meta.box) and self._install(meta, theirs, payload)
        self.seen += 1
        if meta.box != ROOT:
            self.mailboxes += taken
            self.kept += not taken

    def _is_open(self, box: str) -> bool:
        """Return whether the box is in memory here or being loaded. It is compared with
        the bucket at the end."""
        user = self._store.users.get(self._sid)
        if box == ROOT:
            return user is not None or self._store.opening(self._sid) is not None
        return user is not None and (Guid(box) in user.boxes or user.opening())

    def _install(self, meta: BoxMeta, theirs: Stamp, payload: bytes) -> bool:
        """Join a copy with the copy here (see the table in docs/format.md). Returns
        False if the copy here stays."""
        metacache, sid, box = self._store.env.metacache, self._sid, meta.box
        mine = metacache.load(sid, box)
        known = None if mine is None else Stamp.decode(mine.stamp)
        change = Change(meta.change)
        if mine is not None and known is not None:
            clean, same = mine.change is Change.NONE, mine.base == payload and not mine.deltas
            if (same or (clean and change is Change.NONE)) and set(theirs.heads) <= known.names():
                metacache.mark(sid, box, mine.change, known.uncompared().encode())
                return False
            if not (clean and set(known.heads) <= theirs.names()):
                payload, merged = self._joined(box, mine, payload)
                theirs, change = _both(known, theirs), Change.IMPORTANT if merged else max(mine.change, change)
        metacache.replace(sid, box, payload, theirs.encode(), change=change, priority=meta.priority)
        if mine is not None and known is None:
            self._store.log.append_replaced(sid, box, mine.deltas, mine.change, meta.priority)
        return True

    def _joined(self, box: str, mine: Copy, payload: bytes) -> tuple[bytes, bool]:
        """Return the join of both copies, and whether they are two histories, each with
        something that the other lacks. Raises Corrupt."""
        try:
            ours, _ = _whole(box, mine)
            if box == ROOT:
                both, _ = _whole(box, mine._replace(deltas=[*mine.deltas, payload]))
                return both, both not in (ours, payload)
            state, other = state_of(Guid(box), [ours]), state_of(Guid(box), [payload])
            merged = bool(state.join(Delta.decode(payload))) and bool(other.join(Delta.decode(ours)))
            if merged:
                state.join(takeover_delta(state, self._store.env.now_ms(), 0, merged=True))
            return state.extract().encode(), merged
        except ValueError as error:
            raise Corrupt(f"the local copy of {box} does not decode: {error}") from error


def _both(mine: Stamp, theirs: Stamp) -> Stamp:
    """Return the stamp of the join of two copies. It has no generation."""
    same = set(mine.heads) == set(theirs.heads)
    covered: dict[str, float] = {}
    for name, since in (*mine.superseded, *theirs.superseded):
        covered[name] = min(since, covered.get(name, since))
    newest = sorted(covered.items(), key=lambda pair: pair[1])[-COVERED_MAX:]
    return replace(
        theirs.uncompared(),
        checked=0.0,
        listed=0.0,
        version=max(mine.version, theirs.version),
        heads=_union(mine.heads, theirs.heads, covered),
        superseded=tuple(newest),
        segments=_union(mine.segments, theirs.segments, covered),
        cached_uid=max(mine.cached_uid, theirs.cached_uid),
        flushed_uidnext=max(mine.flushed_uidnext, theirs.flushed_uidnext),
        need_base=mine.base_next or theirs.base_next or not same,
        clean=same and mine.clean and theirs.clean,
    )


def _union(mine: tuple[str, ...], theirs: tuple[str, ...], covered: Collection[str]) -> tuple[str, ...]:
    """Return the names of both that are not covered, ours first."""
    return tuple(name for name in dict.fromkeys((*mine, *theirs)) if name not in covered)
