"""Postfix as a front end: answers to its lookups over the socketmap protocol.

    mailbox    OK and the user's name, if there is such a user
    transport  OK and the next hop, an LMTP address of the backend that has the mail

A request is a netstring "map key". An answer is a netstring "OK value", "NOTFOUND " or
"TEMP reason" (socketmap_table(5)). Postfix also asks for domains, and for the address
without its extension. If no user has the name, the answer is NOTFOUND. The map is open
to the networks that may deliver over LMTP, because RCPT gives the same answers.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import structlog

from obox.accounts import Account
from obox.addresses import parsed
from obox.cluster import Router, There
from obox.errors import Invalid, NoPerm, OboxError, Unavailable
from obox.lmtp.address import parse_path, split_detail
from obox.net import Connection, Flow, Hub, Server, Who, Why, is_loopback

log = structlog.get_logger("obox.socketmap")

REQUEST_BYTES_MAX: Final = 1_000
"""An address has at most 512 bytes; Postfix itself stops at 100,000."""
QUIET_S: Final = 300.0
"""A connection without a request ends after this time. Postfix itself closes idle
connections after seconds."""
CONNECTIONS_MAX: Final = 1_000
"""Each process of Postfix has a connection of its own."""
_FLOW: Final = Flow(ahead_bytes_max=16_384, connections_max=CONNECTIONS_MAX)

Here = Callable[[], tuple[str, Mapping[str, int]]]
"""A function that returns address and ports of this member, for its own users."""


class Users(Protocol):
    """The user database."""

    async def account(self, user: str) -> Account | None:
        """Return the account of a user, None if there is none.

        Raises: Unavailable, Invalid.
        """


class BadRequest(Exception):
    """The peer's bytes are no netstring, or too large a netstring."""


def cut(buffer: bytearray) -> bytes | None:
    """Take a netstring off the buffer. Return None if it is not complete.

    Raises: BadRequest.
    """
    size, colon, _ = bytes(buffer[:REQUEST_BYTES_MAX]).partition(b":")
    if not colon:
        if len(size) > 6 or not (size.isdigit() or not size):
            raise BadRequest("no netstring")
        return None
    if not size.isdigit() or len(size) > 6 or int(size) > REQUEST_BYTES_MAX:
        raise BadRequest("a netstring with a bad length")
    begin = len(size) + 1
    end = begin + int(size)
    if len(buffer) <= end:
        return None
    if buffer[end : end + 1] != b",":
        raise BadRequest("a netstring without its comma")
    data = bytes(buffer[begin:end])
    del buffer[: end + 1]
    return data


def netstring(text: str) -> bytes:
    data = text.encode()
    return b"%d:%b," % (len(data), data)


class Lookups:
    """The answers of the maps."""

    def __init__(
        self, users: Callable[[], Users], router: Router | None, here: Here, *, delimiters: Callable[[], str]
    ) -> None:
        """router: None if this process serves all users. delimiters: the characters
        between user and detail."""
        self._users = users
        self._router = router
        self._here = here
        self._delimiters = delimiters
        self._maps: dict[str, Callable[[Account], Awaitable[str]]] = {
            "mailbox": self._mailbox,
            "transport": self._transport,
        }

    async def answer(self, request: bytes) -> str:
        name, _, key = request.decode("utf-8", "replace").partition(" ")
        ask = self._maps.get(name)
        if ask is None:
            return f"PERM no such map; allowed: {', '.join(self._maps)}"
        path = parse_path(f"<{key}>")
        if path is None or not path[0].local or not path[0].domain:
            return "NOTFOUND "  # a domain, or an address of Postfix's own making
        user, _ = split_detail(path[0], self._delimiters())
        try:
            account = await self._users().account(user)
            return "NOTFOUND " if account is None else f"OK {await ask(account)}"
        except Invalid:
            return "NOTFOUND "
        except OboxError as error:
            return f"TEMP {error}"

    async def _mailbox(self, account: Account) -> str:
        return account.name

    async def _transport(self, account: Account) -> str:
        address, ports = self._here()
        if self._router is not None:
            route = await self._router.route(account.storage_id)
            if isinstance(route, There):
                address, ports = route.address, route.ports
        if address.startswith("unix:"):
            return f"lmtp:{address}/lmtp.sock"
        if "lmtp" not in ports:
            raise Unavailable("the backend of this user has no LMTP")
        host = f"[{address}]" if parsed(address) is not None else address
        return f"lmtp:inet:{host}:{ports['lmtp']}"


class SocketmapServer(Server):
    """The connections of Postfix."""

    def __init__(self, lookups: Lookups, trusts: Callable[[str], bool] = is_loopback) -> None:
        """trusts: says whether a client at an address may ask."""
        self.hub = Hub(clock=time.monotonic)
        self.lookups = lookups
        self.trusts = trusts

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> _Asking:
        return _Asking(self, tls, remote)


class _Asking(Connection):
    """A connection of Postfix. It serves one request at a time."""

    __slots__ = ("_buffer", "_server")

    def __init__(self, server: SocketmapServer, tls: bool, remote: str | None) -> None:
        super().__init__(server.hub, tls=tls, remote=remote)
        self._server = server
        self._buffer = bytearray()

    def configure(self) -> Flow:
        return _FLOW

    def admit(self) -> None:
        if self.remote and not self._server.trusts(self.remote):
            log.warning("socketmap client refused", remote=self.remote)
            raise NoPerm("the peer is not in a trusted network")
        super().admit()

    def opened(self) -> None:
        self.arm(QUIET_S)

    def received(self, data: bytes) -> bool:
        self._buffer += data
        return True

    def discard_input(self) -> None:
        self._buffer.clear()

    async def work(self) -> None:
        try:
            while not self.must_stop and (request := cut(self._buffer)) is not None:
                self.write(netstring(await self._server.lookups.answer(request)))
                await self.flush()
        except BadRequest as error:
            log.info("socketmap request refused", remote=self.remote, error=str(error))
            self.close()

    def last_words(self, why: Why, text: str) -> bytes:
        return b""

    async def finish(self) -> None:
        self._buffer.clear()

    def who(self) -> Who:
        return Who(self.id, "", self.remote, self.tls, "socketmap", "", not self.working, self.since)

    def log_bug(self, what: str) -> None:
        log.exception(f"socketmap {what}", remote=self.remote)

    def timer_due(self, quiet_s: float) -> float | None:
        if quiet_s < QUIET_S:
            return QUIET_S - quiet_s
        self.bye(Why.TIMEOUT, "")
        return None
