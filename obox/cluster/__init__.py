"""The cluster directory, and who serves whom; see docs/cluster.md.

The public face: `Directory` and its rows, the records, the pure rules, `Router`.
Arrow: knows the leaves of obox (`errors`, `types`) and no other room.
"""

from .assign import group_of, newer, rank
from .directory import KEY_BYTES_MAX, VALUE_BYTES_MAX, Directory, Kind, Row, next_timestamp
from .lmdb import open_lmdb
from .member import BackendMember, Myself, World
from .memory import Faults, MemoryDirectory, MemoryReplica
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
    user_key,
)
from .route import Here, Router, There

__all__ = [
    "KEY_BYTES_MAX",
    "VALUE_BYTES_MAX",
    "Assigned",
    "BackendMember",
    "Beat",
    "BootRow",
    "Directory",
    "Faults",
    "Here",
    "Kind",
    "Member",
    "MemoryDirectory",
    "MemoryReplica",
    "Merge",
    "Move",
    "Myself",
    "Orders",
    "Router",
    "Row",
    "Settings",
    "Site",
    "State",
    "There",
    "World",
    "decode",
    "encode",
    "group_key",
    "group_of",
    "newer",
    "next_timestamp",
    "open_lmdb",
    "rank",
    "user_key",
]
