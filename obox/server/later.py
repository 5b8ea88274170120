"""HTTP servers that are made when their first client connects.

Their libraries are a fifth of the imports of a start, and no client of mail needs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from obox.config import Listen
from obox.loading import loaded
from obox.net import Listeners, Via

if TYPE_CHECKING:
    from .http import HttpServer


class LaterHttp:
    """HTTP servers by the name of their listener. modules: imported in a thread before
    `make`, which returns all of them."""

    def __init__(self, modules: Sequence[str], make: Callable[[], Mapping[str, HttpServer]]) -> None:
        self._modules = modules
        self._make = make
        self._servers: Mapping[str, HttpServer] = {}
        self._making = asyncio.Lock()
        self.names: list[str] = []
        """The listeners that are bound."""

    def bind(self, listeners: Listeners, name: str, entries: tuple[Listen, ...], unix_mode: int | None = None) -> None:
        """Bind the addresses of a server. Raises ListenError."""

        def factory(entry: Listen, via: Via | None) -> asyncio.Protocol:
            return self._servers[name].factory(entry, via)

        listeners.bind(name, entries, factory, unix_mode=unix_mode, before=self.load)
        self.names.append(name)

    async def load(self) -> None:
        """Make the servers, if no client has connected yet."""
        async with self._making:
            if not self._servers:
                for module in self._modules:
                    await loaded(module)
                self._servers = self._make()

    async def close(self, name: str) -> None:
        """Finish the requests under way of a server. Call it after its listener has
        stopped."""
        if name in self._servers:
            await self._servers[name].close()
