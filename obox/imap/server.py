"""The IMAP server: makes a protocol for each connection, and knows all that are open.

Diagnostics: a connection beyond a limit is told BYE [LIMIT] or [UNAVAILABLE] and logged; nothing here is fatal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from obox.accounts import Account
from obox.imap.connection import Connection
from obox.imap.context import Authenticator, Context, Counters, NoCounters, Spawn, Upgrade
from obox.imap.intake import Intake
from obox.imap.registry import Registry, Who
from obox.imap.settings import ImapSettings
from obox.store.api import Store, User

STOP_REASON = "Server is shutting down, please reconnect"
TLS_HANDSHAKE_S = 10.0
"""For the handshake after STARTTLS, from the first byte to the last."""
_POLL_S = 0.05


class ImapServer:
    """All IMAP sessions of a process. Make one, give `connection_factory` to the listeners, `stop` at the end."""

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        settings: ImapSettings | None = None,
        *,
        settings_of: Callable[[str], ImapSettings] | None = None,
        upgrade: Upgrade | None = None,
        registry: Registry | None = None,
        counters: Counters | None = None,
        spawn: Spawn | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """settings_of: what is different for a client of an address; None: nothing.
        upgrade: starts TLS on a transport; None: no STARTTLS.

        spawn: `TaskGroup.create_task` of the process; None: tasks are kept here, and `stop` waits for them.
        """
        settings = settings or ImapSettings()

        async def open_user(account: Account) -> User:
            quota = account.quota
            return await store.open_user(
                account.name,
                account.storage_id,
                quota_bytes=quota.storage_bytes,
                quota_messages=quota.messages,
            )

        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn = spawn or asyncio.create_task
        self.context = Context(
            settings=settings,
            settings_of=settings_of or (lambda remote: settings),
            authenticator=authenticator,
            open_user=open_user,
            registry=registry or Registry(),
            counters=counters or NoCounters(),
            clock=clock,
            now=now,
            upgrade=upgrade,
            spawn=self._start,
            log=structlog.get_logger("obox.imap"),
            intake=Intake(settings.spool_dir, settings.append_memory_max, settings.append_spool_max),
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> asyncio.Protocol:
        """The protocol of one connection. tls: it is under TLS already (also where a proxy ended it).

        remote: the client's address where a proxy told it; None: the transport's own.
        """
        return Connection(self.context, tls=tls, remote=remote)

    def who(self) -> list[Who]:
        """All connections, the oldest first."""
        return sorted((member.who() for member in self.context.registry), key=lambda who: who.id)

    def kick(self, user: str, reason: str = "Disconnected by the administrator") -> int:
        """Say BYE to a user's sessions, each as soon as its command is done. Returns how many there are."""
        members = [member for member in self.context.registry if member.who().user == user]
        for member in members:
            member.stop(reason)
        return len(members)

    def use(self, settings: ImapSettings, settings_of: Callable[[str], ImapSettings]) -> None:
        """Other settings for connections that come from now on."""
        self.context.settings, self.context.settings_of = settings, settings_of

    def tls_offered(self, upgrade: Upgrade | None) -> None:
        """Offer STARTTLS with another certificate from now on, or no more."""
        self.context.upgrade = upgrade

    async def stop(self, reason: str = STOP_REASON, grace_s: float = 25.0) -> None:
        """BYE to all, after the command in progress; what is not done after `grace_s` is cut. Idempotent."""
        self.context.stopping = reason
        for member in self.context.registry:
            member.stop(reason)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        try:
            while (self._tasks or len(self.context.registry)) and loop.time() < deadline:
                if self._tasks:
                    await asyncio.wait(tuple(self._tasks), timeout=_POLL_S)
                else:
                    await asyncio.sleep(_POLL_S)
        finally:
            for member in self.context.registry:
                if isinstance(member, Connection):
                    member.abort()
            for task in tuple(self._tasks):
                task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=1.0)


def starttls(
    context: Callable[[], Any],
) -> Callable[[asyncio.Transport, asyncio.Protocol], Awaitable[asyncio.Transport]]:
    """The upgrade of a server whose certificate is what `context()` (an ssl.SSLContext) returns at that moment."""

    async def upgrade(transport: asyncio.Transport, protocol: asyncio.Protocol) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        new = await loop.start_tls(
            transport, protocol, context(), server_side=True, ssl_handshake_timeout=TLS_HANDSHAKE_S
        )
        if new is None:
            raise ConnectionResetError("the connection was lost during the handshake")
        return new

    return upgrade
