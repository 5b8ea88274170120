"""The IMAP server. A connection beyond a limit gets BYE [LIMIT] or [UNAVAILABLE]."""

from __future__ import annotations

import asyncio

from obox import login
from obox.imap.connection import Connection
from obox.imap.context import Context
from obox.imap.machine import Machine
from obox.imap.settings import ImapSettings
from obox.imap.states import COMMANDS


class ImapServer(login.Server[ImapSettings]):
    """All IMAP sessions of a process."""

    listener = "imap"
    settings_type = ImapSettings
    context_type = Context
    context: Context
    machine = Machine(COMMANDS)

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> asyncio.Protocol:
        return Connection(self.context, self.machine, tls=tls, remote=remote)
