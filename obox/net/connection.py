"""A client's connection from the first byte to the last. Each protocol is a driver.

Theory of operation. `received` hands the client's bytes to the driver. If no task
works, a task is started. The task calls the driver's `work`, which handles all events
that are in the input. Then the task hands the output over and ends. An idle connection
has no task.

    admitted --bytes, `wake`--> working --all events handled, output handed over--> idle
    idle --bytes, `wake`--> working
    any --`stop`--> the last words are sent as soon as the driver may stop
    any --closed, lost--> the work at hand ends at its next `flush`, then `finish`

Flow. While the task works, up to `Flow.ahead_bytes_max` bytes are read ahead. Then
reading is paused until the input is used up. `obox.net.stream` describes output.

End. When the client is gone, work that the driver calls pointless (`may_cancel`) is
cancelled. Other work ends when its next `flush` raises ConnectionResetError. A driver
that sets `outlives_client` still works through the input that has arrived. Then
`finish` releases what the driver holds. Reference counts alone must free a connection,
because the garbage collector runs too seldom for the memory that a connection may hold.

Diagnostics: an exception other than OSError is a bug. Then `log_bug` is called, and the
connection is cut. This module knows no commands, no mailboxes and no protocol's
replies.
"""

from __future__ import annotations

import asyncio
import enum
from abc import abstractmethod
from typing import ClassVar, NamedTuple, cast

from obox.errors import Limit, OboxError
from obox.net.hub import Hub
from obox.net.registry import Member, Who, is_loopback
from obox.net.stream import Flow, Stream


class Why(enum.Enum):
    """Why a connection ends. Each protocol has its own last words for each reason."""

    REFUSED = "refused"
    """The client may not connect from where it is."""
    LIMIT = "limit"
    """There are too many connections."""
    NOT_SERVING = "not serving"
    """The server was already stopping when the client connected."""
    STOPPED = "stopped"
    """The server stops, or an administrator ends the session."""
    TIMEOUT = "timeout"
    """The client took too long."""


