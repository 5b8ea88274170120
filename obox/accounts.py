"""Who a user is: the name, the place of the mail in the bucket, and what the user may
store.

The user database makes accounts (`obox.auth`); protocols, deliveries and the
administrator's verbs use them. Invariant: `storage_id` here is the one function that
says where a user's mail lies.
Refuses to know: passwords, and where an account was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from obox.escaping import escape
from obox.types import StorageId


@dataclass(frozen=True, slots=True)
class Quota:
    """What a user may store; None is without limit."""

    storage_bytes: int | None = None
    messages: int | None = None


UNLIMITED: Final = Quota()


@dataclass(frozen=True, slots=True)
class Account:
    """One user. name: normalised (`obox.auth.normalise`)."""

    name: str
    storage_id: StorageId
    quota: Quota = UNLIMITED
    disabled: bool = False
    """The user may neither log in nor receive mail."""
    known: bool = True
    """The user database has this user; False: an administrator named it."""


def storage_id(name: str) -> StorageId:
    """The storage id of a normalised name: the user's own, or what `storage_id=` of the
    line says.
    """
    return StorageId(escape(name))
