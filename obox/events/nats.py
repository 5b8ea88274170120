"""The bus of news on NATS: a subject for each mailbox, `obox.<guid>`.

The connection is made and made again in the background. While there is none, news are
dropped, and registrations are made when it is back. The package `nats-py` is an extra
of obox.

Diagnostics: an outage is logged when it begins and when it ends.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import structlog

from ..errors import ConfigError
from .news import News

log = structlog.get_logger()

PREFIX: Final = "obox."
RECONNECT_S: Final = 0.5
"""Pause between two attempts to connect."""

REGISTER_S: Final = 0.2
"""How long the load of a mailbox waits for its registration. Without an answer it is
loaded all the same."""

PENDING_BYTES: Final = 1 << 20
"""Bytes of news that wait for a slow connection. More are dropped."""


class NatsBus:
    """See the module's text and `news.Bus`."""

    def __init__(self, url: str, me: str, news: News) -> None:
        """me: the name of this backend, whose own news are not heard. Raises
        ConfigError."""
        try:
            from nats.aio.client import Client
        except ImportError:
            raise ConfigError("cluster.events: needs the package nats-py; install obox with [nats]") from None
        self._url, self._me, self._news = url, me, news
        self._address = urlsplit(url).netloc.rpartition("@")[2]
        """The server without user and password, for the log."""
        self._client: Any = Client()
        self._subscriptions: dict[str, Any] = {}
        self._guids: set[str] = set()
        self._up = False

    def begin(self) -> None:
        self._news.spawn(self._connect())

    async def _connect(self) -> None:
        client, logged = self._client, False
        while True:
            try:
                await client.connect(
                    self._url,
                    name=f"obox {self._me}",
                    no_echo=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_S,
                    connect_timeout=2,
                    pending_size=PENDING_BYTES,
                    error_cb=self._failed,
                    disconnected_cb=self._lost,
                    reconnected_cb=self._back,
                )
                break
            except Exception as exc:
                if not logged:
                    log.warning(
                        "bus of news does not answer, backends do without", address=self._address, error=repr(exc)
                    )
                logged = True
                await asyncio.sleep(RECONNECT_S)
        self._up = True
        log.info("bus of news answers", address=self._address)
        for guid in list(self._guids):
            await self._subscribe(guid)
        self._news.missed()
        try:
            await asyncio.Event().wait()
        finally:
            await client.close()

    async def _failed(self, exc: Exception) -> None:
        log.debug("bus of news", error=repr(exc))

    async def _lost(self) -> None:
        if self._up:
            self._warn("the connection is lost")
        self._up = False

    def _warn(self, error: str) -> None:
        log.warning("bus of news does not answer, backends do without", address=self._address, error=error)

    async def _back(self) -> None:
        """The client has registered all subjects again."""
        self._up = True
        log.info("bus of news answers", address=self._address)
        for guid in self._guids - self._subscriptions.keys():
            await self._subscribe(guid)
        self._news.missed()

    async def publish(self, guid: str, sid: str) -> None:
        if not self._up:
            return
        try:
            await self._client.publish(PREFIX + guid, msgspec.msgpack.encode([self._me, sid]))
        except Exception as exc:
            log.debug("news dropped", error=repr(exc))

    async def register(self, guid: str) -> None:
        self._guids.add(guid)
        if self._up:
            await self._subscribe(guid)
            try:
                async with asyncio.timeout(REGISTER_S):
                    await self._client.flush()
            except Exception as exc:
                log.debug("registration is not confirmed", error=repr(exc))

    async def _subscribe(self, guid: str) -> None:
        if guid in self._subscriptions:
            return
        try:
            self._subscriptions[guid] = await self._client.subscribe(PREFIX + guid, cb=self._heard)
        except Exception as exc:
            log.debug("registration failed", error=repr(exc))

    async def unregister(self, guid: str) -> None:
        self._guids.discard(guid)
        subscription = self._subscriptions.pop(guid, None)
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except Exception as exc:
                log.debug("registration cannot be ended", error=repr(exc))

    def is_up(self) -> bool:
        return self._up

    async def _heard(self, message: Any) -> None:
        try:
            sender, sid = msgspec.msgpack.decode(message.data, type=tuple[str, str])
        except msgspec.MsgspecError:
            return
        if sender != self._me:
            self._news.heard(message.subject.removeprefix(PREFIX), sid)
