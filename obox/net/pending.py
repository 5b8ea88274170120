"""Connections that have shown nothing yet are bounded; newcomers are never refused.

A connection is pending until its PROXY header has come, until its TLS handshake is
done, or, in HTTP, while no request is under way. Strangers can open any number of
these. When there are too many, the oldest is dropped for the newcomer: the oldest of an
address that has more than its share, otherwise the oldest of the address that has most.

Invariant: each entry ends once, by `leave` or by being dropped. It refuses to know what
a connection is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from obox.addresses import counted

PENDING_MAX: Final = 1024
"""Of one listening address: with TLS each holds some 50 KiB."""
PENDING_ADDRESS_MAX: Final = 256
"""Of one client address: an office whose clients all come back at once."""


class Entry:
    """One pending connection, or one that was."""

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
        """How many had to give way."""

    def __len__(self) -> int:
        return self._count

    def enter(self, remote: str, drop: Callable[[], object]) -> Entry:
        """Count a connection; another may be dropped for it.

        drop: called once if this connection has to give way.
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
        """It is pending no more. An entry that was dropped may leave again."""
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
