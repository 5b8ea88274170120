"""What all sessions of a server share; everything from outside comes in here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from obox.accounts import Account
from obox.imap.intake import Intake
from obox.imap.settings import ImapSettings
from obox.net import Hub, Registry, Upgrade
from obox.store.api import User


class Authenticator(Protocol):
    """`obox.auth.Authenticator`."""

    async def verify(self, user: str, password: str, *, remote: str) -> Account:
        """Raises: AuthFailed, Disabled, AuthUnavailable."""


class Counters(Protocol):
    """What is counted; `obox.backend` makes metrics of it."""

    def session(self, change: int) -> None:
        """A connection came (+1) or went (-1)."""

    def idle(self, change: int) -> None:
        """A session entered or left IDLE."""

    def login(self, result: str) -> None:
        """result: ok, failed, unavailable."""

    def command(self, name: str, condition: str) -> None:
        """A command was answered OK, NO or BAD."""


class NoCounters:
    def session(self, change: int) -> None:
        pass

    def idle(self, change: int) -> None:
        pass

    def login(self, result: str) -> None:
        pass

    def command(self, name: str, condition: str) -> None:
        pass


@dataclass(slots=True, kw_only=True)
class Context:
    """Shared by all sessions of a server.

    settings: of the server. settings_of: of a client, by its address ("": a unix
    socket). upgrade: starts TLS; None: STARTTLS is not offered.
    """

    hub: Hub
    settings: ImapSettings
    settings_of: Callable[[str], ImapSettings]
    authenticator: Authenticator
    open_user: Callable[[Account], Awaitable[User]]
    counters: Counters
    upgrade: Upgrade | None
    log: Any
    intake: Intake

    @property
    def registry(self) -> Registry:
        """Who is connected."""
        return self.hub.registry

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds, to let the loop run others in time."""
        return self.hub.clock
