"""The store's own failures. The rooms above translate them at their boundary with
`raise ... from`.

Invariant: a failure answers `permanent?` first. A transient failure has been retried
already when a caller sees it.

This module does not know obox.errors kinds (except that a bad setting is ConfigError,
raised where a setting is read) or wire formats.

Diagnostics: nothing is logged here. Messages name the operation, the key and the answer
of the store. They never contain a secret. They are for the operator's log, not for a
mail client.
"""

from __future__ import annotations

from typing import ClassVar


class StoreError(Exception):
    """Base of all kinds. `permanent`: would the same request fail again if nothing else
    changed?
    """

    permanent: ClassVar[bool] = True


class AlreadyExists(StoreError):
    """A create-only PUT or copy found an object under its key. It may be our own; see
    put_once.
    """


class Missing(StoreError):
    """There is no object under that key."""


class Refused(StoreError):
    """The store understood the request and refused it: an operator must act.

    For example 400, 401, 403, no such bucket, or a key that it cannot store.
    """


class Unreachable(StoreError):
    """The store did not answer, or answered 5xx or SlowDown, until retries or the
    deadline ended.

    maybe_done: the request may have had its effect all the same. For a PUT the retry
    layer turns that into OutcomeUnknown.
    """

    permanent = False

    def __init__(self, message: str, *, maybe_done: bool = True) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class OutcomeUnknown(StoreError):
    """A PUT or copy at its deadline: it has succeeded, may still succeed, or never
    will.

    `find_outcome` finds out.
    """

    permanent = False


class Truncated(StoreError):
    """A GET returned fewer bytes than the store announced."""

    permanent = False


class CorruptObject(StoreError):
    """Stored bytes do not decode. No code returns wrong bytes instead of this error."""


class NewerFormat(StoreError):
    """The object's major version is above ours: do not read or delete it; upgrade this
    obox.
    """
