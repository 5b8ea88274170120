"""Bounds the connections that have sent nothing valid yet. New clients are never
refused.

A connection is pending until its PROXY header has come and its TLS handshake is done.
In HTTP it is also pending while no request is under way. Anybody can open any number of
such connections. When there are too many, an old connection is dropped for the new
client. If the client's address has more than its share, its oldest connection is
dropped. Otherwise it is the oldest connection of the address that has most.

Invariant: each entry ends once, by `leave` or by being dropped. This module does not
know what a connection is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from obox.addresses import counted

PENDING_MAX: Final = 1024
"""Limit for one listening address. With TLS each connection holds some 50 KiB."""
PENDING_ADDRESS_MAX: Final = 256
"""Limit for one client address. All clients of an office may reconnect at once."""


class Entry:
    """A connection that is or was pending."""

    __slots__ = ("address", "drop")

    def __init__(self, address: str, drop: Callable[[], object]) -> None:
        self.address = address
        self.drop = drop


class Pending:
    """The pending connections of one listening address."""

    def __init__(self, total_max: int = PENDING_MAX, address_max: int = PENDING_ADDRESS_MAX) -> None:
        self._total_max = total_max
        self._address_max = address_max
        self._entries: dict[str, OrderedDict[Entry, None]] = {}
        self._count = 0
        self.dropped = 0
        """How many connections were dropped for new clients."""

    def __len__(self) -> int:
        return self._count

    def enter(self, remote: str, drop: Callable[[], object]) -> Entry:
        """Count a connection; another may be dropped for it.

        drop: called once, if this connection is dropped for another.
        """
        entry = Entry(counted(remote), drop)
        entries = self._entries.setdefault(entry.address, OrderedDict())
        entries[entry] = None
        self._count += 1
        if entry.address and len(entries) > self._address_max:
            self._drop(entries)
        elif self._count > self._total_max:
            self._drop(max(self._entries.values(), key=len))
        return entry

    def leave(self, entry: Entry) -> None:
        """Note that the connection is no longer pending. An entry that was dropped may
        leave again."""
        entries = self._entries.get(entry.address)
        if entries is None or entry not in entries:
            return
        del entries[entry]
        self._count -= 1
        if not entries:
            del self._entries[entry.address]

    def _drop(self, entries: OrderedDict[Entry, None]) -> None:
        entry = next(iter(entries))
        self.leave(entry)
        self.dropped += 1
        entry.drop()
