"""A splice: two connections that are joined. Bytes of a client go to a server, and
back.

Theory of operation. A client's connection (`obox.net.connection`) was joined with a
connection to a server, after a login. From then on nothing is parsed. Each side is a
protocol of its own, which writes its bytes to the other side's transport.

    open --a side sends no more--> half: the other side learns it, its bytes still come
    open, half --a side is gone, `stop`--> ending: what was read goes out, and no more
        is read
    open, half, ending --both sides are gone--> the registry forgets the splice, and
        nothing refers to its sides any more

Flow. When the transport of a side holds more than BUFFER_BYTES, the other side is not
read until it has sent them. So a splice holds at most that, and one read, each way.

Time. An open splice has no timer: IDLE may last for hours, and the server knows when a
client is quiet for too long. The kernel notices a dead peer (`dialogue.watch`). A half
splice ends after HALF_S of silence, and an ending splice is cut after CLOSE_TIMEOUT_S.

This module does not know protocols. It sends no last words, because they could come in
the middle of an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from obox.net.connection import Connection, client_tls, hand_over
from obox.net.dialogue import watch
from obox.net.registry import Who
from obox.net.stream import CLOSE_TIMEOUT_S

BUFFER_BYTES: Final = 65_536
"""If more bytes wait for a side to read, the other side is not read."""
HALF_S: Final = 300.0
"""A half splice ends after this time without a byte either way."""
QUIET_S: Final = 1.0
"""After this time without a byte either way, a stop need not wait for an answer."""


class Side(asyncio.Protocol):
    """One of the two connections."""

    __slots__ = ("bytes_in", "gone", "held", "other", "splice", "transport")

    def __init__(self, splice: Splice, transport: asyncio.Transport) -> None:
        self.splice = splice
        self.transport = transport
        self.other: Side = self
        self.bytes_in = 0
        self.held = self.gone = False

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        self.splice.moved()
        if not self.other.gone:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        return self.splice.ended_by(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.splice.lost(self, exc)

    def pause_writing(self) -> None:
        self.other.hold()

    def resume_writing(self) -> None:
        if not self.splice.stopping or self.other is not self.splice.client:
            self.other.resume()

    def hold(self) -> None:
        if not self.held and not self.gone and not self.transport.is_closing():
            self.held = True
            self.transport.pause_reading()

    def release(self) -> None:
        """Drop every reference, so that no cycle is left: the buffers of a connection
        under TLS are large, and the garbage collector runs too seldom."""
        del self.splice, self.other, self.transport

    def resume(self) -> None:
        if self.held and not self.gone and not self.transport.is_closing():
            self.held = False
            self.transport.resume_reading()


@dataclass(slots=True, frozen=True)
class Leg:
    """A connection to the server that a client gets.

    transport: to the server. ahead: what the server has sent behind its last line.
    text, code: its answer to the login. backend: its name, for `who`. ended: called
    once, with the bytes from the client and to it, and why the splice ended. mail: the
    storage id of the user, for `who`.
    """

    transport: asyncio.Transport
    ahead: bytes
    text: str
    code: bytes
    backend: str
    ended: Callable[[int, int, str], None]
    mail: str = ""

    def abort(self) -> None:
        """Cut a connection that no client gets."""
        self.transport.abort()
        self.ended(0, 0, "client left")


class Splice:
    """See the module's text. It takes the connection's place in the registry."""

    __slots__ = (
        "__weakref__",
        "_leg",
        "_remote",
        "_service",
        "_tls",
        "_user",
        "client",
        "hub",
        "id",
        "owner",
        "quiet_since",
        "reason",
        "since",
        "stopping",
        "timer",
    )

    def __init__(self, connection: Connection, leg: Leg, user: str, ahead: bytes) -> None:
        """connection: the client's, which ends. ahead: what it has read and not used.

        user: the user whom the registry counts.
        """
        self.hub = connection.hub
        self.id = connection.id
        self.since = connection.since
        self.stopping = False
        self.reason = ""
        """Why it ends, for the log."""
        self.quiet_since = connection.quiet_since
        self._user, self._remote, self._tls = user, connection.remote, client_tls(connection)
        self._service = connection.who().service
        self._leg = leg
        self.timer: asyncio.TimerHandle | None = None
        given = hand_over(connection, self)
        self.client, self.owner = Side(self, given.transport), Side(self, leg.transport)
        self.client.other, self.owner.other = self.owner, self.client
        for side in (self.client, self.owner):
            side.transport.set_protocol(side)
            side.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        watch(given.transport)
        if given.congested:
            self.owner.hold()
        self.client.held = given.paused
        self.client.resume()
        if ahead:
            self.client.data_received(ahead)
        if leg.ahead:
            self.owner.data_received(leg.ahead)
        if leg.transport.is_closing():
            self.end("the backend closed the connection")
        elif given.eof:
            self.ended_by(self.client)
        if given.stop:
            self.stop(given.stop)

    # -- what the registry asks ------------------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """Return the server's name."""
        return self._leg.backend

    @property
    def buffered_bytes(self) -> int:
        """Return the bytes that wait for a side to read."""
        return sum(side.transport.get_write_buffer_size() for side in (self.client, self.owner) if not side.gone)

    @property
    def idle_since(self) -> float | None:
        """Return None: the server decides whether a client is idle."""
        return None

    def who(self) -> Who:
        quiet = asyncio.get_running_loop().time() - self.quiet_since >= QUIET_S
        state = f"forwarded to {self.backend}"
        mail, service = self._leg.mail, self._service
        return Who(self.id, self._user, self._remote, self._tls, state, "", quiet, self.since, mail, service)

    def stop(self, reason: str) -> None:
        """End in order: take nothing more from the client, let the server answer."""
        if self.stopping:
            return
        self.stopping = True
        self.reason = self.reason or reason
        self.client.hold()
        if self.owner.gone or not self.owner.transport.can_write_eof():
            self._look()
            return
        self.owner.transport.write_eof()
        self._arm(CLOSE_TIMEOUT_S, self.abort)

    def abort(self) -> None:
        """Cut both connections."""
        self.reason = self.reason or "cut off"
        for side in (self.client, self.owner):
            if not side.gone:
                side.transport.abort()

    # -- what the sides tell ---------------------------------------------------------------------------------------

    def moved(self) -> None:
        """Note that bytes have come."""
        self.quiet_since = asyncio.get_running_loop().time()

    def ended_by(self, side: Side) -> bool:
        """Note that a side sends no more. Returns whether its connection stays open, to
        get what the other side still sends.
        """
        if side is self.owner or side.transport.get_extra_info("ssl_object") is not None:
            self.end("the backend closed the connection" if side is self.owner else "disconnected")
            return False
        if self.owner.gone or not self.owner.transport.can_write_eof():
            self.stop("disconnected")
        else:
            self.reason = self.reason or "disconnected"
            self.owner.transport.write_eof()
            self._arm(HALF_S, self._half)
        return True

    def lost(self, side: Side, exc: Exception | None) -> None:
        """Note that a side is gone."""
        if not (self.client.gone and self.owner.gone):
            who = "client" if side is self.client else "backend"
            self.end(f"{who}: {exc}" if exc is not None else f"the {who} closed the connection")
            return
        self._disarm()
        registry, remote, user = self.hub.registry, self._remote, self._user
        registry.leave(self, remote, user)
        self.hub.count(-1)
        self._leg.ended(self.client.bytes_in, self.owner.bytes_in, self.reason)
        for one in (self.client, self.owner):
            one.release()

    def end(self, reason: str) -> None:
        """Close both sides, once what was read has gone out."""
        self.reason = self.reason or reason
        self.stopping = True
        for side in (self.client, self.owner):
            if not side.gone and not side.transport.is_closing():
                side.transport.close()
        self._arm(CLOSE_TIMEOUT_S, self.abort)

    # -- time ------------------------------------------------------------------------------------------------------

    def _look(self, left_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait until the server pauses, since TLS has no half-closed state."""
        loop = asyncio.get_running_loop()
        if loop.time() - self.quiet_since >= QUIET_S or left_s <= 0:
            self.end(self.reason)
        else:
            self._arm(QUIET_S / 4, lambda: self._look(left_s - QUIET_S / 4))

    def _half(self) -> None:
        left_s = HALF_S - (asyncio.get_running_loop().time() - self.quiet_since)
        if left_s > 0:
            self._arm(left_s, self._half)
        else:
            self.end("the backend does not end")

    def _arm(self, delay_s: float, then: Callable[[], None]) -> None:
        self._disarm()
        self.timer = asyncio.get_running_loop().call_later(delay_s, then)

    def _disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
