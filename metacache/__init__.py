"""Local copies of index bundles in one LMDB environment.

Invariant: what `commit()` has answered for is there after a kill at any time; what is only staged is seen by reads.
Refuses to know: IMAP, the bucket, what a base, a delta, a stamp or a record means. All of them are bytes.
Diagnostics: see `metacache._cache`.
"""

from metacache._cache import Metacache
from metacache._cleaner import Cleaned, Cleaner, Owner, Refused
from metacache._layout import STAMP_BYTES_MAX
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

__all__ = [
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
]
