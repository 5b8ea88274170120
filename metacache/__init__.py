"""Local copies of index bundles in an LMDB environment.

Invariant: what was staged before a `commit` that has returned is there after a kill at
any time. Reads see what is staged.
This module does not know IMAP, the bucket, or what a base, a delta, a stamp or a record
means. All of them are bytes.
Diagnostics: see `metacache._cache`.

`metacache.layout` is the byte layout, `metacache.operations` what is staged and how
reads fold it in.
"""

from metacache._cache import Metacache, changed
from metacache._cleaner import CLEAN_TO, Cleaned, Cleaner, Owner, Refused
from metacache._types import (
    BoxSpace,
    Change,
    Copy,
    MetacacheBusy,
    MetacacheError,
    MetacacheFull,
    Rescanned,
    Status,
    UserInfo,
    UserSpace,
)
from metacache._weights import SizeWeights, Weights
from metacache.layout import STAMP_BYTES_MAX

__all__ = [
    "CLEAN_TO",
    "STAMP_BYTES_MAX",
    "BoxSpace",
    "Change",
    "Cleaned",
    "Cleaner",
    "Copy",
    "Metacache",
    "MetacacheBusy",
    "MetacacheError",
    "MetacacheFull",
    "Owner",
    "Refused",
    "Rescanned",
    "SizeWeights",
    "Status",
    "UserInfo",
    "UserSpace",
    "Weights",
    "changed",
]
