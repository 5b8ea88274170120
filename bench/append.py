"""Sessions that APPEND one mail after the other, each waiting for its OK: what many clients at once get done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence


class _Session(asyncio.Protocol):
    """Logs in and takes mails from the common iterator until there are none."""

    def __init__(self, user: str, password: str, work: Iterator[bytes], done: asyncio.Future[None]) -> None:
        self._work, self._done = work, done
        self._login = f"a LOGIN {user} {password}\r\n".encode()
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        for line in lines:
            if self._login and line.startswith(b"* OK"):
                self._transport.write(self._login)  # type: ignore[attr-defined]
                self._login = b""
            elif line.startswith(b"a OK"):
                self._next()
            elif line.startswith(b"a ") and not self._done.done():
                self._done.set_exception(ConnectionError(line.decode(errors="replace")))

    def _next(self) -> None:
        mail = next(self._work, b"")
        if mail:
            self._transport.write(b"a APPEND INBOX {%d+}\r\n%b\r\n" % (len(mail), mail))  # type: ignore[attr-defined]
        elif not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server has closed the connection"))

    def close(self) -> None:
        self._transport.abort()  # type: ignore[attr-defined]


async def _append(port: int, users: Sequence[str], password: str, mails: Sequence[bytes]) -> float:
    loop = asyncio.get_running_loop()
    work = iter(mails)
    ends = [loop.create_future() for _ in users]
    opened: list[_Session] = []
    begin = time.perf_counter()
    try:
        for user, end in zip(users, ends, strict=True):
            session = _Session(user, password, work, end)
            await loop.create_connection(lambda session=session: session, "127.0.0.1", port)  # type: ignore[misc]
            opened.append(session)
        await asyncio.gather(*ends)
        return time.perf_counter() - begin
    finally:
        for end in ends:
            end.cancel()
        for session in opened:
            session.close()


def append(port: int, users: Sequence[str], password: str, mails: Sequence[bytes]) -> float:
    """APPEND every mail to the INBOX of one of `users`, a session each; returns seconds. Raises OSError."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_append(port, users, password, mails))
