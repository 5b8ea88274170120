"""What an administrator does to users as a whole: flush, forget local copies, ask the bucket again, delete, rebuild.

For verbs (obox.admin); the protocols know none of it.

Invariant: a local copy that holds what the bucket does not is never dropped here. A user that is being deleted is
barred: nobody opens it until that is over.
Refuses to know: user names' form, sessions of protocols, how results are shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog

from metacache import Change

from ..errors import InUse, Unavailable
from ..objectstore import ObjectInfo
from ..objectstore.keys import ROOT, journal_prefix, parse_bundle_key, parse_mail_key, user_prefix
from ..types import Guid, StorageId
from ._bundles import Known
from ._env import TRY_LATER

if TYPE_CHECKING:
    from .store import MailStore
    from .user import User

log = structlog.get_logger()

SETTLE_S: Final = 20.0
"""For deliveries in flight when a user is deleted: longer than a PUT's deadline."""

PASSES_MAX: Final = 5
"""LISTs after which a user that is still written to is given up on."""

DELETE_KEYS: Final = 10_000
"""Keys listed and deleted at a time: ten bulk requests, a megabyte of names."""

REFRESH_S: Final = 30.0


class Flushed(NamedTuple):
    """mailboxes: bundles written; changes: what was pending before."""

    mailboxes: int
    changes: Change


async def changed_users(store: MailStore, *, important_only: bool) -> list[StorageId]:
    """Users of whom the bucket lacks something, by storage id."""
    least = Change.IMPORTANT if important_only else Change.UNIMPORTANT
    await store.env.settle()
    found = {StorageId(space.user) for space in store.env.metacache.users() if space.change >= least}
    found |= {sid for sid, user in store.users.items() if pending(user) >= least}
    return sorted(found)


def pending(user: User) -> Change:
    """The highest change of a user in memory that the bucket lacks."""
    return max((user.change, *(box.change for box in user.boxes.values())))


async def flush(user: User, *, important_only: bool, min_priority: int = 0) -> Flushed:
    """Upload what the bucket lacks of a user, in memory or only in local copies. Raises Unavailable."""
    least = Change.IMPORTANT if important_only else Change.UNIMPORTANT
    before = pending(user)
    for space in user.env.metacache.box_spaces(user.storage_id):
        if space.change >= least and space.box in user.root.entries and space.box not in user.boxes:
            await user.box(Guid(space.box))
            before = max(before, space.change)
    count = 0
    for box in list(user.boxes.values()):
        if box.priority >= min_priority and box.change >= least:
            count += await box.flush(everything=not important_only)
    if min_priority == 0:
        if important_only:
            await user.flush_root()
        else:
            await user.flush(everything=True)
    return Flushed(count, before)


async def let_go(store: MailStore, sid: StorageId, *, upload: bool) -> None:
    """Take a user out of memory. upload: flush first. Raises InUse: a session or a delivery has it open."""
    user = store.users.get(sid)
    if user is None:
        return
    if user.sessions:
        raise InUse(f"{user.sessions} sessions or deliveries have the user's mail open")
    if upload:
        await user.flush(everything=True)
    if user.sessions or user.opening() or any(box.busy() for box in user.boxes.values()):
        raise InUse("the user's mail is in use")
    if upload and pending(user) is not Change.NONE:
        raise InUse("the user's mail has just changed")
    user.leave()
    store.users.pop(sid, None)


async def refresh(user: User) -> int:
    """Ask the bucket for what other backends wrote: now for what is in memory, at the next open for the rest.

    Returns how many mailboxes were asked about now. Raises Unavailable.
    """
    env, sid = user.env, user.storage_id
    try:
        async with asyncio.timeout(REFRESH_S):
            await user.recheck(every=True)
    except TimeoutError:
        raise Unavailable(TRY_LATER) from None
    count = len(user.boxes)
    for name in env.metacache.boxes(sid):
        if name == ROOT or Guid(name) in user.boxes:
            continue
        copy = env.metacache.load(sid, name)
        known = Known.decode(copy.stamp) if copy is not None else None
        if copy is not None and known is not None:
            known.generation = -1  # no backend's: the next open LISTs
            env.metacache.mark(sid, name, copy.change, known.encode())
    await env.settle()
    return count


