"""A stream: output to a client, input from it, and time limits for the client.

Output is gathered with `write` and handed to the transport with `send` or `flush`. When
the transport holds more than `Flow.write_buffer_max`, `flush` waits for the client to
read. A client that reads nothing for `Flow.write_timeout_s` is cut off. Reading can be
paused; then the kernel's buffers fill, and the client has to wait.

There is a single timer at a time. The driver decides in `timer_due` what follows. After
`close` the timer limits how long the last bytes may take, and cuts the connection.

Invariant: a stream that is idle has no task, no buffer and at most a single timer. It
knows no protocols, no users and no other connections.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

YIELD_S: Final = 0.005
"""How long a task may work before it lets other tasks run. It is a tenth of the 50 ms
that a turn of the loop may take."""
CLOSE_TIMEOUT_S: Final = 10.0
"""Time limit for sending the last bytes; then the connection is cut."""

Upgrade = Callable[[asyncio.Transport, asyncio.Protocol], Awaitable[asyncio.Transport]]
"""Starts TLS on a transport in clear, and returns the new transport."""
Clock = Callable[[], float]
"""Monotonic seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """How much a connection may hold and how long it waits. 0 means no limit.

    All connections with the same settings share the object.
    """

    chunk_bytes: int = 65_536
    """Output is gathered up to about this size before it is handed to the transport."""
    write_buffer_max: int = 65_536
    """The bytes that may wait in the transport for a slow client. If there are more,
    `flush` waits."""
    write_timeout_s: float = 300.0
    """How long a client may read nothing while output waits; then the connection is
    cut."""
    ahead_bytes_max: int = 65_536
    """Bytes that are read while the task works. With more, reading is paused."""
    ahead_lines_max: int = 0
    """Lines that are read while the task works. With more, reading is paused."""
    address_connections_max: int = 0
    """Connections of a single client address. An IPv6 address counts as its /64."""
    connections_max: int = 0
    """Connections of the server. With more, the connection that is idle longest
    ends."""


