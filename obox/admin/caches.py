"""Verbs for the two local caches: metacache …, fscache …."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from ..accounts import Account
from ..errors import Corrupt, InUse, Invalid, NotFound, Unavailable
from ..types import StorageId
from .masks import mask_of, masked
from .params import DryRun, Nothing, Params, Selection
from .parts import Admin
from .table import Event, Progress, Row, user_verb, verb

if TYPE_CHECKING:
    from ..objectstore import Decoded

PRIORITIES: Final = (0, 1, 2, 3)
MIN_PRIORITY: Final = Meta(ge=0, le=3, description="Only this priority and below: 0 all, 3 only other mailboxes")
CHANGES: Final = ("none", "unimportant", "important")
FILE_BYTES_MAX: Final = 1 << 30


class MetacacheFlushParams(Selection, kw_only=True):
    important_only: Annotated[bool, Meta(description="Only what exists nowhere else: flags, expunges, moves")] = False
    min_priority: Annotated[int, MIN_PRIORITY] = 0


@user_verb("metacache flush", MetacacheFlushParams, columns=("bundles", "changes"))
async def metacache_flush(admin: Admin, account: Account, params: MetacacheFlushParams) -> AsyncIterator[Event]:
    """Upload what the bucket lacks of users' indexes."""
    yield await _flush(admin, account.storage_id, account.name, params.important_only, params.min_priority)


async def _flush(admin: Admin, sid: StorageId, name: str, important_only: bool, min_priority: int) -> Row:
    from ..store.backend import upload

    try:
        user = await admin.store.load_user(name, sid)
    except NotFound:  # who has never had mail
        return {"bundles": 0, "changes": CHANGES[0]}
    done = await upload.flush(user, important_only=important_only, min_priority=min_priority)
    return {"bundles": done.mailboxes, "changes": CHANGES[done.changes]}


class MetacacheFlushallParams(Params, kw_only=True):
    important_only: Annotated[bool, Meta(description="Only what exists nowhere else: flags, expunges, moves")] = False
    min_priority: Annotated[int, MIN_PRIORITY] = 0
    mask: Annotated[str, Meta(description="Only users that match")] = "*"


@verb("metacache flushall", MetacacheFlushallParams, columns=("username", "bundles", "changes"))
async def metacache_flushall(admin: Admin, params: MetacacheFlushallParams) -> AsyncIterator[Event]:
    """Upload what the bucket lacks of the indexes of all users of this backend.

    It includes users that the user database does not have. If it is cut short, run it
    again; nothing is uploaded twice.
    """
    from ..errors import OboxError
    from ..store.backend import upload
    from .exits import of, said
    from .table import Failure

    names = admin.names()
    sids = await upload.changed_users(admin.store, important_only=params.important_only)
    chosen = [(sid, names.get(sid) or admin.name_of(sid)) for sid in sids]
    fits = mask_of(params.mask.lower())
    chosen = [(sid, name) for sid, name in chosen if fits(name)]
    for at, (sid, name) in enumerate(chosen):
        yield Progress("metacache flushall", at, len(chosen))
        try:
            yield {"username": name, **await _flush(admin, sid, name, params.important_only, params.min_priority)}
        except OboxError as error:
            yield Failure(name, of(error), said(error))


class MetacacheListParams(Params, kw_only=True):
    mask: Annotated[str, Meta(description="Only users that match")] = "*"
    changed: Annotated[bool, Meta(description="Only users with changes that the bucket lacks")] = False


@verb("metacache list", MetacacheListParams)
async def metacache_list(admin: Admin, params: MetacacheListParams) -> AsyncIterator[Event]:
    """List users with local copies, those that are cleaned first at the top."""
    names, fits = admin.names(), mask_of(params.mask.lower())
    await admin.store.env.commit_staged()
    for info in await admin.cleaner.list_users():
        name = names.get(StorageId(info.user)) or admin.name_of(info.user)
        if not fits(name) or (params.changed and not info.change):
            continue
        row: Row = {"username": name}
        for priority in PRIORITIES:
            row[f"bytes-used({priority})"] = info.bytes[priority]
        for priority in PRIORITIES:
            row[f"last-access({priority})"] = int(info.accessed[priority]) or None
        row |= {"mailboxes": info.boxes, "changes": CHANGES[info.change], "cleanup-weight": int(info.weight)}
        yield row


