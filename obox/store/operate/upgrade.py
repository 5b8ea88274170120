"""Rewrites objects that have an older version of the envelope, or are not sealed under
the first key.

Theory of operation. An object is replaced under its key by an object with the same oid,
meta and payload. So no index changes, and a reader gets the same mail before, during
and after it. Replacements are independent of each other. If a run is cut short, the
next run finds what is left. A replacement holds the lock under which this backend
deletes objects of that mailbox, so that an object that was just deleted is not written
again.

`finish` looks at every object of the bucket. If all have the present version, it marks
`_format`. Then an older obox does not start on the bucket any more, and this version
refuses old objects. Objects of the journal with changes are never rewritten, because
the time of their PUT shows whether they concern a user who was deleted since. They are
deleted in the usual way. The last object of a boot may stay for ever. If it only says
that the boot is over, it is replaced here.

`take_over_copy` is for a user's objects that were copied unchanged to another storage
id.

Invariant: an object that does not decode, or says that it belongs elsewhere, is left as
it is. This module knows only the versions that the codec reads. Diagnostics:
Unavailable ends a run, which can be repeated. Damaged and foreign objects are counted
and logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import structlog

from ...errors import Corrupt, InUse
from ...mailbox import Delta
from ...objectstore import (
    HEADER_BYTES,
    CorruptObject,
    Kind,
    ObjectInfo,
    ObjectKind,
    StoreError,
    UnknownKey,
)
from ...objectstore.codec import Codec
from ...objectstore.keys import (
    ROOT,
    bundles_prefix,
    mails_prefix,
    owner_of,
    parse_bundle_key,
    parse_journal_key,
    parse_mail_key,
    user_prefix,
)
from ...turn import Turn
from ...types import Guid, Owner, StorageId
from ..backend import mark
from ..env import is_large
from ..log.fence import list_journals
from ..log.journal import JournalObject
from ..mails.batch import is_head
from ..mails.meta import MailMeta, check_claim, check_meta
from ..mails.purge import is_mail
from .batches import renewed

if TYPE_CHECKING:
    from ..backend.store import MailStore
    from ..user.user import User

log = structlog.get_logger()

BATCH: Final = 16
"""At most 16 objects are rewritten in parallel under a single lock."""

BATCH_BYTES: Final = 16 << 20
"""A batch has at most 16 MiB, unless a single object has more."""

HEADER_FIRST: Final = 256 << 10
"""The header of an object of this size or more is read first, because it may show that
there is nothing to do."""

INLINE_BYTES: Final = 32 << 10
"""An object of this size is renewed on the loop, which takes half a millisecond."""

LOOKED_AT: Final = 1000
"""`finish` reads 1,000 headers between two reports."""

T = TypeVar("T")

_KINDS: Final = {"base": ObjectKind.BASE, "diff": ObjectKind.DIFF, "cache": ObjectKind.CACHE}


@dataclass(slots=True)
class Upgraded:
    """objects: objects of the user, without burnt UIDs. outdated: objects to rewrite.
    upgraded: objects that were rewritten. damaged: objects that do not decode or belong
    elsewhere. foreign: keys that are not ours."""

    objects: int = 0
    outdated: int = 0
    upgraded: int = 0
    damaged: int = 0
    foreign: int = 0


async def upgrade(
    store: MailStore, sid: StorageId, name: str, *, dry_run: bool = False, rate: int = 0
) -> AsyncIterator[Upgraded]:
    """Rewrite outdated objects of a user, and yield the progress. rate: largest number
    of objects a second, 0 for no limit. Raises NotFound (there is no such user),
    Unavailable, Corrupt (the index does not decode).
    """
    done = Upgraded()
    try:
        user = await store.load_user(name, sid)
    except Corrupt:
        # These objects were restored into an upgraded bucket. The user cannot be
        # opened, so nothing is deleted meanwhile.
        if dry_run:
            raise
        for batch in await _batches(await store.env.listing(bundles_prefix(sid), kind="index")):
            await _batch(store, batch, Upgraded(), dry_run=False)
        user = await store.load_user(name, sid)
    user.sessions += 1  # this keeps the user in memory, and with it the locks
    try:
        for part in ("x/", "m/"):
            listed = await store.env.listing(user_prefix(sid) + part, kind="mail")
            for batch in await _batches(listed):
                async with await _lock(user, batch[0].key):
                    user.require_there()
                    await _batch(store, batch, done, dry_run=dry_run)
                yield done
                if rate:
                    await store.env.sleep(len(batch) / rate)
    finally:
        await user.release()
    yield done


async def take_over_copy(
    store: MailStore, sid: StorageId, copied_from: StorageId, *, dry_run: bool = False, rate: int = 0
) -> AsyncIterator[Upgraded]:
    """Bind objects to a user that were copied unchanged from another storage id. It has
    the parameters of `upgrade`.

    The list of mailboxes comes last, so that the user cannot be opened before all is
    done. Raises InUse (the user exists already), Unavailable.
    """
    done = Upgraded()
    if sid in store.users or store.opening(sid) is not None or store.env.metacache.boxes(sid):
        raise InUse("the user exists already; objects are bound to a new user only")
    with store.barring(sid):
        indexes = await store.env.listing(bundles_prefix(sid), kind="index")
        roots = [info for info in indexes if info.key.startswith(bundles_prefix(sid, ROOT))]
        others = [info for info in indexes if not info.key.startswith(bundles_prefix(sid, ROOT))]
        for listed in (await store.env.listing(mails_prefix(sid), kind="mail"), others, roots):
            for batch in await _batches(listed):
                await _batch(store, batch, done, dry_run=dry_run, copied_from=copied_from)
                yield done
                if rate:
                    await store.env.sleep(len(batch) / rate)
    yield done


async def _lock(user: User, key: str) -> AbstractAsyncContextManager[None]:
    """Return the lock under which this backend deletes objects of that box."""
    box = key.split("/", 4)[3]
    if box == ROOT:
        return user.rootbox.flushing
    entry = user.root.entries.get(Guid(box))
    if entry is None or entry.cleared:
        return nullcontext()  # nothing is deleted there
    return (await user.box(Guid(box))).flushing


async def _batches(listed: list[ObjectInfo]) -> list[list[ObjectInfo]]:
    """Return objects in batches, each of a single box, without burnt UIDs. A thread
    sorts those of a large mailbox."""
    if len(listed) > LOOKED_AT:
        return await asyncio.to_thread(lambda: list(_parted(listed)))
    return list(_parted(listed))


def _parted(listed: list[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    for _, infos in groupby(sorted(listed), lambda info: info.key.split("/")[:4]):
        batch: list[ObjectInfo] = []
        size = 0
        for info in infos:
            if batch and (len(batch) == BATCH or size + info.size > BATCH_BYTES):
                yield batch
                batch, size = [], 0
            if info.size:
                batch.append(info)
                size += info.size
        if batch:
            yield batch


async def _batch(
    store: MailStore, batch: list[ObjectInfo], done: Upgraded, *, dry_run: bool, copied_from: StorageId | None = None
) -> None:
    await asyncio.gather(*(_one(store, info, done, dry_run=dry_run, copied_from=copied_from) for info in batch))


async def _one(
    store: MailStore, info: ObjectInfo, done: Upgraded, *, dry_run: bool, copied_from: StorageId | None
) -> None:
    env, key = store.env, info.key
    kind = _kind(key)
    if kind is None:
        done.foreign += 1
        log.warning("foreign object ignored", key=key)
        return
    header_only = copied_from is None and (dry_run or info.size >= HEADER_FIRST)
    data = await env.get(key, kind=kind, end=HEADER_BYTES if header_only else None)
    if data is None:
        return  # it was deleted since the LIST
    done.objects += 1
    try:
        was = owner_of(key) if copied_from is None else _bound_to(env.codec, key, data, copied_from)
        if was == owner_of(key) and not env.codec.outdated(data):
            return
        done.outdated += 1
        if dry_run:
            return
        if header_only and (data := await env.get(key, kind=kind)) is None:
            return
        new = await _worked_on(data, partial(_renewed, env.codec, key, data, was))
    except (StoreError, Corrupt, ValueError) as error:
        done.damaged += 1
        log.error("object does not decode and is ignored", key=key, error=str(error))
        return
    await _replace(store, key, new, kind)
    done.upgraded += 1


async def _worked_on(data: bytes, work: Callable[[], T]) -> T:
    """Return the result of work on the bytes of an object. A thread does the work if
    the object is large when it is decompressed."""
    if len(data) > INLINE_BYTES or is_large(data):
        return await asyncio.to_thread(work)
    return work()


def _bound_to(codec: Codec, key: str, data: bytes, copied_from: StorageId) -> Owner:
    """Return the owner to which a copied object is bound: the original owner, or
    already the new owner. Raises StoreError."""
    own = owner_of(key)
    try:
        codec.decode_header(data, own, lenient=True)
    except UnknownKey:
        raise
    except CorruptObject:
        return Owner(copied_from.encode("ascii") + own[own.index(b"/") :])
    return own


async def _replace(store: MailStore, key: str, data: bytes, kind: Kind) -> None:
    try:
        await store.env.bucket.replace(key, data, kind=kind)
    except StoreError as exc:
        raise store.env.unavailable("put", key, exc) from exc


def _kind(key: str) -> Kind | None:
    """Return the kind of requests for an object, or None if the key is not ours."""
    if is_mail(key):
        return "mail"
    try:
        parse_bundle_key(key)
    except ValueError:
        return None
    return "index"


def _renewed(codec: Codec, key: str, data: bytes, was: Owner) -> bytes:
    """Encode an object again. was: the owner that it is bound to. Raises StoreError,
    Corrupt, ValueError; then it stays as it is."""
    header = codec.decode_header(data, was, lenient=True)
    if "/x/" not in key and is_head(header):
        return renewed(codec, key, data, was)
    if "/x/" in key:
        if header.kind != _KINDS[parse_bundle_key(key).form]:
            raise CorruptObject(f"an object of kind {header.kind} among the bundles")
    elif header.kind == ObjectKind.MAIL:
        check_meta(MailMeta.decode(header.meta), key)
    elif header.kind == ObjectKind.CLAIM:
        check_claim(Delta.decode(codec.decode(data, was, lenient=True).payload), parse_mail_key(key).uid)
    else:
        raise CorruptObject(f"an object of kind {header.kind} among the mails")
    return codec.renewed(data, owner_of(key), was=was)


# -- the whole bucket --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Left:
    """What keeps a bucket from having the present version: outdated objects by storage
    id, and of the journal. objects: objects that were checked so far."""

    objects: int
    users: dict[str, int]
    journal: int
    damaged: int
    finished: bool = False


async def finish(store: MailStore) -> AsyncIterator[Left]:
    """Check every object. If none is outdated, mark `_format` with the present version.

    Raises Unavailable.
    """
    left = Left(0, {}, 0, 0)
    for prefix in (f"{number:02x}/" for number in range(256)):
        listed = [info for info in await store.env.listing(prefix, kind="mail") if info.size]
        for at in range(0, len(listed), LOOKED_AT):
            await _look(store, [info.key for info in listed[at : at + LOOKED_AT] if _kind(info.key)], left)
            yield left
    await _finish_journal(store, left)
    if not left.users and not left.journal:
        await mark.finish(store.env)
        left.finished = True
    yield left


async def _look(store: MailStore, keys: list[str], left: Left) -> None:
    codec, turn = store.env.codec, Turn(store.env.clock)
    for key, prefix in zip(keys, await store.env.get_all(keys, kind="mail", end=HEADER_BYTES), strict=True):
        if turn.over():
            await turn.end()
        if prefix is None:
            continue
        left.objects += 1
        try:
            if not codec.outdated(prefix):
                continue
            # Only to see that it decodes: otherwise nothing would ever renew it.
            data = await store.env.get(key, kind="mail") or b""
            await _worked_on(data, partial(_renewed, codec, key, data, owner_of(key)))
        except (StoreError, Corrupt, ValueError) as error:
            left.damaged += 1
            log.error("object does not decode and is ignored", key=key, error=str(error))
            continue
        sid = key.split("/", 2)[1]
        left.users[sid] = left.users.get(sid, 0) + 1


async def _finish_journal(store: MailStore, left: Left) -> None:
    """Replace journal objects without changes that say that a boot is over. Count other
    outdated journal objects."""
    env = store.env
    turn = Turn(env.clock)
    keys = []
    for info in await list_journals(env):
        if _is_journal(info.key):
            keys.append(info.key)
        if turn.over():
            await turn.end()
    keys.sort()
    for key, prefix in zip(keys, await env.get_all(keys, kind="journal", end=HEADER_BYTES), strict=True):
        if turn.over():
            await turn.end()
        if prefix is None:
            continue
        left.objects += 1
        try:
            if not env.codec.outdated(prefix):
                continue
            data = await env.get(key, kind="journal") or b""
            said = await _worked_on(data, partial(JournalObject.decode, env.codec, data, key, lenient=True))
            if said.closed and said.clean and not said.lines:
                new = await _worked_on(data, partial(env.codec.renewed, data, owner_of(key)))
                await _replace(store, key, new, "journal")
            else:
                left.journal += 1
        except (StoreError, msgspec.MsgspecError, ValueError) as error:
            left.damaged += 1
            log.error("journal object does not decode and is ignored", key=key, error=str(error))


def _is_journal(key: str) -> bool:
    try:
        parse_journal_key(key)
    except ValueError:
        return False
    return True