class Stream(asyncio.Protocol, ABC):
    """See the module's text. flow: set it before there is output."""

    __slots__ = (
        "__weakref__",
        "_clock",
        "_closing",
        "_drained",
        "_last_yield",
        "_lost",
        "_out",
        "_out_bytes",
        "_reading_paused",
        "_send_due",
        "_timer",
        "_transport",
        "bytes_in",
        "bytes_out",
        "ended",
        "flow",
        "quiet_since",
        "tls",
        "write_paused",
    )

    flow: Flow

    def __init__(self, clock: Clock, *, tls: bool) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._out: list[bytes] | tuple[()] = ()  # a list while there is output
        self._out_bytes = 0
        self._closing = self._lost = self._send_due = False
        self._reading_paused = self.write_paused = False
        self._last_yield = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.ended = ""
        """Why the connection ends, for the log."""
        self.quiet_since = 0.0
        """The loop's time at which the client last sent something."""
        self.tls = tls

    # -- what an owner implements ----------------------------------------------------------------------------------

    @abstractmethod
    def discard_input(self) -> None:
        """Discard all input that came in clear, because TLS begins."""

    @abstractmethod
    def timer_due(self, quiet_s: float) -> float | None:
        """Handle the timer. Returns the seconds until it is due again, or None to stop
        it.

        quiet_s: how long the client has sent nothing.
        """

    def writable(self) -> None:
        """This is called when the client has read enough that output goes out again."""

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._send_soon()
        self._wake_writer()
        self.writable()

    # -- output ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Gather output. It goes out in order, at the latest when the task ends."""
        if isinstance(self._out, tuple):
            self._out = []
        self._out.append(data)
        self._out_bytes += len(data)

    @property
    def full(self) -> bool:
        """Return whether enough output is gathered that it should be flushed."""
        return self._out_bytes >= self.flow.chunk_bytes

    @property
    def congested(self) -> bool:
        """Return whether `flush` would wait, because the client reads more slowly than
        we write."""
        return self.write_paused

    @property
    def gathered_bytes(self) -> int:
        """Return how many bytes of output the transport does not have yet."""
        return self._out_bytes

    @property
    def unsent_bytes(self) -> int:
        """Return how many bytes of output have not left the process."""
        return self._out_bytes + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def send(self) -> None:
        """Hand the output to the transport without waiting. Drop it if the client is
        gone."""
        if not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out = ()
        self._out_bytes = 0
        if self._transport is not None and not self._lost:
            self.bytes_out += len(data)
            self._transport.write(data)

    def _send_soon(self) -> None:
        """Send the output in the next turn of the loop, so that it does not wait for
        what this task awaits next. While the client reads too slowly it stays here, so
        that it becomes `full` and a flush waits."""
        if self._out and not self._send_due:
            self._send_due = True
            asyncio.get_running_loop().call_soon(self._send_due_now)

    def _send_due_now(self) -> None:
        self._send_due = False
        if not self.write_paused:
            self.send()

    async def flush(self) -> None:
        """Hand the output over, wait for a slow client, and let other tasks run in
        time.

        Raises: ConnectionResetError if the client is gone.
        """
        if self._lost:
            raise ConnectionResetError("the client is gone")
        self.send()
        if self.write_paused:
            await self._drain()
        await self.yield_if_due()

    @property
    def due(self) -> bool:
        """Return whether this task has had its time, so that it should let other tasks
        run."""
        return self._clock() - self._last_yield > YIELD_S

    async def yield_if_due(self) -> None:
        """Let other tasks run if this task has had its time. Output that is gathered
        leaves when this task next waits for something."""
        self._send_soon()
        if self.due:
            await self.pause()

    async def pause(self) -> None:
        """Let other tasks run."""
        await self._wait_turn()
        self.rested()

    def rested(self) -> None:
        """Note that other tasks have just run: the time of this task begins again."""
        self._last_yield = self._clock()

    async def _wait_turn(self) -> None:
        await asyncio.sleep(0)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        handle = loop.call_later(self.flow.write_timeout_s, self._stalled)
        try:
            while self.write_paused and not self._lost:
                self._drained = loop.create_future()
                await self._drained
        finally:
            self._drained = None
            handle.cancel()
        if self._lost:
            raise ConnectionResetError("the client is gone")

    def _stalled(self) -> None:
        self.ended = "client does not read"
        self.abort()

    def _wake_writer(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- input -----------------------------------------------------------------------------------------------------

    @property
    def reading(self) -> bool:
        """Return whether reading is not paused."""
        return not self._reading_paused

    def pause_reading(self) -> None:
        """Read nothing more from the client for now."""
        if not self._reading_paused and self._transport is not None and not self._closing:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again what the client sends."""
        if self._reading_paused and self._transport is not None and not self._closing:
            self._reading_paused = False
            self._transport.resume_reading()

    async def handshake(self, upgrade: Upgrade) -> None:
        """Start TLS.

        All output goes out in clear first. All input that came in clear is thrown away.
        Raises: ConnectionResetError if the handshake fails; then the connection ends.
        """
        transport = self._transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        await self.flush()
        transport.pause_reading()
        self.discard_input()
        try:
            self._transport = await upgrade(transport, self)
        except BaseException as error:
            # asyncio does not call `connection_lost` if the handshake fails.
            self._gone()
            transport.abort()
            if isinstance(error, OSError):  # ssl.SSLError is an OSError
                raise ConnectionResetError(f"TLS handshake failed: {error}") from error
            raise
        self._transport.set_write_buffer_limits(high=self.flow.write_buffer_max)
        self._reading_paused = self.write_paused = False
        self.tls = True

    # -- time and end ----------------------------------------------------------------------------------------------

    def arm(self, delay_s: float) -> None:
        """Set the timer, and cancel the timer that was set before."""
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._due)

    def close(self) -> None:
        """Send the gathered output and close. Nothing more is read."""
        if self._closing or self._transport is None:
            return
        self.send()
        self._closing = True
        self._transport.close()
        self.arm(CLOSE_TIMEOUT_S)

    def abort(self) -> None:
        """Cut the connection. Gathered output is lost."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        if self._closing:
            self.abort()
            return
        again_s = self.timer_due(asyncio.get_running_loop().time() - self.quiet_since)
        if again_s is not None and not self._closing:
            self.arm(again_s)

    def _gone(self) -> None:
        """Stop the timer, drop output, and wake the writer: the transport has ended."""
        self._lost = self._closing = True
        self._disarm()
        self._out = ()
        self._out_bytes = 0
        self._wake_writer()
