"""A user's account: the name, the place of the mail in the bucket, and the quota.

The user database makes accounts (`obox.auth`); protocols, deliveries and the
administrator's verbs use them. Invariant: only `storage_id` here says where a user's
mail is stored. This module knows no passwords, and does not know where an account was
read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from obox.escaping import escape
from obox.types import StorageId


@dataclass(frozen=True, slots=True)
class Quota:
    """How much a user may store. None means no limit."""

    storage_bytes: int | None = None
    messages: int | None = None


UNLIMITED: Final = Quota()


@dataclass(frozen=True, slots=True)
class Account:
    """A user's account. name: normalised (`obox.auth.normalise`)."""

    name: str
    storage_id: StorageId
    quota: Quota = UNLIMITED
    disabled: bool = False
    """The user may neither log in nor receive mail."""
    known: bool = True
    """Whether the user database has this user. If not, an administrator named it."""


class Accounts(Protocol):
    """Whose account a login name means. `obox.auth.Authenticator`."""

    def normalise(self, user: str) -> str:
        """Return the normal form of a login name. Raises Invalid."""

    async def account(self, user: str) -> Account | None:
        """Return the account behind a login name; None if there is none, or the user is
        disabled. Raises Invalid, Unavailable."""


def storage_id(name: str) -> StorageId:
    """Return the storage id for a normalised name. The name is the user's, or the value
    of `storage_id=` in the user's line.
    """
    return StorageId(escape(name))
