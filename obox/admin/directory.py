"""Functions for the verbs of a cluster: they read the directory, write rows, and check
names.

Invariant: a row that is written is newer than the row that was read under its key, and
is read back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, field

from ..errors import ConfigError, Invalid, NotFound, Temporary
from .params import Params
from .parts import ClusterParts

if TYPE_CHECKING:
    from msgspec import Struct

    from ..cluster import Kind, Orders, State, Tables

NAMED_MAX: Final = 20
"""An error lists at most 20 allowed names."""

NAME: Final = r"^[A-Za-z0-9._-]{1,64}$"
"""The names of backends and sites, as in the configuration."""


class OfBackend(Params, kw_only=True):
    """Parameters of verbs about a backend."""

    backend: Annotated[str, Meta(description="The name of the backend")] = ""
    self_: Annotated[bool, Meta(description="The backend of this configuration")] = field(name="self", default=False)


async def read(cluster: ClusterParts) -> Tables:
    """Return all rows of the directory. Raises ConfigError, Unavailable."""
    from ..cluster import read_settings, read_tables

    if await read_settings(cluster.directory) is None:
        raise ConfigError("cluster.directory: it is empty; run oboxadm cluster init, or start a backend")
    return await read_tables(cluster.directory)


async def write(cluster: ClusterParts, kind: Kind, key: str, record: Struct) -> None:
    """Write a row. Raises Unavailable; Temporary: another process has written the row
    at the same time."""
    from ..cluster import encode, next_timestamp

    before = await cluster.directory.get(kind, key)
    value, timestamp = encode(record), next_timestamp(time.time, before)
    await cluster.directory.put(kind, key, value, timestamp)
    after = await cluster.directory.get(kind, key)
    if after is None or (after.value, after.timestamp) != (value, timestamp):
        raise Temporary(f"the row {kind.value} {key} was changed at the same time; look at it, and run this again")


def backend_of(cluster: ClusterParts, tables: Tables, params: OfBackend) -> tuple[str, Orders]:
    """Return the backend that a request names, and its orders. Raises Invalid,
    NotFound."""
    if bool(params.backend) == params.self_:
        raise Invalid("the backend must be named in one way; allowed: its name, or --self")
    return backend_named(tables, cluster.backend if params.self_ else params.backend)


def backend_named(tables: Tables, name: str) -> tuple[str, Orders]:
    """Return a backend and its orders. Raises NotFound, which names the existing
    backends."""
    found = tables.backends()
    if name not in found:
        raise NotFound(f"no backend {name!r}; allowed: {listed(found)}")
    return name, found[name]


def state_named(text: str, *states: State) -> State:
    """Return the state of a name. Raises Invalid, which names the allowed states."""
    for state in states:
        if state.value == text:
            return state
    raise Invalid(f"no status {text!r}; allowed: {listed(state.value for state in states)}")


def group_named(tables: Tables, text: str) -> str:
    """Return the key of a group. Raises NotFound."""
    from ..cluster import group_key

    keys = tables.group_keys()
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(keys[0]) else None
    if number is None or number >= len(keys):
        raise NotFound(f"no group {text!r}; allowed: {keys[0]} to {keys[-1]}")
    return group_key(number)


def listed(names: Iterable[str]) -> str:
    """Return names as a text for an error, at most NAMED_MAX of them."""
    found = list(names)
    more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
    return (", ".join(found[:NAMED_MAX]) or "none, since there is none") + more


def counted(units: Sequence[str]) -> str:
    """Return the numbers of groups and of single users as a text."""
    from ..cluster import user_of

    users = sum(user_of(unit) is not None for unit in units)
    groups = len(units) - users
    parts = [f"{groups} group{'s' if groups != 1 else ''}"] if groups or not users else []
    if users:
        parts.append(f"{users} single user{'s' if users != 1 else ''}")
    return " and ".join(parts)


def unix(seconds: float) -> Any:
    """Return a Unix time for a column, empty if there is none."""
    return int(seconds) if seconds else ""
