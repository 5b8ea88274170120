"""The store's own failures; the rooms above translate them at their boundary with `raise ... from`.

Invariant: a failure answers `permanent?` first. What is transient has been retried already when a caller sees it.

Refuses to know: obox.errors kinds (except that a bad setting is ConfigError, raised where a setting is read), wires.

Diagnostics: nothing is logged here. Messages name the operation, the key and what the store answered; they never hold a
secret. They are for the operator's log, not for a mail client.
"""

from __future__ import annotations

from typing import ClassVar


class StoreError(Exception):
    """Base of all. `permanent`: would the same request fail again, nothing else changed?"""

    permanent: ClassVar[bool] = True


class AlreadyExists(StoreError):
    """A create-only PUT or copy found an object under its key. It may be our own, see put_once."""


class Missing(StoreError):
    """No object under that key."""


class Refused(StoreError):
    """The store understood and said no (400, 401, 403, no such bucket, a key it cannot hold): an operator must act."""


class Unreachable(StoreError):
    """The store did not answer, or answered 5xx or SlowDown, until retries or the deadline ran out.

    maybe_done: the request may have had its effect all the same. On a PUT the retry layer turns that into
    OutcomeUnknown.
    """

    permanent = False

    def __init__(self, message: str, *, maybe_done: bool = True) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class OutcomeUnknown(StoreError):
    """A PUT or copy at its deadline: it has landed, may still land, or never will. `settle` finds out."""

    permanent = False


class Truncated(StoreError):
    """A GET brought fewer bytes than the store announced."""

    permanent = False


class CorruptObject(StoreError):
    """Stored bytes do not decode: never wrong bytes, always this."""


class NewerFormat(StoreError):
    """The object's major version is above ours: do not read, do not delete, upgrade this obox."""
