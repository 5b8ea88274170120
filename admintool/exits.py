"""Exit codes: sysexits(3) with doveadm's meaning. They are the same as in the API."""

from obox.admin.exits import (
    CANNOT_CREATE,
    CONFIG,
    DATA,
    IO,
    NO_HOST,
    NO_PERM,
    NO_USER,
    OF,
    OUTDATED,
    PARTIAL,
    SOFTWARE,
    TEMPFAIL,
    UNAVAILABLE,
    USAGE,
    of,
)

__all__ = [
    "CANNOT_CREATE",
    "CONFIG",
    "DATA",
    "IO",
    "NO_HOST",
    "NO_PERM",
    "NO_USER",
    "OF",
    "OUTDATED",
    "PARTIAL",
    "SOFTWARE",
    "TEMPFAIL",
    "UNAVAILABLE",
    "USAGE",
    "of",
]