class Deleted(NamedTuple):
    """So much of a kind is gone; done: there is no more of it."""

    what: str
    objects: int
    size: int


async def delete(store: MailStore, sid: StorageId) -> AsyncIterator[Deleted]:
    """Delete all of a user: what is in memory, local copies, index bundles, then mails; what was deleted, as it goes.

    Cut short it is begun again from the start: each step LISTs what is left. Raises InUse, Unavailable.
    """
    env = store.env
    store.bar(sid)
    try:
        await _unload(store, sid)
        space = sum(one.space_bytes for one in env.metacache.box_spaces(sid))
        copies = len(env.metacache.boxes(sid))
        env.recent.clear()
        env.metacache.drop_user(sid)
        await env.settle()
        yield Deleted("local copies", copies, space)
        for _ in range(PASSES_MAX):
            found = False
            for part in ("x", "m", "t", ""):  # the index first: half a user is no user, not one with holes
                async for batch in _pages(store, user_prefix(sid) + (f"{part}/" if part else "")):
                    found = True
                    for one in await _delete(store, batch):
                        yield one
            if not found:
                break
        else:
            raise InUse("somebody still writes to this user; disable it in the user database, and begin again")
        env.metacache.drop_user(sid)
        await env.settle()
        await store.bury(sid)
    finally:
        store.barred.discard(sid)


async def _unload(store: MailStore, sid: StorageId) -> None:
    """Wait for what is in flight, and forget the user without an upload."""
    if (task := store.opening(sid)) is not None:
        await asyncio.wait([task])
    user = store.users.get(sid)
    if user is not None:
        if user.sessions:
            raise InUse(f"{user.sessions} sessions or deliveries have the user's mail open; kick them first")
        store.users.pop(sid, None)
        user.deleted = True
        try:
            async with asyncio.timeout(SETTLE_S):
                await user.settled()
        except TimeoutError:
            user.deleted = False
            store.users[sid] = user
            raise InUse("deliveries to this user are still undecided; try again in a while") from None
    store.forget(sid)


async def _pages(store: MailStore, prefix: str) -> AsyncIterator[list[ObjectInfo]]:
    """Objects below a prefix, until a LIST shows none. Raises Unavailable."""
    after = ""
    while page := await store.env.listing(prefix, kind="mail", after=after, limit=DELETE_KEYS):
        yield page
        after = page[-1].key


async def _delete(store: MailStore, batch: list[ObjectInfo]) -> list[Deleted]:
    kinds: dict[str, list[ObjectInfo]] = {}
    for info in batch:
        kinds.setdefault(_kind(info.key), []).append(info)
    await store.env.delete([info.key for info in batch], kind="mail")
    for info in kinds.get("mails", ()):
        await store.env.fscache.drop(info.key)
    return [Deleted(what, len(infos), sum(info.size for info in infos)) for what, infos in kinds.items()]


def _kind(key: str) -> str:
    part = key.split("/")[2]
    return {"m": "mails", "x": "index", "t": "full text"}.get(part, "other")


async def is_in_bucket(store: MailStore, sid: StorageId) -> bool:
    """Does anything lie under this storage id? Raises Unavailable."""
    return bool(await store.env.listing(user_prefix(sid), kind="index", limit=1))


async def journal_objects(store: MailStore) -> tuple[int, float]:
    """Journal objects in the bucket now, of all backends, and when the newest was written; users share them."""
    infos = await store.env.listing(journal_prefix(), kind="journal")
    return len(infos), max((info.modified for info in infos), default=0.0)


async def mailboxes_in_bucket(store: MailStore, sid: StorageId) -> dict[Guid, int]:
    """The GUIDs that mails or bundles of a user lie under, with how many objects under m/."""
    found: dict[Guid, int] = {}
    async for page in _pages(store, user_prefix(sid)):
        for info in page:
            try:
                if "/x/" in info.key:
                    box = parse_bundle_key(info.key).box
                    if box != ROOT:
                        found.setdefault(Guid(box), 0)
                else:
                    guid = parse_mail_key(info.key).guid
                    found[guid] = found.get(guid, 0) + 1
            except ValueError:
                continue
    return found


def readable(value: object) -> object:
    """A decoded MessagePack value as JSON can have it: bytes in hex, long columns as they are."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): readable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [readable(one) for one in value]
    return msgspec.to_builtins(value)
