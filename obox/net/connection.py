"""A client's connection, from the first byte to the last; each protocol is a driver.

Theory of operation. `received` hands the client's bytes to the driver. If no task
works, a task is started. The task calls the driver's `work`, which handles all events
that are in the input. Then the task hands the output over and ends. An idle connection
has none.

    admitted --bytes, `wake`--> working --all events handled, output handed over--> idle
    idle --bytes, `wake`--> working
    any --`stop`--> the last words are said as soon as the driver may stop
    any --closed, lost--> the work at hand ends at its next `flush`, then `finish`

Flow. While the task works, up to `Flow.ahead_bytes_max` are read ahead; then reading is
paused until the input is used up. Output: `obox.net.stream`.

End. When the client is gone, work that the driver calls pointless (`may_cancel`) is
cancelled, and other work ends by the ConnectionResetError of its next `flush`. A driver
that sets `outlives_client` works through the input that has come in any case. Then
`finish` gives back what the driver holds. Reference counts alone free a connection: the
garbage collector runs too seldom for what a connection may hold.

Diagnostics: an exception that is no OSError is a bug: `log_bug` is called, and the
connection is cut. It refuses to know commands, mailboxes and the words of a protocol.
"""

from __future__ import annotations

import asyncio
import enum
from abc import abstractmethod
from typing import ClassVar, cast

from obox.errors import Limit, OboxError
from obox.net.hub import Hub
from obox.net.registry import Who
from obox.net.stream import Flow, Stream


class Why(enum.Enum):
    """Why a connection gets its last words; each protocol has its own words."""

    REFUSED = "refused"
    """The client may not connect from where it is."""
    LIMIT = "limit"
    """There are too many connections."""
    NOT_SERVING = "not serving"
    """The server was stopping already when the client came."""
    STOPPED = "stopped"
    """The server stops, or an administrator ends the session."""
    TIMEOUT = "timeout"
    """The client took too long."""


