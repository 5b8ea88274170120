"""Exit codes: sysexits(3), with doveadm's meaning of them; the same as the API's."""

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
