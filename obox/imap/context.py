"""What all sessions of one server share, and what it is made of: everything from outside comes in here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from obox.accounts import Account
from obox.imap.intake import Intake
from obox.imap.registry import Registry
from obox.imap.settings import ImapSettings
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


Upgrade = Callable[[asyncio.Transport, asyncio.Protocol], Awaitable[asyncio.Transport]]
"""Turns a transport in clear into one under TLS, for STARTTLS."""
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


@dataclass(slots=True, kw_only=True)
class Context:
    """Shared by all sessions of a server. clock: monotonic seconds, to yield the loop in time; now: unix seconds.

    settings: of the server; settings_of: of a client, by its address ("": a unix socket).
    """

    settings: ImapSettings
    settings_of: Callable[[str], ImapSettings]
    authenticator: Authenticator
    open_user: Callable[[Account], Awaitable[User]]
    registry: Registry
    counters: Counters
    clock: Callable[[], float]
    now: Callable[[], float]
    upgrade: Upgrade | None
    spawn: Spawn
    log: Any
    intake: Intake
    stopping: str = ""
    """Why no new connection is served; empty while serving."""
    last_id: int = field(default=0)

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id
