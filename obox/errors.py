"""The closed set of failures.

Every failure that crosses a room is one of these. Each protocol has a table that gives
each failure a wire form, and a test asserts that every kind is in every table. Anything
else that reaches a protocol is a bug: the log gets a traceback, the client gets
`[SERVERBUG]`. Errors know no wire format. A leaf: imports nothing of obox.

`permanent` answers the caller's first question: would the same request succeed later if
nothing else changed?
"""

from __future__ import annotations

from typing import ClassVar


class OboxError(Exception):
    """Base of all kinds.

    `str(error)` is safe to show to the client: it has no path, no key and no secret.
    """

    permanent: ClassVar[bool] = True


class NotFound(OboxError):
    """The mailbox, mail or user does not exist."""


class Exists(OboxError):
    """Something of that name exists already."""


class NoPerm(OboxError):
    """The operation is not allowed for this user or in this state."""


class OverQuota(OboxError):
    """The user's quota would be exceeded. It helps to delete something."""


class Expunged(OboxError):
    """The mail existed and has been expunged."""


class InUse(OboxError):
    """Somebody else uses it at the moment."""

    permanent = False


class Limit(OboxError):
    """A limit of obox is reached (sessions, keywords, mailboxes, …)."""


class MailboxFull(Limit):
    """The mailbox has as many mails as a mailbox may have. It helps to move some."""


class TooBig(OboxError):
    """The data is larger than obox ever accepts."""


class Invalid(OboxError):
    """The request makes no sense: a bad name, a bad date, a bad set."""


class Unavailable(OboxError):
    """The bucket or the directory does not answer; try later."""

    permanent = False


class StorageRefuses(Unavailable):
    """The bucket answers with a reason, such as a wrong key. A client can only try
    later. words: what the store says, for operators alone."""

    def __init__(self, text: str, words: str) -> None:
        super().__init__(text)
        self.words = words


class Elsewhere(Unavailable):
    """Another backend serves the user. The router of the session reads the assignment
    again."""


class Temporary(OboxError):
    """A local operation failed for a reason that passes; try later."""

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
    MailboxFull,
    TooBig,
    Invalid,
    Unavailable,
    Temporary,
    Corrupt,
)


class ConfigError(Exception):
    """A bad configuration: a line that names the key, the value and what is allowed.
    Exit code 78.
    """


class NameTaken(ConfigError):
    """Another backend that lives has the name of this backend. Exit code 75."""
