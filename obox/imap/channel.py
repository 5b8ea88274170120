"""What a session of IMAP and its handlers may use of the connection, and of what is
loaded when a client asks for it. The classes are for types alone, so a start does not
import this module."""

from __future__ import annotations

from typing import Any, Protocol

from obox.imap.parser import Parser
from obox.imap.settings import ImapSettings
from obox.login import needs
from obox.mailbox import UidArray
from obox.mailbox.view import Updates


class Channel(needs.Channel[ImapSettings], Protocol):
    """spoken_for: whether a member of the cluster forwards the client. compressed:
    whether COMPRESS is active. congested: whether the client reads more slowly than the
    session writes.
    """

    parser: Parser

    @property
    def due(self) -> bool: ...

    @property
    def spoken_for(self) -> bool: ...

    @property
    def compressed(self) -> bool: ...

    @property
    def congested(self) -> bool: ...

    def send(self) -> None:
        """Hand the output over without waiting."""

    def start_compression(self) -> None:
        """Compress what is written from now on, and inflate what the client sends.

        `obox.net.deflate` is imported already.
        """

    def wake(self) -> None:
        """Start the task, because there is something to send to the client."""

    def user_left(self) -> None:
        """Apply the limits and times of a client that has not logged in."""

    def idle_changed(self) -> None:
        """Note that the session has entered or left IDLE."""


class Contexts(Protocol):
    """See `obox.imap.contexts.Contexts`."""

    def has(self, tag: bytes) -> bool: ...
    def begin(self, command: Any, found: UidArray, modseq: int, order: Any) -> None: ...
    def cancel(self, tag: bytes) -> bool: ...
    def expunged(self, updates: Updates) -> None: ...
    async def report(self) -> None: ...


class Notifier(Protocol):
    """See `obox.imap.notify.Notifier`."""

    pushes: bool

    @property
    def due(self) -> bool: ...
    def close(self) -> None: ...
    async def push(self) -> None: ...
    async def report(self) -> None: ...
    async def fetch(self, uids: UidArray) -> None: ...
