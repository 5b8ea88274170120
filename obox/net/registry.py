"""Counts connections and limits them: by address from the first byte, by user from
login.

A server has one registry. Servers that share a registry share its limits. Loopback and
unix sockets are not counted by address, because a proxy or a webmail connects from
there for many clients. An IPv6 address counts as its network (`obox.addresses`). No
I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from obox.addresses import counted, parsed
from obox.errors import Limit

TOO_MANY: Final = "Too many connections, try again later"


def is_loopback(remote: str) -> bool:
    """Return whether this is an address of this machine. "" is a unix socket, which is
    local."""
    address = parsed(remote)
    return not remote or (address is not None and address.is_loopback)


@dataclass(frozen=True, slots=True)
class Who:
    """One session, as `who` lists it.

    since: unix seconds. mailbox: "" if no mailbox is selected. mail: the storage id of
    the user, whom several names may have; "" before the login. service: the protocol.
    """

    id: int
    user: str
    remote: str
    tls: bool
    state: str
    mailbox: str
    idle: bool
    since: float
    mail: str = ""
    service: str = ""


class Member(Protocol):
    """What the registry needs of a connection."""

    def who(self) -> Who:
        """Return what to show of the connection."""

    def stop(self, reason: str) -> None:
        """Send the last words as soon as no command runs, and close."""

    def abort(self) -> None:
        """Cut the connection."""

    @property
    def idle_since(self) -> float | None:
        """Return the loop's time since which the connection is idle; None while it is
        busy. An idle connection may be closed to admit a new client."""


class NoRoom(Limit):
    """There are too many connections. limit: how many there may be."""

    def __init__(self, text: str, limit: int) -> None:
        super().__init__(text)
        self.limit = limit


class Registry:
    """Open connections.

    Limits are parameters of `enter` and `login`, because they depend on the client's
    address. 0 means no limit.
    """

    def __init__(self) -> None:
        self._members: set[Member] = set()
        self._users: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members))

    @property
    def addresses(self) -> Mapping[str, int]:
        """Return the number of connections of each address that is counted."""
        return dict(self._addresses)

    def enter(self, member: Member, remote: str, *, most: int, total: int = 0) -> None:
        """Count a connection. At most `most` may come from its address, and `total`
        from all.

        If `total` is reached, the connection that has been idle longest is stopped.

        Raises: NoRoom; the connection is not counted then.
        """
        address = counted(remote)
        if address and most and self._addresses[address] >= most:
            raise NoRoom("Too many connections from your address", most)
        if total and len(self._members) >= total and not self._stop_idle():
            raise NoRoom(TOO_MANY, total)
        if address:
            self._addresses[address] += 1
        self._members.add(member)

    def _stop_idle(self) -> bool:
        """Stop the connection that has been idle longest. Returns False if none is
        idle."""
        idle = [(since, member) for member in self._members if (since := member.idle_since) is not None]
        if not idle:
            return False
        _, member = min(idle, key=lambda found: found[0])
        member.stop(TOO_MANY)
        return True

    def login(self, user: str, *, most: int) -> None:
        """Count a session of a user, who may have at most `most` of them.

        Raises: Limit; the session is not counted then.
        """
        if most and self._users[user] >= most:
            raise Limit("Too many sessions of this user")
        self._users[user] += 1

    def logout(self, user: str) -> None:
        """Stop counting a session whose login did not complete."""
        _less(self._users, user)

    def uncount(self, remote: str) -> None:
        """Stop counting a connection by its address. It leaves with ""."""
        if address := counted(remote):
            _less(self._addresses, address)

    def replace(self, member: Member, successor: Member) -> None:
        """Give a connection's place to a successor, which leaves in its stead."""
        self._members.discard(member)
        self._members.add(successor)

    def leave(self, member: Member, remote: str, user: str) -> None:
        """Stop counting a connection. user: "" if it never logged in."""
        if member not in self._members:
            return
        self._members.discard(member)
        if user:
            _less(self._users, user)
        self.uncount(remote)


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
