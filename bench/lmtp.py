"""An LMTP client that works like an MTA.

It keeps its connections, and sends MAIL, RCPT and DATA in a single write and the next
mail after the 250.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from .crowd import Worker, work

CONNECTIONS = 16


class DeliveryFailed(Exception):
    """The server gave a reply other than 2xx or 354."""


class _Connection(Worker):
    """A connection that takes (recipient, mail) pairs from the common iterator until
    there are none."""

    def __init__(self, mails: Iterator[tuple[str, bytes]]) -> None:
        super().__init__()
        self._mails = mails
        self._buffer = b""
        self._replies = 2  # greeting, LHLO
        self._mail: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(b"LHLO bench.example.net\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\r\n")
        for line in lines:
            if line[:1] not in b"23":
                self.fail(DeliveryFailed(line.decode(errors="replace")))
                return
            if line[3:4] == b" ":
                self._replies -= 1
        if self._replies == 0:
            self._next()

    def _next(self) -> None:
        if self._mail is not None:
            mail, self._mail = self._mail, None
            self._replies = 1
            self.transport.write(mail + b".\r\n")
            return
        recipient, mail = next(self._mails, ("", b""))
        if not recipient:
            self.finish()
            return
        self._mail = mail
        self._replies = 3
        self.transport.write(b"MAIL FROM:<sender@example.net>\r\nRCPT TO:<%b>\r\nDATA\r\n" % recipient.encode())


def deliver(port: int, recipients: Sequence[str], mails: Sequence[bytes], connections: int = CONNECTIONS) -> float:
    """Deliver every mail to one of `recipients` in turn; returns seconds.

    Raises DeliveryFailed, OSError.
    """
    import uvloop

    async def run() -> float:
        todo = iter([(recipients[at % len(recipients)], mail) for at, mail in enumerate(mails)])
        return await work(port, [_Connection(todo) for _ in range(connections)])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
