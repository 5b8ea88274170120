"""The POP3 server. A connection beyond a limit gets -ERR [SYS/TEMP]."""

from __future__ import annotations

import asyncio

from obox import login
from obox.pop3.commands import TABLE
from obox.pop3.connection import Connection
from obox.pop3.context import Context
from obox.pop3.machine import Machine
from obox.pop3.settings import Pop3Settings


class Pop3Server(login.Server[Pop3Settings]):
    """All POP3 sessions of a process."""

    listener = "pop3"
    settings_type = Pop3Settings
    context_type = Context
    context: Context
    machine = Machine(TABLE)

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> asyncio.Protocol:
        return Connection(self.context, self.machine, tls=tls, remote=remote)
