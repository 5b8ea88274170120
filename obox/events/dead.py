"""Dead letters: events that a group could not handle, as objects in the bucket.

They lie under their group and user, so that the deletion of a user finds them by a
LIST. An administrator lists them, delivers them again, or deletes them.

Invariant: a dead letter is deleted only after its event was handled, by command, or
with its user. Diagnostics: a dead letter that does not decode is shown as damaged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, cast

import msgspec
import structlog

from ..objectstore import CorruptObject, NewerFormat, StoreError, put_once
from ..objectstore.codec import ObjectKind
from ..objectstore.eventkeys import DeadKey, dead_key, dead_prefix, events_prefix, parse_dead_key
from ..objectstore.keys import owner_of
from ..store.env import Env
from ..types import StorageId
from .event import Event, Format

log = structlog.get_logger()

ERROR_CHARS_MAX: Final = 1000
"""Characters of the failure that a dead letter has."""

LISTED_MAX: Final = 10_000
"""Keys of dead letters that are read at a time: a megabyte of names."""


PASSES_MAX: Final = 100
"""LISTs of the dead letters of a user who was deleted: a million letters. A store that
does not delete them is not asked for ever."""


class DeadBody(msgspec.Struct, omit_defaults=True):
    """The payload of a dead letter. at: unix seconds."""

    event: bytes
    format: str
    failures: int
    error: str
    at: float


class Letter(msgspec.Struct):
    """A dead letter. event: None if it is damaged. id: how commands name it."""

    key: DeadKey
    event: Event | None
    failures: int
    error: str
    at: float

    @property
    def id(self) -> str:
        return id_of(self.key)


def id_of(key: DeadKey) -> str:
    """Return how commands name a dead letter."""
    return f"{key.group}/{key.sid}/{key.at:016x}.{key.id}"


def key_of(text: str) -> DeadKey:
    """Undo `id_of`. Raises ValueError."""
    group, _, rest = text.partition("/")
    return parse_dead_key(f"{dead_prefix(group)}{rest}")


async def put_letter(env: Env, group: str, event: Event, form: Format, failures: int, error: str) -> DeadKey:
    """PUT a dead letter. Raises Unavailable."""
    key = DeadKey(group, StorageId(event.user), env.now_ms(), env.random_bytes(4).hex())
    body = DeadBody(event.encode(form), form, failures, error[:ERROR_CHARS_MAX], env.now())
    name, oid = dead_key(key), env.new_oid()
    data = env.codec.encode(ObjectKind.DEAD_LETTER, owner_of(name), oid, b"", msgspec.msgpack.encode(body))
    try:
        await put_once(env.bucket, name, data, oid, kind="events")
    except StoreError as exc:
        raise env.unavailable("put", name, exc) from exc
    return key


async def groups_in_bucket(env: Env) -> list[str]:
    """Return the groups that have objects in the bucket. Raises Unavailable."""
    return await env.names(events_prefix(), kind="events")


async def list_keys(env: Env, group: str, sid: str | None = None, *, limit: int | None = None) -> list[DeadKey]:
    """Return the dead letters of a group, of all users or of one, by user and time.
    Raises Unavailable."""
    found = []
    for info in await env.listing(dead_prefix(group, sid), kind="events", limit=limit):
        try:
            found.append(parse_dead_key(info.key))
        except ValueError:
            log.warning("foreign object among the dead letters ignored", key=info.key)
    return found


async def letters(env: Env, group: str, *, limit: int | None = None) -> AsyncIterator[Letter]:
    """Yield the dead letters of a group. Raises Unavailable."""
    for key in await list_keys(env, group, limit=limit):
        if (letter := await read(env, key)) is not None:
            yield letter


async def read(env: Env, key: DeadKey) -> Letter | None:
    """Return a dead letter; None if it is gone. Raises Unavailable."""
    name = dead_key(key)
    data = await env.get(name, kind="events")
    if data is None:
        return None
    try:
        body = msgspec.msgpack.decode(env.codec.decode(data, owner_of(name)).payload, type=DeadBody)
        event = Event.decode(body.event, cast(Format, body.format))
    except (CorruptObject, NewerFormat, ValueError) as exc:
        return Letter(key, None, 0, f"does not decode: {exc}", key.at / 1000)
    return Letter(key, event, body.failures, body.error, body.at)


async def delete(env: Env, keys: list[DeadKey]) -> None:
    """Delete dead letters. Raises Unavailable."""
    await env.delete(list(map(dead_key, keys)), kind="events")


async def delete_all(env: Env, group: str, sid: str | None = None) -> int:
    """Delete the dead letters of a group, or those of a user who was deleted. Returns
    how many. Raises Unavailable."""
    count = 0
    for _ in range(PASSES_MAX):
        if not (keys := await list_keys(env, group, sid, limit=LISTED_MAX)):
            break
        await delete(env, keys)
        count += len(keys)
    return count
