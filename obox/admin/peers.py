"""What verbs ask of other members of a cluster, over the trusted link; `obox.proxy` and
`obox.relay` do it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from ..accounts import Account

if TYPE_CHECKING:
    from ..cluster import Assigned, Member, There


class Sources(Protocol):
    """Backends of the cluster as sources of `metacache pull`, over the trusted link."""

    def find(self, name: str, host: str, port: int | None) -> There | None:
        """Return the backend of this name, or the one at this address if the link may
        be used there. port: None if none was given."""

    def ask(self, there: There, question: bytes) -> AbstractAsyncContextManager[tuple[int, AsyncIterator[bytes]]]:
        """Ask a source: the HTTP status, and the body. Raises OSError, NoPerm."""


class Kick(Protocol):
    """Asks the owner of a user, over the trusted link, to end the user's sessions."""

    async def __call__(self, backend: str, member: Member, account: Account, assigned: Assigned) -> int:
        """Return how many it ended. Raises NoPerm, Unavailable, Temporary."""
