"""The cluster directory, and who serves whom; see docs/cluster.md.

The public face: `Directory` and its rows, the records, the pure rules, `Router`. What
only some programs use is imported when it is used.
Arrow: knows the leaves of obox (`errors`, `types`) and no other room.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .assign import group_of, home_of, newer, rank
from .directory import KEY_BYTES_MAX, VALUE_BYTES_MAX, Directory, Kind, Row, next_timestamp
from .records import (
    Assigned,
    Beat,
    BootRow,
    Member,
    Merge,
    Move,
    Orders,
    Settings,
    Site,
    State,
    decode,
    encode,
    group_key,
    place_of,
    user_key,
    user_of,
)
from .route import Here, Router, There

if TYPE_CHECKING:
    from .cassandra import CassandraDirectory, open_cassandra
    from .dead import DeadWatch, Observation
    from .findings import Claims, Finding, check
    from .initial import make_settings, read_settings
    from .kept import Keeper, Kept, KeptFile
    from .lines import dump, load
    from .lmdb import open_lmdb
    from .member import BackendMember
    from .memory import Faults, MemoryDirectory, MemoryReplica
    from .open import open_directory
    from .tables import Tables, read_tables
    from .view import Changes, View
    from .world import Myself, World

_LATER = {
    "cassandra": ("CassandraDirectory", "open_cassandra"),
    "dead": ("DeadWatch", "Observation"),
    "findings": ("Claims", "Finding", "check"),
    "initial": ("make_settings", "read_settings"),
    "kept": ("Keeper", "Kept", "KeptFile"),
    "lines": ("dump", "load"),
    "lmdb": ("open_lmdb",),
    "member": ("BackendMember",),
    "memory": ("Faults", "MemoryDirectory", "MemoryReplica"),
    "open": ("open_directory",),
    "tables": ("Tables", "read_tables"),
    "view": ("Changes", "View"),
    "world": ("Myself", "World"),
}
"""The names of each module. A module costs time at every start that imports it."""
_MODULES = {name: module for module, names in _LATER.items() for name in names}

__all__ = [
    "KEY_BYTES_MAX",
    "VALUE_BYTES_MAX",
    "Assigned",
    "BackendMember",
    "Beat",
    "BootRow",
    "CassandraDirectory",
    "Changes",
    "Claims",
    "DeadWatch",
    "Directory",
    "Faults",
    "Finding",
    "Here",
    "Keeper",
    "Kept",
    "KeptFile",
    "Kind",
    "Member",
    "MemoryDirectory",
    "MemoryReplica",
    "Merge",
    "Move",
    "Myself",
    "Observation",
    "Orders",
    "Router",
    "Row",
    "Settings",
    "Site",
    "State",
    "Tables",
    "There",
    "View",
    "World",
    "check",
    "decode",
    "dump",
    "encode",
    "group_key",
    "group_of",
    "home_of",
    "load",
    "make_settings",
    "newer",
    "next_timestamp",
    "open_cassandra",
    "open_directory",
    "open_lmdb",
    "place_of",
    "rank",
    "read_settings",
    "read_tables",
    "user_key",
    "user_of",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
