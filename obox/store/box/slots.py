"""UIDs that are being written: handed out in order, made visible in order.

Theory of operation. `take` hands out the next UIDs; the key of the PUT is the first of
them. Each slot is resolved to one of four fates. Landed: our object is there, and the
slot has what it adds to the state. Void: no object of ours is there, or it counts for
nothing. Taken: another writer's object is under the key. Orphan: our object has landed,
but the group that it belongs to has failed. Slots become visible from the lowest on, as
far as they are resolved. So a new UID becomes visible only when every lower UID is
resolved. A taken slot stops the hand-out. When all slots in flight are resolved, the
owner LISTs what the others wrote, and each writer that lost its UID takes another UID.

    taken out -> landed -> visible
              -> void   -> skipped (a burnt claim)
              -> taken  -> refresh; every slot in flight above it is tried again
              -> orphan -> refresh; expunged in the journal, then skipped

Two writers. A writer that loses a UID LISTs and reads what the other has written. That
takes longer than the other's next PUT, so the next UID would be lost as well, and the
writer would starve. So a writer that has lost a UID takes turns with the other. The
bucket decides whose turn it is: it is the other's turn if the highest UID is ours. In
its turn a writer takes UIDs once, for all waiting senders, but at most twice as many as
the other took in its last turn (TURN_UIDS at least). Then it LISTs, with growing
pauses, until the other has written. After YIELD_S without a mail of the other writer it
works alone again. A writer that has lost nothing yet does not take turns. A writer that
loses to it LOSSES times in a row skips about as many UIDs as the other wrote between
the last two LISTs. Its objects land, the other fills the UIDs below them, loses the
first of them, and takes turns from then on (docs/format.md, "Turns").

    alone --lost--> our turn --all taken--> their turn --found theirs--> our turn
                                                       --nothing--> alone

Invariant: visible UIDs are a prefix of the UIDs that were handed out. This module does
not know the bucket.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from ...errors import Unavailable
from ...mailbox import Delta
from ..log.stage import Edit

WAIT_S: Final = 15.0
"""How long a sender waits for a refresh before it gets a temporary error."""

LOSSES: Final = 2
"""After this number of turns in a row in which all UIDs were lost, UIDs are skipped."""

AHEAD_MAX: Final = 1024
"""UIDs that may be skipped, and so burnt, at a time."""

YIELD_S: Final = 0.5
"""How long the other writer's turn is waited for. It is enough for some requests to a
slow store, and short in comparison with a delivery's time limit."""

ASK_S: Final = (0.005, 0.1)
"""The first and the longest pause before a LIST that looks for the other writer's turn.
The pause doubles."""

TURN_UIDS: Final = 4
"""The smallest number of UIDs of a turn. Beside a backend with ten senders, a backend
with a single sender then writes a fifth of the mails. With all ten in each turn it
would write an eleventh."""

NOTED_MAX: Final = 4096
"""Objects that a writer of batches notes for its LIST. After more of them without a
LIST it notes nothing until its next batch."""

UIDS_AT_ONCE: Final = 1 << 30
"""What `at_once` returns if no other writer is known: any number."""

SHOW_AT_ONCE: Final = 100
"""Slots that become visible in one turn of the loop: 4 ms. The others follow in the
next turns."""

Fate = Literal["pending", "landed", "void", "taken", "orphan"]


class Slot:
    """`count` UIDs from `uid` on, under a single key."""

    __slots__ = ("also", "count", "delta", "done", "elsewhere", "fate", "uid")

    def __init__(self, uid: int, count: int, done: asyncio.Future[bool]) -> None:
        self.uid = uid
        self.count = count
        self.fate: Fate = "pending"
        self.delta: Delta | None = None
        self.elsewhere: Callable[[Edit, int], None] | None = None
        """Called with the edit that shows the slot and its MODSEQ; adds changes of
        other mailboxes that belong to it."""
        self.also: Callable[[], None] | None = None
        """Called when the slot has become visible, in the same turn of the loop."""
        self.done = done
        """True when the slot is visible or skipped, False when its UID was lost and
        another must be taken."""


