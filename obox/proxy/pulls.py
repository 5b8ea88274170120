"""The sources of `metacache pull` that are members of the cluster: the destination asks
them over the trusted link, and needs no key.

It does not know what is asked, nor what a stream holds (`obox.admin.pull`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from obox.auth import LinkRefused
from obox.cluster import Assigned, Member, There, View
from obox.errors import NoPerm
from obox.net import is_loopback

from . import calls
from .dial import place_of
from .forward import Forwarder


class Sources:
    """See `obox.admin.peers.Sources`."""

    def __init__(self, forwarder: Forwarder, view: View) -> None:
        self._forwarder = forwarder
        self._view = view

    def find(self, name: str, host: str, port: int | None) -> There | None:
        """See `obox.admin.peers.Sources`."""
        if not self._forwarder.secrets:
            return None
        backends = {key: one for key, one in self._view.members.items() if one.role == "backend"}
        found = [name] if name in backends else [key for key, one in backends.items() if _is_at(key, one, host, port)]
        if len(found) != 1:
            return None
        member = backends[found[0]]
        there = There(found[0], member.address, member.ports, Assigned(found[0], 0, 0))
        return there if _linked(there) else None

    @asynccontextmanager
    async def ask(self, there: There, question: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """See `obox.admin.peers.Sources`."""
        count = self._forwarder.counters.forward
        try:
            async with calls.pull(self._forwarder, there, question) as answer:
                yield answer.status, answer.body
        except LinkRefused as refused:
            self._forwarder.no_common_secret(there, calls.LISTENER, refused)
            raise NoPerm(f"{there.backend}: {refused}; all members need the same cluster.secret_file") from refused
        except OSError:
            count(calls.LISTENER, "unavailable")
            raise
        count(calls.LISTENER, "ok")


def _is_at(name: str, member: Member, host: str, port: int | None) -> bool:
    """Return whether a backend is at an address. Hosts often have the names of
    backends."""
    ports = (member.ports.get("http"), member.ports.get("https"))
    return host.lower() in (name.lower(), member.address.lower()) and (port is None or port in ports)


def _linked(there: There) -> bool:
    """Return whether the link may be used: under TLS, or on this machine."""
    try:
        place = place_of(there, "http")
    except ConnectionRefusedError:
        return False
    return place.tls or place.path is not None or is_loopback(place.host)
