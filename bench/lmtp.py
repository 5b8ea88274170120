"""An LMTP client as an MTA is one: connections that are kept; MAIL, RCPT and DATA in one write, the next after 250."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

CONNECTIONS = 16


class DeliveryFailed(Exception):
    """A reply that is no 2xx or 354."""


class _Connection(asyncio.Protocol):
    """Takes (recipient, mail) pairs from the common iterator until there are none."""

    def __init__(self, work: Iterator[tuple[str, bytes]], done: asyncio.Future[None]) -> None:
        self._work, self._done = work, done
        self._buffer = b""
        self._replies = 2  # greeting, LHLO
        self._mail: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(b"LHLO bench.example.net\r\n")  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\r\n")
        for line in lines:
            if line[:1] not in b"23":
                self._fail(DeliveryFailed(line.decode(errors="replace")))
                return
            if line[3:4] == b" ":
                self._replies -= 1
        if self._replies == 0:
            self._next()

    def _next(self) -> None:
        write = self._transport.write  # type: ignore[attr-defined]
        if self._mail is not None:
            mail, self._mail = self._mail, None
            self._replies = 1
            write(mail + b".\r\n")
            return
        recipient, mail = next(self._work, ("", b""))
        if not recipient:
            if not self._done.done():
                self._done.set_result(None)
            return
        self._mail = mail
        self._replies = 3
        write(b"MAIL FROM:<sender@example.net>\r\nRCPT TO:<%b>\r\nDATA\r\n" % recipient.encode())

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server has closed the connection"))

    def close(self) -> None:
        self._transport.abort()  # type: ignore[attr-defined]


async def _deliver(port: int, recipients: Sequence[str], mails: Sequence[bytes], connections: int) -> float:
    loop = asyncio.get_running_loop()
    work = iter([(recipients[at % len(recipients)], mail) for at, mail in enumerate(mails)])
    ends = [loop.create_future() for _ in range(connections)]
    opened: list[_Connection] = []
    begin = time.perf_counter()
    try:
        for end in ends:
            _, protocol = await loop.create_connection(lambda end=end: _Connection(work, end), "127.0.0.1", port)  # type: ignore[misc]
            opened.append(protocol)
        await asyncio.gather(*ends)
        return time.perf_counter() - begin
    finally:
        for end in ends:
            end.cancel()
        for protocol in opened:
            protocol.close()


def deliver(port: int, recipients: Sequence[str], mails: Sequence[bytes], connections: int = CONNECTIONS) -> float:
    """Deliver every mail to one of `recipients` in turn; returns seconds. Raises DeliveryFailed, OSError."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_deliver(port, recipients, mails, connections))
