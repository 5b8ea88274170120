"""What all sessions of a server share. Everything that the server needs from outside is
passed in here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from obox.accounts import Account
from obox.imap.intake import Intake
from obox.imap.settings import ImapSettings
from obox.login import Authenticator, Forwarding
from obox.net import Hub, Registry, Upgrade
from obox.store.api import User


class Counters(Protocol):
    """Counters of the server. `obox.backend` makes metrics of them."""

    def session(self, change: int) -> None:
        """Count a connection that began (+1) or ended (-1)."""

    def idle(self, change: int) -> None:
        """Count a session that entered or left IDLE."""

    def login(self, result: str) -> None:
        """result: ok, failed, unavailable."""

    def command(self, name: str, condition: str) -> None:
        """Count a command that was answered OK, NO or BAD."""


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

    settings: the settings of the server. settings_of: returns a client's settings by
    its address ("" is a unix socket). upgrade: starts TLS; None: STARTTLS is not
    offered. forwarding: None where all users are ours.
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
    forwarding: Forwarding | None = None

    @property
    def registry(self) -> Registry:
        """Who is connected."""
        return self.hub.registry

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds, with which long work lets other tasks run in time."""
        return self.hub.clock
