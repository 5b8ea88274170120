"""Verbs for a whole user: obox user delete, obox user rename, obox user wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from ..accounts import Account, storage_id
from ..errors import ConfigError, Exists, Invalid, NotFound, OboxError
from ..text import duration
from .clustergroups import unpin
from .exits import InUseByClients, NoUser
from .params import DryRun, Params, Selection
from .parts import Admin, Session
from .sessions import KICK_REASON, POLL_S, kicked
from .table import Event, Needs, Progress, Row, user_verb, verb

if TYPE_CHECKING:
    from ..store.operate.users import Deleted

KICK_WAIT_S: Final = 10.0


class OboxUserDeleteParams(Selection, kw_only=True):
    kick: Annotated[bool, Meta(description="Disconnect the user first")] = False
    dry_run: DryRun = False


@user_verb(
    "obox user delete",
    OboxUserDeleteParams,
    columns=("what", "objects", "bytes", "result"),
    asks="Delete all mails and indexes of these users irrevocably?",
)
async def obox_user_delete(admin: Admin, account: Account, params: OboxUserDeleteParams) -> AsyncIterator[Event]:
    """Delete all mails, indexes and caches of a user from the bucket and this backend.

    Disable the user in the user database first, and remove it there afterwards. The
    exit code is 65 if the user is logged in. If the command is interrupted, run it
    again. Further rows name what the command cannot reach or must wait for.
    """
    from ..store.operate import users as operate

    _refuse_shared(admin, account)
    sessions = kicked(admin.server.sessions(), account) if admin.server is not None else []
    if params.dry_run and (params.kick or not sessions):
        there = await operate.is_in_bucket(admin.store, account.storage_id)
        text = "would be deleted" if there else "nothing to delete: the bucket has no mail of this user"
        yield {"what": "mails and index", "objects": None, "bytes": None, "result": text}
        return
    if params.kick:
        await _kick(admin, account.name, lambda sessions: kicked(sessions, account))
    if admin.server is not None and kicked(admin.server.sessions(), account):
        raise InUseByClients(f"{account.name} is logged in; kick it first, or delete with --kick")
    totals: dict[str, list[int]] = {}
    began = admin.store.env.now()
    deleting: AsyncIterator[Deleted] = operate.delete(admin.store, account.storage_id)
    left: list[Row] = []
    async for one in deleting:
        if one.left:
            text = f"the store lists them after their DELETE, for example {one.what}: remove them with its own tools"
            left.append({"what": "foreign objects", "objects": one.objects, "bytes": one.size, "result": text})
            continue
        total = totals.setdefault(one.what, [0, 0])
        total[0] += one.objects
        total[1] += one.size
        yield Progress(f"deleting {account.name}", sum(objects for objects, _ in totals.values()))
    for what in ("mails", "index", "full text", "other", "local copies"):
        if what in totals:
            objects, size = totals[what]
            yield {"what": what, "objects": objects, "bytes": size, "result": "deleted"}
    for row in left:
        yield row
    if (pin := await _unpinned(admin, account)) is not None:
        yield {"what": "pin", "objects": None, "bytes": None, "result": pin}
    async for row in _left(admin, account, began):
        yield row


async def _unpinned(admin: Admin, account: Account) -> str | None:
    """Remove the user's pin in a cluster. Return the result as a text, None if the user
    had no pin."""
    try:
        return "removed: the user follows the group again" if await unpin(admin, account) else None
    except (OboxError, ConfigError) as error:
        return f"not removed ({error}): run oboxadm cluster user move --unpin, if the user was pinned"


def _refuse_shared(admin: Admin, account: Account) -> None:
    """Raise Invalid if another user has the same mail."""
    for entry in admin.users.users():
        if entry.user != account.name and entry.sid == account.storage_id:
            raise Invalid(f"{entry.user} has the same storage_id: its mail would be deleted as well")


async def _kick(admin: Admin, name: str, chosen: Callable[[Sequence[Session]], Sequence[Session]]) -> None:
    """chosen: the sessions of the user of that name."""
    if admin.server is None:
        return
    deadline = time.monotonic() + KICK_WAIT_S
    while sessions := chosen(admin.server.sessions()):
        admin.server.kick(sessions, KICK_REASON)
        if time.monotonic() > deadline:
            raise InUseByClients(f"{name} is still logged in")
        await asyncio.sleep(POLL_S)


async def _left(admin: Admin, account: Account, began: float) -> AsyncIterator[Row]:
    """Yield rows about what the deletion does not reach."""
    from ..store.operate import users as operate

    env = admin.store.env
    objects, _ = await operate.journal_objects(admin.store)
    yield {
        "what": "journal lines",
        "objects": objects,
        "bytes": None,
        "result": f"in objects that all users share; they are not read for this user any more, and are deleted "
        f"{duration(env.delete_delay_s)} after bundles cover them",
    }
    entry = admin.users.lookup(account.name)
    if entry is not None:
        state = (
            "still known, disabled" if entry.disabled else "still known: the next login or delivery creates it again"
        )
        yield {"what": "user database", "objects": None, "bytes": None, "result": state}
    facts = await admin.describe_bucket() if admin.describe_bucket is not None else {}
    versions = facts.get("versioning", "unknown")
    if versions != "off":
        text = {"on": "the bucket keeps old versions: its lifecycle rules or you must delete them"}
        unknown = "whether the bucket keeps old versions is unknown: if it does, delete them there"
        yield {"what": "object versions", "objects": None, "bytes": None, "result": text.get(str(versions), unknown)}
    yield {"what": "backups", "objects": None, "bytes": None, "result": "copies outside this bucket are not reached"}
    yield {"what": "other backends", "objects": None, "bytes": None,
           "result": "local copies there stay until they are cleaned: oboxadm metacache remove"}  # fmt: skip


class OboxUserRenameParams(Params, kw_only=True):
    user: Annotated[str, Meta(description="Name of the user")]
    new_user: Annotated[str, Meta(description="New name of the user")]
    kick: Annotated[bool, Meta(description="Disconnect the user")] = False


@verb("obox user rename", OboxUserRenameParams, columns=("user", "storage_id", "connections", "result"))
async def obox_user_rename(admin: Admin, params: OboxUserRenameParams) -> AsyncIterator[Event]:
    """Give a user another name.

    Nothing in the bucket changes: the mail stays under its storage id. The line of the
    passwd-file gets the new name and storage_id=. There is no alias: mail to the old
    name is refused. A new user with the old name needs a storage_id= of its own. The
    exit code is 65 if the user is logged in, and 73 if there is a user with the new
    name, or mail under it.
    """
    from ..auth import rename_user
    from ..store.operate import users as operate

    users = admin.users
    users.expect_change()
    entry = users.lookup(params.user)
    if entry is None:
        raise NoUser(f"no user {params.user}")
    old, new = entry.user, users.normalise(params.new_user)
    sid, free = entry.sid, storage_id(new)
    sessions = _named(admin.server.sessions(), old) if admin.server is not None else []
    if sessions and not params.kick:
        raise InUseByClients(f"{old} is logged in; kick it first, or rename with --kick")
    if free != sid and await operate.is_in_bucket(admin.store, free):
        raise Exists(f"there is mail under the name {new}; oboxadm obox user delete --no-userdb-lookup removes it")
    try:
        rename_user(users.path, old, new, default_domain=users.default_domain)
    except NotFound as error:
        raise NoUser(str(error)) from error
    users.expect_change()
    admin.forget_names()
    if (user := admin.store.users.get(sid)) is not None:
        user.name = new
    await _kick(admin, old, lambda sessions: _named(sessions, old))
    result = f"renamed; there is no alias: mail to {old} is refused"
    yield {"user": new, "storage_id": sid, "connections": len(sessions), "result": result}


def _named(sessions: Sequence[Session], name: str) -> Sequence[Session]:
    """Return sessions of a name. Other names of the same mail stay as they are."""
    return [one for one in sessions if one.user == name]


class OboxUserWaitParams(Selection, kw_only=True):
    timeout: Annotated[int, Meta(ge=0, description="Longest wait in seconds; 0: check once")] = 60


@user_verb("obox user wait", OboxUserWaitParams, needs=Needs.BACKEND, columns=("sessions",))
async def obox_user_wait(admin: Admin, account: Account, params: OboxUserWaitParams) -> AsyncIterator[Event]:
    """Wait until a user's mail is not open any more; the exit code is 65 if the time is
    over before."""
    deadline = time.monotonic() + params.timeout
    while True:
        user = admin.store.users.get(account.storage_id)
        count = len(kicked(admin.backend.sessions(), account)) or (user.sessions if user is not None else 0)
        if not count:
            return
        if time.monotonic() >= deadline:
            yield {"sessions": count}
            raise InUseByClients(f"{account.name}: {count} sessions or deliveries after {params.timeout} s")
        await asyncio.sleep(POLL_S)