class Connection(Stream):
    """See the module's text.

    remote: the client's address, if a proxy reported it. If it is None, the address of
    the transport counts. tls: the client's side already uses TLS.
    """

    __slots__ = (
        "_ahead_bytes",
        "_ahead_lines",
        "_client_tls",
        "_counted",
        "_entered",
        "_eof",
        "_fed",
        "_remote_given",
        "_stop_reason",
        "_task",
        "hub",
        "id",
        "is_local",
        "remote",
        "since",
    )

    outlives_client: ClassVar[bool] = False
    """Whether input that arrived before the client left is still worked through."""

    def __init__(self, hub: Hub, *, tls: bool = False, remote: str | None = None) -> None:
        super().__init__(hub.clock, tls=tls)
        self.hub = hub
        self.id = hub.next_id()
        self.remote = remote or ""
        self.since = 0.0
        """Unix seconds at which the client connected."""
        self._remote_given = remote is not None
        self._client_tls: bool | None = None
        """Whether a member of the cluster says that its client uses TLS."""
        self._counted = ""
        self.is_local = False
        """Whether the peer is on this machine, and no proxy has named another."""
        self._task: asyncio.Task[None] | None = None
        self._fed = self._eof = self._entered = False
        self._ahead_bytes = self._ahead_lines = 0
        self._stop_reason = ""

    # -- what a driver implements ----------------------------------------------------------------------------------

    @abstractmethod
    def configure(self) -> Flow:
        """Choose the settings for the client at `remote`. It is called first."""

    @abstractmethod
    def opened(self) -> None:
        """Greet the admitted client and set the first timer."""

    @abstractmethod
    def received(self, data: bytes) -> bool:
        """Take bytes of the client. Returns whether there is work for the task."""

    @abstractmethod
    async def work(self) -> None:
        """Handle the events of the input, until there are none or until `must_stop`."""

    @abstractmethod
    def last_words(self, why: Why, text: str) -> bytes:
        """Return what is sent to the client before the connection is closed."""

    @abstractmethod
    async def finish(self) -> None:
        """Release everything that the driver holds, because the client is gone.

        Drop every reference back to the connection, so that no cycle is left.
        """

    @abstractmethod
    def who(self) -> Who:
        """Return what to show of the connection."""

    @abstractmethod
    def log_bug(self, what: str) -> None:
        """Log the exception that is being handled."""

    @property
    def user(self) -> str:
        """Return the user whose session the registry has counted, or "" if there is
        none."""
        return ""

    @property
    def pending(self) -> bool:
        """Return whether there is work for the task beside the client's input."""
        return False

    @property
    def may_stop(self) -> bool:
        """Return whether the connection may end now; False while a transaction is under
        way."""
        return True

    @property
    def may_cancel(self) -> bool:
        """Return whether the work at hand is pointless once the client is gone."""
        return False

    def admit(self) -> None:
        """Count the connection.

        Raises: OboxError, whose text is sent to the client with the refusal.
        """
        flow = self.flow
        self._counted = self.remote
        self.is_local = not self._remote_given and is_loopback(self.remote)
        self.hub.registry.enter(self, self.remote, most=flow.address_connections_max, total=flow.connections_max)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        hub = self.hub
        self._transport = cast(asyncio.Transport, transport)
        if not self._remote_given:
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
        """Note that the client sends no more.

        Without TLS, it still gets the answers to what it has sent.
        """
        self._eof = True
        return self._task is not None and not self.tls

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:  # the connection ended in a handshake
            return
        self._gone()
        if self._task is None:
            self._start()
        elif self.may_cancel:
            self._task.cancel()

    # -- for the driver and the server -----------------------------------------------------------------------------

    @property
    def working(self) -> bool:
        """Return whether the task runs."""
        return self._task is not None

    @property
    def must_stop(self) -> bool:
        """Return whether the last words are due or sent, so that nothing new may
        begin."""
        return self._closing or (bool(self._stop_reason) and self.may_stop)

    @property
    def stop_asked(self) -> bool:
        """Return whether the connection is to end as soon as `may_stop` is true."""
        return bool(self._stop_reason)

    @property
    def idle_since(self) -> float | None:
        """Return the loop's time since which the connection is idle; None while it is
        busy. An idle connection may be closed to admit a new client."""
        return self.quiet_since if self._task is None and not self._closing and self.may_stop else None

    def wake(self) -> None:
        """Start the task, because there is work for it."""
        if self._task is None and not self._closing:
            self._start()

    def stop(self, reason: str) -> None:
        """Send the last words and close, as soon as the driver may stop."""
        if self._closing:
            return
        self._stop_reason = reason
        if self._task is None and self.may_stop:
            self.bye(Why.STOPPED, reason)

    def bye(self, why: Why, text: str) -> None:
        """Send the last words and close."""
        self.write(self.last_words(why, text))
        self.close()

    def cut(self, why: Why, text: str) -> None:
        """Cancel the work, which ends the connection. If there is no work, send the
        last words and close."""
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
                # It may have been stopped while the output was handed over.
                if not (self._fed or self.pending or (self._stop_reason and self.may_stop)):
                    break
        except OSError as error:  # ConnectionError, TimeoutError, ssl.SSLError
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
        """Leave the registry once the driver has released what it holds."""
        user = self.user
        try:
            await self.finish()
        except Exception:
            self.log_bug("session did not end well")
        finally:
            if self._entered:
                self._entered = False
                self.hub.registry.leave(self, self._counted, user)
                self.hub.count(-1)
            self._out = ()
            self._transport = None


class Given(NamedTuple):
    """A client's transport that another protocol takes over.

    congested: the client does not read. paused: it is not being read. eof: it sends no
    more. stop: why it has to end; "" if it has not.
    """

    transport: asyncio.Transport
    congested: bool
    paused: bool
    eof: bool
    stop: str


def hand_over(connection: Connection, successor: Member) -> Given:
    """Give the client and the place in the registry to a successor. The connection
    ends.

    The successor leaves the registry, and counts the connection out of the hub. Raises:
    ConnectionResetError, the client is gone.
    """
    if connection._transport is None or connection._closing:
        raise ConnectionResetError("the client is gone")
    connection.send()
    given = Given(
        connection._transport,
        connection.write_paused,
        connection._reading_paused,
        connection._eof,
        connection._stop_reason,
    )
    connection.hub.registry.replace(connection, successor)
    connection._entered = False
    connection._gone()
    connection._transport = None
    return given


def speak_for(connection: Connection, remote: str, *, tls: bool) -> None:
    """Use the client's address. The peer is a member of the cluster, whose connections
    are not limited: it limits its clients itself.

    remote, tls: those of the client.
    """
    connection.hub.registry.uncount(connection._counted)
    connection._counted = ""
    connection.remote, connection._client_tls = remote, tls


def spoken_for(connection: Connection) -> bool:
    """Return whether a member of the cluster speaks for the client."""
    return connection._client_tls is not None


def client_tls(connection: Connection) -> bool:
    """Return whether the client uses TLS, also where a member of the cluster speaks for
    it. `Connection.tls` is about the connection with the peer."""
    return connection.tls if connection._client_tls is None else connection._client_tls
