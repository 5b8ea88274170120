"""A network of simulated machines: listeners, connections, and what happens to them.

Both ends of a connection call the product's protocols, each on its own machine. So a
machine that is suspended reads nothing, and a machine that has died sends nothing more.
The system of a process that was killed resets its connections. A machine that lost its
power does not: its peers notice that by the kernel's timers alone.

Invariant: what one end has written arrives at the other in order, or the connection
ends. Latencies are chosen once for each connection.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from obox.net.dialogue import KEEPALIVE_EVERY_S, KEEPALIVE_IDLE_S, USER_TIMEOUT_S

from .loop import HOST, Host

LATENCY_S: Final = (0.0005, 0.01)
WRITES: Final = 14
"""A delivery has 14 writes, of both sides together."""
SILENCE_S: Final = KEEPALIVE_IDLE_S + KEEPALIVE_EVERY_S + USER_TIMEOUT_S

Factory = Callable[[], asyncio.Protocol]


class Net:
    """See the module's text. The loop's `create_connection` asks it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._listeners: dict[str, tuple[Host, Factory]] = {}
        self._ends: dict[Host, dict[End, None]] = {}
        self.cut_rate = 0.0
        """The share of connections that the network cuts in the middle."""
        self.cuts = 0

    def listen(self, name: str, host: Host, factory: Factory) -> None:
        self._listeners[name] = host, factory

    def close(self, name: str) -> None:
        """Take no more connections at this name."""
        self._listeners.pop(name, None)

    async def connect(self, factory: Factory, name: str) -> tuple[asyncio.Transport, Any]:
        """Connect to a listener. A machine that is suspended accepts, and is silent.
        Raises: ConnectionRefusedError."""
        latency_s = self._rng.uniform(*LATENCY_S)
        await asyncio.sleep(latency_s)
        found = self._listeners.get(name)
        if found is None:
            raise ConnectionRefusedError(f"nobody listens at {name}")
        there, serve = found
        near, far = End(self, contextvars.copy_context(), latency_s), End(self, there.context.copy(), latency_s)
        near.peer, far.peer = far, near
        if self._rng.random() < self.cut_rate:
            near.left = far.left = _Left(self._rng.randint(1, WRITES))
        for host, end in ((HOST.get(), near), (there, far)):
            if host is not None:
                self._ends.setdefault(host, {})[end] = None
        far.later(0.0, lambda: far.begin(serve()))
        protocol = factory()
        near.begin(protocol)
        return near, protocol

    def forget(self, end: End) -> None:
        """The connection has ended."""
        for ends in self._ends.values():
            ends.pop(end, None)

    def dies(self, name: str, host: Host, *, silently: bool) -> None:
        """The process of a machine is gone. silently: so is the machine, and nothing
        is sent to its peers."""
        if self._listeners.get(name, (None,))[0] is host:
            self.close(name)
        for end in list(self._ends.pop(host, {})):
            end.dies(silently)


class _Left:
    """The network cuts a connection after this number of writes."""

    def __init__(self, writes: int) -> None:
        self.writes = writes


class End(asyncio.Transport):
    """One end of a connection."""

    peer: End

    def __init__(self, net: Net, context: Any, latency_s: float) -> None:
        super().__init__({"peername": ("127.0.0.1", 0)})
        self._net = net
        self.left: _Left | None = None
        """When the network cuts the connection. None: it does not."""
        self._context = context
        self._latency_s = latency_s
        self._protocol: asyncio.Protocol | None = None
        self._queue: deque[bytes | None] = deque()
        """What has come and was not read; None: the other end has closed."""
        self._paused = self._closing = self._gone = False
        self._alone = False
        """Whether the other machine is gone, and nobody has said so."""

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call it on this end's machine."""
        asyncio.get_running_loop().call_later(delay_s, call, context=self._context)

    def begin(self, protocol: asyncio.Protocol) -> None:
        if not self._gone:
            self._protocol = protocol
            protocol.connection_made(self)

    # -- asyncio.Transport -------------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._closing or self._gone or not data:
            return
        if self._alone:
            self.later(USER_TIMEOUT_S, lambda: self.lost(TimeoutError("nobody has acknowledged")))
            return
        self.peer.later(self._latency_s, lambda: self.peer.arrives(bytes(data)))
        left = self.left
        if left is not None:
            left.writes -= 1
            if not left.writes:
                self._net.cuts += 1
                for end in (self, self.peer):
                    end.later(self._latency_s, lambda end=end: end.lost(ConnectionResetError("cut")))  # type: ignore[misc]  # mypy has no type for a lambda with a default

    def close(self) -> None:
        if self._closing or self._gone:
            return
        self._closing = True
        if not self._alone:
            self.peer.later(self._latency_s, lambda: self.peer.arrives(None))
        self.later(0.0, lambda: self.lost(None))

    def abort(self) -> None:
        if self._gone:
            return
        self._closing = True
        if not self._alone:
            self.peer.later(self._latency_s, lambda: self.peer.lost(ConnectionResetError("reset by peer")))
        self.later(0.0, lambda: self.lost(None))

    def is_closing(self) -> bool:
        return self._closing or self._gone

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        if self._queue:
            self.later(0.0, self._read)

    # -- what comes from the other end -------------------------------------------------------------------------------

    def arrives(self, data: bytes | None) -> None:
        """Take what the other end has written. None: it has closed."""
        self._queue.append(data)
        self._read()

    def _read(self) -> None:
        protocol = self._protocol
        while self._queue and protocol is not None and not (self._paused or self._closing or self._gone):
            data = self._queue.popleft()
            if data is not None:
                protocol.data_received(data)
            elif not protocol.eof_received():
                self.close()

    def lost(self, error: Exception | None) -> None:
        if self._gone:
            return
        self._gone = True
        self._net.forget(self)
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def dies(self, silently: bool) -> None:
        """This end's process is gone: nobody reads here, and nothing is sent."""
        if self._gone:
            return
        self._gone = True
        peer = self.peer
        if silently:
            peer._alone = True
            peer.later(SILENCE_S, lambda: peer.lost(TimeoutError("nobody is there")))
        else:
            peer.later(self._latency_s, lambda: peer.lost(ConnectionResetError("reset by peer")))


__all__ = ["End", "Net"]
