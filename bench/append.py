"""The throughput of many sessions that APPEND mails. Each session waits for the OK
before it sends the next mail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from .crowd import Worker, work


class _Session(Worker):
    """A session that logs in and takes mails from the common iterator until there are
    none."""

    def __init__(self, user: str, password: str, mails: Iterator[bytes]) -> None:
        super().__init__()
        self._mails = mails
        self._login = f"a LOGIN {user} {password}\r\n".encode()
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        for line in lines:
            if self._login and line.startswith(b"* OK"):
                self.transport.write(self._login)
                self._login = b""
            elif line.startswith(b"a OK"):
                self._next()
            elif line.startswith(b"a "):
                self.fail(ConnectionError(line.decode(errors="replace")))

    def _next(self) -> None:
        if mail := next(self._mails, b""):
            self.transport.write(b"a APPEND INBOX {%d+}\r\n%b\r\n" % (len(mail), mail))
        else:
            self.finish()


def append(port: int, users: Sequence[str], password: str, mails: Sequence[bytes]) -> float:
    """APPEND each mail to the INBOX of one of `users`, in a session for each user.
    Return the seconds. Raises OSError."""
    import uvloop

    async def run() -> float:
        todo = iter(mails)
        return await work(port, [_Session(user, password, todo) for user in users])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
