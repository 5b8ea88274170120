"""A backend's store and its member of the cluster, made known to each other.

`obox.store` and `obox.cluster` know nothing of each other: each says as a Protocol what it asks of
the other side. `Membership` answers both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from .cluster import Assigned, BackendMember
from .errors import Unavailable
from .store import MailStore, handover
from .store.handover import Kick
from .store.owned import Tag


class Membership:
    """`store.owned.Cluster` for the store, and `cluster.member.Store` for the member.

    Make it, then the store with it, then the member with it; `bind` makes the three whole.
    """

    def __init__(self) -> None:
        self._store: MailStore
        self._member: BackendMember
        self._kick: Kick

    def bind(self, store: MailStore, member: BackendMember, kick: Kick) -> None:
        """kick: ends the sessions and deliveries of users."""
        self._store, self._member, self._kick = store, member, kick

    # -- for the store ---------------------------------------------------------------------------------------------

    def unit_of(self, sid: str) -> str:
        return self._member.unit_of(sid)

    async def ready(self) -> None:
        await self._member.ready()

    def units(self) -> Mapping[str, Tag]:
        return {unit: Tag(*tag) for unit, tag in self._member.units().items()}

    def number(self) -> int:
        return self._member.number()

    async def fenced(self, boot: str) -> None:
        self._store.spawn(handover.go_on(self._store, boot))
        self._store.env.owned.lose(await self._member.reread_rows())

    # -- for the member --------------------------------------------------------------------------------------------

    def held(self) -> Mapping[str, tuple[int, int]]:
        return self._store.env.owned.units

    def boot(self) -> str:
        return self._store.journal.boot

    async def gain(self, units: Mapping[str, Assigned], fence: Sequence[tuple[str, str]], *, orderly: bool) -> None:
        await self._started()
        tags = {unit: Tag(row.number, row.token) for unit, row in units.items()}
        await handover.gain(self._store, tags, fence, orderly=orderly)

    async def release(self, units: Sequence[str], hand: Callable[[], Awaitable[bool]]) -> bool:
        await self._started()
        return await handover.release(self._store, frozenset(units), self._kick, hand)

    async def lose(self, units: Sequence[str]) -> int:
        await self._started()
        return len(await handover.lose(self._store, frozenset(units), self._kick))

    async def doubt(self, units: Sequence[str]) -> None:
        await self._started()
        await handover.doubt(self._store, frozenset(units))

    async def sweep(self) -> None:
        await self._started()
        await handover.sweep(self._store)

    async def _started(self) -> None:
        """Raises Unavailable: the store has not started, or is closing."""
        await self._store.beginning.decided()
        if not self._store.started:
            raise Unavailable("the store has not started")