@verb("metacache status", Nothing)
async def metacache_status(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Show how full the metacache is, in total and by priority."""
    status = admin.store.env.metacache.status()
    row: Row = {
        "users": status.users,
        "mailboxes": status.boxes,
        "bytes": status.space,
        "max_space": status.max_space,
        "limit": status.limit,
        "staged_bytes": status.staged,
        "file_bytes": status.file_bytes,
    }
    for priority, size in enumerate(status.by_priority):
        row[f"bytes-used({priority})"] = size
    yield row | {"over": status.over, "full": status.full, "failing": status.failing}


class MetacacheCleanParams(Selection, kw_only=True):
    min_priority: Annotated[int, MIN_PRIORITY] = 0
    days: Annotated[int, Meta(ge=0, description="Only copies that were not used for this number of days")] = 0


@user_verb("metacache clean", MetacacheCleanParams, columns=("copies", "bytes", "kept", "why"))
async def metacache_clean(admin: Admin, account: Account, params: MetacacheCleanParams) -> AsyncIterator[Event]:
    """Drop users' local copies.

    Copies that are in use or not uploaded stay; the exit code is then 75. Kick and
    flush first.
    """
    async for event in _clean(admin, account.storage_id, params.min_priority, params.days * 86400.0):
        yield event


async def cleaned(admin: Admin, sid: StorageId, min_priority: int = 0, idle_s: float = 0.0) -> Row:
    """Drop a user's local copies. Returns a row with what was dropped, and why others
    stay.
    """
    done = await admin.cleaner.clean(sid, min_priority=min_priority, unused_s=idle_s)
    why = ", ".join(sorted({one.why for one in done.refused}))
    return {"copies": done.boxes, "bytes": done.bytes, "kept": len(done.refused), "why": why}


async def _clean(admin: Admin, sid: StorageId, min_priority: int, idle_s: float) -> AsyncIterator[Row]:
    row = await cleaned(admin, sid, min_priority, idle_s)
    yield row
    if row["why"]:
        raise InUse(f"{row['kept']} local copies stay: {row['why']}")


class MetacacheRemoveParams(Params, kw_only=True):
    mask: Annotated[str, Meta(description="Users, also users who are no longer in the user database")]
    force: Annotated[bool, Meta(description="Also drop changes that are not uploaded. They are lost then")] = False
    dry_run: DryRun = False


@verb(
    "metacache remove",
    MetacacheRemoveParams,
    columns=("username", "copies", "bytes", "kept", "why"),
    asks="Drop the local copies of these users?",
)
async def metacache_remove(admin: Admin, params: MetacacheRemoveParams) -> AsyncIterator[Event]:
    """Drop the local copies of all users that match the mask.

    It includes users that the user database does not have. Copies that are in use or
    not uploaded stay; the exit code is then 75.
    """
    names, fits = admin.names(), mask_of(params.mask.lower())
    found = False
    kept = 0
    for space in list(admin.store.env.metacache.users()):
        sid = StorageId(space.user)
        name = names.get(sid) or admin.name_of(sid)
        if not fits(name):
            continue
        found = True
        if params.dry_run:
            copies, size = admin.store.env.metacache.boxes(sid), sum(space.space_bytes.values())
            yield {"username": name, "copies": len(copies), "bytes": size, "kept": 0, "why": ""}
            continue
        try:
            if params.force:
                done = await admin.cleaner.remove(sid)
                why = ", ".join(sorted({one.why for one in done.refused}))
                kept += bool(why)
                yield {"username": name, "copies": done.boxes, "bytes": done.bytes, "kept": len(done.refused),
                       "why": why}  # fmt: skip
                continue
            async for row in _clean(admin, sid, 0, 0.0):
                yield {"username": name, **row}
        except InUse:
            kept += 1
    if kept:
        raise InUse(f"copies of {kept} users stay: kick and flush first")
    if not found and not masked(params.mask):
        raise NotFound(f"no local copies of {params.mask}")


class MetacacheRefreshParams(Selection, kw_only=True):
    pass


@user_verb("metacache refresh", MetacacheRefreshParams, columns=("asked",))
async def metacache_refresh(admin: Admin, account: Account, params: MetacacheRefreshParams) -> AsyncIterator[Event]:
    """Compare open mailboxes with the bucket now, and others when they are opened."""
    from ..store.operate import users as operate

    try:
        user = await admin.store.load_user(account.name, account.storage_id)
    except NotFound:  # who has never had mail
        yield {"asked": 0}
        return
    yield {"asked": await operate.refresh(user)}


@verb("metacache rescan", Nothing, columns=("users", "before_bytes", "bytes", "right", "wrong"))
async def metacache_rescan(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Count the local copies again, and correct the counts if they were wrong.

    It can run while the backend serves.
    """
    got = await admin.store.env.metacache.rescan()
    yield {
        "users": got.users,
        "before_bytes": got.before,
        "bytes": got.space,
        "right": got.right,
        "wrong": "; ".join(got.wrong),
    }


@verb("metacache boots", Nothing, columns=("boot", "began", "ended", "before", "copies", "users"))
async def metacache_boots(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """List the starts of this backend, and how it treated the local copies.

    The columns say when each boot began and ended, what it did with the local copies,
    and of how many users the journal of a boot that ended uncleanly has changes. Right
    after a start the command waits until the start has decided what to do with the
    copies.
    """
    from ..store.env import OPEN_S, answer_within
    from ..store.log import boots

    with suppress(Unavailable):  # the earlier boots are known without the bucket
        async with answer_within(OPEN_S):
            await admin.store.beginning.decided()
    for one in boots.listing(admin.store.env):
        yield {
            "boot": one.boot,
            "began": int(one.began),
            "ended": int(one.ended) or None,
            "before": one.before,
            "copies": one.copies,
            "users": one.users,
        }


class MetacacheUnpackParams(Params, kw_only=True):
    bundle: Annotated[
        str, Meta(description="The key of a bundle, journal object, mail or claim in the bucket, or a local file")
    ]
    file: Annotated[bool, Meta(description="The argument is a file on the backend's machine")] = False
    key: Annotated[
        str, Meta(description="The key that the object had in the bucket, if the file's path does not end with it")
    ] = ""


@verb("metacache unpack", MetacacheUnpackParams)
async def metacache_unpack(admin: Admin, params: MetacacheUnpackParams) -> AsyncIterator[Event]:
    """Show the content of a bundle, a journal object, a claim, the head of a batch, or
    a mail's header.

    Use it with -f json. Of a cache segment it shows UIDs and sizes. To read an object,
    its key is needed.
    """
    from ..objectstore import CorruptObject
    from ..objectstore.keys import KEY_BYTES_MAX, owner_in, possible
    from ..store.mails.batch import head_of

    if params.file:
        data = await asyncio.to_thread(_file, Path(params.bundle))
    else:
        key = params.bundle.lstrip("/")
        if not possible(key):
            raise Invalid(
                f"{params.bundle[:200]!r} is not a key that obox writes; allowed: at most {KEY_BYTES_MAX} printable "
                "ASCII characters in parts between slashes, none of them empty or with a dot at its beginning"
            )
        found = await admin.store.env.get(key, kind="index")
        if found is None:
            raise NotFound(f"no object {params.bundle} in the bucket")
        data = found
    if not data:
        yield {"key": params.bundle, "kind": "burnt claim"}
        return
    owner = owner_in(params.key or params.bundle)
    if owner is None:
        raise Invalid(
            f"{params.bundle}: its key in the bucket is not known; allowed: key, as <hh>/<sid>/m/<guid>/<uid>"
        )
    try:
        decoded = await asyncio.to_thread(admin.store.env.codec.decode, head_of(data), owner, lenient=True)
    except CorruptObject as error:
        raise Corrupt(f"{params.bundle}: {error}") from error
    yield await asyncio.to_thread(_unpacked, params.bundle, len(data), decoded)


def _file(path: Path) -> bytes:
    try:
        if os.path.getsize(path) > FILE_BYTES_MAX:
            raise Invalid(f"{path}: the file is larger than a bundle can be")
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error


def _unpacked(key: str, size: int, decoded: Decoded) -> Row:
    from ..objectstore import ObjectKind
    from ..store.operate.users import readable

    try:
        kind = ObjectKind(decoded.kind).name.lower()
    except ValueError:
        kind = str(decoded.kind)
    row: Row = {"key": key, "kind": kind, "version": decoded.major, "oid": decoded.oid.hex(), "bytes": size}
    if decoded.meta:
        row["meta"] = _plain(decoded.meta)
    if kind == "mail":
        return row | {"octets": len(decoded.payload)}
    value = _plain(decoded.payload)
    if kind == "cache" and isinstance(value, list):
        return row | {"fields": [{"uid": uid, "bytes": len(data) // 2} for uid, data in value]}
    if kind in ("base", "diff", "claim") and isinstance(value, dict) and "rows" in value:
        value["rows"] = _columns(decoded.payload)
    if kind == "journal" and isinstance(value, dict):
        lines = msgspec.msgpack.decode(decoded.payload)["lines"] if "lines" in value else []
        value["lines"] = [
            {"user": sid, "changes": [{"mailbox": box, "change": _plain(delta)} for box, delta in changes]}
            for sid, changes in lines
        ]
    return row | {"content": readable(value)}


def _plain(data: bytes) -> Any:
    """Return MessagePack as JSON values, or the bytes as hex."""
    from ..store.operate.users import readable

    try:
        return readable(msgspec.msgpack.decode(data))
    except (msgspec.MsgspecError, ValueError):
        return data.hex()


def _columns(payload: bytes) -> list[Row]:
    """Return the records of a mailbox, a row each."""
    from ..mailbox import Delta

    try:
        rows = Delta.decode(payload).rows
    except ValueError as error:
        raise Corrupt(f"the index does not decode: {error}") from error
    out: list[Row] = []
    for at in range(0 if rows is None else len(rows)):
        assert rows is not None
        home = int(rows.home[at])
        row: Mapping[str, Any] = {
            name: int(getattr(rows, name)[at])
            for name in ("uid", "size", "internaldate", "zone", "savedate", "modseq", "home_uid")
        }
        flags = {name: int(stamps[at]) for name, stamps in rows.stamps.items() if stamps[at]}
        out.append(
            {
                **row,
                "home": "" if home < 0 else rows.homes[home],
                "oid": bytes(rows.oid[at]).hex(),
                "flags": sorted(name for name, stamp in flags.items() if stamp & 1),
            }
        )
    return out


@verb("fscache status", Nothing)
async def fscache_status(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Show the content of the fscache, and its hits and misses since the start."""
    stats = admin.store.env.fscache.stats()
    total = stats.hits + stats.misses
    yield stats._asdict() | {"hit_percent": stats.hits * 100 // total if total else None}


class FscacheRescanParams(Params, kw_only=True):
    max_age: Annotated[
        int, Meta(ge=0, description="Also remove files that were not read for this number of seconds")
    ] = 0


@verb("fscache rescan", FscacheRescanParams)
async def fscache_rescan(admin: Admin, params: FscacheRescanParams) -> AsyncIterator[Event]:
    """Compare the counts of the fscache with its directory, and correct them.

    It can run while the backend serves.
    """
    done = await admin.store.env.fscache.rescan(max_age_s=params.max_age or None)
    yield {name: value for name, value in done._asdict().items()} | {"right": done.right}
