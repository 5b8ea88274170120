"""The IMAP server. A connection beyond a limit gets BYE [LIMIT] or [UNAVAILABLE]."""

from __future__ import annotations

import asyncio

from obox import login
from obox.accounts import Accounts
from obox.imap.connection import Connection
from obox.imap.context import Context
from obox.imap.machine import Machine
from obox.imap.settings import ImapSettings
from obox.imap.states import COMMANDS
from obox.sharing import Sharing
from obox.store.api import Store


class ImapServer(login.Server[ImapSettings]):
    """All IMAP sessions of a process."""

    listener = "imap"
    settings_type = ImapSettings
    context_type = Context
    context: Context
    machine = Machine(COMMANDS)

    def share(self, accounts: Accounts, store: Store) -> None:
        """Let users share mailboxes with each other. All of them are served here."""
        self.context.sharing = Sharing(accounts, store)

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> asyncio.Protocol:
        return Connection(self.context, self.machine, tls=tls, remote=remote)
