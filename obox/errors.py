"""The closed set of failures.

Every failure that crosses a room is one of these; each protocol has one table that gives it a wire form, and a test
asserts that every kind is in every table. Anything else that reaches a protocol is a bug: traceback to the log,
`[SERVERBUG]` to the client. Errors know no wire. A leaf: imports nothing of obox.

`permanent` answers the caller's first question: would the same request succeed later, nothing else changed?
"""

from __future__ import annotations

from typing import ClassVar


class OboxError(Exception):
    """Base of all kinds. `str(error)` is safe to show to the client: no path, no key, no secret."""

    permanent: ClassVar[bool] = True


class NotFound(OboxError):
    """The mailbox, mail or user is not there."""


class Exists(OboxError):
    """A thing of that name is there already."""


class NoPerm(OboxError):
    """Not allowed for this user or in this state."""


class OverQuota(OboxError):
    """The user's quota would be exceeded; clears when the user deletes something."""


class Expunged(OboxError):
    """The mail was there and has been expunged."""


class InUse(OboxError):
    """Someone else holds it at the moment."""

    permanent = False


class Limit(OboxError):
    """One of our limits is reached (sessions, keywords, mailboxes, …)."""


class TooBig(OboxError):
    """Larger than is ever accepted."""


class Invalid(OboxError):
    """The request makes no sense: a bad name, a bad date, a bad set."""


class Unavailable(OboxError):
    """The bucket or the directory does not answer; try later."""

    permanent = False


class Temporary(OboxError):
    """Something local failed in passing; try later."""

    permanent = False


class Corrupt(OboxError):
    """Stored bytes do not decode, or an invariant does not hold; names the object."""


KINDS: tuple[type[OboxError], ...] = (
    NotFound,
    Exists,
    NoPerm,
    OverQuota,
    Expunged,
    InUse,
    Limit,
    TooBig,
    Invalid,
    Unavailable,
    Temporary,
    Corrupt,
)


class ConfigError(Exception):
    """A bad configuration: one line that names the key, the value and what is allowed. Exit code 78."""
