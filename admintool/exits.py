"""Exit codes: sysexits(3), with doveadm's meaning of them."""

from __future__ import annotations

from obox import errors

USAGE = 64
DATA = 65
NO_USER = 67
UNAVAILABLE = 69
SOFTWARE = 70
CANNOT_CREATE = 73
IO = 74
TEMPFAIL = 75
NO_PERM = 77
CONFIG = 78

OF: dict[type[errors.OboxError], int] = {
    errors.NotFound: DATA,
    errors.Exists: CANNOT_CREATE,
    errors.NoPerm: NO_PERM,
    errors.OverQuota: CANNOT_CREATE,
    errors.Expunged: DATA,
    errors.InUse: TEMPFAIL,
    errors.Limit: CANNOT_CREATE,
    errors.TooBig: DATA,
    errors.Invalid: DATA,
    errors.Unavailable: UNAVAILABLE,
    errors.Temporary: TEMPFAIL,
    errors.Corrupt: SOFTWARE,
}


def of(error: errors.OboxError) -> int:
    return next((OF[kind] for kind in type(error).__mro__ if kind in OF), SOFTWARE)
