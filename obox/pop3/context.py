"""What all sessions of a server share: what the server needs from outside, the locks of
maildrops, and the times of logins."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from obox.accounts import Account
from obox.errors import InUse
from obox.login import Authenticator, Forwarding, TooSoon
from obox.net import Hub, Upgrade
from obox.pop3.settings import Pop3Settings
from obox.store.api import User
from obox.types import StorageId

LOGINS_MAX: Final = 10_000
"""Logins whose time is remembered. With more, the oldest is forgotten."""


class Counters(Protocol):
    """Counters of the server. `obox.backend` makes metrics of them."""

    def session(self, change: int) -> None:
        """Count a connection that began (+1) or ended (-1)."""

    def login(self, result: str) -> None:
        """result: ok, failed, unavailable."""

    def command(self, name: str, result: str) -> None:
        """Count a command that was answered OK or ERR."""


class NoCounters:
    def session(self, change: int) -> None:
        pass

    def login(self, result: str) -> None:
        pass

    def command(self, name: str, result: str) -> None:
        pass


@dataclass(slots=True, kw_only=True)
class Context:
    """Shared by all sessions of a server.

    settings_of: returns a client's settings by its address ("" is a unix socket).
    upgrade: starts TLS; None: STLS is not offered. forwarding: None where all users are
    ours. locked: users whose session has the only right to the maildrop.
    """

    hub: Hub
    settings: Pop3Settings
    settings_of: Callable[[str], Pop3Settings]
    authenticator: Authenticator
    open_user: Callable[[Account], Awaitable[User]]
    counters: Counters
    upgrade: Upgrade | None
    log: Any
    forwarding: Forwarding | None = None
    locked: set[StorageId] = field(default_factory=set)
    logins: OrderedDict[StorageId, float] = field(default_factory=OrderedDict)

    def lock(self, user: StorageId) -> None:
        """Raises: InUse."""
        if user in self.locked:
            raise InUse("Another POP3 session has the maildrop")
        self.locked.add(user)

    def check_delay(self, user: StorageId, least_s: float) -> None:
        """least_s: the least time between two logins. Raises: TooSoon."""
        left_s = self.logins.get(user, float("-inf")) + least_s - self.hub.clock()
        if left_s > 0:
            raise TooSoon(f"The next login is possible in {int(left_s) + 1} seconds")

    def note_login(self, user: StorageId) -> None:
        """Remember the time of a login."""
        self.logins[user] = self.hub.clock()
        self.logins.move_to_end(user)
        if len(self.logins) > LOGINS_MAX:
            self.logins.popitem(last=False)