class Connection(Stream):
    """See the module's text.

    remote: the client's address if a proxy told it; None: the transport's own. tls: the
    client's side is under TLS already.
    """

    __slots__ = (
        "_ahead_bytes",
        "_ahead_lines",
        "_entered",
        "_eof",
        "_fed",
        "_stop_reason",
        "_task",
        "_told_remote",
        "hub",
        "id",
        "remote",
        "since",
    )

    outlives_client: ClassVar[bool] = False
    """Input that came before the client left is worked through."""

    def __init__(self, hub: Hub, *, tls: bool = False, remote: str | None = None) -> None:
        super().__init__(hub.clock, tls=tls)
        self.hub = hub
        self.id = hub.next_id()
        self.remote = remote or ""
        self.since = 0.0
        """Unix seconds at which the client came."""
        self._told_remote = remote is not None
        self._task: asyncio.Task[None] | None = None
        self._fed = self._eof = self._entered = False
        self._ahead_bytes = self._ahead_lines = 0
        self._stop_reason = ""

    # -- what a driver implements ----------------------------------------------------------------------------------

    @abstractmethod
    def configure(self) -> Flow:
        """Choose the settings for the client at `remote`. Called first."""

    @abstractmethod
    def opened(self) -> None:
        """The client is admitted: greet it and set the first timer."""

    @abstractmethod
    def received(self, data: bytes) -> bool:
        """Take bytes of the client. Returns whether there is work for the task."""

    @abstractmethod
    async def work(self) -> None:
        """Handle the events of the input, until there are none or until `must_stop`."""

    @abstractmethod
    def last_words(self, why: Why, text: str) -> bytes:
        """What the client is told before the connection is closed."""

    @abstractmethod
    async def finish(self) -> None:
        """Give back all that the driver holds; the client is gone.

        Forget what refers back to the connection, so that no cycle is left.
        """

    @abstractmethod
    def who(self) -> Who:
        """What to show of the connection."""

    @abstractmethod
    def log_bug(self, what: str) -> None:
        """Log the exception that is being handled."""

    @property
    def user(self) -> str:
        """The user whose session the registry has counted; "": none."""
        return ""

    @property
    def pending(self) -> bool:
        """There is work for the task beside the client's input."""
        return False

    @property
    def may_stop(self) -> bool:
        """No transaction is under way that should come to its end first."""
        return True

    @property
    def may_cancel(self) -> bool:
        """The work at hand is pointless once the client is gone."""
        return False

    def admit(self) -> None:
        """Count the connection.

        Raises: OboxError; the client is refused with its text.
        """
        flow = self.flow
        self.hub.registry.enter(self, self.remote, most=flow.address_connections_max, total=flow.connections_max)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        hub = self.hub
        self._transport = cast(asyncio.Transport, transport)
        if not self._told_remote:
            peer = transport.get_extra_info("peername")
            self.remote = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        self.tls = self.tls or transport.get_extra_info("sslcontext") is not None
        self.flow = self.configure()
        self._transport.set_write_buffer_limits(high=self.flow.write_buffer_max)
        self.since = hub.now()
        self.quiet_since = asyncio.get_running_loop().time()
        try:
            self.admit()
        except OboxError as error:
            self.bye(Why.LIMIT if isinstance(error, Limit) else Why.REFUSED, str(error))
            return
        self._entered = True
        hub.count(+1)
        if hub.stopping:
            self.bye(Why.NOT_SERVING, hub.stopping)
            return
        self.opened()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self.bytes_in += len(data)
        self.quiet_since = asyncio.get_running_loop().time()
        if not self.received(data):
            return
        self._fed = True
        if self._task is None:
            self._start()
            return
        flow = self.flow
        self._ahead_bytes += len(data)
        if flow.ahead_lines_max:
            self._ahead_lines += data.count(b"\n")
        if self._ahead_bytes > flow.ahead_bytes_max or self._ahead_lines > flow.ahead_lines_max > 0:
            self.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more.

        In clear it still gets the answers to what it has sent.
        """
        self._eof = True
        return self._task is not None and not self.tls

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:  # it ended in a handshake
            return
        self._gone()
        if self._task is None:
            self._start()
        elif self.may_cancel:
            self._task.cancel()

    # -- for the driver and the server -----------------------------------------------------------------------------

    @property
    def working(self) -> bool:
        """The task runs."""
        return self._task is not None

    @property
    def must_stop(self) -> bool:
        """The last words are due, or have been said: begin nothing more."""
        return self._closing or (bool(self._stop_reason) and self.may_stop)

    @property
    def stop_asked(self) -> bool:
        """The connection is to end as soon as `may_stop`."""
        return bool(self._stop_reason)

    @property
    def idle_since(self) -> float | None:
        """Since when it could be closed for another, in the loop's time; None: it is
        busy."""
        return self.quiet_since if self._task is None and not self._closing and self.may_stop else None

    def wake(self) -> None:
        """There is work for the task."""
        if self._task is None and not self._closing:
            self._start()

    def stop(self, reason: str) -> None:
        """Say the last words and close, as soon as the driver may stop."""
        if self._closing:
            return
        self._stop_reason = reason
        if self._task is None and self.may_stop:
            self.bye(Why.STOPPED, reason)

    def bye(self, why: Why, text: str) -> None:
        """Say the last words and close."""
        self.write(self.last_words(why, text))
        self.close()

    def cut(self, why: Why, text: str) -> None:
        """Cancel the work, which ends the connection; without work say the last
        words."""
        if self._task is not None:
            self._task.cancel()
        else:
            self.bye(why, text)

    async def _wait_turn(self) -> None:
        await self.hub.lanes.turn(self.user)

    # -- the task --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._task = self.hub.start(self._run())

    async def _run(self) -> None:
        try:
            while not self._closing or (self._lost and self._fed and self.outlives_client):
                self._fed = False
                await self.work()
                if self._stop_reason and self.must_stop and not self._closing:
                    self.bye(Why.STOPPED, self._stop_reason)
                    break
                self._ahead_bytes = self._ahead_lines = 0
                self.resume_reading()
                if self._out:
                    await self.flush()
                if self._eof:
                    self.close()
                if not (self._fed or self.pending):
                    break
        except OSError as error:  # also ConnectionError, TimeoutError, ssl.SSLError
            self.ended = self.ended or str(error)
            self.abort()
        except asyncio.CancelledError:
            self.ended = self.ended or "cut off"
            self.abort()
            if not self._lost:
                raise
        except Exception:
            self.log_bug("session failed")
            self.abort()
        finally:
            if self._lost:
                await self._finish()
            self._task = None
            if self._lost and self._entered:  # the client left while the task ended
                self._start()

    async def _finish(self) -> None:
        """Leave the registry once the driver has given back what it holds."""
        user = self.user
        try:
            await self.finish()
        except Exception:
            self.log_bug("session did not end well")
        finally:
            if self._entered:
                self._entered = False
                self.hub.registry.leave(self, self.remote, user)
                self.hub.count(-1)
            self._out = ()
            self._transport = None
