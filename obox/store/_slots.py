"""UIDs that are being written: handed out in order, made visible in order.

Theory of operation. `take` hands out the next UIDs; the key of the PUT is the first of them. Each slot ends settled,
one of: landed (with what it adds to the state), void (nothing of ours is there, or what is there counts for nothing),
taken (somebody else's object is under the key), orphan (ours has landed, but the group that it belongs to has failed).
Slots become visible from the lowest on, as far as they are settled: so a new UID shows only when every lower one is
decided. A taken slot stops the hand-out: when all slots in flight are settled the owner LISTs what the others wrote,
and whoever lost its UID takes another.

    taken out -> landed -> visible
              -> void   -> skipped (a burnt claim)
              -> taken  -> refresh; every slot in flight above it is tried again
              -> orphan -> refresh; expunged in the journal, then skipped

Who loses a UID LISTs and reads what the other has written; meanwhile that one writes on, and the loser's next UID is
taken before it is tried: one of two writers would starve. Two rules work against that. After LOSSES in a row the next
UIDs are taken further ahead, by about as many as the other wrote in the last round: the PUT lands then, the refresh
that follows burns what is still free below, and the other loses a UID in its turn. And who has lost one and had written
more than the others waits before it goes on, in proportion.

Invariant: visible UIDs are a prefix of those handed out. Refuses to know: the bucket.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final, Literal

from ..errors import Unavailable
from ..mailbox import Delta
from .stage import Edit

WAIT_S: Final = 15.0
"""For a refresh to end, before the sender is told to try again."""

LOSSES: Final = 2
"""UIDs lost in a row, before the next one is taken ahead: one loss is what two writers do to each other anyway."""

YIELD_S: Final = 0.5
"""The longest wait of one who has written more than the others: short beside what a delivery may take."""

YIELD_TIMES: Final = 3
"""... and how long it is, in times of the time in which one wrote more: the others LIST and read first."""

AHEAD_MAX: Final = 1024
"""UIDs that may be left free, and so burnt, below one that is taken ahead."""

Fate = Literal["pending", "landed", "void", "taken", "orphan"]


class Slot:
    """`count` UIDs from `uid` on, under one key."""

    __slots__ = ("also", "count", "delta", "done", "elsewhere", "fate", "uid")

    def __init__(self, uid: int, count: int, done: asyncio.Future[bool]) -> None:
        self.uid = uid
        self.count = count
        self.fate: Fate = "pending"
        self.delta: Delta | None = None
        self.elsewhere: Callable[[Edit, int], None] | None = None
        """Adds to the edit that shows the slot, under this modseq, what changes with it in other mailboxes."""
        self.also: Callable[[], None] | None = None
        """Called when the slot has become visible, in the same turn of the loop."""
        self.done = done
        """True when visible (or skipped), False when the UID was lost and another must be taken."""


class Slots:
    """The slots of one mailbox."""

    def __init__(
        self, show: Callable[[Slot], None], taken: Callable[[], None], chance: Callable[[], float] = random.random
    ) -> None:
        """show: a slot's turn has come (its fate is landed or void); taken: call `refreshed` after a LIST; chance: a
        number in [0, 1)."""
        self._show = show
        self._taken = taken
        self._chance = chance
        self._lost_uid = 0
        """The lowest UID lost since the last refresh; 0: none."""
        self._behind = 0
        """So many UIDs the others took while we lost one and LISTed."""
        self._losses = 0
        """UIDs lost in a row."""
        self._landed = 0
        """UIDs of ours since the last refresh."""
        self._refreshed_at = 0.0
        self._jumped = False
        self._queue: deque[Slot] = deque()
        self._next = 0
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def pending(self) -> bool:
        """Some UID handed out is not settled."""
        return bool(self._queue)

    async def take(self, uidnext: int, counts: list[int]) -> list[Slot]:
        """Hand out slots of so many UIDs each, neighbours; waits while a refresh is under way. Raises Unavailable."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not self._open.is_set():  # whoever was woken before may have closed it again
                    await self._open.wait()
        except TimeoutError:
            raise Unavailable("the storage does not answer; try again later") from None
        loop = asyncio.get_running_loop()
        self._next = max(self._next, uidnext)
        if self._losses >= LOSSES and not self._jumped:
            self._jumped = True
            self._next += 1 + min(AHEAD_MAX, int(self._behind * (0.5 + self._chance())))
            loop.call_soon(self._open.clear)  # whoever was woken with us goes along
        slots = []
        for count in counts:
            slot = Slot(self._next, count, loop.create_future())
            self._next += count
            self._queue.append(slot)
            slots.append(slot)
        self._idle.clear()
        return slots

    def settle(self, slot: Slot, fate: Fate, delta: Delta | None = None) -> None:
        """Say what became of a slot; shows what can be shown."""
        slot.fate, slot.delta = fate, delta
        if fate == "taken":
            self._lost_uid = min(slot.uid, self._lost_uid or slot.uid)
        if fate == "void" and slot.count > 1:
            slot.count = 1  # only its first UID is burnt: the others are decided by the refresh
            self._open.clear()
        if fate in ("taken", "orphan") or self._jumped:
            self._open.clear()
        if not self._open.is_set():
            if all(other.fate != "pending" for other in self._queue):
                self._taken()
            return
        while self._queue and self._queue[0].fate != "pending":
            self._finish(self._queue.popleft(), True)

    async def recheck(self) -> None:
        """Settle what is in flight and refresh, then return; nothing new is handed out meanwhile."""
        while not self._open.is_set():
            await self._open.wait()
        self._open.clear()
        if all(slot.fate != "pending" for slot in self._queue):
            self._taken()
        await self._open.wait()

    def show(self, until: int, lost: Callable[[Slot], bool]) -> None:
        """After a LIST that took in what others wrote: show our slots up to a UID that stand, fail those that `lost`
        names."""
        while self._queue and self._queue[0].uid <= until:
            slot = self._queue.popleft()
            self._finish(slot, not (slot.fate == "taken" or lost(slot)))

    def refreshed(self, uidnext: int, others: int = 0) -> None:
        """All is shown: hand out UIDs again. others: mails that others wrote since the last time."""
        loop = asyncio.get_running_loop()
        mine, since = self._landed, loop.time() - self._refreshed_at
        lost = self._lost_uid
        if lost:
            self._losses += 1
            self._behind = uidnext - lost
        self._lost_uid, self._jumped = 0, False
        self._landed, self._refreshed_at = 0, loop.time()
        self._next = uidnext
        if lost and mine > others > 0:
            loop.call_later(min(YIELD_S, YIELD_TIMES * since * (mine - others) / (mine + others)), self._open.set)
        else:
            self._open.set()

    def _finish(self, slot: Slot, visible: bool) -> None:
        if visible:
            self._show(slot)
            if slot.fate == "landed":
                self._losses = 0
                self._landed += slot.count
        if not slot.done.done():
            slot.done.set_result(visible and slot.fate == "landed")
        if not self._queue:
            self._idle.set()

    def in_flight(self) -> list[Slot]:
        return list(self._queue)

    async def settled(self) -> None:
        """Return when nothing is in flight."""
        await self._idle.wait()
