"""Whose password is hashed next: a queue for each address, served in turn.

Theory of operation. `running_max` passwords are hashed at a time. A login that comes
while all places are busy waits in the queue of its address. A place that becomes free
goes to the next address in the round, which then goes to the end of the round. A client
therefore waits for one hash of every other address that waits, however many logins each
of those has sent.

Limits. An address may have `address_max` in the queue, and all together `total_max`.
When that is reached, the youngest login of the address with the most gives its place to
a new login whose address has fewer.

Invariant: a waiting client is granted a place, displaced, or cancelled, exactly once.
This module does not know passwords or why an address matters.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from typing import Final

ADDRESS_MAX: Final = 64
"""An address may have at most 64 logins in progress or waiting. This is a quarter of
all; at 50 ms a hash they take two cores 1.6 s.
"""


class Refused(Exception):
    """There is no place. own: because of the other logins of the same address."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.own = own


class FairQueue:
    """See the module's text. Everything runs on a single event loop."""

    def __init__(self, *, running_max: int, total_max: int, address_max: int = ADDRESS_MAX) -> None:
        self._running_max = running_max
        self._total_max = total_max
        self._address_max = address_max
        self._running = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """address -> waiting logins, the oldest first. The first address is the next in
        the round.
        """
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._counts.total()

    async def enter(self, address: str) -> None:
        """Wait for a turn; `leave` has to follow.

        address: "" for this machine's own, which has no limit of its own. Raises
        Refused: at once, or later if this login has to give its place away.
        """
        if address and self._counts[address] >= self._address_max:
            raise Refused(own=True)
        if len(self) >= self._total_max:
            self._displace(address)
        self._counts[address] += 1
        if self._running < self._running_max:  # nobody waits in this case
            self._running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(address, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(address, turn)
            elif turn.exception() is None:  # it was granted at the same moment
                self.leave(address)
            raise

    def leave(self, address: str) -> None:
        """Give the place of a finished hash to the next address in the round."""
        self._uncount(address)
        self._running -= 1
        while self._waiting and self._running < self._running_max:
            following, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            if turns:
                self._waiting.move_to_end(following)
            else:
                del self._waiting[following]
            if not turn.done():  # else it was cancelled and corrects the counts itself
                turn.set_result(None)
                self._running += 1

    def _displace(self, address: str) -> None:
        """Take the place of the youngest login of another address.

        Raises Refused if no address has much more than this address.
        """
        longest = max(self._waiting, key=lambda other: len(self._waiting[other]), default=address)
        there = len(self._waiting.get(longest, ()))
        if there < self._counts[address] + 2:
            raise Refused(own=there > 0 and longest == address)
        # there are at least two, so the queue stays
        turn = self._waiting[longest].pop()
        if not turn.done():  # else it was cancelled and corrects the counts itself
            self._uncount(longest)
            turn.set_exception(Refused(own=True))

    def _forget(self, address: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(address)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[address]
        self._uncount(address)

    def _uncount(self, address: str) -> None:
        self._counts[address] -= 1
        if self._counts[address] <= 0:
            del self._counts[address]
