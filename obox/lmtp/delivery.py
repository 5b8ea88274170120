"""Delivers to the store. It is the LMTP server's `Deliverer`, made of user database and
store.

Invariant: `deliver` returns only when the mail is in the bucket. This module knows both
by narrow contracts, and it knows no SMTP.
"""

from __future__ import annotations

from typing import Protocol

from obox.accounts import UNLIMITED, Account
from obox.errors import NoPerm, NotFound, OverQuota, TooBig
from obox.lmtp.deliverer import Envelope, Recipient
from obox.store.api import NewMail, Store, User


class Users(Protocol):
    """The user database."""

    async def account(self, user: str) -> Account | None:
        """Return a user's account, or None if there is no such user. Raises:
        Unavailable, Invalid."""


class StoreDeliverer:
    """See `obox.lmtp.Deliverer`."""

    def __init__(self, store: Store, users: Users, *, mail_bytes_max: int) -> None:
        """mail_bytes_max: the largest size of a mail, as received."""
        self._store = store
        self.users = users
        self.mail_bytes_max = mail_bytes_max

    async def recipient(self, address: str, user: str, detail: str, size: int | None) -> Recipient:
        """Raises: NotFound, NoPerm, TooBig, OverQuota, Unavailable, Invalid."""
        account = await self.users.account(user)
        if account is None:
            raise NotFound(f"no user {user!r}")
        if account.disabled:
            raise NoPerm("the user is disabled")
        if size is not None and size > self.mail_bytes_max:
            raise TooBig(f"a mail of {size} bytes; allowed: {self.mail_bytes_max}")
        await self._store.admit(account.storage_id)
        if account.quota != UNLIMITED:
            opened = await self._open(account)
            try:
                self._check(opened, size or 0)
            finally:
                await opened.release()
        return Recipient(address, account.name, detail, account)

    async def deliver(self, recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        """Raises: as `recipient`."""
        account: Account = recipient.context  # type: ignore[assignment]  # ours: see `recipient`
        user = await self._open(account)
        try:
            await user.append("INBOX", [NewMail(source)])
        finally:
            await user.release()

    async def _open(self, account: Account) -> User:
        return await self._store.open_user(
            account.name,
            account.storage_id,
            quota_bytes=account.quota.storage_bytes,
            quota_messages=account.quota.messages,
        )

    @staticmethod
    def _check(user: User, size: int) -> None:
        usage = user.usage()
        full = usage.storage_bytes_max is not None and usage.storage_bytes + size > usage.storage_bytes_max
        full |= usage.messages_max is not None and usage.messages + 1 > usage.messages_max
        if full:
            raise OverQuota("the mailbox is full")
