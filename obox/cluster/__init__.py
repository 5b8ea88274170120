"""The cluster directory, and who serves whom; see docs/cluster.md.

The public face: `Directory` and its rows, the records, the pure rules, `Router`.
Arrow: knows the leaves of obox (`errors`, `types`) and no other room.
"""

from .assign import group_of, newer, rank
from .cassandra import CassandraDirectory, open_cassandra
from .check import Claims, Finding, check
from .dead import DeadWatch, Observation
from .directory import KEY_BYTES_MAX, VALUE_BYTES_MAX, Directory, Kind, Row, next_timestamp
from .dump import dump, load
from .initial import make_settings, read_settings
from .kept import Keeper, Kept, KeptFile
from .lmdb import open_lmdb
from .member import BackendMember, Myself, World
from .memory import Faults, MemoryDirectory, MemoryReplica
from .open import open_directory
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
from .view import Changes, View

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
    "There",
    "View",
    "World",
    "check",
    "decode",
    "dump",
    "encode",
    "group_key",
    "group_of",
    "load",
    "make_settings",
    "newer",
    "next_timestamp",
    "open_cassandra",
    "open_directory",
    "open_lmdb",
    "rank",
    "read_settings",
    "user_key",
]
