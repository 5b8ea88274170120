"""What the sessions of a server with a login share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from obox.accounts import Account
from obox.errors import Unavailable
from obox.net import Hub, Registry, Upgrade
from obox.store.api import Store, User

if TYPE_CHECKING:
    from obox.login.needs import Authenticator, Counters, Forwarding, Settings

S = TypeVar("S", bound="Settings")
"""The settings of a protocol."""


class NoCounters:
    """The `Counters` of a server without metrics."""

    def session(self, change: int) -> None:
        pass

    def idle(self, change: int) -> None:
        pass

    def login(self, result: str) -> None:
        pass

    def command(self, name: str, result: str) -> None:
        pass


@dataclass(slots=True, kw_only=True)
class Context(Generic[S]):
    """Shared by all sessions of a server. A protocol may add to it.

    listener: the name of the protocol. settings: the settings of the server.
    settings_of: returns a client's settings by its address ("" is a unix socket).
    upgrade: starts TLS; None: it is not offered. forwarding: None where all users are
    ours.
    """

    listener: str
    hub: Hub
    settings: S
    settings_of: Callable[[str], S]
    authenticator: Authenticator
    open_user: Callable[[Account], Awaitable[User]]
    counters: Counters
    upgrade: Upgrade | None
    log: Any
    forwarding: Forwarding | None = None

    @property
    def registry(self) -> Registry:
        """Return who is connected."""
        return self.hub.registry


def opener(store: Store | None) -> Callable[[Account], Awaitable[User]]:
    """Return a function that opens the mail of an account. store: None in a proxy,
    which forwards every user."""

    async def open_user(account: Account) -> User:
        if store is None:
            raise Unavailable("No backend serves this user")
        quota = account.quota
        return await store.open_user(
            account.name, account.storage_id, quota_bytes=quota.storage_bytes, quota_messages=quota.messages
        )

    return open_user
