"""Cursors: how far a group has handled the events of each boot (docs/events.md).

A cursor is a create-only object whose key has everything that most readers need. Of
several cursors of a boot the maximum counts, so two writers never disagree.

Invariant: a cursor is written only after all events up to it have been handled, or are
dead letters in the bucket. This module does not know how events are handled.
Diagnostics: a cursor that does not decode is logged and ignored; events come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from ..objectstore import CorruptObject, NewerFormat, ObjectInfo, StoreError, put_once
from ..objectstore.codec import ObjectKind
from ..objectstore.eventkeys import CursorKey, cursor_key, cursors_prefix, parse_cursor_key
from ..objectstore.keys import owner_of
from ..store.env import Env

log = structlog.get_logger()

KEPT_MAX: Final = 32
"""Cursors of a boot that were followed by another, before they are deleted in one
request."""


class CursorBody(msgspec.Struct, omit_defaults=True):
    """The payload of a cursor. users: for whom it holds; None: for all. rescan: users
    of whom the group has still to hear `Rescan`."""

    users: list[str] | None = None
    rescan: list[str] = []


@dataclass
class Progress:
    """What the cursors of a boot say. seq: all lines up to it have been handled; -1:
    none. users: those of whom everything has been handled, up to the `seq` of each.
    rescan: see `CursorBody`."""

    seq: int = -1
    users: dict[str, int] = field(default_factory=dict)
    rescan: set[str] = field(default_factory=set)


Boot = tuple[str, str]
"""A backend and a boot."""


async def put_cursor(env: Env, key: CursorKey, body: CursorBody) -> None:
    """PUT a cursor. A cursor that is there already says the same. Raises
    Unavailable."""
    name, oid = cursor_key(key), env.new_oid()
    data = env.codec.encode(ObjectKind.CURSOR, owner_of(name), oid, b"", msgspec.msgpack.encode(body))
    try:
        await put_once(env.bucket, name, data, oid, kind="events")
    except StoreError as exc:
        raise env.unavailable("put", name, exc) from exc


async def list_cursors(env: Env, group: str, backend: str | None = None, boot: str | None = None) -> list[CursorKey]:
    """Return the cursors of a group: of all boots, of a backend's, or of one boot.
    Raises Unavailable."""
    return list(_parsed(await env.listing(cursors_prefix(group, backend, boot), kind="events")))


def _parsed(infos: Iterable[ObjectInfo]) -> Iterable[CursorKey]:
    for info in infos:
        try:
            yield parse_cursor_key(info.key)
        except ValueError:
            log.warning("foreign object among the cursors ignored", key=info.key)


async def read_progress(env: Env, keys: Collection[CursorKey]) -> dict[Boot, Progress]:
    """Return what cursors of a group say, by boot. It reads cursors of other writers,
    and the newest of each boot. Raises Unavailable."""
    found: dict[Boot, Progress] = {}
    newest: dict[Boot, CursorKey] = {}
    others: list[CursorKey] = []
    for key in keys:
        boot = key.backend, key.boot
        found.setdefault(boot, Progress())
        if key.writer != key.boot:
            others.append(key)
        elif boot not in newest or newest[boot].seq < key.seq:
            newest[boot] = key
    for key, body in await _bodies(env, [*newest.values(), *others]):
        progress = found[key.backend, key.boot]
        if key.writer == key.boot:
            progress.seq = key.seq
            progress.rescan.update(body.rescan)
        else:
            for sid in body.users or ():
                progress.users[sid] = max(progress.users.get(sid, -1), key.seq)
    return found


async def _bodies(env: Env, keys: list[CursorKey]) -> list[tuple[CursorKey, CursorBody]]:
    names = list(map(cursor_key, keys))
    found = []
    for key, name, data in zip(keys, names, await env.get_all(names, kind="events"), strict=True):
        if data is None:  # it was followed by another, and deleted meanwhile
            body = CursorBody()
        else:
            try:
                body = msgspec.msgpack.decode(env.codec.decode(data, owner_of(name)).payload, type=CursorBody)
            except (CorruptObject, NewerFormat, ValueError) as exc:
                log.error("cursor does not decode and is ignored", key=name, error=str(exc))
                continue
        found.append((key, body))
    return found


class Keeper:
    """Writes the cursors of a group for the boots of this process, and deletes those
    that were followed by another."""

    def __init__(self, env: Env, group: str) -> None:
        self._env = env
        self._group = group
        self._last: dict[Boot, CursorKey] = {}
        self._old: list[CursorKey] = []
        self._rescan: frozenset[str] = frozenset()
        self._writing = asyncio.Lock()

    def is_new(self, boot: Boot, seq: int, rescan: frozenset[str]) -> bool:
        """Return whether a cursor would say more than the newest does."""
        last = self._last.get(boot)
        return seq > (-1 if last is None else last.seq) or (last is not None and rescan != self._rescan)

    async def write(self, boot: Boot, seq: int, rescan: frozenset[str] = frozenset()) -> None:
        """Write that all events of a boot up to `seq` were handled. Raises
        Unavailable."""
        async with self._writing:
            if not self.is_new(boot, seq, rescan):
                return
            last = self._last.get(boot)
            key = CursorKey(self._group, *boot, seq, boot[1])
            if last == key:
                return  # the next cursor says it
            await put_cursor(self._env, key, CursorBody(rescan=sorted(rescan)))
            if last is not None:
                self._old.append(last)
            self._last[boot], self._rescan = key, rescan
            if len(self._old) >= KEPT_MAX:
                await self.tidy()

    async def tidy(self) -> None:
        """Delete what was followed by another cursor. Raises Unavailable."""
        old, self._old = self._old, []
        await self._env.delete(list(map(cursor_key, old)), kind="events")
