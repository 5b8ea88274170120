"""What a member gets: its store, the world around it, and what it says about itself.

This module does not know what a member does with them (`member`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .records import Assigned, Member, Orders, State

Hand = Callable[[frozenset[str]], Awaitable[frozenset[str]]]
"""A function that writes the rows of units, and returns those that are given."""


class Store(Protocol):
    """What a member needs of the backend's store. `obox.membership` implements it."""

    def held(self) -> Mapping[str, tuple[int, int]]:
        """Return number and token of the assignment of each unit that is served."""

    def holds(self, unit: str) -> bool:
        """Return whether a unit is served."""

    def boot(self) -> str:
        """Return the present boot of the journal."""

    def forms(self) -> Mapping[str, int] | None:
        """Return the versions that `_format` in the bucket allows (`obox.forms`), None
        before the start."""

    async def raise_forms(self, wanted: Mapping[str, int]) -> None:
        """Allow these versions in `_format`, and write them afterwards. Raises
        Unavailable."""

    def split(self, group: str, unit: str) -> None:
        """Make a user of a group a unit of its own, without an assignment."""

    def renumber(self, unit: str, row: Assigned) -> None:
        """Give a unit that is served another assignment. Its copies stay trusted."""

    async def gain(self, units: Mapping[str, Assigned], fence: Sequence[tuple[str, str]], *, orderly: bool) -> None:
        """Serve units. Raises Unavailable, Corrupt."""

    async def release(self, units: Sequence[str], hand: Hand) -> frozenset[str]:
        """Give units up. `hand` writes the rows of those that can be given, and returns
        the units that are given. Returns the same units. Raises Unavailable, InUse,
        Corrupt."""

    async def lose(self, units: Sequence[str]) -> int:
        """Stop serving units that another backend has, and upload what is left. Returns
        for how many users changes were uploaded."""

    async def doubt(self, units: Sequence[str]) -> None:
        """Compare the users of units with the bucket, because another backend has
        written to them."""

    async def sweep(self, clears: Callable[[str], bool]) -> Collection[tuple[str, str]]:
        """Look for boots that are over and have changes of users of this backend.
        Returns the boots of other backends, as (backend, boot), that are not clean by
        the bucket. clears: whether this backend deletes what a backend has left."""


@dataclass(frozen=True)
class Myself:
    """What a backend writes to the directory about itself.

    joins_as: its state if the directory does not know it and its site has a backend
    already. make_settings: makes the directory's settings if there are none, and
    refuses a name that another backend has.
    """

    member: Member
    joins_as: State
    make_settings: Callable[[], Awaitable[object]]

    def state(self, me: str, members: Mapping[str, Member], orders: Mapping[str, Orders]) -> State:
        """Return the state in which a new backend joins. The first backend of a site
        serves, because nobody else would."""
        others = (
            name
            for name, member in members.items()
            if name != me and member.role == "backend" and member.site == self.member.site
        )
        used = (State.ONLINE, State.STANDBY)
        served = any(orders.get(name, Orders()).state in used for name in others)
        return self.joins_as if served else State.ONLINE


@dataclass(frozen=True)
class World:
    """Time, randomness, load, and other backends. now: unix seconds. clock: monotonic
    seconds. load: see `Beat`. greets: whether a backend, None if it is not registered,
    answers a connection. gone: backends whose process is known to have ended.
    """

    now: Callable[[], float]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    random_bytes: Callable[[int], bytes]
    load: Callable[[], Mapping[str, float]]
    greets: Callable[[Member | None], Awaitable[bool]]
    gone: Callable[[], Collection[str]] = tuple


@dataclass
class Counts:
    """What a member has done since it began. fences: boots of other backends that it
    has fenced; fenced: boots of its own that other backends have fenced; gains,
    releases, losses: units; merges: units to which another backend had written, too.
    """

    fences: int = 0
    fenced: int = 0
    gains: int = 0
    releases: int = 0
    losses: int = 0
    merges: int = 0
