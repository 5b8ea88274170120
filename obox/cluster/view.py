"""What a member knows of the cluster. It reads the directory once a second.

Invariant: a view never goes back. Of two rows with one key the newer stays, whatever
the directory shows later. `newer` orders assignments, and the timestamp orders other
rows. So old answers, lost rows and a directory that was restored change nothing here. A
row that the directory shows in an older version, or not at all, is *behind* and is
written back.

The last good answer is kept in local state. While the directory does not answer, the
view uses this copy, also after a restart.

Diagnostics: a row that does not decode is ignored, and logged once. A directory that is
newer than this code is ConfigError, the only error that leaves `poll` and `run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import structlog

from obox.errors import Unavailable

from .assign import newer
from .directory import Directory, Kind, Row, next_timestamp
from .initial import refuse_newer_forms, settings_in
from .kept import Keeper, Kept
from .records import (
    RECORDS,
    SETTINGS_KEY,
    Assigned,
    Beat,
    BootRow,
    Member,
    Merge,
    Move,
    Orders,
    Settings,
    State,
    decode,
    encode,
    group_number,
)

log = structlog.get_logger()

POLL_S: Final = 1.0
"""A change of the directory is known everywhere within two polls."""

SETTINGS_POLLS: Final = 60
"""One of 60 polls reads the directory's own settings."""

BEHIND_POLLS: Final = 5
"""Any member writes a row back that was behind in five polls in succession. The member
that the row belongs to writes it back at once."""

WRITE_BACK_ROWS: Final = 64
"""At most 64 rows are written back in a pass. Some seconds suffice for an empty
directory."""

POLLED: Final = (Kind.GROUPS, Kind.PINS, Kind.MOVES, Kind.ORDERS, Kind.MEMBERS, Kind.MERGES, Kind.BEATS)
_KEPT: Final = (Kind.SETTINGS, *POLLED[:-1])
_ROWS_A_TURN: Final = 1000
_BAD_MAX: Final = 10_000
_LOG_EVERY_S: Final = 60.0
_Record = TypeVar("_Record")


class Changes(NamedTuple):
    """Keys of the rows that have changed in one poll. groups: numbers of groups."""

    groups: frozenset[int]
    pins: frozenset[str]
    moves: frozenset[str]
    orders: frozenset[str]
    members: frozenset[str]
    merges: frozenset[str]


class _Known(NamedTuple):
    row: Row
    record: Any