@dataclass(slots=True)
class Noted:
    """What we have written since a LIST: the UIDs from `first` on that we have handed
    out as keys, and how many batches were written after `since`. at: the time of the
    last of them. looking: whether a LIST compares it with the bucket (mails.beside)."""

    first: int
    since: float
    at: float = 0.0
    batches: int = 0
    looking: bool = False
    uids: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.at = self.since


class Slots:
    """The slots of a mailbox."""

    def __init__(
        self, show: Callable[[Slot], None], taken: Callable[[], None], chance: Callable[[], float] = random.random
    ) -> None:
        """show: called when a slot becomes visible or is skipped (landed or void).
        taken: called when a UID was lost; it must LIST and then call `refreshed`.
        chance: returns a number in [0, 1)."""
        self._show = show
        self._taken = taken
        self._chance = chance
        self._queue: deque[Slot] = deque()
        self._next = 0
        self.open = asyncio.Event()
        """Whether UIDs are handed out."""
        self.open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting = 0
        self._refresh = False
        """Resolved slots are shown by the refresh that follows when all slots are
        resolved."""
        self._lost = False
        """A UID was lost since the last refresh."""
        self._losses = 0
        """Refreshes in a row after a loss in which no mail of ours became visible."""
        self._reach = 0
        """A UID above all that the last refresh saw, also UIDs that it could not join
        yet."""
        self._ours_until = 0
        """A UID above our highest visible UID."""
        self._turns = False
        """Whether there is another writer, with which we take turns."""
        self._left = 0
        """UIDs that are left of our turn."""
        self._ahead = 0
        """UIDs that were skipped below those of our turn."""
        self._over = False
        """Whether our turn has ended, so that the hand-out is closed."""
        self._over_at = 0.0
        self._pause = 0.0
        self._shown = 0
        """Slots that became visible in this turn of the loop."""
        self._asking = False
        """Whether a refresh that looks for the other writer's turn is scheduled."""
        self.noted: Noted | None = None
        """None while no batches are written, and after a refresh."""

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def end(self) -> int:
        """Return a UID above all that were handed out."""
        return self._next

    @property
    def pending(self) -> bool:
        """Return whether a UID that was handed out is not resolved, or a sender waits
        for a UID."""
        return bool(self._queue or self._waiting or self._asking)

    async def take(self, uidnext: int, counts: list[int]) -> list[Slot]:
        """Hand out consecutive slots. counts: how many UIDs each slot has. The call
        waits while a refresh is under way, and for our turn.

        Raises Unavailable.
        """
        if not self.open.is_set():
            await self.ready()
        loop = asyncio.get_running_loop()
        self._next = max(self._next, uidnext)
        if self._turns:
            self._next += self._ahead
            self._refresh |= self._ahead > 0
            self._ahead = 0
            self._left -= sum(counts)
            if self._left <= 0:
                self._end_turn()
            else:
                # Senders that were woken at the same time take UIDs of this turn too.
                loop.call_soon(self._end_turn)
        slots = []
        for count in counts:
            slot = Slot(self._next, count, loop.create_future())
            self._next += count
            self._queue.append(slot)
            slots.append(slot)
        if self.noted is not None:
            if len(self.noted.uids) < NOTED_MAX:
                self.noted.uids.update([slot.uid for slot in slots])
            else:
                self.noted = None
        self._idle.clear()
        return slots

    async def ready(self) -> None:
        """Return when UIDs are handed out. Raises Unavailable."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._opened()
        except TimeoutError:
            raise Unavailable("the storage does not answer; try again later") from None

    def at_once(self) -> int:
        """Return how many UIDs `take` should hand out at once."""
        return max(1, self._left) if self._turns else UIDS_AT_ONCE

    async def _opened(self) -> None:
        """Return when UIDs are handed out."""
        self._waiting += 1
        try:
            # A sender that was woken before may have closed it again.
            while not self.open.is_set():
                self._ask()
                await self.open.wait()
        finally:
            self._waiting -= 1

    def _end_turn(self) -> None:
        self.open.clear()
        self._over = True

    def _ask(self) -> None:
        """LIST after a pause, to see whether the other writer has had its turn. Only
        while a sender waits."""
        if not self._over or not self._waiting or self._queue or self._asking:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._over_at >= YIELD_S:
            self._turns = self._over = False
            self._losses = 0
            self.open.set()
            return
        self._asking = True
        loop.call_later(self._pause, self._taken)
        self._pause = min(2 * self._pause, ASK_S[1])

    def _yield(self) -> None:
        """End our turn, all of which is visible."""
        self._over = True
        self._over_at, self._pause = asyncio.get_running_loop().time(), ASK_S[0]
        self._ask()

    def resolve(self, slot: Slot, fate: Fate, delta: Delta | None = None) -> None:
        """Set the fate of a slot, and show what can become visible."""
        slot.fate, slot.delta = fate, delta
        self._lost |= fate == "taken"
        if fate == "void" and slot.count > 1:
            # Only its first UID is burnt; the refresh decides the others.
            slot.count = 1
            self._refresh = True
        if fate in ("taken", "orphan"):
            self._refresh = True
        if self._refresh:
            self.open.clear()
            if all(other.fate != "pending" for other in self._queue):
                self._taken()
            return
        self._show_resolved()

    def _show_resolved(self) -> None:
        """Show the slots that nothing pending lies below, SHOW_AT_ONCE in a turn of the
        loop."""
        while self._queue and self._queue[0].fate != "pending":
            if self._shown == 0:
                asyncio.get_running_loop().call_soon(self._continue_showing)
            elif self._shown >= SHOW_AT_ONCE:
                return
            self._shown += 1
            self._finish(self._queue.popleft(), True)
        if self._over and not self._queue:
            self._yield()

    def _continue_showing(self) -> None:
        """Show what waits. The loop calls it in its next turn."""
        full, self._shown = self._shown >= SHOW_AT_ONCE, 0
        if full and not self._refresh:  # else all are shown by the refresh
            self._show_resolved()

    async def recheck(self) -> None:
        """Wait until all slots in flight are resolved, and refresh. Nothing new is
        handed out meanwhile."""
        await self._opened()
        self.open.clear()
        self._refresh = True
        if all(slot.fate != "pending" for slot in self._queue):
            self._taken()
        await self._opened()

    def show(self, until: int, lost: Callable[[Slot], bool]) -> bool:
        """Show our first slot if it lies up to a UID, after a LIST that joined what
        others wrote. A slot that `lost` names fails. Returns False if there is none."""
        if not self._queue or self._queue[0].uid > until:
            return False
        slot = self._queue.popleft()
        self._finish(slot, not (slot.fate == "taken" or lost(slot)))
        return True

    def meet(self) -> None:
        """Take turns from now on, because there is another writer. It is the other's
        turn once our slots in flight are resolved."""
        self._turns = True
        if self._refresh or self._over:
            return
        self._refresh = True
        self.open.clear()
        if all(slot.fate != "pending" for slot in self._queue):
            self._taken()

    def refreshed(self, uidnext: int, seen: int, others: int, batch: int = 0) -> None:
        """Hand out UIDs again after a refresh, or wait for the other writer's turn.

        seen: the highest UID that was listed, also above uidnext. others: mails that
        others wrote since the last time. batch: the largest number of them that lie in
        one object, 0 if they wrote no batches.
        """
        lost, asked = self._lost, self._asking
        self._lost = self._asking = self._refresh = False
        self.noted = None
        reach = max(uidnext, seen + 1)
        behind, self._reach = reach - self._reach, reach
        self._next, self._ahead = uidnext, 0
        if lost:
            self._turns = True
            self._losses += 1
        if self._turns and self._ours_until == reach:
            if asked:
                self._ask()
            else:
                self._yield()
            return
        if self._turns:
            self._left = max(TURN_UIDS, 2 * others)
            self._ahead = reach - uidnext
            if self._losses >= LOSSES:
                # A writer of batches finds our object between its own.
                most = batch * self._chance() if batch else behind * (0.5 + self._chance())
                self._ahead += min(AHEAD_MAX, 1 + int(most))
        self._over = False
        self.open.set()

    def _finish(self, slot: Slot, visible: bool) -> None:
        if visible:
            self._show(slot)
            if slot.fate == "landed":
                self._losses = 0
                self._ours_until = slot.uid + slot.count
        if not slot.done.done():
            slot.done.set_result(visible and slot.fate == "landed")
        if not self._queue:
            self._idle.set()

    def in_flight(self) -> list[Slot]:
        return list(self._queue)

    async def all_resolved(self) -> None:
        """Return when nothing is in flight."""
        await self._idle.wait()
