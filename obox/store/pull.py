"""A user's local copies on their way from one backend to another (docs/format.md, "Pull").

The source's part is `Outgoing`, the destination's `Incoming`; what carries the bytes between them is not known here.

Invariant: nothing is only on its way. The source gives nothing up while it sends; the destination joins what comes with
what it has, and a copy keeps the mark of what the bucket lacks. A pulled copy is of no generation of this backend, so
that whoever opens it asks the bucket first.
Refuses to know: HTTP, names of users, which backend is whose.
Diagnostics: what does not decode, is of another bucket or ends early is told to the caller and ends this user's pull;
the mailboxes before it stay pulled.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import structlog

from metacache import BoxSpace, Change, Copy, MetacacheError

from ..errors import Corrupt, InUse, Invalid, NotFound, OboxError, Temporary, Unavailable
from ..mailbox import Delta, Root, RootDelta, State, UidArray
from ..objectstore import Codec, CorruptObject, NewerFormat, ObjectKind, UnknownKey
from ..objectstore.keys import ROOT, bundles_prefix, pull_owner
from ..types import Guid, StorageId
from . import operate
from ._bundles import Known, by_box
from ._env import TRY_LATER

if TYPE_CHECKING:
    from .store import MailStore

log = structlog.get_logger()

MAJOR: Final = 1

FIELDS_MAILS: Final = 2000
"""Mails in one object of ready fields: about 1 MiB."""

SLICE_BYTES: Final = 256 * 1024
"""Handed out at a time: what a slow destination makes us keep beside the object itself."""

OBJECT_BYTES_MAX: Final = 1 << 30
"""As of a bundle; a length above it is no length."""

COVERED_MAX: Final = 200
"""Names of covered bundles that a joined stamp keeps: one that is forgotten is read once more."""

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
    """One object of the stream, opened."""

    kind: int
    meta: bytes
    payload: bytes


# -- the source --------------------------------------------------------------------------------------------------------


class Outgoing:
    """What this backend has of a user; to be used while `store.travelling` keeps the user from being deleted."""

    def __init__(self, store: MailStore, sid: StorageId) -> None:
        self._store = store
        self._sid = sid
        self._spaces: list[BoxSpace] = []
        self.outdated: list[str] = []
        """Boxes of which the bucket has bundles that the copy here does not know."""

    async def prepare(self, name: str, *, everything: bool) -> None:
        """Upload what the bucket lacks, look what there is. everything: unimportant changes as well, and leave memory.

        Raises NotFound (the bucket has no such user), Unavailable.
        """
        store, sid, env = self._store, self._sid, self._store.env
        if not store.started:
            raise Unavailable(TRY_LATER)
        await env.settle()
        spaces = env.metacache.box_spaces(sid)
        if not spaces:
            return
        if sid in store.users or everything or any(space.change is Change.IMPORTANT for space in spaces):
            user = await store.load_user(name, sid)
            await operate.flush(user, important_only=not everything)
            user.leave()
            if everything:
                try:
                    await operate.let_go(store, sid, upload=True)
                except InUse:
                    pass  # it is sent as it is, and stays
            await env.settle()
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

    def _known(self, box: str) -> Known | None:
        """None: there is no whole copy."""
        copy = self._store.env.metacache.peek(self._sid, box)
        return None if copy is None else Known.decode(copy.stamp)

    async def stream(self) -> AsyncIterator[bytes]:
        """The stream, in pieces. What fails on the way ends it with an object that says so."""
        env, count, owner = self._store.env, 0, pull_owner(self._sid)
        try:
            async for kind, meta, payload in self._objects():
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

    async def _objects(self) -> AsyncIterator[tuple[ObjectKind, msgspec.Struct, bytes]]:
        store, sid, metacache = self._store, self._sid, self._store.env.metacache
        journal = store.journal
        head = Head(MAJOR, store.bucket_id(), sid, journal.backend, journal.boot, len(self._spaces))
        yield ObjectKind.PULL, head, b""
        for space in self._spaces:
            copy = metacache.load(sid, space.box)
            if copy is None or Known.decode(copy.stamp) is None:
                continue  # cleaned meanwhile
            try:
                payload, uids = await asyncio.to_thread(_whole, space.box, copy)
            except ValueError as error:
                log.warning("a damaged local copy is not sent", user=sid, box=space.box, error=str(error))
                continue
            yield ObjectKind.BASE, BoxMeta(space.box, copy.stamp, copy.change, space.priority), payload
            for at in range(0, len(uids), FIELDS_MAILS):
                some = uids[at : at + FIELDS_MAILS].tolist()
                records = metacache.get_fields(sid, space.box, some)
                pairs = [(uid, record) for uid, record in zip(some, records, strict=True) if record is not None]
                if pairs:
                    yield ObjectKind.CACHE, BoxMeta(space.box), msgspec.msgpack.encode(pairs)


def _whole(box: str, copy: Copy) -> tuple[bytes, UidArray]:
    """A copy as one delta, and its live UIDs. Raises ValueError."""
    parts = [*([] if copy.base is None else [copy.base]), *copy.deltas]
    if box == ROOT:
        root = Root()
        for part in parts:
            root.join(RootDelta.decode(part))
        return root.extract().encode(), np.empty(0, dtype=np.uint32)
    state = State(Guid(box))
    for part in parts:
        state.join(Delta.decode(part))
    return parts[0] if len(parts) == 1 else state.extract().encode(), state.uids


# -- the stream --------------------------------------------------------------------------------------------------------


class Splitter:
    """Bytes to objects; knows no source and no clock."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = _LENGTH.size
        self._length = -1

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The objects that are complete with `data`. Raises Corrupt."""
        self._buffer += data
        while len(self._buffer) >= self._need:
            piece = bytes(memoryview(self._buffer)[: self._need])
            del self._buffer[: self._need]
            if self._length < 0:
                self._need = self._length = _LENGTH.unpack(piece)[0]
                if not 0 < self._need <= OBJECT_BYTES_MAX:
                    raise Corrupt("what the source sends is no pull")
            else:
                self._need, self._length = _LENGTH.size, -1
                yield piece


def opened(codec: Codec, data: bytes, sid: StorageId) -> Object:
    """Decode an object, and what a mailbox's copy says as far as to know that it can be read. Raises Corrupt, Invalid
    (of a newer format)."""
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
    """A user's copies as they come; to be used while `store.travelling` keeps the user from being deleted.

    mailboxes: whose copy was taken; kept: those whose copy here stayed; seen: boxes that have come, `root` included, of
    `boxes`; bytes: of the stream.
    """

    def __init__(self, store: MailStore, sid: StorageId) -> None:
        self._store = store
        self._sid = sid
        self._splitter = Splitter()
        self._head: Head | None = None
        self._objects = 0
        self._ended = False
        self.mailboxes = 0
        self.kept = 0
        self.seen = 0
        self.bytes = 0

    @property
    def boxes(self) -> int:
        return 0 if self._head is None else self._head.boxes

    async def begin(self) -> None:
        """Take an idle user out of memory, flushed. Raises Unavailable."""
        if not self._store.started:
            raise Unavailable(TRY_LATER)
        try:
            await operate.let_go(self._store, self._sid, upload=True)
        except InUse:
            pass  # what a session has open stays, and asks the bucket at the end

    async def feed(self, data: bytes) -> None:
        """Take what has come; a box that is whole is in a synced commit on return.

        Raises Corrupt, Invalid (what the source sends is not for us), Temporary (no room).
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
        """The stream is over; what is open here is compared with the bucket. Raises Temporary (too early),
        Unavailable."""
        if not self._ended:
            raise Temporary("the stream was cut short; run the pull again")
        user = self._store.users.get(self._sid)
        if user is not None and self.seen:
            await operate.refresh(user)

    def _take(self, one: Object) -> None:
        """One object, in one turn of the loop: nobody opens a mailbox between a look at its copy and its change."""
        if self._ended:
            raise Corrupt("the source sends more after its end")
        if self._store.env.metacache.full():
            raise Temporary("no room for more local copies here")
        if self._head is None:
            if one.kind != ObjectKind.PULL:
                raise Corrupt("what the source sends is no pull")
            self._head = self._accepted(msgspec.msgpack.decode(one.meta, type=Head))
        elif one.kind == ObjectKind.PULL:
            end = msgspec.msgpack.decode(one.meta, type=End)
            if end.failure:
                raise Temporary(f"the source gave up: {end.failure}")
            if end.objects != self._objects:
                raise Corrupt(f"of {end.objects} objects {self._objects} have come")
            self._ended = True
        elif one.kind == ObjectKind.BASE:
            self._base(msgspec.msgpack.decode(one.meta, type=BoxMeta), one.payload)
        elif one.kind == ObjectKind.CACHE:
            box = msgspec.msgpack.decode(one.meta, type=BoxMeta).box
            self._fields(box, msgspec.msgpack.decode(one.payload, type=list[tuple[int, bytes]]))
        self._objects += 1

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
        """Ready fields never change: those of a copy that was kept are good as well."""
        try:
            self._store.env.metacache.put_fields(self._sid, box, pairs)
        except ValueError as error:
            raise Corrupt(f"ready fields from the source: {error}") from error

    def _base(self, meta: BoxMeta, payload: bytes) -> None:
        known = Known.decode(meta.stamp)
        if known is None or not 0 <= meta.change <= Change.IMPORTANT or not 0 <= meta.priority <= 3:
            raise Corrupt(f"the copy of {meta.box} from the source makes no sense")
        known.generation, known.checked, known.listed = -1, 0.0, 0.0
        taken = not self._is_open(meta.box) and self._install(meta, known, payload)
        self.seen += 1
        if meta.box != ROOT:
            self.mailboxes += taken
            self.kept += not taken

    def _is_open(self, box: str) -> bool:
        """In memory here, or on its way there: it will ask the bucket when all has come."""
        user = self._store.users.get(self._sid)
        if box == ROOT:
            return user is not None or self._store.opening(self._sid) is not None
        return user is not None and (Guid(box) in user.boxes or user.opening())

    def _install(self, meta: BoxMeta, theirs: Known, payload: bytes) -> bool:
        """Join a copy with the one that is here (the table in docs/format.md); False: the one here stays."""
        metacache, sid, box = self._store.env.metacache, self._sid, meta.box
        mine = metacache.load(sid, box)
        known = None if mine is None else Known.decode(mine.stamp)
        change = Change(meta.change)
        if mine is not None and known is not None:
            clean, same = mine.change is Change.NONE, mine.base == payload and not mine.deltas
            if (same or (clean and change is Change.NONE)) and set(theirs.heads) <= known.names():
                known.generation = -1
                metacache.mark(sid, box, mine.change, known.encode())
                return False
            if not (clean and set(known.heads) <= theirs.names()):
                payload, merged = self._joined(box, mine, payload)
                theirs, change = _both(known, theirs), Change.IMPORTANT if merged else max(mine.change, change)
        metacache.replace(sid, box, payload, theirs.encode(), change=change, priority=meta.priority)
        if mine is not None and known is None:
            for delta in mine.deltas:
                metacache.append(sid, box, delta, mine.change, priority=meta.priority)
        return True

    def _joined(self, box: str, mine: Copy, payload: bytes) -> tuple[bytes, bool]:
        """Both in one, and whether they are two histories: each has something that the other has not. Raises
        Corrupt."""
        try:
            ours, _ = _whole(box, mine)
            if box == ROOT:
                both, _ = _whole(box, mine._replace(deltas=[*mine.deltas, payload]))
                return both, both not in (ours, payload)
            state, other = State(Guid(box)), State(Guid(box))
            state.join(Delta.decode(ours))
            other.join(Delta.decode(payload))
            merged = bool(state.join(Delta.decode(payload))) and bool(other.join(Delta.decode(ours)))
            if merged:
                state.join(state.takeover_delta(self._store.env.now_ms(), 0, merged=True))
            return state.extract().encode(), merged
        except ValueError as error:
            raise Corrupt(f"the local copy of {box} does not decode: {error}") from error


def _both(mine: Known, theirs: Known) -> Known:
    """What is known of a box's bundles when two copies of it were joined; of no generation."""
    same = set(mine.heads) == set(theirs.heads)
    covered: dict[str, float] = {}
    for name, since in (*mine.superseded, *theirs.superseded):
        covered[name] = min(since, covered.get(name, since))
    heads = [name for name in dict.fromkeys((*mine.heads, *theirs.heads)) if name not in covered]
    newest = sorted(covered.items(), key=lambda pair: pair[1])[-COVERED_MAX:]
    segments = [name for name in dict.fromkeys((*mine.segments, *theirs.segments)) if name not in covered]
    return msgspec.structs.replace(
        theirs,
        generation=-1,
        checked=0.0,
        listed=0.0,
        version=max(mine.version, theirs.version),
        heads=heads,
        superseded=newest,
        segments=segments,
        cached_uid=max(mine.cached_uid, theirs.cached_uid),
        flushed_uidnext=max(mine.flushed_uidnext, theirs.flushed_uidnext),
        need_base=mine.need_base or theirs.need_base or not same,
        clean=same and mine.clean and theirs.clean,
    )
