"""The cluster directory, and who serves whom; see docs/cluster.md.

The public face: `Directory` and its rows, the records, the pure rules, `Router`.
Arrow: knows `errors`, `types` and the directory's engines; knows no mail.
"""

from .assign import group_of, newer, rank
from .directory import VALUE_BYTES_MAX, Directory, Kind, Row, next_timestamp
from .records import (
    Assigned,
    Beat,
    BootRow,
    Member,
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
    "VALUE_BYTES_MAX",
    "Assigned",
    "Beat",
    "BootRow",
    "Directory",
    "Here",
    "Kind",
    "Member",
    "Move",
    "Orders",
    "Router",
    "Row",
    "Settings",
    "Site",
    "State",
    "There",
    "decode",
    "encode",
    "group_key",
    "group_of",
    "newer",
    "next_timestamp",
    "rank",
    "user_key",
]
