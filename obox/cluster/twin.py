"""Two backends with one name: the backend that starts later ends.

Both would own the same groups by every row, and each would fence the boots of the other
backend as its own earlier boots. A start therefore reads the beat under its name. It
does not wait if the beat is of an earlier process with the same state directory, whose
lock this process has. Otherwise it waits and sees whether the beat goes on. A row that
changes once or twice may be a late write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from obox.errors import NameTaken

from .directory import Directory, Kind
from .records import Beat, Member, decode

log = structlog.get_logger()
_Record = TypeVar("_Record", Beat, Member)

LOOK_S: Final = 0.5
STILL_S: Final = 3.0
"""A beat that does not change for this time is of a process that has ended. A process
writes one each second."""
CHANGES: Final = 3
"""Of the counter, after which the other process lives."""


async def refuse_twin(
    directory: Directory,
    name: str,
    ours: Member,
    *,
    was_ours: Callable[[str], bool],
    sleep: Callable[[float], Awaitable[object]],
) -> None:
    """Raises NameTaken, which has both addresses; Unavailable.

    was_ours: whether a boot was of an earlier process with this state directory.
    """
    before = await _read(directory, Kind.BEATS, name, Beat)
    if before is None or before.ending or was_ours(before.boot):
        return
    log.info("another process has had this name, its beat is watched", boot=before.boot)
    still_s, changes = 0.0, 0
    while still_s < STILL_S:
        await sleep(LOOK_S)
        beat = await _read(directory, Kind.BEATS, name, Beat)
        still_s += LOOK_S
        if beat is not None and beat.counter > before.counter:
            before, still_s, changes = beat, 0.0, changes + 1
        if changes >= CHANGES:
            there = await _read(directory, Kind.MEMBERS, name, Member)
            raise NameTaken(
                f"cluster.backend: another backend is {name}, at {_place(there)}, and lives; this one is at "
                f"{_place(ours)}; allowed: a name for each backend"
            )


async def _read(directory: Directory, kind: Kind, name: str, record: type[_Record]) -> _Record | None:
    row = await directory.get(kind, name)
    try:
        return None if row is None else decode(row.value, record)
    except ValueError:
        return None


def _place(member: Member | None) -> str:
    if member is None:
        return "an unknown address"
    return " ".join([member.address, *(f"{listener} {port}" for listener, port in sorted(member.ports.items()))])
