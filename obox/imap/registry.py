"""Who is connected, and how many may be: by address from the first byte, by user from login. No I/O.

One object per server (or several, sharing limits). Loopback and unix sockets are not counted by address: a proxy or a
webmail stands there for many. An IPv6 address counts as its network (`obox.addresses`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from obox.addresses import counted, parsed
from obox.errors import Limit


def is_loopback(remote: str) -> bool:
    """Is this address this machine's own? "" is a unix socket, which is."""
    address = parsed(remote)
    return not remote or (address is not None and address.is_loopback)


@dataclass(frozen=True, slots=True)
class Who:
    """One session, as `who` lists it. since: unix seconds; mailbox: "" if none is selected."""

    id: int
    user: str
    remote: str
    tls: bool
    state: str
    mailbox: str
    idle: bool
    since: float


class Member(Protocol):
    """What the registry needs of a connection."""

    def who(self) -> Who:
        """What to show of it."""

    def stop(self, reason: str) -> None:
        """Say BYE as soon as no command runs, and close."""


class Registry:
    """Open connections. Who enters says how many there may be: that depends on the address; 0 is no limit."""

    def __init__(self) -> None:
        self._members: set[Member] = set()
        self._users: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members))

    def enter(self, member: Member, remote: str, *, most: int) -> None:
        """Count a connection, of at most so many from the address. Raises: Limit, and it is not counted."""
        if address := counted(remote):
            if most and self._addresses[address] >= most:
                raise Limit("Too many connections from your address")
            self._addresses[address] += 1
        self._members.add(member)

    def login(self, user: str, *, most: int) -> None:
        """Count a user's session, of at most so many. Raises: Limit, and it is not counted."""
        if most and self._users[user] >= most:
            raise Limit("Too many sessions of this user")
        self._users[user] += 1

    def logout(self, user: str) -> None:
        """Uncount a session whose login did not come to its end."""
        _less(self._users, user)

    def leave(self, member: Member, remote: str, user: str) -> None:
        """Forget a connection that entered. user: "" if it never logged in."""
        if member not in self._members:
            return
        self._members.discard(member)
        if user:
            _less(self._users, user)
        if address := counted(remote):
            _less(self._addresses, address)


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
