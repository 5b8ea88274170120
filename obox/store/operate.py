"""What an administrator does to users as a whole: flush, forget local copies, ask the bucket again, delete, rebuild.

For verbs (obox.admin); the protocols know none of it.

Invariant: a local copy that holds what the bucket does not is never dropped here. A user that is being deleted is
barred: nobody opens it until that is over.
Refuses to know: user names' form, sessions of protocols, how results are shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog

from metacache import Change

from ..errors import InUse, Unavailable
from ..objectstore import ObjectInfo
from ..objectstore.keys import (
    ROOT,
    bundles_prefix,
    mail_prefix,
    mails_prefix,
    parse_bundle_key,
    user_prefix,
)
from ..types import Guid, StorageId
from ._env import TRY_LATER, Env
from .fence import list_journals
from .mails.purge import is_mail, purge_all
from .stamp import Stamp
from .upload import flush, pending

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

FOREIGN_MAX: Final = 1000
"""Foreign objects, one page of a LIST, that may hide whether a user has mail; with more of them the answer is yes."""

REFRESH_S: Final = 30.0


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
    _doubt(env, sid, [name for name in env.metacache.boxes(sid) if name != ROOT and Guid(name) not in user.boxes])
    await env.settle()
    return count


def _doubt(env: Env, sid: StorageId, boxes: Iterable[str]) -> None:
    """Let whoever opens these boxes next compare their local copies with the bucket."""
    for name in boxes:
        copy = env.metacache.load(sid, name)
        stamp = Stamp.decode(copy.stamp) if copy is not None else None
        if copy is not None and stamp is not None:
            env.metacache.mark(sid, name, copy.change, stamp.uncompared().encode())


async def hand_over(store: MailStore, sid: StorageId) -> None:
    """Upload all of a user and forget it, before another backend serves it. Raises InUse, NotFound, Unavailable.

    Afterwards memory, journal, takeover and upkeep hold nothing of the user. Its local copies stay, and are compared
    with the bucket should the user come back.
    """
    env = store.env
    await env.settle()
    await flush(await store.load_user(store.name_of(sid), sid), important_only=False)
    await let_go(store, sid, upload=True)
    await store.journal.sync()
    if store.users.get(sid) is not None or store.opening(sid) is not None:
        raise InUse("the user has just been opened again")
    store.forget(sid)
    _doubt(env, sid, env.metacache.boxes(sid))
    await env.settle()


class Deleted(NamedTuple):
    """How many objects of one kind were deleted, and how many bytes they had.

    left: objects that are still listed after a DELETE that raised no error; then `what` is the key of one of them.
    """

    what: str
    objects: int
    size: int
    left: bool = False


async def delete(store: MailStore, sid: StorageId) -> AsyncIterator[Deleted]:
    """Delete all of a user: what is in memory, local copies, index bundles, then mails; what was deleted, as it goes.

    Everything below the user's prefix goes, whoever put it there. Cut short it is begun again from the start: each step
    LISTs what is left. What a DELETE does not remove is told and left. Raises InUse, Unavailable.
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
        stubborn: dict[str, ObjectInfo] = {}
        for _ in range(PASSES_MAX):
            found = False
            for part in ("x", "m", "t", ""):  # the index first: half a user is no user, not one with holes
                async for batch in _doomed(store, user_prefix(sid) + (f"{part}/" if part else ""), stubborn):
                    found = True
                    for one in await _delete(store, batch):
                        yield one
            if not found:
                break
        else:
            raise InUse("somebody still writes to this user; disable it in the user database, and begin again")
        if stubborn:
            log.error("objects of a deleted user stay", user=sid, objects=len(stubborn), key=min(stubborn))
            yield Deleted(min(stubborn), len(stubborn), sum(info.size for info in stubborn.values()), left=True)
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


async def _doomed(store: MailStore, prefix: str, stubborn: dict[str, ObjectInfo]) -> AsyncIterator[list[ObjectInfo]]:
    """Objects below a prefix, for the caller to delete, until a LIST shows no other than those that stay.

    Keys are exact: also those that obox never makes. stubborn: what a LIST named again after it was deleted once, of
    the very same time; it grows, so that the loop ends. Raises Unavailable.
    """
    tried: dict[str, ObjectInfo] = {}
    while True:
        limit = DELETE_KEYS + len(stubborn)
        found = await store.env.listing(prefix, kind="mail", limit=limit, exact=True)
        batch = []
        for info in found:
            if tried.get(info.key) == info or stubborn.get(info.key) == info:
                stubborn[info.key] = info
            else:
                batch.append(info)
        if not batch:
            return
        tried = {info.key: info for info in batch}
        yield batch


async def _delete(store: MailStore, batch: list[ObjectInfo]) -> list[Deleted]:
    kinds: dict[str, list[ObjectInfo]] = {}
    for info in batch:
        kinds.setdefault(_kind(info.key), []).append(info)
    await purge_all(store.env, batch)
    return [Deleted(what, len(infos), sum(info.size for info in infos)) for what, infos in kinds.items()]


def _kind(key: str) -> str:
    """What an object is by its key; "other" if it is not one of obox's."""
    if is_mail(key):
        return "mails"
    try:
        parse_bundle_key(key)
        return "index"
    except ValueError:
        return "full text" if "/t/" in key and not key.endswith("/") else "other"


async def is_in_bucket(store: MailStore, sid: StorageId) -> bool:
    """Does anything of obox's lie under this storage id? Raises Unavailable."""
    found = await store.env.listing(user_prefix(sid), kind="index", limit=FOREIGN_MAX)
    return len(found) >= FOREIGN_MAX or any(_kind(info.key) != "other" for info in found)


async def journal_objects(store: MailStore) -> tuple[int, float]:
    """Journal objects in the bucket now, of all backends, and when the newest was written; users share them."""
    infos = await list_journals(store.env)
    return len(infos), max((info.modified for info in infos), default=0.0)


async def mailboxes_in_bucket(store: MailStore, sid: StorageId) -> dict[Guid, int]:
    """The GUIDs that mails or bundles of a user lie under, with how many objects under m/. Raises Unavailable.

    Requests: two LISTs for the names, and one for each that has mails: one mailbox is in memory at a time.
    """
    found: dict[Guid, int] = {}
    for prefix, counted in ((bundles_prefix(sid), False), (mails_prefix(sid), True)):
        for name in await store.env.names(prefix, kind="mail"):
            try:
                below = mail_prefix(sid, Guid(name))
            except ValueError:
                if name != ROOT:
                    log.warning("foreign objects of a user, left alone", key=f"{prefix}{name}/")
                continue
            found.setdefault(Guid(name), 0)
            if counted:
                infos = await store.env.listing(below, kind="mail")
                found[Guid(name)] = sum(_kind(info.key) == "mails" for info in infos)
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
