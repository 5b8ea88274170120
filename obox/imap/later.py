"""Handlers of commands that a start does not need. Each module is imported in a thread
when its command comes for the first time."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from obox.imap.machine import Handler
from obox.imap.replies import Reply


class Later:
    """The handler of one command. path: its module in `obox.imap`, and its name."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handler: Handler | None = None

    async def __call__(self, session: Any, command: Any) -> Reply | None:
        if self._handler is None:
            self._handler = await asyncio.to_thread(self.load)
        return await self._handler(session, command)

    def load(self) -> Handler:
        module, _, name = self._path.rpartition(".")
        handler: Handler = getattr(import_module(f"obox.imap.{module}"), name)
        return handler
