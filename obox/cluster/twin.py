"""Two backends with one name: the backend that starts later refuses to serve.

Each row would name both of them as the owner of the same groups. Each would take the
boots of the other for earlier boots of its own, and fence them. A start therefore reads
the beat under its name. If the beat is of an earlier process with the same state
directory, the start goes on, since it has the lock of this directory. Otherwise it
waits and sees whether the beat changes. A beat that changes once or twice may be a late
write.
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
"""A process whose beat does not change for this time has ended. A live process writes
its beat each second."""
CHANGES: Final = 3
"""After three changes of its counter the other process is taken for alive."""


async def refuse_twin(
    directory: Directory,
    name: str,
    ours: Member,
    *,
    was_ours: Callable[[str], bool],
    sleep: Callable[[float], Awaitable[object]],
) -> None:
    """Return if no other live process has this name. Raises NameTaken, which has both
    addresses; Unavailable.

    was_ours: says whether an earlier process with this state directory had a boot.
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