class View:
    """A member's view. `restore` first, then `run`.

    clock: monotonic; now: unix seconds; keeper: local state.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        clock: Callable[[], float],
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        keeper: Keeper | None = None,
        forms: Collection[str] | None = None,
    ) -> None:
        """forms: those that this member reads; None: all."""
        self.directory, self._clock, self._now, self._sleep = directory, clock, now, sleep
        self._keeper, self._forms = keeper, forms
        self._known: dict[Kind, dict[str, _Known]] = {kind: {} for kind in (*_KEPT, Kind.BEATS)}
        self._read: dict[Kind, dict[str, Row]] = {}
        self._behind: dict[tuple[Kind, str], int] = {}
        self._insisted: set[tuple[Kind, str]] = set()
        """Rows of `put` with `insist` that the directory has not shown yet."""
        self._ties: dict[tuple[Kind, str], Assigned] = {}
        self._bad: set[tuple[Kind, str, int]] = set()
        self._listeners: list[Callable[[Changes], None]] = []
        self._good_at: float | None = None
        self._polls = 0
        self._logged_at: float | None = None
        self._unsaved = False
        self._passing = asyncio.Lock()
        self._begun = self._done = 0
        self._answered = False

    # -- what is known ----------------------------------------------------------------

    @property
    def settings(self) -> Settings | None:
        """Return the directory's settings, None before they have been read once."""
        return self._records(Kind.SETTINGS, Settings).get(SETTINGS_KEY)

    @property
    def groups(self) -> dict[int, Assigned]:
        """Return the assignments by group number."""
        return {int(key): record for key, record in self._records(Kind.GROUPS, Assigned).items()}

    @property
    def pins(self) -> dict[str, Assigned]:
        """Return the pins by storage id, removed pins included."""
        return self._records(Kind.PINS, Assigned)

    @property
    def moves(self) -> dict[str, Move]:
        return self._records(Kind.MOVES, Move)

    @property
    def orders(self) -> dict[str, Orders]:
        return self._records(Kind.ORDERS, Orders)

    @property
    def members(self) -> dict[str, Member]:
        return self._records(Kind.MEMBERS, Member)

    @property
    def beats(self) -> dict[str, Beat]:
        """Return the newest beat of each member."""
        return self._records(Kind.BEATS, Beat)

    def assigned(self, key: str, kind: Kind = Kind.GROUPS) -> Assigned | None:
        """Return the assignment of a group or a pinned user, by the row's key."""
        known = self._known[kind].get(key)
        return known.record if known is not None else None

    def beat_read(self, name: str) -> int | None:
        """Return the counter of a member as the last good poll read it, new or old."""
        row = self._read.get(Kind.BEATS, {}).get(name)
        try:
            return None if row is None else decode(row.value, Beat).counter
        except ValueError:
            return None

    def owners(self) -> dict[str, str]:
        """Return all backends that an assignment names, with their sites. A site that
        is not known is ""."""
        records = [known.record for kind in (Kind.GROUPS, Kind.PINS) for known in self._known[kind].values()]
        return {name: self._site(name) for name in {record.backend for record in records}}

    def watched(self) -> dict[str, str]:
        """Return the backends whose beats matter, with their sites.

        These are the backends that an assignment names, and those that may get groups.
        If a backend that may get groups died unnoticed, nobody would acquire its share
        of the groups of another dead backend. A backend that has stopped in order gets
        no groups.
        """
        orders, beats = self.orders, self.beats
        online = (
            name
            for name, member in self.members.items()
            if member.role == "backend" and orders.get(name, Orders()).state is State.ONLINE
            if name not in beats or not beats[name].ending
        )
        return {name: self._site(name) for name in {*self.owners(), *online}}

    @property
    def merges(self) -> dict[str, Merge]:
        """Return the merges by unit. A merge names a backend that may have changed
        users whom another backend serves."""
        return self._records(Kind.MERGES, Merge)

    def age(self) -> float | None:
        """Return the seconds since the last good answer, also if an earlier process got
        it. None: there was no good answer."""
        return None if self._good_at is None else max(0.0, self._clock() - self._good_at)

    @property
    def behind(self) -> frozenset[tuple[Kind, str]]:
        """Return the rows that are behind; see the module's text."""
        return frozenset(self._behind)

    def take_ties(self) -> dict[tuple[Kind, str], Assigned]:
        """Return the assignments that lost against another with the same number, since
        the last call. Two backends have assigned the unit at the same time."""
        ties, self._ties = self._ties, {}
        return ties

    def listen(self, listener: Callable[[Changes], None]) -> None:
        """Call `listener` after each poll that changed something."""
        self._listeners.append(listener)

    # -- reading ----------------------------------------------------------------------

    def restore(self) -> bool:
        """Load the copy of an earlier process. Returns whether there was a copy. Raises
        ConfigError."""
        kept = self._keeper.load() if self._keeper is not None else None
        if kept is None:
            return False
        for kind in _KEPT:
            for key, row in kept.rows.get(kind.value, {}).items():
                self._take(kind, key, Row(*row))
        known = self._known[Kind.SETTINGS].get(SETTINGS_KEY)
        self._check(known.row if known is not None else None)
        self._good_at = self._clock() - max(0.0, self._now() - kept.at)
        return True

    def note(self, kind: Kind, key: str, row: Row) -> None:
        """Take a row that was read or written outside of a poll."""
        if self._take(kind, key, row):
            self._unsaved = True
            self._notify({kind: {key}})

    async def run(self) -> None:
        """Poll for ever. Raises ConfigError."""
        while True:
            began = self._clock()
            await self.poll()
            await self._sleep(max(0.0, began + POLL_S - self._clock()))

    async def poll(self) -> bool:
        """Make a pass over the directory that begins after the call. Returns False if
        the directory does not answer.

        Passes run one after the other. Callers that wait for the same pass share it.
        Raises ConfigError.
        """
        before = self._begun
        async with self._passing:
            if self._done > before:
                return self._answered
            self._begun += 1
            self._answered = await self._pass()
            self._done = self._begun
            return self._answered

    async def _pass(self) -> bool:
        try:
            rows = dict(zip(POLLED, await asyncio.gather(*map(self.directory.all, POLLED)), strict=True))
            if self._polls % SETTINGS_POLLS == 0 or self.settings is None:
                rows[Kind.SETTINGS] = await self.directory.all(Kind.SETTINGS)
        except Unavailable as error:
            self._log_outage(str(error))
            return False
        if Kind.SETTINGS in rows:
            self._check(rows[Kind.SETTINGS].get(SETTINGS_KEY))
        self._polls += 1
        changed = {kind: await self._take_all(kind, of) for kind, of in rows.items()}
        self._read |= rows
        self._good_at = self._clock()
        if self._logged_at is not None:
            self._logged_at = None
            log.info("directory answers again")
        if any(changed[kind] for kind in rows if kind is not Kind.BEATS):
            self._unsaved = True
        self._notify(changed)
        await self._save()
        return True

    async def boots(self) -> list[tuple[str, BootRow]]:
        """Read all rows of boots, which no poll reads. Rows that do not decode are left
        out. Raises Unavailable."""
        rows = await self.directory.all(Kind.BOOTS)
        found = ((key, self.decoded(Kind.BOOTS, key, row)) for key, row in sorted(rows.items()))
        return [(key, record) for key, record in found if isinstance(record, BootRow)]

    async def put_boot(self, key: str, row: BootRow) -> None:
        """Write a row of a boot, which no poll reads. Raises Unavailable."""
        before = await self.directory.get(Kind.BOOTS, key)
        await self.directory.put(Kind.BOOTS, key, encode(row), next_timestamp(self._now, before))

    async def put(self, kind: Kind, key: str, record: msgspec.Struct, *, insist: bool = False) -> None:
        """Write a row that is newer than any that was seen under its key, and note it.

        insist: note the row also if the directory does not answer, and write it again
        at once while the directory shows an older row. Raises Unavailable: the row may
        have been written, or may still be.
        """
        known, shown = self._known[kind].get(key), self._read.get(kind, {}).get(key)
        seen = max((row.timestamp for row in (known and known.row, shown) if row is not None), default=0)
        row = Row(encode(record), max(int(self._now() * 1_000_000), seen + 1))
        if insist:
            self._insisted.add((kind, key))
        try:
            await self.directory.put(kind, key, row.value, row.timestamp)
        except BaseException:
            if insist:
                self.note(kind, key, row)
            raise
        self.note(kind, key, row)

    async def write_back(self, name: str) -> int:
        """Write back rows that are behind. The rows of member `name`, and those that
        this member insists on, are written at once, others after BEHIND_POLLS. Returns
        their number. Raises Unavailable."""
        due = [
            (kind, key)
            for (kind, key), polls in self._behind.items()
            if polls >= BEHIND_POLLS or (kind, key) in self._insisted or self._belongs(kind, key) == name
        ][:WRITE_BACK_ROWS]
        for kind, key in due:
            row, shown = self._known[kind][key].row, self._read[kind].get(key)
            stamp = row.timestamp if shown is None else max(row.timestamp, shown.timestamp + 1)
            await self.directory.put(kind, key, row.value, stamp)
            self._behind.pop((kind, key), None)
        return len(due)

    # -- inside -----------------------------------------------------------------------

    def _check(self, settings: Row | None) -> None:
        """Raise ConfigError if this code is too old for the directory."""
        refuse_newer_forms(settings_in(settings), self._forms)

    def _records(self, kind: Kind, of: type[_Record]) -> dict[str, _Record]:
        return {key: known.record for key, known in self._known[kind].items()}

    def _site(self, name: str) -> str:
        member, beat = self._known[Kind.MEMBERS].get(name), self._known[Kind.BEATS].get(name)
        return str(member.record.site if member is not None else beat.record.site if beat is not None else "")

    def _belongs(self, kind: Kind, key: str) -> str:
        """Return the member that a row belongs to, "" if it belongs to none."""
        if kind in (Kind.GROUPS, Kind.PINS):
            return str(self._known[kind][key].record.backend)
        return key if kind in (Kind.MEMBERS, Kind.ORDERS) else ""

    async def _take_all(self, kind: Kind, rows: Mapping[str, Row]) -> set[str]:
        """Take rows. Returns the keys whose records have changed. Other tasks run
        between parts of the work."""
        changed = set()
        before = self._read.get(kind, {})
        for number, (key, row) in enumerate(rows.items(), 1):
            if before.get(key) != row and self._take(kind, key, row):
                changed.add(key)
            if number % _ROWS_A_TURN == 0:
                await self._sleep(0)
        if kind in _KEPT:
            await self._compare(kind, rows)
        return changed

    def _take(self, kind: Kind, key: str, row: Row) -> bool:
        """Take a row if it is newer. Returns whether the record has changed."""
        known = self._known[kind].get(key)
        if known is not None and known.row == row:
            return False
        record = self.decoded(kind, key, row)
        if record is None:
            return False
        if known is not None and not _later(known, row, record):
            if isinstance(record, Assigned) and record.number == known.record.number and record != known.record:
                self._ties[kind, key] = record
            return False
        self._known[kind][key] = _Known(row, record)
        return known is None or known.record != record

    def decoded(self, kind: Kind, key: str, row: Row) -> msgspec.Struct | None:
        try:
            if kind is Kind.GROUPS and group_number(key) is None:
                raise ValueError("the key is not a group")
            return msgspec.msgpack.decode(row.value, type=RECORDS[kind])
        except ValueError as error:
            bad = (kind, key, row.timestamp)
            if bad not in self._bad:
                if len(self._bad) >= _BAD_MAX:
                    self._bad.clear()
                self._bad.add(bad)
                log.error(
                    "row of the directory cannot be read and is ignored", kind=kind.value, key=key, error=str(error)
                )
            return None

    async def _compare(self, kind: Kind, rows: Mapping[str, Row]) -> None:
        """Count for each row in how many polls in succession it was behind."""
        known, behind = self._known[kind], set()
        for number, key in enumerate(list(known), 1):
            if rows.get(key) != known[key].row:
                behind.add(key)
            elif self._insisted:
                self._insisted.discard((kind, key))
            if number % _ROWS_A_TURN == 0:
                await self._sleep(0)
        for key in [key for of, key in self._behind if of is kind and key not in behind]:
            del self._behind[kind, key]
        for key in behind:
            self._behind[kind, key] = self._behind.get((kind, key), 0) + 1

    def _notify(self, changed: Mapping[Kind, Iterable[str]]) -> None:
        if not any(changed.get(kind) for kind in POLLED[:-1]):
            return
        groups = frozenset(int(key) for key in changed.get(Kind.GROUPS, ()))
        changes = Changes(groups, *(frozenset(changed.get(kind, ())) for kind in POLLED[1:-1]))
        for listener in list(self._listeners):
            listener(changes)

    async def _save(self) -> None:
        """Keep the rows in local state. A disk that fails is only logged, since the
        next start alone needs the copy."""
        if self._keeper is None or not self._unsaved:
            return
        self._unsaved = False
        rows: dict[str, dict[str, tuple[bytes, int]]] = {kind.value: {} for kind in _KEPT}
        for kind in _KEPT:
            for number, (key, known) in enumerate(list(self._known[kind].items()), 1):
                rows[kind.value][key] = (known.row.value, known.row.timestamp)
                if number % _ROWS_A_TURN == 0:
                    await self._sleep(0)
        try:
            await self._keeper.save(Kept(self._now(), rows))
        except OSError as error:
            self._unsaved = True
            log.warning("copy of the directory cannot be saved", error=str(error))

    def _log_outage(self, reason: str) -> None:
        now = self._clock()
        if self._logged_at is None or now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            age = self.age()
            log.warning(
                "directory does not answer, its last known rows are used",
                error=reason,
                age_s=None if age is None else round(age),
            )


def _later(known: _Known, row: Row, record: msgspec.Struct) -> bool:
    """Return whether a row is newer than what is known."""
    if isinstance(record, Assigned):
        same = (record.number, record.token) == (known.record.number, known.record.token)
        return row.beats(known.row) if same else newer(known.record, record)
    return row.beats(known.row)
