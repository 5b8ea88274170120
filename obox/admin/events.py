"""Verbs for groups of events: events groups, events lag, events dead-letters …."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from ..errors import Invalid, NotFound, Temporary
from .params import DryRun, Nothing, Params
from .parts import Admin
from .table import Event, Needs, Progress, verb

if TYPE_CHECKING:
    from ..events.dead import Letter
    from ..store import Env

COUNTED_MAX: Final = 10_000
"""Dead letters of a group that are counted: ten pages of a LIST."""


@verb(
    "events groups",
    Nothing,
    columns=("group", "here", "health", "dead_letters", "waiting", "handled", "failures", "lag_s"),
)
async def events_groups(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """List the groups of listeners, and what they have done.

    The groups are those of this backend, and others that have objects in the bucket.
    health: degraded while there are dead letters of the group.
    """
    from ..events import dead

    env = admin.store.env
    here = {} if admin.events is None else {one.group.name: one for one in admin.events.runners}
    for group in sorted({*here, *await dead.groups_in_bucket(env)}):
        letters = len(await dead.list_keys(env, group, limit=COUNTED_MAX))
        runner = here.get(group)
        yield {
            "group": group,
            "here": runner is not None,
            "health": "degraded" if letters else "ok",
            "dead_letters": letters,
            "waiting": 0 if runner is None else runner.lanes.own + runner.lanes.rest,
            "handled": 0 if runner is None else runner.handled,
            "failures": 0 if runner is None else runner.failed,
            "lag_s": 0.0 if runner is None or admin.events is None else round(admin.events.lag_s(runner), 1),
        }


@verb("events lag", Nothing, columns=("group", "backend", "boot", "state", "behind", "users", "since"))
async def events_lag(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """List the boots whose events a group has not handled yet.

    It reads the journals and the cursors in the bucket. A backend that lives writes a
    cursor every 10 s, so its last seconds are in the list.
    """
    from ..events.lag import lags

    for one in await lags(admin.store.env):
        yield {
            "group": one.group,
            "backend": one.backend,
            "boot": one.boot,
            "state": "over" if one.over else "lives",
            "behind": one.behind,
            "users": one.users,
            "since": int(one.since),
        }


class ListParams(Params, kw_only=True):
    group: Annotated[str | None, Meta(description="Only of this group")] = None
    limit: Annotated[int, Meta(ge=0, description="How many of each group at most; 0: all")] = 0


@verb(
    "events dead-letters list",
    ListParams,
    columns=("id", "group", "user", "kind", "mailbox", "uids", "failures", "error", "at"),
)
async def events_dead_letters_list(admin: Admin, params: ListParams) -> AsyncIterator[Event]:
    """List events that a group could not handle, by group and user."""
    from ..events import dead

    env = admin.store.env
    for group in await _groups(env, params.group):
        async for letter in dead.letters(env, group, limit=params.limit or None):
            yield _row(letter)


class ShowParams(Params, kw_only=True):
    id: Annotated[str, Meta(description="The id of a dead letter, as in the list")]


@verb("events dead-letters show", ShowParams)
async def events_dead_letters_show(admin: Admin, params: ShowParams) -> AsyncIterator[Event]:
    """Show an event that a group could not handle, with all that it says."""
    letter = await _letter(admin.store.env, params.id)
    event: dict[str, Any] = {} if letter.event is None else msgspec.to_builtins(letter.event)
    yield {**_row(letter), "event": msgspec.json.encode(event).decode()}


class RedeliverParams(Params, kw_only=True):
    id: Annotated[str | None, Meta(description="The id of a dead letter, as in the list")] = None
    group: Annotated[str | None, Meta(description="All of this group")] = None
    all: Annotated[bool, Meta(description="All of all groups")] = False
    limit: Annotated[int, Meta(ge=0, description="How many of each group at most; 0: all")] = 0


@verb("events dead-letters redeliver", RedeliverParams, needs=Needs.BACKEND, columns=("id", "result"))
async def events_dead_letters_redeliver(admin: Admin, params: RedeliverParams) -> AsyncIterator[Event]:
    """Call the listeners again with events that they could not handle.

    Each event is tried once. If that succeeds, the dead letter is deleted; otherwise it
    stays. Exit 75 if one stays. Run it at one backend.
    """
    from ..events import dead

    env, events, failed = admin.store.env, admin.events, 0
    if (params.id is not None) + (params.group is not None) + params.all != 1:
        raise Invalid("dead letters must be named in one way; allowed: one of id, group, all")
    runners = {} if events is None else {one.group.name: one for one in events.runners}
    if params.id is not None:
        keys = [(await _letter(env, params.id)).key]
    else:
        keys = []
        for group in await _groups(env, params.group):
            keys += await dead.list_keys(env, group, limit=params.limit or None)
    for number, key in enumerate(keys):
        yield Progress("delivering events again", number, len(keys))
        letter, runner = await dead.read(env, key), runners.get(key.group)
        if letter is None:
            continue  # another administrator was quicker
        if runner is None:
            result = "no such group here"
        elif letter.event is None:
            result = letter.error
        else:
            result = await runner.call(letter.event) or ""
        if not result:
            await dead.delete(env, [key])
        failed += bool(result)
        yield {"id": letter.id, "result": result or "handled"}
    if events is not None:
        await events.count_letters()
    if failed:
        raise Temporary(f"{failed} of {len(keys)} dead letters stay")


class PurgeParams(Params, kw_only=True):
    id: Annotated[str | None, Meta(description="The id of a dead letter, as in the list")] = None
    group: Annotated[str | None, Meta(description="All of this group")] = None
    all: Annotated[bool, Meta(description="All of all groups")] = False
    dry_run: DryRun = False


@verb(
    "events dead-letters purge",
    PurgeParams,
    columns=("group", "dead_letters"),
    asks="Delete events that were never handled?",
)
async def events_dead_letters_purge(admin: Admin, params: PurgeParams) -> AsyncIterator[Event]:
    """Delete events that a group could not handle.

    The group never hears of them then. A group that is not configured any more has its
    dead letters until they are deleted here.
    """
    from ..events import dead

    env = admin.store.env
    if (params.id is not None) + (params.group is not None) + params.all != 1:
        raise Invalid("dead letters must be named in one way; allowed: one of id, group, all")
    if params.id is not None:
        letter = await _letter(env, params.id)
        if not params.dry_run:
            await dead.delete(env, [letter.key])
        yield {"group": letter.key.group, "dead_letters": 1}
    else:
        for group in await _groups(env, params.group):
            count = len(await dead.list_keys(env, group)) if params.dry_run else await dead.delete_all(env, group)
            if count:
                yield {"group": group, "dead_letters": count}
    if admin.events is not None:
        await admin.events.count_letters()


async def _groups(env: Env, group: str | None) -> list[str]:
    """Return the groups of a request. Raises Invalid, Unavailable."""
    from ..events import dead
    from ..objectstore.eventkeys import dead_prefix

    if group is None:
        return await dead.groups_in_bucket(env)
    try:
        dead_prefix(group)
    except ValueError:
        raise Invalid(f"not a group: {group[:80]!r}; allowed: a name as in events groups") from None
    return [group]


async def _letter(env: Env, text: str) -> Letter:
    """Raises Invalid, NotFound, Unavailable."""
    from ..events import dead

    try:
        key = dead.key_of(text)
    except ValueError:
        raise Invalid(f"not the id of a dead letter: {text[:200]!r}; allowed: an id of the list") from None
    letter = await dead.read(env, key)
    if letter is None:
        raise NotFound(f"no dead letter {text}")
    return letter


def _row(letter: Letter) -> dict[str, Any]:
    event = letter.event
    uids = () if event is None else event.uids
    return {
        "id": letter.id,
        "group": letter.key.group,
        "user": letter.key.sid,
        "kind": "" if event is None else event.kind,
        "mailbox": "" if event is None else event.mailbox,
        "uids": ",".join(f"{first}:{last}" if last > first else str(first) for first, last in uids),
        "failures": letter.failures,
        "error": letter.error,
        "at": int(letter.at),
    }
