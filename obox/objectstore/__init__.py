"""The bucket: create-only PUT, ranged GET, ordered LIST, bulk DELETE, over S3, a
directory or memory.

The rooms above see ObjectStore, the helpers put_once and find_outcome, the layout in
`keys` and the bytes in `codec`.

Invariant: an object is written once, and its content is never modified. A `put` that
has returned is durable.

This module does not know mail, indexes, or users.

Diagnostics: every failure is a StoreError with `permanent`. Retries are logged at
debug, slow requests at warning. A bad setting is ConfigError. See the modules.
"""

from typing import TYPE_CHECKING

from obox.objectstore._driver import REQUEST_KEYS_MAX, Cursor, Driver, Kind, ObjectInfo, ObjectStore, Page
from obox.objectstore._errors import (
    AlreadyExists,
    CorruptObject,
    Missing,
    NewerFormat,
    OutcomeUnknown,
    Refused,
    StoreError,
    Truncated,
    Unreachable,
)
from obox.objectstore._file import FileDriver
from obox.objectstore._frames import FRAME_BYTES, Header
from obox.objectstore._open import OpenStore, Settings, open_store
from obox.objectstore._probe import Raced, needs_race, probe, race, require_one_winner, sweep
from obox.objectstore.codec import (
    HEADER_BYTES,
    Codec,
    Decoded,
    ObjectKind,
    ShortPrefix,
    UnknownKey,
    new_oid,
    oid_of,
)
from obox.objectstore.master_keys import load_keys
from obox.objectstore.put_once import Outcome, find_outcome, put_once
from obox.objectstore.stats import Stats

if TYPE_CHECKING:
    from obox.objectstore._memory import MemoryDriver


def __getattr__(name: str) -> object:
    if name == "MemoryDriver":  # tests and benchmarks alone use it
        from obox.objectstore._memory import MemoryDriver

        return MemoryDriver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FRAME_BYTES",
    "HEADER_BYTES",
    "REQUEST_KEYS_MAX",
    "AlreadyExists",
    "Codec",
    "CorruptObject",
    "Cursor",
    "Decoded",
    "Driver",
    "FileDriver",
    "Header",
    "Kind",
    "MemoryDriver",
    "Missing",
    "NewerFormat",
    "ObjectInfo",
    "ObjectKind",
    "ObjectStore",
    "OpenStore",
    "Outcome",
    "OutcomeUnknown",
    "Page",
    "Raced",
    "Refused",
    "Settings",
    "ShortPrefix",
    "Stats",
    "StoreError",
    "Truncated",
    "UnknownKey",
    "Unreachable",
    "find_outcome",
    "load_keys",
    "needs_race",
    "new_oid",
    "oid_of",
    "open_store",
    "probe",
    "put_once",
    "race",
    "require_one_winner",
    "sweep",
]
