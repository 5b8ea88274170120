"""Which users this backend serves, and under which generation it compares their local copies.

A cluster assigns users in units: a group of users, or a single user that is pinned. A backend alone
has a single unit with everybody in it. Each unit has a generation, a number that is given out once.
A local copy whose stamp has the generation of its unit was compared with the bucket since the unit
came here, and is trusted (`stamp.trust`). A unit that leaves loses its generation. When it comes
back it gets a new one, so every copy of its users is compared once more.

    gain: a new generation -> served -> hold (nobody opens its users) -> lose

Invariant: a generation is never given to two units' stays, nor twice to one unit.
Refuses to know: how groups are assigned, what a directory is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec

from ..errors import Elsewhere, Unavailable
from .stamp import FIRST_GENERATION

EVERYBODY: Final = ""
"""The unit of a backend alone."""

HOLD_S: Final = 1.0
"""How long an open waits while its user is handed over: what a client does not notice."""

NOT_OWNED: Final = 0
"""The generation of a unit that is not here: no copy that is kept has it."""


class Tag(NamedTuple):
    """What tells one assignment of a unit from another: its number and its random token."""

    number: int
    token: int


class Cluster(Protocol):
    """What the store asks of the cluster; `obox.cluster` answers."""

    def unit_of(self, sid: str) -> str:
        """The unit of a user: always the same, until the user is pinned."""

    async def ready(self) -> None:
        """Return once it is known which units are this backend's."""

    def units(self) -> Mapping[str, Tag]:
        """The units that are assigned to this backend, as far as is known."""

    def number(self) -> int:
        """The highest number of an assignment that was ever seen here."""

    async def fenced(self, boot: str) -> None:
        """This boot of ours was fenced: read anew which units are this backend's, and give the rest up.

        Returns when `Owned` is right again, however long the directory does not answer. It must not wait for the
        journal, whose writer waits here.
        """


class _Stay(msgspec.Struct, array_like=True):
    """One unit as the local state remembers it."""

    number: int
    token: int
    generation: int


class _Remembered(msgspec.Struct, array_like=True):
    generation: int
    units: dict[str, _Stay] = {}


class Owned:
    """See the module's text."""

    def __init__(self, unit_of: Callable[[str], str] | None = None) -> None:
        """unit_of: the unit of a storage id; None: a backend alone."""
        self.alone = unit_of is None
        self._unit_of = unit_of
        self._last = FIRST_GENERATION
        self._units: dict[str, _Stay] = {}
        self._left: dict[str, asyncio.Event] = {}
        """Units that are being handed over, each with the event that ends it."""
        self.unclean: set[str] = set()
        """Units whose owner before ended uncleanly: clients may know MODSEQs that are nowhere."""
        if self.alone:
            self._units[EVERYBODY] = _Stay(0, 0, FIRST_GENERATION)

    # -- asking ----------------------------------------------------------------------------------------------------

    def unit_of(self, sid: str) -> str:
        """The unit of a user."""
        return EVERYBODY if self._unit_of is None else self._unit_of(sid)

    def owns(self, sid: str) -> bool:
        """Whether this backend serves the user at present."""
        return self.alone or self.unit_of(sid) in self._units

    def holds(self, unit: str) -> bool:
        """Whether a unit is here at present."""
        return unit in self._units

    def generation_of(self, sid: str) -> int:
        """See the module's text; NOT_OWNED for a user of another backend."""
        stay = self._units.get(self.unit_of(sid))
        return NOT_OWNED if stay is None else stay.generation

    def is_unclean(self, sid: str) -> bool:
        """Whether the owner before may have shown MODSEQs that are nowhere."""
        return self.unit_of(sid) in self.unclean

    @property
    def units(self) -> Mapping[str, Tag]:
        """What is here at present."""
        return {unit: Tag(stay.number, stay.token) for unit, stay in self._units.items()}

    async def admit(self, sid: str) -> None:
        """Return when a session may open the user. Raises Elsewhere, Unavailable: it is being handed over."""
        if self.alone:
            return
        unit = self.unit_of(sid)
        if (leaving := self._left.get(unit)) is not None:
            try:
                async with asyncio.timeout(HOLD_S):
                    await leaving.wait()
            except TimeoutError:
                raise Unavailable("the user is being handed over to another backend; try again") from None
        if unit not in self._units:
            raise Elsewhere("another backend serves the user; try again")

    # -- changing --------------------------------------------------------------------------------------------------

    def gain(self, units: Mapping[str, Tag], *, unclean: bool = False) -> None:
        """Units have come: their users are served from now on, and every copy is compared. unclean: see `unclean`."""
        self._last += 1
        for unit, tag in units.items():
            self._units[unit] = _Stay(tag.number, tag.token, self._last)
            (self.unclean.add if unclean else self.unclean.discard)(unit)

    def keep(self, units: Mapping[str, Tag]) -> set[str]:
        """At a start: the units that are still assigned as they were when the state was written; others are dropped."""
        kept = {unit for unit, stay in self._units.items() if units.get(unit) == Tag(stay.number, stay.token)}
        self._units = {unit: stay for unit, stay in self._units.items() if unit in kept}
        return kept

    def renumber(self, units: Mapping[str, Tag]) -> None:
        """Units that stay here under another assignment: what is known of their copies holds."""
        for unit, tag in units.items():
            if (stay := self._units.get(unit)) is not None:
                self._units[unit] = _Stay(tag.number, tag.token, stay.generation)

    def doubt(self, units: Iterable[str] | None = None) -> None:
        """Compare every copy of these units again, of all by default."""
        self._last += 1
        for unit in list(self._units) if units is None else units:
            if (stay := self._units.get(unit)) is not None:
                self._units[unit] = _Stay(stay.number, stay.token, self._last)

    def hold(self, units: Iterable[str]) -> None:
        """Let nobody open users of these units until `release` or `lose`."""
        for unit in units:
            self._left.setdefault(unit, asyncio.Event())

    def release(self, units: Iterable[str]) -> None:
        """End a hold: the units stay."""
        for unit in units:
            if (leaving := self._left.pop(unit, None)) is not None:
                leaving.set()

    def lose(self, units: Iterable[str]) -> None:
        """The units are another's from now on; ends a hold."""
        units = list(units)
        for unit in units:
            self._units.pop(unit, None)
            self.unclean.discard(unit)
        self.release(units)

    # -- the local state -------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """For the local state."""
        if self.alone:
            return str(self._units[EVERYBODY].generation).encode()
        return msgspec.msgpack.encode(_Remembered(self._last, self._units))

    def load(self, data: bytes | None) -> None:
        """Take up what an earlier life wrote; a backend that was alone and is not any more trusts no copy."""
        if not data:
            return
        if data.isdigit():
            self._last = max(self._last, int(data))
            if self.alone:
                self._units[EVERYBODY] = _Stay(0, 0, self._last)
            return
        try:
            found = msgspec.msgpack.decode(data, type=_Remembered)
        except msgspec.MsgspecError:
            return
        self._last = max(self._last, found.generation)
        if self.alone:
            self.doubt()
        else:
            self._units = dict(found.units)
