"""The users that this backend serves, and the generation under which it compares their
local copies.

A cluster assigns users in units. A unit is a group of users, or a single pinned user.
Without a cluster, a backend has a single unit of all users. Each unit has a generation,
a number that is used once. A local copy whose stamp has the generation of its unit was
compared with the bucket after the unit was gained, and is trusted (`stamp.trust`). A
unit that is lost loses its generation. If it is gained again, it gets a new generation,
so every copy of its users is compared again.

    gain: a new generation -> served -> hold (nobody opens its users) -> lose

Invariant: each gain has its own generation. This module does not know how groups are
assigned, or what a directory is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec

from ..errors import Elsewhere, Unavailable
from .stamp import FIRST_GENERATION

EVERYBODY: Final = ""
"""The unit of a backend without a cluster."""

HOLD_S: Final = 1.0
"""How long an open waits while its user is handed over. A client does not notice
that."""


class Tag(NamedTuple):
    """The identity of an assignment of a unit: its number and its random token."""

    number: int
    token: int


class Cluster(Protocol):
    """What the store asks of the cluster. `obox.cluster` implements it."""

    def unit_of(self, sid: str) -> str:
        """Return the unit of a user. It stays the same, but for a user who is pinned
        for the first time: that user is a unit of its own from then on."""

    async def ready(self) -> None:
        """Return once the units of this backend are known."""

    def units(self) -> Mapping[str, Tag]:
        """Return the units that are assigned to this backend, as far as is known."""

    def number(self) -> int:
        """Return the highest number of an assignment that was ever seen here."""

    async def confirm(self) -> None:
        """Read the units again if that was not tried lately, because the machine or the
        process was suspended, and give up those of others. It does not wait long."""

    async def fenced(self, boot: str) -> None:
        """Handle that this boot was fenced: read the units of this backend again, and
        give up the others.

        Returns when `Owned` is correct again, however long the directory does not
        answer. It must not wait for the journal, because the journal's writer waits for
        it.
        """


class _Stay(msgspec.Struct, array_like=True):
    """A unit as it is recorded in the local state."""

    number: int
    token: int
    generation: int


class _Remembered(msgspec.Struct, array_like=True):
    generation: int
    units: dict[str, _Stay] = {}


class Owned:
    """See the module's text."""

    def __init__(self, unit_of: Callable[[str], str] | None = None) -> None:
        """unit_of: returns the unit of a storage id. None: there is no cluster."""
        self.alone = unit_of is None
        self._unit_of = unit_of
        self._last = FIRST_GENERATION
        self._units: dict[str, _Stay] = {}
        self._left: dict[str, asyncio.Event] = {}
        """Units that are being handed over, each with the event that ends it."""
        self.unclean: set[str] = set()
        """Units whose previous owner crashed, so that clients may know MODSEQs that no
        object has."""
        if self.alone:
            self._units[EVERYBODY] = _Stay(0, 0, FIRST_GENERATION)

    # -- asking ----------------------------------------------------------------------------------------------------

    def unit_of(self, sid: str) -> str:
        """Return the unit of a user."""
        return EVERYBODY if self._unit_of is None else self._unit_of(sid)

    def owns(self, sid: str) -> bool:
        """Return whether this backend serves the user at present."""
        return self.alone or self.unit_of(sid) in self._units

    def require(self, sid: str) -> None:
        """Raises Elsewhere if another backend serves the user."""
        if not self.owns(sid):
            raise Elsewhere("another backend serves the user; try again")

    def holds(self, unit: str) -> bool:
        """Return whether a unit is here at present."""
        return unit in self._units

    def generation_of(self, sid: str) -> int | None:
        """Return the generation of a user's unit; None for a user of another
        backend."""
        stay = self._units.get(self.unit_of(sid))
        return None if stay is None else stay.generation

    def is_unclean(self, sid: str) -> bool:
        """Return whether the previous owner may have shown MODSEQs that no object
        has."""
        return self.unit_of(sid) in self.unclean

    @property
    def units(self) -> Mapping[str, Tag]:
        """Return the units that this backend serves at present."""
        return {unit: Tag(stay.number, stay.token) for unit, stay in self._units.items()}

    async def admit(self, sid: str) -> None:
        """Return when a session may open the user. Raises Elsewhere, and Unavailable if
        the user is being handed over."""
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
        """Serve the users of these units from now on. Every copy of them is compared.
        unclean: see `unclean`."""
        self._last += 1
        for unit, tag in units.items():
            self._units[unit] = _Stay(tag.number, tag.token, self._last)
            (self.unclean.add if unclean else self.unclean.discard)(unit)

    def keep(self, units: Mapping[str, Tag]) -> set[str]:
        """Keep, at a start, the units that are still assigned as they were when the
        state was written. Returns them; others are dropped."""
        kept = {unit for unit, stay in self._units.items() if units.get(unit) == Tag(stay.number, stay.token)}
        self._units = {unit: stay for unit, stay in self._units.items() if unit in kept}
        return kept

    def split(self, unit: str, alone: str) -> None:
        """Make a user of a unit a unit of its own, without an assignment. Its copies
        stay trusted until it is gained."""
        stay = self._units.get(unit)
        if stay is not None and alone not in self._units:
            self._units[alone] = _Stay(0, 0, stay.generation)
            if unit in self.unclean:
                self.unclean.add(alone)

    def renumber(self, units: Mapping[str, Tag]) -> None:
        """Set another assignment of units that stay here. Their copies stay trusted."""
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
        """End a hold of units that stay."""
        for unit in units:
            if (leaving := self._left.pop(unit, None)) is not None:
                leaving.set()

    def lose(self, units: Iterable[str]) -> None:
        """Stop serving units, which another backend has from now on. Ends a hold."""
        units = list(units)
        for unit in units:
            self._units.pop(unit, None)
            self.unclean.discard(unit)
        self.release(units)

    # -- the local state -------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Return the units as bytes for the local state."""
        if self.alone:
            return str(self._units[EVERYBODY].generation).encode()
        return msgspec.msgpack.encode(_Remembered(self._last, self._units))

    def load(self, data: bytes | None) -> None:
        """Load what an earlier process wrote. If the backend has become part of a
        cluster since, no copy is trusted."""
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
