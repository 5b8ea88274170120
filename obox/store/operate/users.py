"""What an administrator does to whole users: flush, drop local copies, compare with the
bucket, delete, rebuild.

Verbs use it (obox.admin); protocols do not.

Invariant: a local copy with changes that the bucket lacks is never dropped here. A user
that is being deleted cannot be opened until that is over.

This module does not know the form of user names, the sessions of protocols, or how
results are shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog

from ...errors import InUse, Unavailable
from ...objectstore import ObjectInfo
from ...objectstore.keys import (
    ROOT,
    bundles_prefix,
    is_pack,
    mail_prefix,
    mails_prefix,
    parse_bundle_key,
    user_prefix,
)
from ...types import Guid, StorageId
from ..env import TRY_LATER, Env
from ..log.fence import list_journals
from ..mails.purge import is_mail, purge_all
from ..stamp import Stamp

if TYPE_CHECKING:
    from ..backend.store import MailStore
    from ..user.user import User

log = structlog.get_logger()

DROP_S: Final = 20.0
"""The deletion of a user waits so long for deliveries in flight. It is longer than the
deadline of a PUT."""

PASSES_MAX: Final = 5
"""If a fifth LIST still shows objects, the deletion fails, because somebody still
writes to the user."""

DELETE_KEYS: Final = 10_000
"""At most 10,000 keys are listed and deleted at a time: ten bulk requests, a megabyte
of names."""

FOREIGN_MAX: Final = 1000
"""At most 1,000 foreign objects, a page of a LIST, are examined to find whether a user
has mail. If there are more, the answer is yes."""

REFRESH_S: Final = 30.0


async def refresh(user: User) -> int:
    """Compare a user's mailboxes with the bucket: now for mailboxes in memory, at the
    next open for others. Returns how many mailboxes were compared now. Raises
    Unavailable.
    """
    env, sid = user.env, user.storage_id
    try:
        async with asyncio.timeout(REFRESH_S):
            await user.recheck(every=True)
    except TimeoutError:
        raise Unavailable(TRY_LATER) from None
    count = len(user.boxes)
    _mark_uncompared(
        env, sid, [name for name in env.metacache.boxes(sid) if name != ROOT and Guid(name) not in user.boxes]
    )
    await env.commit_staged()
    return count


def _mark_uncompared(env: Env, sid: StorageId, boxes: Iterable[str]) -> None:
    """Mark these boxes so that their next open compares the local copies with the
    bucket."""
    for name in boxes:
        copy = env.metacache.load(sid, name)
        stamp = Stamp.decode(copy.stamp) if copy is not None else None
        if copy is not None and stamp is not None:
            env.metacache.mark(sid, name, copy.change, stamp.uncompared().encode())


class Deleted(NamedTuple):
    """How many objects of a kind were deleted, and how many bytes they had.

    left: whether these objects are still listed after a DELETE without an error. Then
    `what` is the key of one of them.
    """

    what: str
    objects: int
    size: int
    left: bool = False


async def delete(store: MailStore, sid: StorageId) -> AsyncIterator[Deleted]:
    """Delete all of a user: memory, local copies, index bundles, then mails. Yields
    what was deleted.

    Everything below the user's prefix is deleted, also foreign objects. If a deletion
    is cut short, begin again: each step LISTs what is left. Objects that a DELETE does
    not remove are reported and left. Raises InUse, Unavailable.
    """
    env = store.env
    with store.barring(sid):
        await _unload(store, sid)
        space = sum(one.space_bytes for one in env.metacache.box_spaces(sid))
        copies = len(env.metacache.boxes(sid))
        env.recent.clear()
        env.metacache.drop_user(sid)
        await env.commit_staged()
        yield Deleted("local copies", copies, space)
        undeletable: dict[str, ObjectInfo] = {}
        for _ in range(PASSES_MAX):
            found = False
            # The index goes first: a partly deleted user cannot be opened.
            for part in ("x", "m", "t", ""):
                async for batch in _remaining_objects(
                    store, user_prefix(sid) + (f"{part}/" if part else ""), undeletable
                ):
                    found = True
                    for one in await delete_keys(store, batch):
                        yield one
            if not found:
                break
        else:
            raise InUse("the user is still written to; disable it in the user database, and begin again")
        if undeletable:
            log.error("objects of a deleted user stay", user=sid, objects=len(undeletable), key=min(undeletable))
            yield Deleted(
                min(undeletable), len(undeletable), sum(info.size for info in undeletable.values()), left=True
            )
        env.metacache.drop_user(sid)
        await env.commit_staged()
        await store.record_deletion(sid)


async def _unload(store: MailStore, sid: StorageId) -> None:
    """Wait for work in flight, and forget the user without an upload."""
    if (task := store.opening(sid)) is not None:
        await asyncio.wait([task])
    user = store.users.get(sid)
    if user is None:
        store.forget(sid)
        return
    if user.sessions:
        raise InUse(f"{user.sessions} sessions or deliveries have the user's mail open; kick them first")
    await store.drop(user, within_s=DROP_S)


async def _remaining_objects(
    store: MailStore, prefix: str, undeletable: dict[str, ObjectInfo]
) -> AsyncIterator[list[ObjectInfo]]:
    """Yield objects below a prefix, for the caller to delete, until a LIST has only
    objects that cannot be removed.

    Keys are exact, also keys that obox never makes. undeletable: objects that a LIST
    named again with the same time after they were deleted. It grows, so the loop ends.
    Raises Unavailable.
    """
    tried: dict[str, ObjectInfo] = {}
    while True:
        limit = DELETE_KEYS + len(undeletable)
        found = await store.env.listing(prefix, kind="mail", limit=limit, exact=True)
        batch = []
        for info in found:
            if tried.get(info.key) == info or undeletable.get(info.key) == info:
                undeletable[info.key] = info
            else:
                batch.append(info)
        if not batch:
            return
        tried = {info.key: info for info in batch}
        yield batch


async def delete_keys(store: MailStore, batch: list[ObjectInfo]) -> list[Deleted]:
    kinds: dict[str, list[ObjectInfo]] = {}
    for info in batch:
        kinds.setdefault(_kind(info.key), []).append(info)
    await purge_all(store.env, batch)
    return [Deleted(what, len(infos), sum(info.size for info in infos)) for what, infos in kinds.items()]


def _kind(key: str) -> str:
    """Return the kind of an object by its key, or "other" if it is not an object of
    obox."""
    if is_mail(key):
        return "mails"
    if is_pack(key):
        return "packs"
    try:
        parse_bundle_key(key)
        return "index"
    except ValueError:
        return "full text" if "/t/" in key and not key.endswith("/") else "other"


async def is_in_bucket(store: MailStore, sid: StorageId) -> bool:
    """Return whether the bucket has objects of obox under this storage id. Raises
    Unavailable."""
    found = await store.env.listing(user_prefix(sid), kind="index", limit=FOREIGN_MAX)
    return len(found) >= FOREIGN_MAX or any(_kind(info.key) != "other" for info in found)


async def journal_objects(store: MailStore) -> tuple[int, float]:
    """Return the number of journal objects of all backends in the bucket, and when the
    newest was written. Users share them."""
    infos = await list_journals(store.env)
    return len(infos), max((info.modified for info in infos), default=0.0)


async def mailboxes_in_bucket(store: MailStore, sid: StorageId) -> dict[Guid, int]:
    """Return the GUIDs under which a user has mails or bundles, with the number of
    objects under m/. Raises Unavailable.

    Requests: two LISTs for the names, and a LIST for each mailbox with mails. Only a
    single mailbox is in memory at a time.
    """
    found: dict[Guid, int] = {}
    turn = store.env.turn(sid)
    for prefix, counted in ((bundles_prefix(sid), False), (mails_prefix(sid), True)):
        for name in await store.env.names(prefix, kind="mail"):
            try:
                below = mail_prefix(sid, Guid(name))
            except ValueError:
                if name != ROOT:
                    log.warning("foreign objects of a user ignored", key=f"{prefix}{name}/")
                continue
            found.setdefault(Guid(name), 0)
            if counted:
                for info in await store.env.listing(below, kind="mail"):
                    found[Guid(name)] += _kind(info.key) == "mails"
                    if turn.over():
                        await turn.end()
    return found


def readable(value: object) -> object:
    """Return a decoded MessagePack value as JSON values, with bytes in hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): readable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [readable(one) for one in value]
    return msgspec.to_builtins(value)
