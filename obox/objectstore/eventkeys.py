"""The keys of objects for events, which are made and parsed here (docs/events.md).

`keys` has the other keys, and the rules that all keys follow.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from obox.escaping import element
from obox.types import StorageId

_CURSOR = re.compile(r"_events/([^/]+)/cursor/([^/]+)/([^/]+)/([0-9a-f]{16})\.([^/]+)", re.ASCII)
_DEAD = re.compile(r"_events/([^/]+)/dead/([^/]+)/([0-9a-f]{16})\.([0-9a-f]{8})", re.ASCII)

_U64_MAX = 2**64 - 1


class CursorKey(NamedTuple):
    """The content of a cursor's key. writer: the boot that wrote it."""

    group: str
    backend: str
    boot: str
    seq: int
    writer: str


class DeadKey(NamedTuple):
    """The content of a dead letter's key. at: unix milliseconds; id: 8 hex digits."""

    group: str
    sid: StorageId
    at: int
    id: str


def events_prefix(group: str | None = None) -> str:
    """Return the prefix of all objects for events, or of those of a group."""
    return "_events/" if group is None else f"_events/{element(group)}/"


def cursors_prefix(group: str, backend: str | None = None, boot: str | None = None) -> str:
    """Return the prefix of a group's cursors: of all, of a backend's, of a boot's."""
    parts = [element(part) for part in (backend, boot) if part is not None]
    return "".join(f"{part}/" for part in (f"_events/{element(group)}/cursor", *parts))


def cursor_key(key: CursorKey) -> str:
    """Return the key of a cursor."""
    if not 0 <= key.seq <= _U64_MAX:
        raise ValueError(f"not a journal seq: {key.seq}")
    return f"{cursors_prefix(key.group, key.backend, key.boot)}{key.seq:016x}.{element(key.writer)}"


def parse_cursor_key(key: str) -> CursorKey:
    """Return the argument of cursor_key. Raises: ValueError on any other key."""
    m = _CURSOR.fullmatch(key)
    if m is None:
        raise ValueError(f"not the key of a cursor: {key[:200]!r}")
    return CursorKey(element(m[1]), element(m[2]), element(m[3]), int(m[4], 16), element(m[5]))


def dead_prefix(group: str, sid: str | None = None) -> str:
    """Return the prefix of a group's dead letters: of all, or of a user's."""
    return f"_events/{element(group)}/dead/" if sid is None else f"_events/{element(group)}/dead/{element(sid)}/"


def dead_key(key: DeadKey) -> str:
    """Return the key of a dead letter."""
    if not 0 <= key.at <= _U64_MAX:
        raise ValueError(f"not a time: {key.at}")
    return f"{dead_prefix(key.group, key.sid)}{key.at:016x}.{element(key.id)}"


def parse_dead_key(key: str) -> DeadKey:
    """Return the argument of dead_key. Raises: ValueError on any other key."""
    m = _DEAD.fullmatch(key)
    if m is None:
        raise ValueError(f"not the key of a dead letter: {key[:200]!r}")
    return DeadKey(element(m[1]), StorageId(element(m[2])), int(m[3], 16), m[4])
