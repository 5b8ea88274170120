"""A proxy of the simulated cluster. It has the product's view, router and forwarders. A
mail goes over the simulated network, with the product's protocols at both ends. An IMAP
connection is a call of the backend, which answers as the owner's end of the link does.

A backend that is suspended takes connections and says nothing. A session that is cut
ends without an answer, while its command may still take effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from obox.auth import Authenticator, PasswdFile
from obox.cluster import BackendMember, MemoryDirectory, Router, There, View
from obox.errors import Unavailable
from obox.proxy import Forwarder, Nowhere, ViewRouter
from obox.proxy.link import LOGIN_S
from obox.proxy.moves import Watch
from obox.proxy.waiting import PATIENCE_S
from obox.store import MailStore
from obox.types import StorageId

from .loop import Host
from .model import require
from .senders import Senders
from .world import Crash, Node, World

T = TypeVar("T")

ANSWERED_S = PATIENCE_S + LOGIN_S + 15.0
"""A client is served or refused by then: the last attempt may begin at the end of the
wait, and rows are read anew."""
NAME = "p"
SECRET = b"x" * 32
AUTHENTICATOR = Authenticator(PasswdFile(Path("/nowhere"), ""))
"""No password is checked here."""


def forwarder_of(name: str, router: Router) -> Forwarder:
    return Forwarder(router, [SECRET], AUTHENTICATOR, member=name)


class Session:
    """A client's session, in place of its `Node`."""

    def __init__(self, node: Node, watch: Watch | None = None) -> None:
        self._node = node
        self.watch = watch
        self.was_cut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def __repr__(self) -> str:
        return f"{self._node} through the proxy"

    @property
    def suspended(self) -> bool:
        return self._node.host.frozen

    def lives(self) -> bool:
        """Return whether neither the proxy nor the backend has ended it."""
        return not self.was_cut and not self._node.ended

    async def run(self, work: Callable[[MailStore], Coroutine[Any, Any, T]]) -> T:
        """See `Node.run`. Raises Crash also if the session was cut meanwhile."""
        result = await self._node.run(work)
        if self.was_cut:
            raise Crash(self._node.name)
        return result

    async def user(self, name: str = "anna") -> Any:
        return await self.run(lambda store: store.open_user(name, StorageId(name)))


class Proxy:
    """A life of a proxy's process. Make it, and `kill` it."""

    def __init__(
        self,
        world: World,
        way: MemoryDirectory,
        nodes: Mapping[str, Node],
        members: Mapping[str, BackendMember],
        senders: Senders | None = None,
    ) -> None:
        """way: to the directory. nodes, members: the backends as they are at the time.
        senders: those of mails, if the proxy takes mails."""
        self.world, self._nodes, self._members = world, nodes, members
        view = View(way, clock=world.clock, now=world.now, sleep=asyncio.sleep)
        self.forwarder = forwarder_of(NAME, ViewRouter(view, way))
        view.listen(self.forwarder.changed)
        self._polls = asyncio.ensure_future(view.run())
        self.host = Host()
        if senders is not None:
            self._lmtp = senders.serve(NAME, self.host, Nowhere(), self.forwarder)
            world.net.listen(NAME, self.host, self._lmtp.connection_factory)
        self.sessions: dict[Session, None] = {}
        self.dead = False
        self.served = self.refused = self.cut = 0
        """Clients that were served and refused, and sessions that were cut because the
        user had moved."""

    async def login(self, sid: StorageId) -> Session:
        """A client comes. End its session with `leave`. Raises Unavailable."""
        began = self.world.clock()
        try:
            session = await self.forwarder.at_owner(sid, "imap", lambda there: self._at(there, sid))
            if self.dead:
                raise Unavailable("the proxy is gone")
        except Unavailable:
            self.refused += 1
            raise
        finally:
            took = self.world.clock() - began
            require(took <= ANSWERED_S, "a client of the proxy waited", round(took, 1), "s")
        assert session is not None
        self.served += 1
        return session

    async def _at(self, there: There, sid: StorageId) -> Session:
        """Log in at a backend. Raises OSError, Referred, Unavailable."""
        async with asyncio.timeout(LOGIN_S):
            node = self._nodes[there.backend]
            if node.host.frozen:
                await asyncio.sleep(2 * LOGIN_S)
            if not node.up:
                raise ConnectionRefusedError
            owner = forwarder_of(there.backend, self._members[there.backend])
            try:
                await node.run(lambda store: owner.confirm(sid, there.assigned))
            except Crash as crash:
                raise ConnectionResetError from crash
        session = Session(node)
        self.sessions[session] = None
        session.watch = self.forwarder.moves.watch(there, (sid,), lambda: self._cut(session), finishes=True)
        return session

    def _cut(self, session: Session) -> None:
        self.cut += 1
        session.was_cut = True

    def leave(self, session: Session) -> None:
        """The client has ended its session."""
        if session.watch is not None:
            self.forwarder.moves.forget(session.watch)
        self.sessions.pop(session, None)

    def kill(self) -> None:
        """End the process: its clients get no answers any more."""
        self.dead = True
        self._polls.cancel()
        self.host.die()
        for session in self.sessions:
            session.was_cut = True

    def at_rest(self) -> bool:
        """Return whether nobody waits, and nothing is watched."""
        return not self.forwarder.waiting.count and not self.forwarder.moves and not self.sessions


__all__ = ["NAME", "Proxy", "Session", "forwarder_of"]
