"""Uploads what the bucket lacks of whole users: at night, before a stop, or for an
administrator; and unloads them.

This module does not know how a box is flushed, and knows no verbs.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import NamedTuple, Protocol

import structlog

from metacache import Change

from ...errors import InUse, OboxError, Unavailable
from ...types import Guid, StorageId
from ..env import Env
from ..user.unload import leave
from ..user.user import User

log = structlog.get_logger()


class Users(Protocol):
    """What uploads need of the backend."""

    env: Env

    @property
    def users(self) -> Mapping[StorageId, User]:
        """Return the users in memory."""

    def name_of(self, sid: StorageId) -> str:
        """Return the name under which a user in memory was opened, or the storage id of
        others."""

    async def load_user(self, name: str, storage_id: StorageId, *, make: bool = False) -> User:
        """Load a user for upkeep. Raises NotFound, Unavailable, Corrupt."""


class Unloads(Protocol):
    """What `unload` needs of the backend."""

    @property
    def users(self) -> MutableMapping[StorageId, User]:
        """Return the users in memory."""


class Flushed(NamedTuple):
    """mailboxes: bundles that were written. changes: the changes that were pending
    before."""

    mailboxes: int
    changes: Change


async def changed_users(store: Users, *, important_only: bool) -> list[StorageId]:
    """Return the storage ids of users of whom the bucket lacks something."""
    least = Change.IMPORTANT if important_only else Change.UNIMPORTANT
    await store.env.commit_staged()
    found = {StorageId(space.user) for space in store.env.metacache.users() if space.change >= least}
    found |= {sid for sid, user in store.users.items() if pending(user) >= least}
    return sorted(found)


def pending(user: User) -> Change:
    """Return the most important change of a user in memory that the bucket lacks."""
    return max((user.rootbox.change, *(box.change for box in user.boxes.values())))


async def flush(user: User, *, important_only: bool, min_priority: int = 0) -> Flushed:
    """Upload what the bucket lacks of a user, in memory or only in local copies.

    A mailbox that cannot be uploaded for a reason of its own delays no other. Its error
    is raised when the others are done. Raises Unavailable.
    """
    least = Change.IMPORTANT if important_only else Change.UNIMPORTANT
    before = pending(user)
    for space in user.env.metacache.box_spaces(user.storage_id):
        if space.change >= least and space.box in user.root.entries and space.box not in user.boxes:
            await user.box(Guid(space.box))
            before = max(before, space.change)
    count, failures = 0, list[Exception]()
    for box in list(user.boxes.values()):
        if box.priority >= min_priority and box.change >= least:
            try:
                count += await box.flush(everything=not important_only)
            except Unavailable:
                raise
            except Exception as exc:
                failures.append(exc)
    if min_priority == 0:
        if important_only or failures:
            await user.rootbox.flush()
        else:
            await user.flush(everything=True)
    if failures:
        raise failures[0]
    return Flushed(count, before)


async def flush_all(store: Users) -> None:
    """Upload everything of everybody, one user after the other."""
    users = await changed_users(store, important_only=False)
    failed = 0
    for sid in users:
        try:
            await flush(await store.load_user(store.name_of(sid), sid), important_only=False)
        except OboxError as exc:
            failed += 1
            log.warning("user not flushed by the nightly flush", user=sid, error=str(exc))
        except Exception as exc:  # a bug with one user must not delay the others
            failed += 1
            log.error("user not flushed by the nightly flush", user=sid, error=repr(exc), exc_info=exc)
    log.info("nightly flush", users=len(users), failed=failed)


async def unload(store: Unloads, sid: StorageId, *, upload: bool) -> None:
    """Unload a user from memory. upload: flush first. Raises InUse if a session or a
    delivery has it open."""
    user = store.users.get(sid)
    if user is None:
        return
    if user.sessions:
        raise InUse(f"{user.sessions} sessions or deliveries have the user's mail open")
    if upload:
        await user.flush(everything=True)
    uploading = user.rootbox.flushing.locked()
    if user.sessions or uploading or user.opening() or any(box.busy() for box in user.boxes.values()):
        raise InUse("the user's mail is in use")
    if upload and pending(user) is not Change.NONE:
        raise InUse("the user's mail has just changed")
    leave(user)
    store.users.pop(sid, None)
