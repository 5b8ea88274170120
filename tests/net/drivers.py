"""A transport without a socket, and a driver of a protocol of lines, for the tests of
the engine."""

import asyncio
from collections.abc import Callable

from obox.net import Connection, Flow, Hub, Who, Why


class Transport(asyncio.Transport):
    """A transport that keeps what is written. While `slow` is set the client reads
    nothing; `read` takes what waits."""

    def __init__(self, remote: str = "192.0.2.1") -> None:
        super().__init__({"peername": (remote, 4000)} if remote else {})
        self.protocol: asyncio.Protocol | None = None
        self.sent: list[bytes] = []
        self.waiting = 0
        self.slow = False
        self.high = 0
        self.congested = False
        self.reading = True
        self.closed = ""

    def connect(self, protocol: asyncio.Protocol) -> "Transport":
        self.protocol = protocol
        protocol.connection_made(self)
        return self

    def client_sends(self, data: bytes) -> None:
        assert self.protocol is not None
        self.protocol.data_received(data)

    def client_reads(self) -> None:
        """Read all that waits."""
        assert self.protocol is not None
        self.waiting = 0
        if self.congested:
            self.congested = False
            self.protocol.resume_writing()

    def client_leaves(self) -> None:
        if self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            protocol.connection_lost(None)

    @property
    def output(self) -> bytes:
        return b"".join(self.sent)

    # -- asyncio.Transport ---------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert self.protocol is not None
        self.sent.append(bytes(data))
        if self.slow:
            self.waiting += len(data)
            if self.waiting > self.high and not self.congested:
                self.congested = True
                self.protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self.closed = self.closed or "closed"
        if not self.waiting:
            asyncio.get_running_loop().call_soon(self.client_leaves)

    def abort(self) -> None:
        self.closed = "aborted"
        asyncio.get_running_loop().call_soon(self.client_leaves)


class Lines(Connection):
    """Answers each line with the line. Some lines are commands:

    wait: until `gate` is set    big: 1,000 bytes
    begin, end: of a transaction    bug: raises
    """

    __slots__ = ("_input", "bugs", "due_s", "finished", "gate", "in_transaction", "log", "settings")

    def __init__(self, hub: Hub, flow: Flow, *, remote: str | None = None, tls: bool = False) -> None:
        super().__init__(hub, remote=remote, tls=tls)
        self.settings = flow
        self._input = b""
        self.gate = asyncio.Event()
        self.in_transaction = False
        self.log: list[str] = []
        self.bugs: list[str] = []
        self.due_s: list[float | None] = []
        """The results of the timer's calls, in order."""
        self.finished = 0

    def configure(self) -> Flow:
        return self.settings

    def opened(self) -> None:
        self.write(b"hello\n")
        self.send()

    def received(self, data: bytes) -> bool:
        self._input += data
        return b"\n" in self._input

    def discard_input(self) -> None:
        self._input = b""

    def timer_due(self, quiet_s: float) -> float | None:
        self.log.append("due")
        return self.due_s.pop(0) if self.due_s else None

    async def work(self) -> None:
        while not self.must_stop or (self.outlives_client and not self.stop_asked):
            line, newline, rest = self._input.partition(b"\n")
            if not newline:
                return
            self._input = rest
            await self._answer(line.decode())

    async def _answer(self, line: str) -> None:
        self.log.append(line)
        if line == "wait":
            await self.gate.wait()
        elif line == "bug":
            raise ZeroDivisionError
        elif line in ("begin", "end"):
            self.in_transaction = line == "begin"
        self.write(b"x" * 1000 + b"\n" if line == "big" else line.encode() + b"\n")
        if self.full:
            await self.flush()

    @property
    def may_stop(self) -> bool:
        return not self.in_transaction

    @property
    def may_cancel(self) -> bool:
        return self.log[-1:] == ["wait"] and not self.in_transaction

    def last_words(self, why: Why, text: str) -> bytes:
        return f"bye {why.value}: {text}\n".encode()

    async def finish(self) -> None:
        self.finished += 1

    def who(self) -> Who:
        return Who(self.id, "", self.remote, self.tls, "", "", not self.working, self.since)

    def log_bug(self, what: str) -> None:
        self.bugs.append(what)


async def turns(count: int = 10) -> None:
    """Run everything on the loop that is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing says so
            await asyncio.sleep(0.002)
