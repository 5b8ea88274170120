"""Delivers to the store: the LMTP server's `Deliverer` over user database and store.

The invariant: `deliver` returns only when the mail is in the bucket. Knows the two by
narrow contracts, no SMTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from obox.errors import NoPerm, NotFound, OverQuota, TooBig
from obox.lmtp.deliverer import Envelope, Recipient
from obox.store.api import NewMail, Store, User
from obox.types import StorageId


class Quota(Protocol):
    @property
    def storage_bytes(self) -> int | None: ...
    @property
    def messages(self) -> int | None: ...


class Entry(Protocol):
    """A user as the user database knows it."""

    @property
    def user(self) -> str: ...
    @property
    def storage_id(self) -> str | None: ...
    @property
    def disabled(self) -> bool: ...
    @property
    def quota(self) -> Quota: ...


class Users(Protocol):
    """The user database."""

    async def lookup_async(self, user: str) -> Entry | None:
        """Raises: Unavailable, Invalid."""


class StoreDeliverer:
    """See `obox.lmtp.Deliverer`."""

    def __init__(
        self, store: Store, users: Users, *, storage_id: Callable[[Entry], StorageId], mail_bytes_max: int
    ) -> None:
        """storage_id: the user's name in the bucket, escaped.

        mail_bytes_max: of one mail, as received.
        """
        self._store = store
        self._users = users
        self._storage_id = storage_id
        self._mail_bytes_max = mail_bytes_max

    async def recipient(self, address: str, user: str, detail: str, size: int | None) -> Recipient:
        """Raises: NotFound, NoPerm, TooBig, OverQuota, Unavailable, Invalid."""
        entry = await self._users.lookup_async(user)
        if entry is None:
            raise NotFound(f"no user {user!r}")
        if entry.disabled:
            raise NoPerm("the user is disabled")
        if size is not None and size > self._mail_bytes_max:
            raise TooBig(f"a mail of {size} bytes; allowed: {self._mail_bytes_max}")
        if entry.quota.storage_bytes is not None or entry.quota.messages is not None:
            opened = await self._open(entry)
            try:
                self._check(opened, size or 0)
            finally:
                await opened.release()
        return Recipient(address, entry.user, detail, entry)

    async def deliver(self, recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        """Raises: as `recipient`."""
        entry: Entry = recipient.context  # type: ignore[assignment]  # ours: see `recipient`
        user = await self._open(entry)
        try:
            await user.append("INBOX", [NewMail(source)])
        finally:
            await user.release()

    async def _open(self, entry: Entry) -> User:
        return await self._store.open_user(
            entry.user,
            self._storage_id(entry),
            quota_bytes=entry.quota.storage_bytes,
            quota_messages=entry.quota.messages,
        )

    @staticmethod
    def _check(user: User, size: int) -> None:
        usage = user.usage()
        full = usage.storage_bytes_max is not None and usage.storage_bytes + size > usage.storage_bytes_max
        full |= usage.messages_max is not None and usage.messages + 1 > usage.messages_max
        if full:
            raise OverQuota("the mailbox is full")
