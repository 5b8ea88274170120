"""Listening addresses: all of them are bound or none is; then they accept clients.

Invariant: after `bind` an address is ours and the kernel queues connections. Nothing is
accepted before `start` or after `stop`. A protocol's factory gets the `Listen` entry
and the `Via` of the PROXY header, or None if there is no header. The protocol then sees
a transport past the header and, on a "/tls" entry, past the handshake.

A client that has not completed the PROXY header and the TLS handshake has little time,
and it may be dropped for a new client (`obox.net.pending`).

An address may be bound with `before`. Then nothing of its protocol is loaded until the
first client connects, and the kernel keeps this client waiting meanwhile.

Diagnostics: an address that cannot be bound is fatal; `ListenError` names it. A bad
PROXY header ends its connection, and is logged as info. Connections that were dropped
for new clients are logged as a warning, once a minute. If file descriptors are used up,
accepting pauses, which is logged.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obox.config import Listen
from obox.net import proxy
from obox.net.pending import Pending
from obox.net.proxy import ProxyError, Via
from obox.unixsocket import short_name

Factory = Callable[[Listen, Via | None], asyncio.BaseProtocol]
Before = Callable[[], Awaitable[None]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

BACKLOG = 1024  # connections that wait in the kernel; a burst of logins after a restart
HANDSHAKE_S = 10.0
"""Time limit of a TLS handshake, which is three round trips of a slow line."""
DROPPED_LOG_S = 60.0
"""Interval between two log lines about connections that were dropped for new
clients."""
PAUSE_S = 0.5  # how long accepting pauses when file descriptors are used up
AGAIN_S = 5.0  # time between two attempts to load what serves an address
_FIRST_FD = 3  # sd_listen_fds(3)
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ListenError(Exception):
    """An address cannot be bound.

    The text is a single line that names the setting, the address and the reason.
    """


@dataclass(slots=True)
class _Bound:
    name: str
    entry: Listen
    sock: socket.socket
    factory: Factory
    before: Before | None
    # These identify a unix socket that we created: only ours is removed.
    inode: tuple[int, int] | None = None
    # Accepts; both are None before the start.
    server: asyncio.AbstractServer | None = None
    task: asyncio.Task[None] | None = None


def inherited_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """Return the sockets that the service manager opened for this process.

    See sd_listen_fds(3).
    """
    if environ.get("LISTEN_PID") != str(os.getpid()) or not environ.get("LISTEN_FDS", "").isdigit():
        return []
    descriptors = range(_FIRST_FD, _FIRST_FD + int(environ["LISTEN_FDS"]))
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return [socket.socket(fileno=fd) for fd in descriptors]


class Listeners:
    """All listening sockets of the process.

    inherited: sockets to use instead of binding, if the address is the same. tls: the
    context of "/tls" entries. proxy_networks: networks that may send a PROXY header; a
    unix socket always may. proxy_timeout_s: time limit of the header. handshake_s: time
    limit of the TLS handshake.
    """

    def __init__(
        self,
        *,
        log: Any,
        tls: ssl.SSLContext | None = None,
        unix_mode: int = 0o660,
        proxy_networks: Iterable[Network] = (),
        proxy_timeout_s: float = 3.0,
        handshake_s: float = HANDSHAKE_S,
        inherited: Iterable[socket.socket] = (),
    ) -> None:
        self._log = log
        self._tls = tls
        self._unix_mode = unix_mode
        self.proxy_networks = tuple(proxy_networks)
        self.proxy_timeout_s = proxy_timeout_s
        self._handshake_s = handshake_s
        self._inherited = list(inherited)
        self._bound: list[_Bound] = []

    def bind(
        self,
        name: str,
        entries: Sequence[Listen],
        factory: Factory,
        *,
        unix_mode: int | None = None,
        before: Before | None = None,
    ) -> None:
        """Bind the addresses of a protocol. Raises: ListenError.

        unix_mode: the mode of its unix sockets, if it differs from the mode of all
        others. before: called when the first client of an address has connected; the
        client is accepted when it returns.
        """
        for entry in entries:
            if entry.tls and self._tls is None:
                raise ListenError(f"{name}.listen {entry}: there is no certificate; set tls.cert and tls.key")
            if entry.path is not None:
                mode = self._unix_mode if unix_mode is None else unix_mode
                self._bound.append(self._bind_unix(name, entry, entry.path, factory, before, mode))
            else:
                self._bind_tcp(name, entry, factory, before)

    def addresses(self, name: str) -> list[str]:
        """Return the addresses of a protocol as `Listen` writes them. Port 0 is
        replaced by the port that the system chose."""
        return [_address(bound) for bound in self._bound if bound.name == name]

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Accept on all addresses.

        tasks: the group of the process. It runs the tasks that accept on "/proxy" and
        "/tls" entries.
        """
        for bound in self._bound:
            if bound.before is not None:
                bound.task = tasks.create_task(self._begin_late(bound, bound.before, tasks))
            else:
                await self._begin(bound, tasks)
        for sock in self._inherited:
            self._log.warning("inherited socket matches no listen entry", address=str(sock.getsockname()))

    async def _begin(self, bound: _Bound, tasks: asyncio.TaskGroup) -> None:
        entry, factory = bound.entry, bound.factory
        if _greeted(entry):
            bound.task = tasks.create_task(self._accept(bound), name=f"accept {entry}")
            return
        loop = asyncio.get_running_loop()
        made = functools.partial(factory, entry, None)
        # A server that serves at once would be unknown here for a turn of the loop, and
        # a stop in that turn would not find it.
        server = await loop.create_server(made, sock=bound.sock, backlog=BACKLOG, start_serving=False)
        bound.server, bound.task = server, None
        await server.start_serving()

    async def _begin_late(self, bound: _Bound, before: Before, tasks: asyncio.TaskGroup) -> None:
        """Call `before` when a client has connected, and then accept."""
        while True:
            await _readable(bound.sock)
            try:
                await before()
                break
            except Exception:
                # It happens after an update that has replaced the modules on disk.
                self._log.exception("address cannot be served", address=str(bound.entry))
                await asyncio.sleep(AGAIN_S)
        await self._begin(bound, tasks)

    def stop(self, *, keep: Collection[str] = ()) -> None:
        """Stop accepting, except for the protocols in `keep`. Open connections
        continue."""
        for bound in self._bound:
            if bound.name in keep:
                continue
            if bound.inode is not None and bound.entry.path is not None:
                _remove(bound.entry.path, bound.inode)
            if bound.task is not None:
                # The task may not have begun, and it still uses the socket.
                bound.task.add_done_callback(lambda _, sock=bound.sock: sock.close())  # type: ignore[misc]  # mypy has no type for a lambda with a default
                bound.task.cancel()
                continue
            if bound.server is not None:
                bound.server.close()
            bound.sock.close()
        self._bound = [bound for bound in self._bound if bound.name in keep]

    def _bind_tcp(self, name: str, entry: Listen, factory: Factory, before: Before | None) -> None:
        try:
            found = socket.getaddrinfo(entry.host, entry.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ListenError(f"{name}.listen {entry}: {error.strerror}") from error
        made = 0
        for family, kind, number, _, address in dict.fromkeys(found):
            sock = self._take(lambda s, a=address: s.getsockname()[:2] == a[:2])  # type: ignore[misc]  # mypy has no type for a lambda with a default
            if sock is None:
                try:
                    sock = _listen_tcp(family, kind, number, address)
                except OSError as error:
                    # A name such as localhost may have an address of a family that the
                    # machine does not support.
                    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                        continue
                    raise ListenError(f"{name}.listen {entry}: {_reason(error)}") from error
            self._bound.append(_Bound(name, entry, sock, factory, before))
            made += 1
        if not made:
            raise ListenError(f"{name}.listen {entry}: not an address of this machine")

    def _bind_unix(
        self, name: str, entry: Listen, path: Path, factory: Factory, before: Before | None, mode: int
    ) -> _Bound:
        sock = self._take(lambda s: s.family == socket.AF_UNIX and s.getsockname() == str(path))
        if sock is not None:
            return _Bound(name, entry, sock, factory, before)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(path)
            # No client can connect between bind and chmod: a socket refuses until it
            # listens.
            with short_name(path) as short:
                sock.bind(short)
            path.chmod(mode)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            info = path.stat()
        except OSError as error:
            sock.close()
            raise ListenError(f"{name}.listen {entry}: {_reason(error)}") from error
        return _Bound(name, entry, sock, factory, before, (info.st_dev, info.st_ino))

    def _take(self, same: Callable[[socket.socket], bool]) -> socket.socket | None:
        for sock in self._inherited:
            if same(sock):
                self._inherited.remove(sock)
                sock.setblocking(False)
                return sock
        return None

    async def _accept(self, bound: _Bound) -> None:
        """Accept on a "/proxy" or "/tls" address.

        The PROXY header is read before there is a transport, so that nothing behind the
        header is read with it.
        """
        loop = asyncio.get_running_loop()
        pending = Pending()
        logged_at, logged = -DROPPED_LOG_S, 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    sock, _ = await loop.sock_accept(bound.sock)
                except OSError as error:
                    if error.errno in _OUT_OF:
                        self._log.error("connection cannot be accepted", address=str(bound.entry), error=error.strerror)
                        await asyncio.sleep(PAUSE_S)
                    continue
                tasks.create_task(self._greet(bound, sock, pending))
                if pending.dropped != logged and loop.time() - logged_at >= DROPPED_LOG_S:
                    self._log.warning(
                        "pending connections dropped for new clients",
                        address=str(bound.entry),
                        count=pending.dropped - logged,
                    )
                    logged_at, logged = loop.time(), pending.dropped

    async def _greet(self, bound: _Bound, sock: socket.socket, pending: Pending) -> None:
        """Read the PROXY header and do the TLS handshake.

        The task is cancelled if the connection is dropped for another.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        entry, via = bound.entry, None
        try:
            peer = str(sock.getpeername()[0]) if entry.path is None else ""
            sock.setblocking(False)
        except OSError:  # the client has already left
            sock.close()
            return
        place = pending.enter("" if entry.proxy else peer, task.cancel)
        try:
            if entry.proxy:
                try:
                    via = await self._header(entry, sock, peer)
                except (ProxyError, TimeoutError, OSError) as error:
                    self._log.info(
                        "connection refused",
                        address=str(entry),
                        remote=peer or "unix",
                        error=str(error) or "no PROXY header in time",
                    )
                    sock.close()
                    return
                except asyncio.CancelledError:
                    sock.close()
                    raise
                if via.client is not None:
                    pending.leave(place)
                    place = pending.enter(via.client[0], task.cancel)
            context, handshake_s = (self._tls, self._handshake_s) if entry.tls else (None, None)
            # A failure of the client is not our error.
            with suppress(OSError, ssl.SSLError):
                await loop.connect_accepted_socket(
                    lambda: bound.factory(entry, via), sock, ssl=context, ssl_handshake_timeout=handshake_s
                )
        finally:
            pending.leave(place)

    async def _header(self, entry: Listen, sock: socket.socket, peer: str) -> Via:
        """Raises ProxyError, TimeoutError, OSError."""
        if entry.path is None and not self._trusted(peer):
            raise ProxyError("the peer is not in haproxy_trusted_networks")
        async with asyncio.timeout(self.proxy_timeout_s):
            return proxy.parse(await _read_header(sock))

    def _trusted(self, peer: str) -> bool:
        address = ipaddress.ip_address(peer.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.proxy_networks)


def _greeted(entry: Listen) -> bool:
    """Return whether a PROXY header or a TLS handshake comes before the protocol."""
    return entry.proxy or entry.tls


async def _read_header(sock: socket.socket) -> bytes:
    """Read a PROXY header and no byte after it.

    It looks at the bytes that have arrived, and then takes those that belong to the
    header.
    """
    header = b""
    while not proxy.complete(header):
        await _readable(sock)
        try:
            arrived = sock.recv(proxy.V2_BYTES_MAX, socket.MSG_PEEK)
        except BlockingIOError:
            continue
        if not arrived:
            raise ProxyError("closed before the PROXY header")
        header += sock.recv(proxy.need(header, arrived))
    return header


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _listen_tcp(family: int, kind: int, number: int, address: Any) -> socket.socket:
    sock = socket.socket(family, kind, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Otherwise 0.0.0.0 and [::] could not both be listed.
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that has ended. A socket that answers is in
    use."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        with short_name(path) as name:
            answer = probe.connect_ex(name)
    # EAGAIN: the backlog is full, so a process listens there.
    if answer not in (errno.ECONNREFUSED, errno.ENOENT):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink(missing_ok=True)


def _remove(path: Path, inode: tuple[int, int]) -> None:
    with suppress(OSError):
        info = path.lstat()
        if (info.st_dev, info.st_ino) == inode:
            path.unlink()


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "address in use: another process listens there"
    if error.errno == errno.EACCES:
        return "permission denied: ports below 1024 need CAP_NET_BIND_SERVICE, a unix socket a writable directory"
    if error.errno == errno.EADDRNOTAVAIL:
        return "not an address of this machine"
    return os.strerror(error.errno) if error.errno and not error.strerror else str(error.strerror or error)


def _address(bound: _Bound) -> str:
    if bound.entry.path is not None:
        return str(bound.entry)
    host, port = bound.sock.getsockname()[:2]
    return str(Listen(host, port, tls=bound.entry.tls, proxy=bound.entry.proxy))
