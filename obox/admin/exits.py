"""Exit codes: sysexits(3), with doveadm's meaning of them.

The API's `exitCode` and the command's end are the same.
"""

from __future__ import annotations

from typing import Final

from ..errors import (
    ConfigError,
    Corrupt,
    Exists,
    Expunged,
    InUse,
    Invalid,
    Limit,
    MailboxFull,
    NoPerm,
    NotFound,
    OboxError,
    OverQuota,
    StorageRefuses,
    Temporary,
    TooBig,
    Unavailable,
)

PARTIAL: Final = 2
"""Done for some of the users. The failures were reported."""
USAGE: Final = 64
DATA: Final = 65
NO_USER: Final = 67
NO_HOST: Final = 68
"""The user has no session, as doveadm over HTTP means it; or the host is unknown."""
UNAVAILABLE: Final = 69
SOFTWARE: Final = 70
CANNOT_CREATE: Final = 73
IO: Final = 74
TEMPFAIL: Final = 75
NO_PERM: Final = 77
CONFIG: Final = 78
OUTDATED: Final = 1003
"""The same number as doveadm's. A shell sees 235 when a process exits with it."""

OF: Final[dict[type[OboxError], int]] = {
    NotFound: DATA,
    Exists: CANNOT_CREATE,
    NoPerm: NO_PERM,
    OverQuota: CANNOT_CREATE,
    Expunged: DATA,
    InUse: TEMPFAIL,
    Limit: CANNOT_CREATE,
    MailboxFull: CANNOT_CREATE,
    TooBig: DATA,
    Invalid: DATA,
    Unavailable: UNAVAILABLE,
    Temporary: TEMPFAIL,
    Corrupt: SOFTWARE,
}


class NoUser(NotFound):
    """The user database does not know the user."""


class NoSession(NotFound):
    """No user of that name is logged in."""


class InUseByClients(InUse):
    """A user's mail is open. doveadm's code for this is 65."""


class NoHost(Unavailable):
    """The host name of another backend does not resolve."""


class Outdated(InUse):
    """Another backend has older copies than the bucket has bundles."""


class Incomplete(OboxError):
    """A check found something wrong. The rows say what it is."""


_OWN: Final[dict[type[Exception], int]] = {
    NoUser: NO_USER,
    NoSession: NO_HOST,
    InUseByClients: DATA,
    Incomplete: DATA,
    NoHost: NO_HOST,
    StorageRefuses: DATA,
    Outdated: OUTDATED,
    ConfigError: CONFIG,
}


def of(error: BaseException) -> int:
    """Return the exit code of a failure; 70 means a bug."""
    for kind in type(error).__mro__:
        code = _OWN.get(kind) or OF.get(kind)
        if code is not None:
            return code
    return SOFTWARE


def said(error: BaseException) -> str:
    """Return the text of a failure for an operator."""
    return error.words if isinstance(error, StorageRefuses) else str(error)
