"""Where a user is served: what protocols ask before they open a mailbox."""

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
    """Answers from memory where it can."""

    async def route(self, sid: StorageId) -> Here | There:
        """Who serves a user. Raises Unavailable: nobody does at the moment."""

    def known(self, sid: StorageId) -> Here | There | None:
        """The same without waiting: what was read last. None: not known."""

    async def reread(self, sid: StorageId, seen: Assigned) -> Here | There:
        """The same after another member has said something else: reads the row anew
        unless what is known here is at least as new as `seen`. If both have the same
        number and differ, a user of this process is marked for a merge. Raises
        Unavailable.
        """
