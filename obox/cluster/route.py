"""The router: protocols ask it where a user is served, before they open a mailbox."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from obox.types import StorageId

from .records import Assigned


class Here(NamedTuple):
    """This process serves the user."""

    assigned: Assigned


class There(NamedTuple):
    """Another backend serves the user.

    address: a host, or "unix:/directory"; ports: by listener, as the backend has
    registered them.
    """

    backend: str
    address: str
    ports: dict[str, int]
    assigned: Assigned


class Router(Protocol):
    """The answers come from memory where that is possible."""

    async def route(self, sid: StorageId) -> Here | There:
        """Return who serves a user. Raises Unavailable: nobody does at the moment."""

    def known(self, sid: StorageId) -> Here | There | None:
        """Return who serves a user by the rows that were read last, without waiting.
        None: that is not known."""

    async def reread(self, sid: StorageId, seen: Assigned) -> Here | There:
        """Return who serves a user, after another member has named the assignment
        `seen`. The row is read again unless a newer row is known already. If both
        assignments have the same number and differ, a user of this process is marked
        for a merge. Raises Unavailable.
        """
